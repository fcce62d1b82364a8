"""Builds a training set from public repositories by a manifest.

    build.py --manifest manifest.tsv.gz --cache CACHE --out DIR [--exclude FOLDER]... [--coco-val val2017.txt]

Every repository is fetched by commit into CACHE (bare, depth 1); every picture is checked against its hash (the git
blob id) and scaled to at most 416 pixels. A picture near to one of an excluded folder, or to an earlier one, is left
out. DIR gets images/ and annotations.json (COCO); boxes are a repository's own where its class names map to ours, and
`exhaustive_category_ids` holds the classes that the manifest declares complete. `label.py` scores the rest.

No picture is taken whose name has the id of one of COCO's val2017 (`--coco-val`: `instances_val2017.json` or any other list of
its file names): repositories offer some of them as train2017.

Needs numpy, opencv-python-headless and git.
"""

import argparse
import csv
import gzip
import hashlib
import json
import pathlib
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree

import cv2
import numpy as np

LONGEST = 416
NEAR = 4  # bits of 64
CATEGORIES = {1: "person", 3: "car", 4: "motorcycle", 6: "bus", 8: "truck", 17: "cat", 18: "dog", 19: "horse", 20: "sheep", 21: "cow"}
NAMES = {
    1: "person persons people pedestrian pedestrians human man woman",
    3: "car cars",
    4: "motorcycle motorcycles motorbike motorbikes motor moped mopeds",
    6: "bus buses",
    8: "truck trucks lorry",
    17: "cat cats",
    18: "dog dogs",
    19: "horse horses",
    20: "sheep",
    21: "cow cows cattle",
}
COCO_ID = re.compile(r"(?<!\d)\d{12}(?!\d)")
CATEGORY_OF = {name: category for category, names in NAMES.items() for name in names.split()}


def git(repo, *args):
    return subprocess.run(["git", "-C", str(repo), *args], check=True, capture_output=True).stdout


def fetch(source, cache, remote):
    """The bare repository of a source, holding its commit."""
    path = cache / source["repository"].replace("/", "+")
    if not path.exists():
        path.mkdir(parents=True)
        git(path, "init", "--quiet", "--bare")
    if subprocess.run(["git", "-C", str(path), "cat-file", "-e", source["commit"] + "^{commit}"], capture_output=True).returncode:
        git(path, "fetch", "--quiet", "--depth=1", remote.format(source["repository"]), source["commit"])
    return path


class Blobs:
    """Contents by blob id, checked against it."""

    def __init__(self, repo):
        self.process = subprocess.Popen(["git", "-C", str(repo), "cat-file", "--batch"], stdin=subprocess.PIPE, stdout=subprocess.PIPE)

    def __getitem__(self, blob):
        self.process.stdin.write(blob.encode() + b"\n")
        self.process.stdin.flush()
        head = self.process.stdout.readline().split()
        if len(head) != 3:
            raise KeyError(blob)
        data = self.process.stdout.read(int(head[2]))
        self.process.stdout.read(1)
        if hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest() != blob:
            raise ValueError(f"blob {blob}: the content has another hash")
        return data


def tree(repo, commit):
    """Blob id by path."""
    entries = git(repo, "-c", "core.quotepath=off", "ls-tree", "-r", "-z", commit).decode("utf8", "replace").split("\0")
    return {path: head.split()[2] for head, _, path in (entry.partition("\t") for entry in entries if entry)}


def difference_hash(picture):
    """64 bits: whether a pixel of a 9x8 thumbnail is darker than its right neighbour; and those of the mirrored picture."""
    small = cv2.resize(cv2.cvtColor(picture, cv2.COLOR_BGR2GRAY), (9, 8), interpolation=cv2.INTER_AREA).astype(np.int16)
    weights = np.uint64(1) << np.arange(64, dtype=np.uint64)
    return [(np.diff(image, axis=1) > 0).ravel().astype(np.uint64) @ weights for image in (small, small[:, ::-1])]


