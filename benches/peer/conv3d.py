"""Our convolutions beside PyTorch's on a GPU: every distinct one of the measured networks at the grids of their schedules.

usage: python3 conv3d.py [--network NAME] [--grid BxTxS] [--direction D] [--form plain|fused] [--dtype bf16|f16]
                         [--budget-s 420] [--repeats 21] [--plans 10] [--only PART] [--out DIR] [--again]
                         [--part I/N] [--bench PROGRAM]
       python3 conv3d.py --device cpu --test [--only PART]

Our side is the program of the kernel benches (`kernels_bench --layers`), which names the layers and times them; then, in
the same run, PyTorch does each of them in every way that could be its best, and the fastest counts:

  conv3d in contiguous and in channels-last memory; conv2d over n*t for 1xkxk filters; conv2d over [t, h*w] for kx1x1
  filters; a matrix product for 1x1x1 filters; cudnn.benchmark is on.

Both sides: device events, L2 flushed before each call, random data, the median. A `fused` row does what a training step
does around the convolution. PyTorch does that by separate ops; in f16 also by cuDNN's graphs, where the Python package
`cudnn` (nvidia-cudnn-frontend) is installed and has a graph for it: forward and grad_filter of what a batch norm and ReLU
precede. Rows come in the order of their share of a step. Those that the budget does not reach are counted; the next run
with the same folder goes on from there, and its tables hold the rows of both. `--part 2/4` does every fourth row from the second on:
for machines that keep no folder; the results of a part have it in their names. Times in ms; `ratio` is ours / theirs, below 1
where we are faster; the floor is the larger of bytes / bandwidth and FLOPs / peak rate, both measured at the start. Prints
a line `peer ID OURS THEIRS` for each row, writes peer_conv3d_DTYPE.json and .md to DIR (`results`), and to $OUT where that is set.
Needs Python 3.9 and PyTorch.
"""
import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from conv3d_pytorch import Conv, Graphs, separate_ops

HERE = Path(__file__).resolve().parent
FLUSH_BYTES = 512 << 20  # more than L2 holds, and long enough for the host to queue what follows
TEST_GRID = "1x8x32"
DIRECTIONS = ("forward", "grad_input", "grad_filter")


# -- our side

def our_program(args):
    """The bench program beside this script (the GPU bundle), or what cargo builds."""
    if args.bench:
        return [args.bench]
    if (HERE / "kernels_bench").exists():
        return [str(HERE / "kernels_bench")]
    return ["cargo", "bench", "--quiet", "--manifest-path", str(HERE.parents[1] / "Cargo.toml"), "--bench", "kernels", "--"]


def our_lines(args, more):
    command = our_program(args) + ["--layers"]
    for name in ("network", "grid", "direction", "form", "only", "part"):
        if getattr(args, name):
            command += ["--" + name, getattr(args, name)]
    environment = dict(os.environ, VCYCLE_DEVICE=args.device)
    process = subprocess.Popen(command + more, env=environment, stdout=subprocess.PIPE, text=True)
    for line in process.stdout:
        if line.startswith("{"):
            yield json.loads(line)
    if process.wait() != 0:
        sys.exit(f"peer conv3d: {' '.join(command + more)} ended with exit code {process.returncode}")


# -- time

class Clock:
    def __init__(self, args):
        self.is_cuda, self.repeats = args.device == "cuda", args.repeats
        if self.is_cuda:
            self.flush = torch.empty(FLUSH_BYTES // 4, device="cuda")
            self.events = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(self.repeats)]

    def ms(self, run, repeats=None):
        """Median. Nothing waits between the repeats, so that the host stays ahead of the device."""
        if not self.is_cuda:
            start = time.perf_counter()
            run()
            return (time.perf_counter() - start) * 1e3
        events = self.events[: repeats or self.repeats]
        for start, end in events:
            self.flush.fill_(0.5)
            start.record()
            run()
            end.record()
        torch.cuda.synchronize()
        return statistics.median(start.elapsed_time(end) for start, end in events)

    def best(self, ways):
        """(name, ms) of the fastest way; a way that fails is noted, and one that is far behind is not timed again and again."""
        best, notes = None, []
        for name, run in ways.items():
            try:
                run()  # cudnn.benchmark chooses
                ms = self.ms(run, 3)
                if best is None or ms < 2 * best[1]:
                    ms = self.ms(run)
                if best is None or ms < best[1]:
                    best = (name, ms)
            except RuntimeError as error:  # out of memory is one, too
                notes.append(f"{name}: {str(error).splitlines()[0]}")
                if self.is_cuda:
                    torch.cuda.empty_cache()
        return best, notes


