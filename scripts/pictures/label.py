"""Scored boxes of two public detectors for the classes that a data set's own labels leave out.

    label.py --data DIR --picodet picodet_s_416_coco.onnx --nanodet nanodet-1.5x-416-int8.xml

Writes DIR/pseudo.json: boxes of PicoDet-s and, on the mirrored picture, of NanoDet-Plus-m-1.5x (both 416x416,
COCO-trained, Apache-2.0), fused; a box that only one of them finds keeps half its score. Scores are stretched so that
0.45 is the score from which a class's boxes are mostly right (`SURE`) and 0.2 the one below which they are noise
(`NOISE`): `fovea-train fit --pseudo` trains from 0.45 and ignores from 0.2 to 0.45.

Needs numpy, opencv-python-headless and openvino (which reads ONNX and its own IR).
"""

import argparse
import json
import pathlib

import cv2
import numpy as np
import openvino
import openvino.opset8

SIZE = 416
STRIDES = (8, 16, 32, 64)
BINS = 8  # of a distance's distribution
CLASSES = {0: 1, 2: 3, 3: 4, 5: 6, 7: 8, 15: 17, 16: 18, 17: 19, 18: 20, 19: 21, 1: 2, 14: 16}  # COCO's 80 to category ids
NAMES = {1: "person", 3: "car", 4: "motorcycle", 6: "bus", 8: "truck", 17: "cat", 18: "dog", 19: "horse", 20: "sheep", 21: "cow", 2: "bicycle", 16: "bird"}
SURE = {1: 0.38, 3: 0.42, 4: 0.40, 6: 0.42, 8: 0.45, 17: 0.33, 18: 0.35, 19: 0.35, 20: 0.35, 21: 0.35, 2: 0.45, 16: 0.45}
NOISE = 0.17
RIDERS = ({1, 4}, {1, 19})  # classes whose boxes may coincide


def iou(box, boxes):
    low, high = np.maximum(box[:2], boxes[:, :2]), np.minimum(box[2:], boxes[:, 2:])
    inner = np.prod(np.clip(high - low, 0, None), axis=1)
    return inner / (np.prod(box[2:] - box[:2]) + np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) - inner + 1e-9)


def suppressed(boxes, scores, limit=0.6):
    order, kept = scores.argsort()[::-1], []
    while len(order):
        kept.append(order[0])
        order = order[1:][iou(boxes[order[0]], boxes[order[1:]]) < limit]
    return kept


def by_category(boxes, scores, lowest):
    """What is left of the boxes of each category, with its scores above `lowest`."""
    found = {}
    for column, category in enumerate(CLASSES.values()):
        mine = scores[:, column] > lowest
        kept = suppressed(boxes[mine], scores[mine, column])
        found[category] = boxes[mine][kept], scores[mine, column][kept]
    return found


def letterboxed(picture):
    height, width = picture.shape[:2]
    scale = min(SIZE / height, SIZE / width)
    new_height, new_width = max(1, round(height * scale)), max(1, round(width * scale))
    top, left = (SIZE - new_height) // 2, (SIZE - new_width) // 2
    canvas = np.zeros((SIZE, SIZE, 3), np.uint8)
    how = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    canvas[top : top + new_height, left : left + new_width] = cv2.resize(picture, (new_width, new_height), interpolation=how)
    return canvas, np.array([left, top] * 2), np.array([new_width / width, new_height / height] * 2)


def repaired(network):
    """A published int8 NanoDet without what spoils it: the quantisers of activations, and the input turned to RGB although
    the network was trained on BGR (the mean and deviation turned with it)."""
    for node in network.get_ordered_ops():
        source = node.input_value(0) if node.get_input_size() else None
        is_quantiser = node.get_type_name() == "FakeQuantize" and source.get_node().get_type_name() not in ("Constant", "Convert")
        is_turn = node.get_type_name() == "Gather" and list(node.get_output_partial_shape(0).get_max_shape()) == [1, SIZE, SIZE, 3]
        if is_quantiser or is_turn:
            for reader in node.output(0).get_target_inputs():
                reader.replace_source_output(source)
        elif node.get_type_name() == "Constant" and list(node.get_output_shape(0)) == [1, 1, 1, 3]:
            turned = openvino.opset8.constant(node.data[..., ::-1].copy())
            for reader in node.output(0).get_target_inputs():
                reader.replace_source_output(turned.output(0))
    network.validate_nodes_and_infer_types()
    return network