class Seen:
    def __init__(self):
        self.hashes = np.zeros(1 << 10, np.uint64)
        self.len = 0

    def is_near(self, hashes):
        known = self.hashes[: self.len]
        return any((np.bitwise_count(known ^ value) <= NEAR).any() for value in hashes)

    def add(self, value):
        if self.len == len(self.hashes):
            self.hashes = np.concatenate([self.hashes, np.zeros_like(self.hashes)])
        self.hashes[self.len] = value
        self.len += 1


def class_names(text):
    """The names of a YOLO data.yaml, in either of its forms."""
    if found := re.search(r"names\s*:\s*\[([^\]]*)\]", text):
        return [name.strip(" '\"\n").lower() for name in found[1].split(",")]
    if found := re.search(r"names\s*:\s*\n((?:\s*(?:-|\d+\s*:)\s*.*\n?)+)", text):
        return [re.sub(r"^\s*(?:-|\d+\s*:)\s*", "", line).strip(" '\"").lower() for line in found[1].splitlines()]
    return []


def coco_boxes(document, folder):
    """(category, [x, y, w, h] in shares of the picture) by path."""
    category_of = {c["id"]: CATEGORY_OF.get(c["name"].lower().strip()) for c in document["categories"]}
    images = {image["id"]: image for image in document["images"]}
    boxes = {image["id"]: [] for image in document["images"]}
    for annotation in document["annotations"]:
        image, category = images.get(annotation["image_id"]), category_of.get(annotation["category_id"])
        if image and category:
            x, y, w, h = annotation["bbox"]
            box = [x / image["width"], y / image["height"], w / image["width"], h / image["height"]]
            boxes[image["id"]].append((category, box))
    return {f"{folder}/{image['file_name']}".lstrip("/"): boxes[image["id"]] for image in images.values()}


class OwnBoxes:
    """Boxes that a repository declares: COCO, VOC or YOLO beside its pictures."""

    def __init__(self, paths, blobs):
        self.paths, self.blobs = paths, blobs
        self.coco, self.names = {}, {}
        for path in paths:
            if path.endswith("_annotations.coco.json"):
                self.coco |= coco_boxes(json.loads(self.text(path)), path.rpartition("/")[0])
            elif re.search(r"\.ya?ml$", path) and (names := class_names(self.text(path))):
                self.names[path.rpartition("/")[0]] = names
        self.voc = {path.rpartition("/")[2][:-4]: path for path in paths if path.endswith(".xml")}

    def text(self, path):
        return self.blobs[self.paths[path]].decode("utf8", "replace")

    def of(self, path):
        """The boxes of a picture, as those of `coco_boxes`; None where it has no labels."""
        if path in self.coco:
            return self.coco[path]
        stem = path.rpartition(".")[0]
        if xml := self.voc.get(stem.rpartition("/")[2]):
            return self.read_voc(xml)
        for text in (re.sub(r"(^|/)images(/|$)", r"\1labels\2", stem) + ".txt", stem + ".txt"):
            if text in self.paths and self.names:
                folder = max((f for f in self.names if path.startswith(f)), key=len, default=min(self.names, key=len))
                return self.read_yolo(text, self.names[folder])
        return None

    def read_voc(self, path):
        root = ElementTree.fromstring(self.text(path))
        width, height = (float(root.find("size/" + key).text) for key in ("width", "height"))
        boxes = []
        for item in root.iter("object"):
            if category := CATEGORY_OF.get(item.find("name").text.lower().strip()):
                x0, y0, x1, y1 = (float(item.find("bndbox/" + key).text) for key in ("xmin", "ymin", "xmax", "ymax"))
                boxes.append((category, [x0 / width, y0 / height, (x1 - x0) / width, (y1 - y0) / height]))
        return boxes

    def read_yolo(self, path, names):
        boxes = []
        for line in self.text(path).splitlines():
            fields = [float(field) for field in line.split()]
            if len(fields) < 5 or not (category := CATEGORY_OF.get(names[int(fields[0])]) if fields[0] < len(names) else None):
                continue
            if len(fields) > 5:  # a polygon
                xs, ys = fields[1::2], fields[2::2]
                boxes.append((category, [min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)]))
            else:
                x, y, w, h = fields[1:]
                boxes.append((category, [x - w / 2, y - h / 2, w, h]))
        return boxes


