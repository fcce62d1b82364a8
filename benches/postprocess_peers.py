"""Postprocessing beside other programs, in turns, on one thread and on the same heads.

usage: postprocess_peers.py WORKER [--rounds 10] [--isa NAME] [--json FILE]

WORKER is target/release/examples/bench_postprocess; what the others do is in postprocess_others.py. The heads are
quantised to u8, [H, W, C], for WORKER, and go in real numbers to the others, as their interfaces have it. In every round each program runs for a short while; the least CPU time of a frame
counts.
"""
import argparse, json, os, subprocess, tempfile, time

arguments = argparse.ArgumentParser()
arguments.add_argument("worker")
arguments.add_argument("--rounds", type=int, default=10)
arguments.add_argument("--isa", help="kernels of this instruction set; default: the best there is")
arguments.add_argument("--json")
arguments = arguments.parse_args()
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[name] = "1"
import cv2
import numpy as np
import postprocess_others as others

cv2.setNumThreads(1)
ort_nms = others.OrtNms()
CASES = {
    "focal640_k80": (640, 640, 80, 2000, 25, False),
    "dense640_k80": (640, 640, 80, 0, 0, True),
    "focal416_k20": (416, 416, 20, 800, 15, False),
    "edge320_k3": (320, 320, 3, 300, 10, False),
    "dense320_k3": (320, 320, 3, 0, 0, True),
}


def quantise(values, path):
    """[C, H, W] to u8 [H, W, C] in a file; the parameters and the values that the bytes stand for."""
    lo, hi = min(0.0, float(values.min())), max(0.0, float(values.max()))
    scale = np.float32((hi - lo) / 255)
    zero_point = int(np.clip(np.rint(-lo / scale), 0, 255))
    q = np.clip(np.rint(values / scale) + zero_point, 0, 255).astype(np.uint8)
    np.ascontiguousarray(q.transpose(1, 2, 0)).tofile(path)
    real = np.ascontiguousarray(scale * (q.astype(np.float32) - np.float32(zero_point)))
    return {"scale": float(scale), "zero_point": zero_point}, real


def least(run, seconds):
    best, end = 1e9, time.perf_counter() + seconds
    while True:
        before = time.process_time()
        run()
        best = min(best, 1e3 * (time.process_time() - before))
        if time.perf_counter() > end:
            return best


results = {}
with tempfile.TemporaryDirectory() as folder:
    for name, (height, width, k, target, objects, dense) in CASES.items():
        logits, deltas, anchors = others.synth(height, width, k, target, objects, dense=dense)
        levels, real_logits, real_deltas = [], [], []
        for index, ((stride, rows, columns), cls, box) in enumerate(zip(others.levels(height, width), logits, deltas)):
            cls_params, cls = quantise(cls, f"{folder}/{name}.{index}.cls")
            box_params, box = quantise(box, f"{folder}/{name}.{index}.box")
            levels.append({"grid": [columns, rows], "stride": stride, "base_size": 4.0 * stride, "cls": cls_params, "box": box_params})
            real_logits.append(cls)
            real_deltas.append(box)
        case = {"name": name, "input": [width, height], "levels": levels, "scales": others.SCALES, "ratios": others.RATIOS, "offset": 0.5,
                "n_classes": k, "thresholds": [others.THRESHOLD] * k, "topk": 1000, "iou": 0.5, "max": 100}
        json.dump([case], open(f"{folder}/cases.json", "w"))
        worker = subprocess.Popen([arguments.worker, folder, name, *filter(None, [arguments.isa])], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        ready = json.loads(worker.stdout.readline())
        whole = others.ort_whole(k, others.levels(height, width), anchors, width, height)
        feed = {f"l{i}": x[None] for i, x in enumerate(real_logits)} | {f"d{i}": x[None] for i, x in enumerate(real_deltas)}
        smart = lambda: others.gather_smart(real_logits, real_deltas, anchors, k, height, width)
        peers = {
            "numpy, all at once": lambda: others.nms_numpy(*others.gather_naive(real_logits, real_deltas, anchors, k, height, width)),
            "numpy + its own NMS": lambda: others.nms_numpy(*smart()),
            "numpy + cv2.dnn.NMSBoxes": lambda: others.nms_opencv(*smart()),
            "numpy + ONNX Runtime's NMS": lambda: ort_nms(*smart()),
            "ONNX Runtime, whole graph": lambda: whole.run(None, feed),
        }
        best = {peer: 1e9 for peer in ("fovea", *peers)}
        for _ in range(arguments.rounds):
            worker.stdin.write("0.1\n")
            worker.stdin.flush()
            best["fovea"] = min(best["fovea"], json.loads(worker.stdout.readline())["cpu"])
            for peer, run in peers.items():
                best[peer] = min(best[peer], least(run, 0.1))
        worker.stdin.close()
        worker.wait()
        candidates = sum(int((x > others.THRESHOLD_LOGIT).sum()) for x in real_logits)
        results[name] = {"logits": sum(x.size for x in real_logits), "candidates": candidates, "found": ready["found"],
                         "isa": ready["isa"], "ms": best}
        fastest = min(time for peer, time in best.items() if peer != "fovea")
        print(f"{name}: {results[name]['logits']} logits, {candidates} above, {ready['found']} found ({ready['isa']})")
        for peer, milliseconds in best.items():
            print(f"  {peer:28s} {milliseconds:9.3f} ms")
        print(f"  fastest peer / fovea         {fastest / best['fovea']:9.1f}", flush=True)
if arguments.json:
    json.dump(results, open(arguments.json, "w"), indent=1)
