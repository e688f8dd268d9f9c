"""PyTorch's times of every [[layer]] of tests/cases/conv3d.toml beside ours, on the same cores.

usage: python benches/peer/conv_layers.py [--threads 2] [--repeats 9] [--cpu-time] [--only PART] [--ours FILE.csv]

Runs `cargo bench --bench conv_layers` for our side (or reads its output from FILE.csv), then times
torch.nn.functional.conv3d in float32 in both memory formats and keeps the faster one of each direction. Prints a line
a layer and direction (ms, and ours / PyTorch's), the geometric mean of the ratios per direction, and the sums over one
training step. Needs Python 3.11 and torch.
"""
import argparse
import math
import os
import statistics
import subprocess
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DIRECTIONS = ("forward", "grad_input", "grad_filter")


def ours(args):
    if args.ours:
        text = Path(args.ours).read_text()
    else:
        command = ["cargo", "bench", "--quiet", "--bench", "conv_layers", "--", args.only, "--repeats", str(args.repeats)]
        command += ["--cpu-time"] * args.cpu_time
        environment = dict(os.environ, RAYON_NUM_THREADS=str(args.threads))
        text = subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    rows = (line.split(",") for line in text.splitlines())
    return {(name, direction): float(ms) for name, direction, _, _, ms in rows}


def best_ms(args, run):
    """Best of the repeats; each runs for about 3 ms or once, whichever is longer."""
    clock = time.process_time if args.cpu_time else time.perf_counter
    run()
    start = time.perf_counter()
    run()
    runs = math.ceil(3e-3 / (time.perf_counter() - start))
    best = math.inf
    for _ in range(args.repeats):
        start = clock()
        for _ in range(runs):
            run()
        best = min(best, (clock() - start) / runs)
    return best * 1e3


def theirs(torch, args, layer):
    """Best ms of each direction, the better of both memory formats."""
    n, t, h, w, c = layer["input"]
    stride, padding = layer.get("stride", [1] * 3), layer.get("padding", [0] * 3)
    best = {}
    for memory_format in (torch.contiguous_format, torch.channels_last_3d):
        x = torch.randn(n, c, t, h, w).to(memory_format=memory_format)
        f = torch.randn(layer["c_out"], c, *layer["filter"]).to(memory_format=memory_format)
        y = torch.conv3d(x, f, None, stride, padding)
        dy = torch.randn_like(y)

        def backward(want_input, want_filter):
            return torch.ops.aten.convolution_backward(
                dy, x, f, None, stride, padding, [1] * 3, False, [0] * 3, 1, [want_input, want_filter, False]
            )

        runs = {
            "forward": lambda: torch.conv3d(x, f, None, stride, padding),
            "grad_input": lambda: backward(True, False),
            "grad_filter": lambda: backward(False, True),
        }
        if layer.get("is_first"):
            del runs["grad_input"]
        with torch.no_grad():
            for direction, run in runs.items():
                best[direction] = min(best.get(direction, math.inf), best_ms(args, run))
    return best


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--cpu-time", action="store_true", help="processor time; with one thread it hardly sees others")
    parser.add_argument("--only", default="", help="a part of the layers' names")
    parser.add_argument("--ours", help="CSV written before by the conv_layers bench")
    args = parser.parse_args()

    import torch

    torch.set_num_threads(args.threads)
    layers = tomllib.loads((ROOT / "tests/cases/conv3d.toml").read_text())["layer"]
    our_ms = ours(args)
    sums = {d: [0.0, 0.0] for d in DIRECTIONS}
    logs = {d: [] for d in DIRECTIONS}
    print(f"torch {torch.__version__}, {args.threads} threads\n{'layer':24} {'direction':12} {'count':>5} "
          f"{'GMAC':>8} {'ours ms':>9} {'torch ms':>9} {'ratio':>6} {'GFLOP/s':>8}")
    for layer in layers:
        if args.only not in layer["name"]:
            continue
        n, t, h, w, c = layer["input"]
        size = [(s + 2 * p - f) // q + 1 for s, p, f, q in
                zip((t, h, w), layer.get("padding", [0] * 3), layer["filter"], layer.get("stride", [1] * 3))]
        gmac = n * math.prod(size) * layer["c_out"] * math.prod(layer["filter"]) * c / 1e9
        count = layer.get("count", 1)
        for direction, torch_ms in theirs(torch, args, layer).items():
            ms = our_ms[layer["name"], direction]
            sums[direction][0] += count * ms
            sums[direction][1] += count * torch_ms
            logs[direction].append(math.log(ms / torch_ms))
            print(f"{layer['name']:24} {direction:12} {count:5} {gmac:8.4f} {ms:9.3f} {torch_ms:9.3f} "
                  f"{ms / torch_ms:6.2f} {2 * gmac / ms * 1e3:8.1f}")
    for direction in DIRECTIONS:
        a, b = sums[direction]
        if logs[direction]:
            print(f"{direction}: geometric mean {math.exp(statistics.mean(logs[direction])):.3f}, "
                  f"a step {a:.1f} / {b:.1f} ms = {a / b:.3f}")
    a, b = (sum(s[i] for s in sums.values()) for i in (0, 1))
    print(f"all: a step {a:.1f} / {b:.1f} ms = {a / b:.3f}")


if __name__ == "__main__":
    main()
