"""Accuracy of small detectors that people use instead, on the same pictures and the same classes as `fovea eval`.

usage: accuracy_peers.py --data DIR [--picodet picodet_s_416_coco.onnx] [--nanodet nanodet-1.5x-416-int8.xml] [--yolox yolox_nano.onnx] [--out DIR]

The networks are those of scripts/pictures/README.md and YOLOX-nano 416 (Megvii-BaseDetection/YOLOX; `model/` of
Kazuhito00/YOLOX-ONNX-TFLite-Sample has it as ONNX), all trained on COCO train2017,
each with its own preprocessing; scores from 0.05 on, NMS at IoU 0.6 and one class at a time. A class counts in a picture where it is
completely labelled (`exhaustive_category_ids`). Means are over the classes that have boxes there. Prints COCO AP and AP50 in percent, and
the least CPU time of the network alone on one thread; --out writes NAME.bench.json and NAME.eval.json for
`fovea-train plot speed`. Needs numpy, opencv-python-headless, openvino and pycocotools.
"""

import argparse
import contextlib
import io
import json
import pathlib
import sys
import time

import cv2
import numpy as np
import openvino
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "scripts" / "pictures"))
from label import CLASSES, NAMES, SIZE, Detector, by_category  # noqa: E402

LOWEST = 0.05


class Yolox:
    """YOLOX without its decoding: centres and logarithms of sizes in cells, the picture in the upper left corner on grey."""

    def __init__(self, path):
        self.network = openvino.Core().compile_model(str(path), "CPU", Detector.OPTIONS)
        cells = []
        for stride in (8, 16, 32):
            y, x = np.mgrid[: SIZE // stride, : SIZE // stride]
            cells.append(np.stack([x.ravel() * stride, y.ravel() * stride, np.full(x.size, stride)], 1))
        self.cells = np.concatenate(cells).astype(np.float32)

    def __call__(self, picture, lowest):
        height, width = picture.shape[:2]
        scale = min(SIZE / height, SIZE / width)
        small = cv2.resize(picture, (round(width * scale), round(height * scale)), interpolation=cv2.INTER_LINEAR)
        canvas = np.full((SIZE, SIZE, 3), 114, np.uint8)
        canvas[: small.shape[0], : small.shape[1]] = small
        output = self.network(canvas.astype(np.float32).transpose(2, 0, 1)[None])[0][0]
        scores = output[:, 5:][:, list(CLASSES)] * output[:, 4:5]
        hit = scores.max(axis=1) > lowest
        output, scores, cells = output[hit], scores[hit], self.cells[hit]
        centre, half = output[:, :2] * cells[:, 2:] + cells[:, :2], np.exp(output[:, 2:4]) * cells[:, 2:] / 2
        boxes = np.clip(np.concatenate([centre - half, centre + half], 1) / scale, 0, [width, height] * 2)
        return by_category(boxes, scores, lowest)


def least_time(network):
    """Least CPU time of 60 runs in ms."""
    source = network.input(0)
    blank = np.zeros(list(source.get_partial_shape().get_max_shape()), source.get_element_type().to_dtype())
    times = []
    for _ in range(60):
        begin = time.process_time()
        network(blank)
        times.append(time.process_time() - begin)
    return 1e3 * min(times)


def complete(image, category):
    """Categories that are completely labelled in a picture: all of them where it says nothing."""
    listed = image.get("exhaustive_category_ids")
    return [category] if listed is None else listed


def average_precision(labels, results):
    """AP and AP50 by class name, where the class has boxes."""
    truth = COCO()
    truth.dataset = labels
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        found = truth.loadRes(results)
    by_class = {}
    for category in sorted(c["id"] for c in labels["categories"] if NAMES.get(c["id"]) == c["name"]):
        evaluation = COCOeval(truth, found, "bbox")
        evaluation.params.catIds = [category]
        evaluation.params.imgIds = [i["id"] for i in labels["images"] if category in complete(i, category)]
        if not evaluation.params.imgIds:
            continue
        with contextlib.redirect_stdout(io.StringIO()):
            evaluation.evaluate()
            evaluation.accumulate()
        precision = evaluation.eval["precision"][:, :, 0, 0, -1]
        if (precision > -1).any():
            by_class[NAMES[category]] = 100 * precision.mean(), 100 * precision[0].mean()
    return by_class


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, type=pathlib.Path)
    for name in ("picodet", "nanodet", "yolox"):
        parser.add_argument(f"--{name}", type=pathlib.Path)
    parser.add_argument("--out", type=pathlib.Path)
    arguments = parser.parse_args()
    Detector.OPTIONS = {"INFERENCE_NUM_THREADS": 1, "PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
    peers = {
        name: peer(path)
        for name, path, peer in [
            ("PicoDet-s", arguments.picodet, lambda path: Detector(path, True)),
            ("NanoDet-Plus-m-1.5x", arguments.nanodet, lambda path: Detector(path, False)),
            ("YOLOX-nano", arguments.yolox, Yolox),
        ]
        if path
    }
    if not peers:
        parser.error("name at least one network")
    labels = json.loads((arguments.data / "annotations.json").read_text())
    # Scored labels count as in `fovea eval`: objects from 0.45, ignored from 0.2.
    scored = [(a, 1 if a.get("score") is None else a["score"]) for a in labels["annotations"]]
    labels["annotations"] = [annotation for annotation, score in scored if score >= 0.2]
    # Ids are optional and need not be unique; pycocotools takes 0 for "no box".
    for number, (annotation, score) in enumerate((pair for pair in scored if pair[1] >= 0.2), 1):
        annotation["id"] = number
        annotation["iscrowd"] = int(annotation.get("iscrowd") or score < 0.45)
        annotation["area"] = annotation.get("area") or annotation["bbox"][2] * annotation["bbox"][3]
    for name, peer in peers.items():
        results = []
        for image in labels["images"]:
            picture = cv2.imread(str(arguments.data / "images" / image["file_name"]))
            for category, (boxes, scores) in peer(picture, LOWEST).items():
                results += [
                    {"image_id": image["id"], "category_id": category, "bbox": [*map(float, box[:2]), *map(float, box[2:] - box[:2])], "score": float(score)}
                    for box, score in zip(boxes, scores)
                ]
        known = {category["id"] for category in labels["categories"]}
        by_class = average_precision(labels, [result for result in results if result["category_id"] in known])
        mean = np.mean(list(by_class.values()), axis=0)
        milliseconds = least_time(peer.network)
        print(f"{name}: AP {mean[0]:.1f}, AP50 {mean[1]:.1f}, {milliseconds:.1f} ms", flush=True)
        print("  AP50 " + ", ".join(f"{label} {ap50:.1f}" for label, (_, ap50) in by_class.items()), flush=True)
        if arguments.out:
            arguments.out.mkdir(parents=True, exist_ok=True)
            for kind, document in [("bench", {"cpu_ms_min": milliseconds}), ("eval", {"ap": mean[0] / 100, "ap50": mean[1] / 100})]:
                (arguments.out / f"{name}.{kind}.json").write_text(json.dumps(document))


if __name__ == "__main__":
    main()