class Detector:
    """A detector with a distribution over distances at every cell; `is_pico` tells the two layouts apart."""

    OPTIONS = {}  # of OpenVINO

    def __init__(self, path, is_pico):
        self.is_pico = is_pico
        network = openvino.Core().read_model(str(path))
        self.network = openvino.Core().compile_model(network if is_pico else repaired(network), "CPU", self.OPTIONS)
        cells = []
        for stride in STRIDES:
            y, x = np.mgrid[: -(-SIZE // stride), : -(-SIZE // stride)]
            shift = (stride - 1) / 2 if is_pico else 0
            cells.append(np.stack([x.ravel() * stride + shift, y.ravel() * stride + shift, np.full(x.size, stride)], 1))
        self.cells = np.concatenate(cells).astype(np.float32)

    def __call__(self, picture, lowest=0.1):
        """Boxes by category: (boxes as corners in pixels, scores above `lowest`)."""
        height, width = picture.shape[:2]
        canvas, shift, scale = letterboxed(picture)
        if self.is_pico:
            mean, deviation = np.float32([103.53, 116.28, 123.675]), np.float32([57.375, 57.12, 58.395])
            outputs = self.network(((canvas - mean) / deviation).transpose(2, 0, 1)[None])
            scores, distances = (np.concatenate([outputs[i][0] for i in range(at, at + 4)]) for at in (0, 4))
        else:
            output = self.network(canvas[None])[0][0]
            scores, distances = output[:, :80], output[:, 80:]
        scores = scores[:, list(CLASSES)]
        hit = scores.max(axis=1) > lowest
        scores, cells = scores[hit], self.cells[hit]
        weights = np.exp(distances[hit].reshape(-1, 4, BINS))
        reach = (weights / weights.sum(2, keepdims=True)) @ np.arange(BINS, dtype=np.float32) * cells[:, 2:]
        boxes = np.concatenate([cells[:, :2] - reach[:, :2], cells[:, :2] + reach[:, 2:]], axis=1)
        boxes = np.clip((boxes - shift) / scale, 0, [width, height] * 2)
        return by_category(boxes, scores, lowest)


def fused(first, second, limit=0.55):
    """Weighted boxes fusion of two detectors' boxes of one class: the mean box, and the mean score with 0 for a miss."""
    boxes, scores = list(first[0]), list(first[1] / 2)
    free = set(range(len(boxes)))
    for box, score in zip(*second):
        near = iou(box, first[0]) if len(first[0]) else np.zeros(0)
        partner = next((i for i in near.argsort()[::-1] if near[i] >= limit and i in free), None)
        if partner is None:
            boxes.append(box)
            scores.append(score / 2)
        else:
            free.remove(partner)
            other = first[1][partner]
            boxes[partner] = (first[0][partner] * other + box * score) / (other + score)
            scores[partner] = (other + score) / 2
    return zip(boxes, scores)


def stretched(category, score):
    sure = SURE[category]
    if score < NOISE:
        return score / NOISE * 0.2
    if score < sure:
        return 0.2 + (score - NOISE) / (sure - NOISE) * 0.25
    return 0.45 + (score - sure) / (1 - sure) * 0.55


def scored_boxes(picture, picodet, nanodet):
    """[category, score, box] of a picture; of several names for one object only the best may stay sure."""
    width = picture.shape[1]
    first, mirrored = picodet(picture), nanodet(picture[:, ::-1])
    found = []
    for category in CLASSES.values():
        boxes, scores = mirrored[category]
        boxes = np.stack([width - boxes[:, 2], boxes[:, 1], width - boxes[:, 0], boxes[:, 3]], axis=1)
        found += [[category, stretched(category, float(score)), box] for box, score in fused(first[category], (boxes, scores))]
    found = sorted((item for item in found if item[1] >= 0.2), key=lambda item: -item[1])
    for i, item in enumerate(found):
        for better in found[:i]:
            pair = {item[0], better[0]}
            if len(pair) == 2 and pair not in RIDERS and iou(item[2], better[2][None])[0] > 0.7:
                item[1] = min(item[1], 0.3)
    return found


def completed(found, own, exhaustive):
    """What the own labels leave room for: nothing on an own box; where a class is complete, ignored at the most."""
    for category, score, box in found:
        mine = [np.array([x, y, x + w, y + h]) for c, (x, y, w, h) in own if c == category]
        if mine and iou(box, np.stack(mine)).max() > 0.45:
            continue
        yield category, min(score, 0.3) if category in exhaustive else score, box


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=pathlib.Path, required=True)
    parser.add_argument("--picodet", type=pathlib.Path, required=True)
    parser.add_argument("--nanodet", type=pathlib.Path, required=True)
    args = parser.parse_args()
    picodet, nanodet = Detector(args.picodet, True), Detector(args.nanodet, False)
    document = json.loads((args.data / "annotations.json").read_text())
    own = {}
    for annotation in document["annotations"]:
        own.setdefault(annotation["image_id"], []).append((annotation["category_id"], annotation["bbox"]))
    annotations = []
    for image in document["images"]:
        found = scored_boxes(cv2.imread(str(args.data / "images" / image["file_name"])), picodet, nanodet)
        for category, score, (x0, y0, x1, y1) in completed(found, own.get(image["id"], []), image["exhaustive_category_ids"]):
            box = [round(float(value), 2) for value in (x0, y0, x1 - x0, y1 - y0)]
            annotation = {"id": len(annotations) + 1, "image_id": image["id"], "category_id": category, "bbox": box}
            annotations.append({**annotation, "area": round(box[2] * box[3], 2), "iscrowd": 0, "score": round(score, 4)})
    categories = [{"id": category, "name": name} for category, name in NAMES.items()]
    (args.data / "pseudo.json").write_text(json.dumps({"categories": categories, "annotations": annotations}))


if __name__ == "__main__":
    main()
