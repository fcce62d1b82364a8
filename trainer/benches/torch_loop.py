"""Speed of `fovea-train`'s step beside PyTorch's own loop: the same network, losses and optimiser, in alternation.

usage: torch_loop.py --trainer target/release/fovea-train --config FIT.toml [--precision f32,bf16] [--rounds 6] [--steps 1] [--threads 1]

FIT.toml is that of a run with `backbone = "shufflenetv2"` and `backbone_norm = true` (`fovea-train fit --until 0 …` writes one). Both
repeat steps on one batch in memory; making batches is measured by `fovea-train bench` itself. The network here is written as one writes it
in PyTorch: torchvision's backbone, channels-last, autocast for bf16, torchvision's losses, foreach optimiser. A figure is process CPU time
where there is one thread, else wall time; the ratio is the median over pairs.
"""

import argparse
import json
import math
import statistics
import subprocess
import time
import tomllib

import torch
import torchvision
from torch import nn
from torch.nn import functional as F


class JointNorm(nn.Module):
    """Convolution, batch norm over all levels at once, ReLU."""

    def __init__(self, c_in, c_out):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(c_out, momentum=0.03)

    def forward(self, levels):
        outputs = [self.conv(x) for x in levels]
        c = outputs[0].shape[1]
        flat = torch.cat([x.permute(0, 2, 3, 1).reshape(-1, c) for x in outputs])
        flat = F.relu(self.norm(flat[None, None].permute(0, 3, 1, 2))).permute(0, 2, 3, 1).reshape(-1, c)
        parts = flat.split([x.numel() // c for x in outputs])
        return [p.reshape(x.shape[0], x.shape[2], x.shape[3], c).permute(0, 3, 1, 2) for p, x in zip(parts, outputs)]


def conv_norm(c_in, c_out, kernel, stride=1):
    return nn.Sequential(nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(c_out, momentum=0.03))


class RetinaNet(nn.Module):
    def __init__(self, model, n_anchors):
        super().__init__()
        body = torchvision.models.shufflenet_v2_x1_0(weights=None)
        self.stem = nn.Sequential(body.conv1, body.maxpool)
        self.stages = nn.ModuleList([body.stage2, body.stage3, body.stage4])
        width, head = model["fpn_width"], model["head_width"]
        self.lateral = nn.ModuleList([conv_norm(c, width, 1) for c in (116, 232, 464)])
        self.out = nn.ModuleList([conv_norm(width, width, 3) for _ in range(3)])
        self.p6, self.p7 = conv_norm(464, width, 3, 2), conv_norm(width, width, 3, 2)

        def tower(c_out):
            layers = [JointNorm(width if n == 0 else head, head) for n in range(model["head_depth"])]
            return nn.ModuleList(layers), nn.Conv2d(head, c_out, 3, padding=1)

        self.n_classes = len(model["classes"])
        self.cls, self.cls_last = tower(n_anchors * self.n_classes)
        self.box, self.box_last = tower(n_anchors * 4)
        nn.init.normal_(self.cls_last.weight, std=0.01)
        nn.init.constant_(self.cls_last.bias, -math.log(99))

    def forward(self, images):
        x = self.stem(images.permute(0, 3, 1, 2).float() / 255)
        features = []
        for stage in self.stages:
            x = stage(x)
            features.append(x)
        p5 = self.lateral[2](features[2])
        p4 = self.lateral[1](features[1]) + F.interpolate(p5, scale_factor=2)
        p3 = self.lateral[0](features[0]) + F.interpolate(p4, scale_factor=2)
        p6 = self.p6(features[2])
        pyramid = [out(p) for out, p in zip(self.out, (p3, p4, p5))] + [p6, self.p7(F.relu(p6))]

        def run(layers, last, k):
            levels = pyramid
            for layer in layers:
                levels = layer(levels)
            return torch.cat([last(x).permute(0, 2, 3, 1).reshape(images.shape[0], -1, k) for x in levels], 1).float()

        return run(self.cls, self.cls_last, self.n_classes), run(self.box, self.box_last, 4)


class Loop:
    """A training step on one batch."""

    def __init__(self, config, precision):
        model = config["model"]
        anchors = model["anchors"]
        n_anchors = len(anchors["scales"]) * len(anchors["aspect_ratios"])
        self.network = RetinaNet(model, n_anchors).to(memory_format=torch.channels_last)
        backbone = [p for name, p in self.network.named_parameters() if name.startswith(("stem", "stages"))]
        rest = [p for name, p in self.network.named_parameters() if not name.startswith(("stem", "stages"))]
        groups = [{"params": backbone, "lr": config["lr"] * config["backbone_lr"]}, {"params": rest, "lr": config["lr"]}]
        self.optimizer = torch.optim.AdamW(groups, weight_decay=config["weight_decay"], foreach=True)
        self.parameters = backbone + rest
        self.average = [p.detach().clone() for p in self.parameters]
        self.bf16, self.config = precision == "bf16", config
        n, height, width = config["batch"], model["height"], model["width"]
        torch.manual_seed(1)
        self.images = torch.randint(0, 256, (n, height, width, 3), dtype=torch.uint8)
        with torch.no_grad():
            shape = self.network.eval()(self.images[:1])[0].shape
        self.network.train()
        self.target = torch.zeros(n, *shape[1:])
        self.places = torch.randperm(n * shape[1])[: 20 * n]
        self.target.view(-1, shape[2])[self.places, 0] = 1
        corner = torch.rand(len(self.places), 2) * 200
        self.anchors = torch.cat([corner, corner + 40], 1)
        self.boxes = self.anchors + torch.rand(len(self.places), 4) * 8

    def step(self):
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16):
            logits, deltas = self.network(self.images)
        n = len(self.places)
        loss = torchvision.ops.sigmoid_focal_loss(logits, self.target, alpha=0.25, gamma=2, reduction="sum") / n
        deltas = deltas.reshape(-1, 4)[self.places]
        size = self.anchors[:, 2:] - self.anchors[:, :2]
        center = deltas[:, :2] * size + (self.anchors[:, :2] + self.anchors[:, 2:]) / 2
        half = deltas[:, 2:].clamp(max=math.log(1000 / 16)).exp() * size / 2
        boxes = torch.cat([center - half, center + half], 1)
        loss = loss + torchvision.ops.generalized_box_iou_loss(boxes, self.boxes, reduction="sum") * (2 / n)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.config["clip"])
        self.optimizer.step()
        self.optimizer.zero_grad()
        torch._foreach_lerp_(self.average, [p.detach() for p in self.parameters], 1 - self.config["ema"])
        assert math.isfinite(loss.item())

    def run(self, steps, threads):
        clock = time.process_time if threads == 1 else time.perf_counter
        start = clock()
        for _ in range(steps):
            self.step()
        return clock() - start


