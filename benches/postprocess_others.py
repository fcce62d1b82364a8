"""What NumPy, OpenCV and ONNX Runtime make of a RetinaNet's heads, and seeded heads to do it on: for postprocess_peers.py.

Heads are NCHW as networks give them: logits `[A * K, h, w]`, deltas `[A * 4, h, w]` for the levels of strides 8 to 128, A = 9. Every way
does the same: scores above `THRESHOLD`, the best 1000 of a level, boxes, NMS at IoU 0.5 within each class, the best 100.
"""

import cv2
import numpy as np
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

N_ANCHORS = 9
SCALES = [2 ** (i / 3) for i in range(3)]
RATIOS = [0.5, 1.0, 2.0]
THRESHOLD = 0.05
THRESHOLD_LOGIT = float(np.log(THRESHOLD / (1 - THRESHOLD)))
TOPK = 1000
KEEP = 100
LIMIT = float(np.log(1000 / 16))  # of the deltas of width and height


def levels(height, width):
    """(stride, rows, columns), from the finest."""
    return [(stride, -(-height // stride), -(-width // stride)) for stride in (8, 16, 32, 64, 128)]


def anchors(height, width):
    """`[h * w * A, 4]` of centre and size for each level, centres in the middle of the cells."""
    found = []
    for stride, rows, columns in levels(height, width):
        sizes = [(4 * stride * scale / ratio**0.5, 4 * stride * scale * ratio**0.5) for ratio in RATIOS for scale in SCALES]
        y, x = np.meshgrid((np.arange(rows) + 0.5) * stride, (np.arange(columns) + 0.5) * stride, indexing="ij")
        centres = np.repeat(np.stack([x.ravel(), y.ravel()], 1), N_ANCHORS, axis=0)
        found.append(np.concatenate([centres, np.tile(np.array(sizes), (rows * columns, 1))], 1).astype(np.float32))
    return found


def synth(height, width, k, target, n_objects, seed=0, dense=False):
    """Logits, deltas and anchors by level: objects as clusters of good anchors and `target` candidates in all, or dense noise."""
    rng = np.random.default_rng(seed)
    grids, boxes, heads = levels(height, width), anchors(height, width), []
    for level in boxes:
        logits = np.minimum(rng.standard_normal((len(level), k)).astype(np.float32) * 0.9 - 7.0, -3.3)
        heads.append((logits, rng.standard_normal((len(level), 4)).astype(np.float32) * 0.15))
    if dense:
        for logits, _ in heads:
            n = min(logits.size, 6000)
            at = rng.choice(logits.size, n, replace=False)
            logits.ravel()[at] = rng.uniform(-2.9, 3, n)
    else:
        side = lambda: np.exp(rng.uniform(np.log(24), np.log(300)))
        objects = [(rng.uniform(0, width), rng.uniform(0, height), side(), side(), int(rng.integers(k))) for _ in range(n_objects)]
        for x, y, w, h, label in objects:
            for (logits, deltas), a in zip(heads, boxes):
                shared = np.ones(len(a), np.float32)
                for axis, (centre, length) in enumerate(((x, w), (y, h))):
                    low = np.maximum(a[:, axis] - a[:, axis + 2] / 2, centre - length / 2)
                    high = np.minimum(a[:, axis] + a[:, axis + 2] / 2, centre + length / 2)
                    shared *= np.maximum(high - low, 0)
                iou = shared / (a[:, 2] * a[:, 3] + w * h - shared)
                near = iou > 0.4
                better = (iou[near] - 0.55) * 12 + rng.standard_normal(near.sum()) * 0.7
                logits[near, label] = np.maximum(logits[near, label], better)
                a = a[near]
                exact = [(x - a[:, 0]) / a[:, 2], (y - a[:, 1]) / a[:, 3], np.log(w / a[:, 2]), np.log(h / a[:, 3])]
                deltas[near] = np.stack(exact, 1) + rng.standard_normal((near.sum(), 4)).astype(np.float32) * 0.05
        missing = max(0, target - sum(int((logits > THRESHOLD_LOGIT).sum()) for logits, _ in heads))
        sizes = np.array([logits.size for logits, _ in heads], float)
        for (logits, _), n in zip(heads, rng.multinomial(missing, sizes / sizes.sum())):
            at = rng.choice(logits.size, n, replace=False)
            logits.ravel()[at] = np.maximum(logits.ravel()[at], rng.exponential(0.7, n) - 2.9)
    planes = lambda values, grid: np.ascontiguousarray(values.reshape(*grid[1:], -1).transpose(2, 0, 1))
    return *([planes(head[i], grid) for head, grid in zip(heads, grids)] for i in (0, 1)), boxes


def decoded(boxes, deltas, height, width):
    """Corners, clipped to the picture."""
    centre = deltas[:, :2] * boxes[:, 2:] + boxes[:, :2]
    half = np.exp(np.minimum(deltas[:, 2:], LIMIT)) * boxes[:, 2:] / 2
    return np.clip(np.concatenate([centre - half, centre + half], 1), 0, [width, height] * 2)


def best_of(values):
    """Places of the best `TOPK`, in any order."""
    return np.argpartition(values, -TOPK)[-TOPK:] if len(values) > TOPK else np.arange(len(values))


def gather_naive(logits, deltas, boxes, k, height, width):
    """As torchvision orders the work: everything permuted, a sigmoid over everything."""
    found = []
    rows = lambda planes, q: np.ascontiguousarray(planes.reshape(N_ANCHORS, q, -1).transpose(2, 0, 1)).reshape(-1, q)
    for cls, box, level in zip(logits, deltas, boxes):
        cls, box = rows(cls, k), rows(box, 4)
        scores = (1 / (1 + np.exp(-cls))).ravel()
        at = np.flatnonzero(scores > THRESHOLD)
        at = at[best_of(scores[at])]
        found.append((decoded(level[at // k], box[at // k], height, width), scores[at], at % k))
    return [np.concatenate(part) for part in zip(*found)]


def gather_smart(logits, deltas, boxes, k, height, width):
    """As good as NumPy gets: logits compared where they lie, and only what is above the threshold gathered."""
    found = []
    for cls, box, level in zip(logits, deltas, boxes):
        flat = cls.ravel()
        at = np.flatnonzero(flat > THRESHOLD_LOGIT)
        at = at[best_of(flat[at])]
        channel, place = np.divmod(at, cls[0].size)
        anchor = channel // k
        mine = box.reshape(N_ANCHORS, 4, -1)[anchor, :, place]
        found.append((decoded(level[place * N_ANCHORS + anchor], mine, height, width), 1 / (1 + np.exp(-flat[at])), channel % k))
    return [np.concatenate(part) for part in zip(*found)]


def apart(boxes, labels):
    """What moves the boxes of each class to a place of its own, so that one NMS serves all."""
    return (labels * (boxes.max() + 1)).astype(np.float32)[:, None]


def nms_numpy(boxes, scores, labels):
    order = np.argsort(-scores, kind="stable")
    moved = (boxes + apart(boxes, labels))[order]
    area = np.prod(moved[:, 2:] - moved[:, :2], axis=1)
    alive, kept = np.ones(len(order), bool), []
    for i in range(len(order)):
        if not alive[i]:
            continue
        kept.append(order[i])
        if len(kept) == KEEP:
            break
        low, high = np.maximum(moved[i, :2], moved[i + 1 :, :2]), np.minimum(moved[i, 2:], moved[i + 1 :, 2:])
        shared = np.prod(np.maximum(high - low, 0), axis=1)
        alive[i + 1 :] &= shared <= 0.5 * (area[i] + area[i + 1 :] - shared)
    return np.array(kept)


def nms_opencv(boxes, scores, labels):
    corner = boxes[:, :2] + apart(boxes, labels)
    return np.asarray(cv2.dnn.NMSBoxes(np.concatenate([corner, boxes[:, 2:] - boxes[:, :2]], 1), scores, THRESHOLD, 0.5)).ravel()[:KEEP]


def session(nodes, inputs, outputs, constants):
    """An ONNX graph in ONNX Runtime on one thread."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    constants = [numpy_helper.from_array(value, name) for name, value in constants.items()]
    model = helper.make_model(
        helper.make_graph(nodes, "postprocess", inputs, outputs, constants), opset_imports=[helper.make_opsetid("", 13)], ir_version=8
    )
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


NMS_CONSTANTS = {"keep": np.array([KEEP]), "iou": np.array([0.5], np.float32), "threshold": np.array([THRESHOLD], np.float32)}


class OrtNms:
    """The operator NonMaxSuppression on candidates alone: one class, the favourable way to call it."""

    def __init__(self):
        value = lambda name, shape, kind=TensorProto.FLOAT: helper.make_tensor_value_info(name, kind, shape)
        node = helper.make_node("NonMaxSuppression", ["boxes", "scores", "keep", "iou", "threshold"], ["selected"])
        inputs = [value("boxes", [1, None, 4]), value("scores", [1, None, None])]
        self.network = session([node], inputs, [value("selected", [None, 3], TensorProto.INT64)], NMS_CONSTANTS)

    def __call__(self, boxes, scores, labels):
        moved = (boxes + apart(boxes, labels)).astype(np.float32)
        return self.network.run(None, {"boxes": moved[None], "scores": scores[None, None].astype(np.float32)})[0][:KEEP, 2]


def ort_whole(k, grids, boxes, width, height):
    """All of it as a graph, as exporters write it: permute, sigmoid, TopK for each level, decode, NMS."""
    nodes, inputs, constants = [], [], dict(NMS_CONSTANTS)
    add = lambda op, sources, result, **attributes: nodes.append(helper.make_node(op, sources, [result], **attributes))
    constants |= {"one": np.array([1]), "flat": np.array([-1]), "rows": np.array([-1, 4]), "k": np.array([k]), "axes": np.array([0, 1]), "zero": np.array([0])}
    constants |= {"half": np.float32(0.5), "limit": np.float32(LIMIT), "offset": np.float32(2048), "halves": np.array([2, 2])}
    constants |= {"origin": np.float32(0), "far": np.array([width, height] * 2, np.float32)}
    for i, (_, rows, columns) in enumerate(grids):
        for name, q in ((f"l{i}", k), (f"d{i}", 4)):
            inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, N_ANCHORS * q, rows, columns]))
            constants[f"{name}.shape"] = np.array([N_ANCHORS, q, rows * columns])
            add("Reshape", [name, f"{name}.shape"], f"{name}.apart")
            add("Transpose", [f"{name}.apart"], f"{name}.turned", perm=[2, 0, 1])
        constants[f"top{i}"] = np.array([min(TOPK, N_ANCHORS * k * rows * columns)])
        constants[f"anchors{i}"] = boxes[i]
        add("Reshape", [f"l{i}.turned", "flat"], f"logits{i}")
        add("Sigmoid", [f"logits{i}"], f"scores{i}")
        nodes.append(helper.make_node("TopK", [f"scores{i}", f"top{i}"], [f"best{i}", f"at{i}"]))
        add("Div", [f"at{i}", "k"], f"place{i}")
        add("Mod", [f"at{i}", "k"], f"class{i}")
        add("Reshape", [f"d{i}.turned", "rows"], f"deltas{i}")
        add("Gather", [f"deltas{i}", f"place{i}"], f"delta{i}", axis=0)
        add("Gather", [f"anchors{i}", f"place{i}"], f"anchor{i}", axis=0)
    for part in ("best", "class", "delta", "anchor"):
        add("Concat", [f"{part}{i}" for i in range(len(grids))], part, axis=0)
    for part in ("delta", "anchor"):
        nodes.append(helper.make_node("Split", [part, "halves"], [f"{part}.xy", f"{part}.wh"], axis=1))
    for op, sources, result in (
        ("Mul", ["delta.xy", "anchor.wh"], "shift"), ("Add", ["shift", "anchor.xy"], "centre"), ("Min", ["delta.wh", "limit"], "limited"),
        ("Exp", ["limited"], "growth"), ("Mul", ["growth", "anchor.wh"], "size"), ("Mul", ["size", "half"], "reach"),
        ("Sub", ["centre", "reach"], "low"), ("Add", ["centre", "reach"], "high"),
    ):  # fmt: skip
        add(op, sources, result)
    add("Concat", ["low", "high"], "open", axis=1)
    add("Max", ["open", "origin"], "clipped.low")
    add("Min", ["clipped.low", "far"], "corners")
    add("Cast", ["class"], "class.real", to=TensorProto.FLOAT)
    add("Mul", ["class.real", "offset"], "class.offset")
    add("Unsqueeze", ["class.offset", "one"], "class.column")
    add("Add", ["corners", "class.column"], "moved")
    add("Unsqueeze", ["moved", "zero"], "nms.boxes")
    add("Unsqueeze", ["best", "axes"], "nms.scores")
    add("NonMaxSuppression", ["nms.boxes", "nms.scores", "keep", "iou", "threshold"], "selected")
    kinds = {"selected": TensorProto.INT64, "corners": TensorProto.FLOAT, "best": TensorProto.FLOAT, "class": TensorProto.INT64}
    return session(nodes, inputs, [helper.make_tensor_value_info(name, kind, None) for name, kind in kinds.items()], constants)
