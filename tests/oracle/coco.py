"""COCO metrics as pycocotools computes them.

usage: coco.py < cases.json > answers.json

A case is {"dataset": COCO data set, "detections": COCO results}. The answer has the fields of `fovea eval --json`. pycocotools
knows no `exhaustive_category_ids`: each class is evaluated alone over the pictures that are completely labelled for it.
"""
import contextlib, io, json, sys
import numpy as np
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval


def metrics(case):
    dataset, detections = case["dataset"], case["detections"]
    per_class, by_area = {}, {k: [] for k in ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")}
    for category in dataset["categories"]:
        cid = category["id"]
        images = [i["id"] for i in dataset["images"] if cid in i.get("exhaustive_category_ids", [cid])]
        truth = COCO()
        truth.dataset = {**dataset, "annotations": [dict(a) for a in dataset["annotations"]]}
        truth.createIndex()
        own = [d for d in detections if d["category_id"] == cid and d["image_id"] in set(images)]
        found = truth.loadRes(own) if own else COCO()
        if not own:
            found.dataset = {**dataset, "annotations": []}
            found.createIndex()
        run = COCOeval(truth, found, "bbox")
        run.params.catIds, run.params.imgIds = [cid], sorted(images)
        run.evaluate()
        if images:
            run.accumulate()
            precision = run.eval["precision"][:, :, 0, :, 2]  # [IoU, recall, area], 100 detections
        else:
            precision = -np.ones((10, 101, 4))
        mean = lambda p: float(p.mean()) if (p > -1).all() else None
        row = {"ap": mean(precision[:, :, 0]), "ap50": mean(precision[0, :, 0]), "ap75": mean(precision[5, :, 0])}
        row |= {f"ap_{name}": mean(precision[:, :, i]) for i, name in [(1, "small"), (2, "medium"), (3, "large")]}
        for key, value in row.items():
            by_area[key] += [value] if value is not None else []
        per_class[category["name"]] = {"ap": row["ap"], "ap50": row["ap50"]}
    answer = {key: (sum(values) / len(values) if values else None) for key, values in by_area.items()}
    return answer | {"per_class": per_class}


cases = json.load(sys.stdin)
with contextlib.redirect_stdout(io.StringIO()):
    answers = [metrics(case) for case in cases]
json.dump(answers, sys.stdout)
