"""Preprocessing beside libyuv and OpenCV, in turns, on one thread and on the same pictures.

usage: preprocess_peers.py WORKER [--rounds 10] [--isa NAME] [--json FILE]

WORKER is target/release/examples/bench_preprocess. Python needs numpy and opencv-python; libyuv is looked for as
libyuv.so.0 (Debian: apt install libyuv0) and left out with a word if it is not there. Pictures are NV12, a smooth coloured noise;
each program fills the same letterbox of bytes. libyuv scales the planes with its box filter and converts then; OpenCV converts the
whole picture and scales then, as most do it. In every round each program runs for a short while; the least CPU time counts.
"""
import argparse, ctypes, json, os, subprocess, tempfile, time

arguments = argparse.ArgumentParser()
arguments.add_argument("worker")
arguments.add_argument("--rounds", type=int, default=10)
arguments.add_argument("--isa", help="kernels of this instruction set; default: the best there is")
arguments.add_argument("--json")
arguments = arguments.parse_args()
import cv2
import numpy as np

cv2.setNumThreads(1)
try:
    yuv = ctypes.CDLL("libyuv.so.0")
except OSError as error:
    yuv = None
    print(f"libyuv is left out: {error}")
BOX = 3
CASES = [(picture, size) for picture in [(1280, 720), (1920, 1080)] for size in [(320, 320), (512, 288), (576, 352)]]


def letterbox(src, dst):
    """Section 1 of docs/preprocess.md: width, height, left, top."""
    nearest = lambda side, n, d: max(1, (2 * side * n + d) // (2 * d))
    if dst[0] * src[1] <= dst[1] * src[0]:
        w, h = dst[0], min(dst[1], nearest(src[1], dst[0], src[0]))
    else:
        w, h = min(dst[0], nearest(src[0], dst[1], src[1])), dst[1]
    return w, h, (dst[0] - w) // 2 & ~1, (dst[1] - h) // 2 & ~1


def picture(width, height):
    """NV12 of smooth colours, and its RGB."""
    blocks = np.random.default_rng(0).integers(60, 196, (height // 36, width // 32, 3), dtype=np.uint8)
    i420 = cv2.cvtColor(cv2.resize(blocks, (width, height), interpolation=cv2.INTER_CUBIC), cv2.COLOR_RGB2YUV_I420)
    chroma = i420[height:].reshape(2, height // 2, width // 2).transpose(1, 2, 0)
    return np.concatenate([i420[:height].ravel(), np.ascontiguousarray(chroma).ravel()]).reshape(height * 3 // 2, width)


def with_opencv(nv12, dst, box, how):
    w, h, left, top = box
    rgb = cv2.resize(cv2.cvtColor(nv12, cv2.COLOR_YUV2RGB_NV12), (w, h), interpolation=how)
    return cv2.copyMakeBorder(rgb, top, dst[1] - h - top, left, dst[0] - w - left, cv2.BORDER_CONSTANT, value=(114,) * 3)


def with_libyuv(nv12, src, dst, box):
    (sw, sh), (w, h, left, top) = src, box
    at = lambda array, offset=0: ctypes.c_void_p(array.ctypes.data + offset)
    luma, chroma = np.empty((h, w), np.uint8), np.empty(((h + 1) // 2, (w + 1) // 2 * 2), np.uint8)
    out = np.full((dst[1], dst[0], 3), 114, np.uint8)

    def run():
        yuv.NV12Scale(at(nv12), sw, at(nv12, sw * sh), sw, sw, sh, at(luma), w, at(chroma), chroma.shape[1], w, h, BOX)
        yuv.NV12ToRAW(at(luma), w, at(chroma), chroma.shape[1], at(out, 3 * (top * dst[0] + left)), 3 * dst[0], w, h)
        return out

    return run


def least(run, seconds):
    best, end = 1e9, time.perf_counter() + seconds
    while True:
        before = time.process_time()
        run()
        best = min(best, 1e6 * (time.process_time() - before))
        if time.perf_counter() > end:
            return best


results = {}
with tempfile.TemporaryDirectory() as folder:
    for src, dst in CASES:
        nv12, box = picture(*src), letterbox(src, dst)
        file = os.path.join(folder, "picture")
        nv12.tofile(file)
        size = lambda sides: f"{sides[0]}x{sides[1]}"
        command = [arguments.worker, "NV12", size(src), size(dst), file, *filter(None, [arguments.isa])]
        worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        ready = json.loads(worker.stdout.readline())
        peers = {f"OpenCV {name}": lambda how=how: with_opencv(nv12, dst, box, how)
                 for name, how in (("linear", cv2.INTER_LINEAR), ("area", cv2.INTER_AREA))}
        if yuv is not None:
            peers["libyuv box"] = with_libyuv(nv12, src, dst, box)
        # The same picture, whoever makes it: filters and roundings differ a little, libyuv's most where the ratio is no whole number.
        ours = np.frombuffer(bytes.fromhex(ready["pixels"]), np.uint8).reshape(dst[1], dst[0], 3).astype(int)
        off = {name: float(np.abs(run().astype(int) - ours).mean()) for name, run in peers.items()}
        assert max(off.values()) < 8, off
        best = {name: 1e9 for name in ("fovea", *peers)}
        for _ in range(arguments.rounds):
            worker.stdin.write("0.1\n")
            worker.stdin.flush()
            best["fovea"] = min(best["fovea"], 1e3 * json.loads(worker.stdout.readline())["cpu"])
            for name, run in peers.items():
                best[name] = min(best[name], least(run, 0.1))
        worker.stdin.close()
        worker.wait()
        name = f"{size(src)} -> {size(dst)}"
        results[name] = {"isa": ready["isa"], "us": best, "mean difference": off}
        print(f"{name} ({ready['isa']}), {nv12.size / best['fovea'] / 1e3:.1f} GB/s")
        for peer, microseconds in best.items():
            difference = f", {off[peer]:.2f} grey levels apart" if peer in off else ""
            print(f"  {peer:16s} {microseconds:9.1f} us {microseconds / best['fovea']:7.2f} x{difference}", flush=True)
if arguments.json:
    json.dump(results, open(arguments.json, "w"), indent=1)