class Trainer:
    """`fovea-train bench --worker`."""

    def __init__(self, args, precision):
        command = [args.trainer, "bench", "--config", args.config, "--precision", precision, "--threads", str(args.threads), "--worker"]
        self.worker = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        self.ready = json.loads(self.worker.stdout.readline())

    def run(self, steps, threads):
        self.worker.stdin.write(f"{steps}\n")
        self.worker.stdin.flush()
        return json.loads(self.worker.stdout.readline())["cpu" if threads == 1 else "wall"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--trainer", required=True)
    parser.add_argument("--config", required=True)
    parser.add_argument("--precision", default="f32,bf16")
    parser.add_argument("--rounds", type=int, default=6)
    parser.add_argument("--steps", type=int, default=1)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    with open(args.config, "rb") as file:
        config = tomllib.load(file)
    if config["model"]["backbone"] != "shufflenetv2" or not config["model"]["backbone_norm"]:
        raise SystemExit("the network here is shufflenetv2 with batch norm; the settings are of another")
    torch.set_num_threads(args.threads)
    images = config["batch"] * args.steps
    print("| precision | fovea-train, img/s | PyTorch, img/s | PyTorch's time / ours: median (quartiles) |\n|---|---|---|---|")
    for precision in args.precision.split(","):
        ours, theirs = Trainer(args, precision), Loop(config, precision)
        n = sum(p.numel() for p in theirs.parameters)
        if n != ours.ready["parameters"]:
            raise SystemExit(f"{n} parameters here, {ours.ready['parameters']} there: not the same network")
        pairs = []
        for round in range(args.rounds + 1):
            order = (ours, theirs) if round % 2 else (theirs, ours)
            times = {contestant: contestant.run(args.steps, args.threads) for contestant in order}
            # The first round allocates and chooses kernels.
            if round:
                pairs.append((times[ours], times[theirs]))
        low, middle, high = statistics.quantiles([b / a for a, b in pairs], n=4)
        best = [images / min(pair[n] for pair in pairs) for n in (0, 1)]
        print(f"| {precision} | {best[0]:.2f} | {best[1]:.2f} | {middle:.2f} ({low:.2f}–{high:.2f}) |", flush=True)
        ours.worker.stdin.close()
        ours.worker.wait()


if __name__ == "__main__":
    main()
