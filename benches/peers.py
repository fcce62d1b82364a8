"""Speed of `fovea` beside other runtimes on the same int8 networks, interleaved in one run.

usage: peers.py [--fovea target/release/fovea] [--threads 1,2] [--rounds 12] [--slice 0.4] [--out FILE.md]
                [--peers ort,openvino,litert,ncnn] [--kit DIR] [FILE.onnx | CONFIG ...]

Needs `pip install onnxruntime openvino numpy`. A FILE.onnx (a shipped model) is run by the runtimes that read ONNX.

DIR holds the same networks for other runtimes as well: `worker.py BACKEND MODEL THREADS H W`, which prints {"ready":1} and answers every
line `<seconds>` on stdin with {"wall":ms,"cpu":ms,"n":count} (the least of each), `models/CONFIG.{qdq.onnx,int8.tflite,int8.ncnn.param}` and
its own Python environment in `venv`. `fovea bench --model-only MODEL --worker` and this file with --worker speak the same protocol.

Every runtime lives in its own process and gets a short slice in turn, so that whatever else the machine does hits all alike. With one
thread a figure is process CPU time, with several it is wall time; the table states the least of all slices, and the ratio
`peer / fovea` as the median over rounds with its quartiles.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

PEERS = {
    "openvino": ("OpenVINO", "openvino", ".qdq.onnx"),
    "ort": ("ONNX Runtime", "ort", ".qdq.onnx"),
    "litert": ("LiteRT", "litert", ".int8.tflite"),
    "ncnn": ("ncnn", "ncnn", ".int8.ncnn"),
}


def start(command, threads):
    """A worker that is ready, or None with its message."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
    worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment)
    for line in worker.stdout:
        if line.startswith("{"):
            if "ready" in line:
                return worker
            print("  does not run:", line.strip()[:200], file=sys.stderr)
            break
    worker.kill()
    return None


def inspect(fovea, model):
    """MACs, height and width of a network."""
    report = json.loads(subprocess.run([fovea, "inspect", model, "--json", "-"], capture_output=True, text=True, check=True).stdout)
    _, _, height, width = report["input"]["shape"]
    return sum(op["macs"] for op in report["ops"]), height, width


def session(backend, model, threads):
    """A runtime with a network: a function that runs it once, on an input like a scaled picture."""
    import numpy as np

    if backend == "ort":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = threads, 1, 4
        network = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
        picture = np.random.default_rng(0).random(network.get_inputs()[0].shape, np.float32)
        return lambda: network.run(None, {network.get_inputs()[0].name: picture})
    import openvino

    options = {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    network = openvino.Core().compile_model(model, "CPU", options)
    request = network.create_infer_request()
    request.set_input_tensor(openvino.Tensor(np.random.default_rng(0).random(tuple(network.input().shape), np.float32)))

    def run():
        request.infer()
        return [request.get_output_tensor(i).data for i in range(len(network.outputs))]

    return run


def serve(backend, model, threads):
    """The worker's side of the protocol."""
    try:
        run = session(backend, model, int(threads))
        run(), run()
    except Exception as error:  # whatever a runtime raises: it does not take part
        print(json.dumps({"error": str(error)[:300]}), flush=True)
        return
    print(json.dumps({"ready": 1}), flush=True)
    for line in sys.stdin:
        end, wall, cpu, count = time.perf_counter() + float(line), float("inf"), float("inf"), 0
        while not count or time.perf_counter() < end:
            before = time.process_time(), time.perf_counter()
            run()
            after = time.process_time(), time.perf_counter()
            cpu, wall, count = min(cpu, after[0] - before[0]), min(wall, after[1] - before[1]), count + 1
        print(json.dumps({"wall": wall * 1e3, "cpu": cpu * 1e3, "n": count}), flush=True)


def measure(args, model, threads):
    """Figures of every runtime by name: one (wall, cpu) for each round."""
    macs, height, width = inspect(args.fovea, model)
    workers = {}
    for name, extra in (("fovea", []), ("fovea, native I/O", ["--native-io"])):
        workers[name] = start([args.fovea, "bench", "--model-only", model, "--worker", "--threads", str(threads), *extra], threads)
    for key in args.peers.split(","):
        title, backend, suffix = PEERS[key]
        if model.endswith(".qdq.onnx"):
            path = model.removesuffix(".qdq.onnx") + suffix
            python = os.path.join(args.kit, "venv", "bin", "python")
            command = [python, os.path.join(args.kit, "worker.py"), backend, path, str(threads), str(height), str(width)]
        elif backend in ("ort", "openvino"):
            command = [sys.executable, __file__, "--worker", backend, model, str(threads)]
        else:
            continue
        workers[title] = start(command, threads)
    workers = {name: worker for name, worker in workers.items() if worker}
    if all(name.startswith("fovea") for name in workers):
        sys.exit("no other runtime runs it (a model.onnx: ort, openvino): pip install onnxruntime openvino numpy")
    figures = {name: [] for name in workers}
    for _ in range(args.rounds):
        for name, worker in workers.items():
            worker.stdin.write(f"{args.slice}\n")
            worker.stdin.flush()
            answer = json.loads(worker.stdout.readline())
            figures[name].append((answer["wall"], answer["cpu"]))
    for worker in workers.values():
        worker.stdin.close()
        worker.wait()
    return macs, figures


def peak(args):
    """GMAC/s of one thread in registers, and the name of the CPU."""
    command = [args.fovea, "bench", "--model-only", args.models[0], "--threads", "1", "--seconds", "0.2", "--json", "-"]
    best = max(json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)["peak_gmacs_per_s"] for _ in range(3))
    with open("/proc/cpuinfo", encoding="utf-8") as info:
        names = [line.split(":", 1)[1].strip() for line in info if line.startswith(("model name", "CPU part"))]
    return best, names[0] if names else "unknown CPU"


