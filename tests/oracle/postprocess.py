"""Decoding and non-maximum suppression with torchvision's semantics, in plain NumPy.

usage: postprocess.py FOLDER

FOLDER has cases.json: a list of {"name", "input": [w, h], "levels": [{"grid", "stride", "base_size", "cls": {"scale",
"zero_point"}, "box": {…}}], "scales", "ratios", "offset", "n_classes", "thresholds": one a class, "topk", "nms": "greedy",
"soft_linear" or "soft_gaussian", "iou", "sigma", "agnostic", "min_size", "max"}, and for each case and level NAME.LEVEL.cls and
NAME.LEVEL.box: u8 [H, W, C], or f32 where the level has no scale. Writes NAME.found.json: [[class, score, x1, y1, x2, y2], …],
best first.

As torchvision.models.detection.retinanet.postprocess_detections: score > threshold, the best k of each level, boxes decoded
with dw and dh clamped at ln(1000 / 16), class-wise suppression at IoU > t, the best n. Two differences, both stated in
docs: boxes are not clipped before suppression (detectron2 does not either), and equal scores are taken in the order
(level, anchor, class), where torchvision leaves the order open. Soft suppression as in Bodla et al., arXiv 1704.04503, figure 2;
small boxes as torchvision.ops.remove_small_boxes, before suppression.
"""
import json, sys
import numpy as np

folder = sys.argv[1]


def values(case, index, kind, level):
    w, h = level["grid"]
    params = level[kind]
    path = f"{folder}/{case['name']}.{index}.{kind}"
    if params is None:
        return np.fromfile(path, np.float32).astype(np.float64).reshape(h, w, -1)
    q = np.fromfile(path, np.uint8).reshape(h, w, -1)
    real = np.float32(params["scale"]) * (q.astype(np.float32) - np.float32(params["zero_point"]))
    return real.astype(np.float64)


def anchors(case, level):
    w, h = level["grid"]
    rows, columns = np.mgrid[0:h, 0:w]
    boxes = []
    for ratio in case["ratios"]:
        for scale in case["scales"]:
            side = level["base_size"] * scale
            half_w, half_h = side / ratio**0.5 / 2, side * ratio**0.5 / 2
            cx, cy = (columns + case["offset"]) * level["stride"], (rows + case["offset"]) * level["stride"]
            boxes.append(np.stack([cx - half_w, cy - half_h, cx + half_w, cy + half_h], -1))
    return np.stack(boxes, 2).reshape(-1, 4)


def decode(deltas, boxes):
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    cx, cy = boxes[:, 0] + w / 2, boxes[:, 1] + h / 2
    limit = np.log(1000 / 16)
    dw, dh = np.minimum(deltas[:, 2], limit), np.minimum(deltas[:, 3], limit)
    cx, cy, w, h = cx + deltas[:, 0] * w, cy + deltas[:, 1] * h, np.exp(dw) * w, np.exp(dh) * h
    return np.stack([cx - w / 2, cy - h / 2, cx + w / 2, cy + h / 2], 1)


def iou(a, b):
    w = np.clip(np.minimum(a[2], b[:, 2]) - np.maximum(a[0], b[:, 0]), 0, None)
    h = np.clip(np.minimum(a[3], b[:, 3]) - np.maximum(a[1], b[:, 1]), 0, None)
    area = lambda x: (x[..., 2] - x[..., 0]) * (x[..., 3] - x[..., 1])
    union = area(a) + area(b) - w * h
    return np.where(union > 0, w * h / np.where(union > 0, union, 1), 0)


def greedy(case, scores, classes, boxes):
    order = np.argsort(-scores.astype(np.float64), kind="stable")
    alive, kept = np.ones(len(order), bool), []
    for n, i in enumerate(order):
        if not alive[n]:
            continue
        kept.append((i, scores[i]))
        if len(kept) == case["max"]:
            break
        rest = order[n + 1 :]
        rivals = (classes[rest] == classes[i]) | case["agnostic"]
        alive[n + 1 :] &= ~(rivals & (iou(boxes[i], boxes[rest]) > case["iou"]))
    return kept


def soft(case, scores, classes, boxes):
    scores, thresholds = scores.astype(np.float64), np.array(case["thresholds"])
    left, kept = np.arange(len(scores)), []
    while len(left) and len(kept) < case["max"]:
        i = left[np.argmax(scores[left])]
        kept.append((i, scores[i]))
        left = left[left != i]
        overlap = iou(boxes[i], boxes[left])
        if case["nms"] == "soft_linear":
            weight = np.where(overlap > case["iou"], 1 - overlap, 1)
        else:
            weight = np.exp(-(overlap**2) / case["sigma"])
        scores[left] *= np.where((classes[left] == classes[i]) | case["agnostic"], weight, 1)
        left = left[scores[left] > thresholds[classes[left]]]
    return kept


for case in json.load(open(f"{folder}/cases.json")):
    k = case["n_classes"]
    thresholds = np.array(case["thresholds"], np.float32)
    all_scores, all_classes, all_boxes = [], [], []
    for index, level in enumerate(case["levels"]):
        logits = values(case, index, "cls", level).reshape(-1, k)
        deltas = values(case, index, "box", level).reshape(-1, 4)
        scores = (1 / (1 + np.exp(-logits))).astype(np.float32)
        place = np.flatnonzero((scores > thresholds).reshape(-1))
        scores = scores.reshape(-1)[place]
        best = np.sort(np.argsort(-scores.astype(np.float64), kind="stable")[: case["topk"]])
        place, scores = place[best], scores[best]
        all_scores.append(scores)
        all_classes.append(place % k)
        all_boxes.append(decode(deltas[place // k], anchors(case, level)[place // k]))
    scores, classes, boxes = np.concatenate(all_scores), np.concatenate(all_classes), np.concatenate(all_boxes)
    w, h = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    large = (w >= case["min_size"]) & (h >= case["min_size"])
    scores, classes, boxes = scores[large], classes[large], boxes[large]
    kept = (greedy if case["nms"] == "greedy" else soft)(case, scores, classes, boxes)
    found = [[int(classes[i]), float(score), *map(float, boxes[i])] for i, score in kept]
    json.dump(found, open(f"{folder}/{case['name']}.found.json", "w"))
