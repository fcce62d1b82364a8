"""The letterbox in floating point, by NumPy and Pillow.

usage: preprocess.py FOLDER

FOLDER has cases.json: a list of {"name", "format", "matrix", "range", "width", "height", "dst": [w, h]} and NAME.raw: the
planes one after the other, without padding. Writes NAME.f32: the network input [h, w, 3], real values 0..255; and NAME.u8: the
same in integers, written from docs/preprocess.md alone, so that the text is known to say everything.

Every plane is resized in real numbers: the mean over the covered stretch along an axis with at least as many samples as output
pixels, else linear interpolation between sample centres; then the colour matrix, clipped to 0..255 at the end.
"""
import json, sys
import numpy as np
from PIL import Image

folder = sys.argv[1]
KR_KB = {"bt601": (0.299, 0.114), "bt709": (0.2126, 0.0722)}


def linear(plane, axis, n_pixels, per_sample, dst):
    """Sample j stands for pixels j * per_sample …; positions are pixel centres of the resized picture."""
    n = plane.shape[axis]
    at = ((np.arange(dst) + 0.5) * n_pixels / dst) / per_sample - 0.5
    at = np.clip(at, 0, n - 1)
    low = np.floor(at).astype(int)
    high = np.minimum(low + 1, n - 1)
    part = (at - low).reshape([-1 if a == axis else 1 for a in range(2)])
    return np.take(plane, low, axis) * (1 - part) + np.take(plane, high, axis) * part


def area(plane, axis, n_pixels, per_sample, dst):
    """Mean over the stretch of samples that an output sample covers: differences of the integral, interpolated.

    Pillow's BOX filter takes whole samples only, so it is the same where the ratio is a whole number: checked here.
    """
    length = n_pixels / per_sample
    integral = np.concatenate([np.zeros_like(np.take(plane, [0], axis)), np.cumsum(plane, axis)], axis)
    at = np.arange(dst + 1) * length / dst
    low = np.minimum(np.floor(at).astype(int), plane.shape[axis] - 1)
    part = (at - low).reshape([-1 if a == axis else 1 for a in range(2)])
    out = np.diff(np.take(integral, low, axis) * (1 - part) + np.take(integral, low + 1, axis) * part, axis=axis) * dst / length
    if length == plane.shape[axis] and length % dst == 0:
        size = (dst, plane.shape[0]) if axis == 1 else (plane.shape[1], dst)
        pillow = np.asarray(Image.fromarray(plane.astype(np.float32)).resize(size, Image.Resampling.BOX))
        assert np.abs(pillow - out).max() < 0.01, "the integral disagrees with Pillow"
    return out


def resize(plane, pixels, per_sample, size):
    out = plane.astype(np.float64)
    for axis in (0, 1):
        shrinks = pixels[axis] >= size[axis] * per_sample[axis]
        out = (area if shrinks else linear)(out, axis, pixels[axis], per_sample[axis], size[axis])
    return out