def row(name, macs, threads, figures, best_peak):
    """A line of the table."""
    pick = 1 if threads == 1 else 0
    least = {key: min(values[pick] for values in rounds) for key, rounds in figures.items()}
    peers = [key for key in figures if not key.startswith("fovea")]
    cells = [f"{least[key]:.2f}" if key in least else "–" for key in ("fovea", "fovea, native I/O", *(PEERS[key][0] for key in PEERS))]
    fastest = min(peers, key=least.get)
    pairs = sorted(peer[pick] / ours[pick] for peer, ours in zip(figures[fastest], figures["fovea"]))
    low, middle, high = statistics.quantiles(pairs, n=4) if len(pairs) > 3 else (pairs[0], statistics.median(pairs), pairs[-1])
    share = lambda ms: f"{100 * macs / (1e6 * ms) / (best_peak * threads):.0f} %" if best_peak else "–"
    return f"| {name} | {macs / 1e9:.2f} | {threads} | " + " | ".join(cells) + (
        f" | {fastest} {least[fastest] / least['fovea']:.2f} | {middle:.2f} ({low:.2f}–{high:.2f}) | {share(least['fovea'])} | {share(least[fastest])} |"
    )


def main():
    if sys.argv[1:2] == ["--worker"]:
        return serve(*sys.argv[2:])
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kit")
    parser.add_argument("--fovea", default="target/release/fovea")
    parser.add_argument("--threads", default="1")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--slice", type=float, default=0.4)
    parser.add_argument("--out")
    parser.add_argument("--peers", default=",".join(PEERS))
    parser.add_argument("configs", nargs="+")
    args = parser.parse_args()
    if not args.kit and not all(config.endswith(".onnx") and not config.endswith(".qdq.onnx") for config in args.configs):
        parser.error("a CONFIG is of a benchmark kit: --kit DIR; or give the model.onnx of a model folder")
    path = lambda config: config if config.endswith(".onnx") else os.path.join(args.kit, "models", config + ".qdq.onnx")
    args.models = [path(config) for config in args.configs]
    best_peak, cpu = peak(args)
    lines = [
        f"{cpu}; {best_peak:.1f} GMAC/s a core in registers; least ms a frame of {args.rounds} interleaved rounds (CPU time with one thread, wall time with several)",
        "",
        "| network | GMAC | threads | fovea | fovea, native I/O | " + " | ".join(PEERS[key][0] for key in PEERS)
        + " | fastest peer / fovea | median of rounds (quartiles) | fovea, of peak | peer, of peak |",
        "|---" * (len(PEERS) + 9) + "|",
    ]
    print("\n".join(lines), flush=True)
    for config, model in zip(args.configs, args.models):
        for threads in map(int, args.threads.split(",")):
            macs, figures = measure(args, model, threads)
            name = os.path.basename(os.path.dirname(model)) if config.endswith(".onnx") else config
            lines.append(row(name, macs, threads, figures, best_peak))
            print(lines[-1], flush=True)
            if args.out:
                with open(args.out, "w", encoding="utf-8") as out:
                    out.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