def ceilings(clock, args):
    """Bytes a second of a large copy, read and written, and FLOPs a second of a large matrix product."""
    if not clock.is_cuda:
        return 1e10, 1e11
    a, b = (torch.randn(1 << 29, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    copy_ms = clock.ms(lambda: b.copy_(a))
    del a, b
    m = [torch.randn(8192, 8192, device="cuda", dtype=args.torch_dtype) for _ in range(2)]
    gemm_ms = clock.ms(lambda: m[0] @ m[1])
    return 2 * 2 * (1 << 29) / copy_ms * 1e3, 2 * 8192**3 / gemm_ms * 1e3


# -- the comparison

def compare(args, clock, graphs, todo, times, rates):
    """Rows with both times, until the budget is spent."""
    best_way, done = {}, []
    for row in todo:
        is_ours_missing = args.device == "cuda" and row["id"] not in times
        if is_ours_missing or time.perf_counter() - args.start > args.budget_s:
            break
        conv = Conv(row)
        row.update({key: value for key, value in times.get(row["id"], {}).items() if key in ("ms", "best_ms", "error")})
        notes = []
        shape = (str(row["input"]), conv.c_in, conv.c_out, str(row["filter"]), str(row["stride"]), row["direction"])
        if shape not in best_way:
            best_way[shape], notes = clock.best(conv.ways(args, row["direction"]))
        best = best_way[shape]
        if row["form"] == "fused" and best is not None:
            ways = {f"separate ops, {best[0]}": separate_ops(args, conv, row, conv.folds()[best[0]])}
            graph, why_not = graphs.call(args, conv, row)
            if graph is not None:
                ways["cuDNN graph"] = graph
            elif why_not != graphs.why_not:
                notes.append(why_not)
            best, more = clock.best(ways)
            notes += more
        if best is not None:
            row["peer"], row["peer_ms"] = best
        row["peer_notes"] = notes
        judge(row, *rates)
        done.append(row)
        tell(row)
    return done


def tell(row):
    if "ratio" in row:
        print("peer", row["id"], number(row["ms"], 5), number(row["peer_ms"], 5), sep="\t", flush=True)


def judge(row, bandwidth, peak):
    """Ratio, rates and the share of the floor."""
    row["floor_ms"] = max(row["bytes"] / bandwidth, row["flops"] / peak) * 1e3
    for side, ms in (("", row.get("ms")), ("peer_", row.get("peer_ms"))):
        if ms:
            row[side + "tflop_s"] = row["flops"] / ms / 1e9
            row[side + "share_of_floor"] = row["floor_ms"] / ms
    if row.get("ms") and row.get("peer_ms"):
        row["ratio"] = row["ms"] / row["peer_ms"]


def geometric_mean(values):
    return math.exp(statistics.mean(map(math.log, values)))


def summary(done):
    """One line for each network, form and direction, over all grids."""
    lines = []
    for key in sorted({(r["network"], r["form"], r["direction"]) for r in done},
                      key=lambda k: (k[0], k[1], DIRECTIONS.index(k[2]))):
        of = [r for r in done if (r["network"], r["form"], r["direction"]) == key and "ratio" in r]
        total = sum((r["network"], r["form"], r["direction"]) == key for r in done)
        line = {"network": key[0], "form": key[1], "direction": key[2], "rows": total, "compared": len(of)}
        if of:
            shares = [r["share_of_floor"] for r in of]
            ratio = geometric_mean(r["ratio"] for r in of)
            line.update(ratio=ratio, times_faster=1 / ratio, share_of_floor=geometric_mean(shares),
                        least_share=min(shares), slower=sum(r["ratio"] > 1 for r in of),
                        step_ms=sum(r["count"] * r["ms"] for r in of), peer_step_ms=sum(r["count"] * r["peer_ms"] for r in of))
        lines.append(line)
    return lines


def number(value, digits=3):
    return "" if value is None else f"{value:.{digits}f}"


def markdown(result):
    head, out = result["head"], ["# Convolutions beside PyTorch", ""]
    out += [f"- {key}: {value}" for key, value in head.items() if value not in (None, [], "")]
    out += ["", "Sums over a step count each row as often as a step runs it, at all grids together; only rows with both times.", "",
            "| network | form | direction | rows | ratio (geometric mean) | times faster | slower rows | share of floor | least "
            "| ours ms | theirs ms |", "|---|---|---|---|---|---|---|---|---|---|---|"]
    for s in result["summary"]:
        compared = f"{s['compared']} of {s['rows']}"
        cells = [s["network"], s["form"], s["direction"], compared, number(s.get("ratio")), number(s.get("times_faster")), s.get("slower", ""),
                 number(s.get("share_of_floor")), number(s.get("least_share")), number(s.get("step_ms")),
                 number(s.get("peer_step_ms"))]
        out.append("| " + " | ".join(map(str, cells)) + " |")
    out += ["", "| layer | count | ours ms | theirs ms | ratio | TFLOP/s | share of floor | theirs by |", "|---|---|---|---|---|---|---|---|"]
    for r in result["rows"]:
        cells = [r["id"], r["count"], number(r.get("ms"), 4) or r.get("error", "not timed"), number(r.get("peer_ms"), 4),
                 number(r.get("ratio")), number(r.get("tflop_s"), 1), number(r.get("share_of_floor")), r.get("peer", "")]
        out.append("| " + " | ".join(str(c).replace("|", "/").replace("\n", " ") for c in cells) + " |")
    notes = sorted({note for r in result["rows"] for note in r["peer_notes"]})
    if notes:
        out += ["", "Ways of theirs that could not run:", ""] + [f"- {note}" for note in notes]
    return "\n".join(out) + "\n"


def paths(args):
    stem = f"peer_conv3d_{args.dtype if args.device == 'cuda' else 'cpu'}"
    if args.part:
        stem += "_" + args.part.replace("/", "of")
    return Path(args.out) / f"{stem}.json", Path(args.out) / f"{stem}.md"


def earlier(args, device):
    """Rows of earlier runs on such a device, by id."""
    file = paths(args)[0]
    if args.again or not file.exists():
        return {}
    result = json.loads(file.read_text())
    if result["head"]["device"] != device:
        sys.exit(f"peer conv3d: {file} is of {result['head']['device']}, this is {device}: give another --out")
    return {row["id"]: row for row in result["rows"]}


def write(args, head, done):
    result = {"head": head, "summary": summary(done), "rows": done}
    text = markdown(result)
    Path(args.out).mkdir(parents=True, exist_ok=True)
    for path, content in zip(paths(args), (json.dumps(result, indent=1), text)):
        path.write_text(content)
        if os.environ.get("OUT") and Path(os.environ["OUT"]).resolve() != path.parent.resolve():
            shutil.copy(path, os.environ["OUT"])
        print(f"written: {path}")
    print(text.split("\n| layer |")[0])


def check_ways(args, all_rows):
    """Every way computes the same convolution; and so do separate ops run through. For --test."""
    for row in all_rows:
        conv, reference = Conv(row), None
        torch.manual_seed(0)
        tensors = conv.tensors(args, torch.contiguous_format)
        for name, way in conv.folds().items():
            x, f, dy = (tensor.to(memory_format=way[0]) for tensor in tensors)
            result = conv.run(way, row["direction"])(way[1](x), way[2](f), way[1](dy))
            like = {"forward": dy, "grad_input": x, "grad_filter": f}[row["direction"]]
            see = way[2] if row["direction"] == "grad_filter" else way[1]
            assert result.shape == see(like).shape, (row["id"], name)
            if reference is None:
                reference = result  # conv3d
            expected = see(reference.to(memory_format=way[0]))
            scale = expected.abs().max().item()
            assert (result - expected).abs().max().item() <= 1e-4 * scale, (row["id"], name)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--network", help="SlowFast-8x8-R50, …; all without it")
    parser.add_argument("--grid", help="B x T x S of the schedule, such as 8x32x224; all without it")
    parser.add_argument("--direction", choices=DIRECTIONS)
    parser.add_argument("--form", choices=("plain", "fused"))
    parser.add_argument("--only", help="a part of the layers' names")
    parser.add_argument("--dtype", choices=("bf16", "f16"), default="bf16")
    parser.add_argument("--budget-s", type=float, default=420.0, help="seconds for both sides together")
    parser.add_argument("--part", help="I/N: every N-th row, from the I-th on")
    parser.add_argument("--repeats", type=int, default=21)
    parser.add_argument("--plans", type=int, default=10, help="plans that cudnn.benchmark tries, 0 for all; 10 is PyTorch's own number")
    parser.add_argument("--out", default="results", help="folder for the JSON and the markdown")
    parser.add_argument("--bench", help="our program; by default the one beside this script, else cargo's")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--test", action="store_true", help=f"tiny layers ({TEST_GRID}), each once, each way checked; needs --device cpu")
    parser.add_argument("--again", action="store_true", help="forget what earlier runs have written to the folder")
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        sys.exit("peer conv3d: PyTorch sees no GPU; --device cpu --test tries the script without one")
    if args.test and args.device != "cpu":
        sys.exit("peer conv3d: --test needs --device cpu")
    args.torch_dtype = {"bf16": torch.bfloat16, "f16": torch.float16}[args.dtype] if args.device == "cuda" else torch.float32
    if args.test:
        args.grid, args.repeats = args.grid or TEST_GRID, 1
    args.start = time.perf_counter()
    torch.backends.cudnn.benchmark = True
    torch.backends.cudnn.benchmark_limit = args.plans
    torch.set_grad_enabled(False)

    is_cuda = args.device == "cuda"
    device = torch.cuda.get_device_name() if is_cuda else "cpu"
    all_rows = list(our_lines(args, ["--list"]))
    if not all_rows:
        sys.exit("peer conv3d: no layer is asked for")
    known = earlier(args, device)
    first = next((i for i, row in enumerate(all_rows) if row["id"] not in known), len(all_rows))
    todo = [row for row in all_rows[first:] if row["id"] not in known]

    more = ["--dtype", args.dtype, "--repeats", str(args.repeats), "--budget-s", str(args.budget_s * 0.4), "--from", str(first)]
    lines = list(our_lines(args, more)) if todo else []
    times = {line["id"]: line for line in lines if "id" in line}
    ours = next((line for line in lines if line.get("kind") == "head"), {})

    clock, graphs = Clock(args), Graphs(args)
    if args.test:
        check_ways(args, [row for row in todo if row["form"] == "plain"])
    rates = ceilings(clock, args)
    new = compare(args, clock, graphs, todo, times, rates)
    done = list(known.values()) + new
    for row in known.values():
        tell(row)  # what stands in the place of an earlier run's lines holds these too
    head = {
        "device": device,
        "dtype": args.dtype if is_cuda else "f32",
        "torch": torch.__version__,
        "cudnn": torch.backends.cudnn.version() if is_cuda else None,
        "cudnn_plans_tried": args.plans if is_cuda else None,
        "graphs": graphs.why_not or f"nvidia-cudnn-frontend {graphs.cudnn.__version__}",
        "copy_tb_s": round(rates[0] / 1e12, 3),
        "gemm_tflop_s": round(rates[1] / 1e12, 1),
        "our_device": ours.get("device"),
        "empty_ms": ours.get("empty_ms"),
        "peer_empty_ms": clock.ms(lambda: None),
        "part": args.part,
        "repeats": args.repeats,
        "seconds": round(time.perf_counter() - args.start, 1),
        "rows_done_before": len(known),
        "rows_left_for_want_of_time": len(todo) - len(new),
    }
    write(args, head, done)
    if len(new) < len(todo):
        print(f"peer conv3d: {len(todo) - len(new)} of {len(all_rows)} rows left for want of time; run again to go on")
    failed = [row for row in done if "error" in row]
    if failed:
        sys.exit(f"peer conv3d: {len(failed)} of ours could not run, the first {failed[0]['id']}: {failed[0]['error']}")
    if not any("peer_ms" in row for row in done):
        sys.exit("peer conv3d: none of theirs could run")


if __name__ == "__main__":
    main()