def read_manifest(path):
    """Sources in order, each with its pictures. A source is a line `#source` of JSON; a picture is `blob path`."""
    sources = []
    with gzip.open(path, "rt", newline="") as file:
        for fields in csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE):
            if fields[0] == "#source":
                sources.append({**json.loads(fields[1]), "pictures": []})
            else:
                sources[-1]["pictures"].append(fields)
    return sources


def clipped(box, width, height):
    x0, y0 = max(0.0, box[0] * width), max(0.0, box[1] * height)
    x1, y1 = min(width, (box[0] + box[2]) * width), min(height, (box[1] + box[3]) * height)
    return [round(value, 2) for value in (x0, y0, x1 - x0, y1 - y0)]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--manifest", type=pathlib.Path, required=True)
    parser.add_argument("--cache", type=pathlib.Path, required=True, help="bare repositories; outside the project")
    parser.add_argument("--out", type=pathlib.Path, required=True, help="the data set; outside the project")
    parser.add_argument("--exclude", type=pathlib.Path, action="append", default=[], help="folder of pictures that none may be near to")
    parser.add_argument("--coco", type=pathlib.Path, help="instances_train2017.json, for the boxes of COCO's own pictures")
    parser.add_argument("--coco-val", type=pathlib.Path, help="file names of COCO's val2017, in any text: none of these pictures is taken")
    parser.add_argument("--remote", default="https://github.com/{}", help="where a repository is fetched from")
    parser.add_argument("--only", nargs="*", help="names of the sources to build")
    args = parser.parse_args()

    seen = Seen()
    for folder in args.exclude:
        for path in sorted(folder.iterdir()):
            seen.add(difference_hash(cv2.imread(str(path)))[0])
    (args.out / "images").mkdir(parents=True, exist_ok=True)
    coco = coco_boxes(json.loads(args.coco.read_text()), "") if args.coco else {}
    held_out = set(COCO_ID.findall(args.coco_val.read_text())) if args.coco_val else set()
    images, annotations = [], []
    for source in read_manifest(args.manifest):
        if args.only and source["name"] not in args.only:
            continue
        try:
            repo = fetch(source, args.cache, args.remote)
        except subprocess.CalledProcessError as error:
            print(f"{source['name']}: {source['repository']} is not to be had: {error.stderr.decode().strip()}", file=sys.stderr)
            continue
        blobs = Blobs(repo)
        own = OwnBoxes(tree(repo, source["commit"]), blobs) if source["own"] else None
        kept = 0
        for blob, path in source["pictures"]:
            if not held_out.isdisjoint(COCO_ID.findall(path)):
                print(f"{source['name']}: {path} is a picture of COCO's val2017 and is left out", file=sys.stderr)
                continue
            picture = cv2.imdecode(np.frombuffer(blobs[blob], np.uint8), cv2.IMREAD_COLOR)
            hashes = difference_hash(picture)
            if seen.is_near(hashes):
                continue
            seen.add(hashes[0])
            scale = LONGEST / max(picture.shape[:2])
            if scale < 1:
                picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            height, width = picture.shape[:2]
            image = len(images) + 1
            name = f"{source['name']}_{image:06}.jpg"
            cv2.imwrite(str(args.out / "images" / name), picture, [cv2.IMWRITE_JPEG_QUALITY, 90])
            boxes = coco.get(path.rpartition("/")[2]) if source.get("coco") else own.of(path) if own else None
            exhaustive = source["exhaustive"] if boxes is not None else []
            images.append({"id": image, "file_name": name, "width": width, "height": height, "exhaustive_category_ids": exhaustive})
            for category, box in boxes or []:
                box = clipped(box, width, height)
                if category in source["own"] and box[2] >= 1 and box[3] >= 1:
                    annotation = {"id": len(annotations) + 1, "image_id": image, "category_id": category, "bbox": box}
                    annotations.append({**annotation, "area": round(box[2] * box[3], 2), "iscrowd": 0})
            kept += 1
        print(f"{source['name']}: {kept} of {len(source['pictures'])} pictures", flush=True)
    categories = [{"id": category, "name": name} for category, name in CATEGORIES.items()]
    document = {"images": images, "annotations": annotations, "categories": categories}
    (args.out / "annotations.json").write_text(json.dumps(document))


if __name__ == "__main__":
    main()