def planes(case, raw):
    """Components as (samples, (rows per sample, columns per sample))."""
    w, h, f = case["width"], case["height"], case["format"]
    cw, ch = -(-w // 2), -(-h // 2)
    if f == "NV12":
        uv = raw[w * h :].reshape(ch, cw, 2)
        return [(raw[: w * h].reshape(h, w), (1, 1)), (uv[..., 0], (2, 2)), (uv[..., 1], (2, 2))]
    if f == "I420":
        u, v = raw[w * h :].reshape(2, ch, cw)
        return [(raw[: w * h].reshape(h, w), (1, 1)), (u, (2, 2)), (v, (2, 2))]
    if f == "YUY2":
        x = raw.reshape(h, cw, 4)
        return [(x[..., [0, 2]].reshape(h, 2 * cw)[:, :w], (1, 1)), (x[..., 1], (1, 2)), (x[..., 3], (1, 2))]
    if f == "GRAY8":
        return [(raw.reshape(h, w), (1, 1))] * 3
    x = raw.reshape(h, w, -1)
    order = [2, 1, 0] if f == "BGRx" else [0, 1, 2]
    return [(x[..., c], (1, 1)) for c in order]


def rgb(case, y, u, v):
    kr, kb = KR_KB[case["matrix"]]
    if case["range"] == "limited":
        y, u, v = (y - 16) * 255 / 219, (u - 128) * 255 / 224, (v - 128) * 255 / 224
    else:
        u, v = u - 128, v - 128
    r, b = y + 2 * (1 - kr) * v, y + 2 * (1 - kb) * u
    return r, (y - kr * r - kb * b) / (1 - kr - kb), b


def axis_weights(s, p, d):
    """docs/preprocess.md, section 3: a matrix [output sample, sample]."""
    n, u = -(-s // p), d * p
    weights = np.zeros((d, n))
    for i in range(d):
        if s >= u:
            low, high = i * s, (i + 1) * s
            until = lambda j: ((min(max(j * u, low), high) - low) * 2**15 + s) // (2 * s)
            for j in range(low // u, -(-high // u)):
                weights[i, j] = until(j + 1) - until(j)
        elif (2 * i + 1) * s < u:
            weights[i, 0] = 2**14
        else:
            j, rest = divmod((2 * i + 1) * s - u, 2 * u)
            second = (rest * 2**14 + u) // (2 * u)
            if j + 1 >= n or second == 0:
                weights[i, min(j, n - 1)] = 2**14
            else:
                weights[i, j], weights[i, j + 1] = 2**14 - second, second
    return weights


def integers(case, components, rw, rh, left, top):
    """docs/preprocess.md, sections 4 and 5."""
    w, h = case["width"], case["height"]
    parts = []
    for samples, (per_y, per_x) in components:
        # Sums in f64, exact far beyond these sizes.
        mid = (np.rint(axis_weights(h, per_y, rh) @ samples.astype(np.float64)).astype(np.int64) + 2**6) >> 7
        parts.append((np.rint(mid @ axis_weights(w, per_x, rw).T).astype(np.int64) + 2**20) >> 21)
    if case["format"] in ("NV12", "I420", "YUY2"):
        black, gain, rv, gu, gv, bu = {
            ("bt601", "limited"): (16, 9539, 13075, 3209, 6660, 16525),
            ("bt601", "full"): (0, 8192, 11485, 2819, 5850, 14516),
            ("bt709", "limited"): (16, 9539, 14686, 1747, 4366, 17305),
            ("bt709", "full"): (0, 8192, 12901, 1535, 3835, 15201),
        }[case["matrix"], case["range"]]
        y, u, v = parts[0], parts[1] - 128, parts[2] - 128
        luma = gain * (y - black) + 2**12
        parts = [np.clip(x >> 13, 0, 255) for x in (luma + rv * v, luma - gu * u - gv * v, luma + bu * u)]
    out = np.full((case["dst"][1], case["dst"][0], 3), 114, np.uint8)
    out[top : top + rh, left : left + rw] = np.stack(parts, -1)
    return out


for case in json.load(open(f"{folder}/cases.json")):
    raw = np.fromfile(f"{folder}/{case['name']}.raw", np.uint8)
    w, h = case["width"], case["height"]
    dw, dh = case["dst"]
    scale = min(dw / w, dh / h)
    if dw * h <= dh * w:
        rw, rh = dw, min(dh, max(1, int(np.floor(h * dw / w + 0.5))))
    else:
        rw, rh = min(dw, max(1, int(np.floor(w * dh / h + 0.5)))), dh
    left, top = (dw - rw) // 2 & ~1, (dh - rh) // 2 & ~1
    parts = [resize(samples, (h, w), per, (rh, rw)) for samples, per in planes(case, raw)]
    if case["format"] in ("NV12", "I420", "YUY2"):
        parts = rgb(case, *parts)
    out = np.full((dh, dw, 3), 114.0)
    out[top : top + rh, left : left + rw] = np.clip(np.stack(parts, -1), 0, 255)
    out.astype(np.float32).tofile(f"{folder}/{case['name']}.f32")
    integers(case, planes(case, raw), rw, rh, left, top).tofile(f"{folder}/{case['name']}.u8")
