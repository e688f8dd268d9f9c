"""Our convolutions beside PyTorch's on a GPU: every distinct one of the measured networks at the grids of their schedules.

usage: python3 conv3d.py [--network NAME] [--grid BxTxS] [--direction D] [--form plain|fused] [--dtype bf16|f16]
                         [--budget-s 420] [--repeats 21] [--plans 10] [--only PART] [--out DIR] [--again]
                         [--bench PROGRAM]
       python3 conv3d.py --device cpu --test [--only PART]

Our side is the program of the kernel benches (`kernels_bench --layers`), which names the layers and times them; then, in
the same run, PyTorch does each of them in every way that could be its best, and the fastest counts:

  conv3d in contiguous and in channels-last memory; conv2d over n*t for 1xkxk filters; conv2d over [t, h*w] for kx1x1
  filters; a matrix product for 1x1x1 filters; cudnn.benchmark is on.

Both sides: device events, L2 flushed before each call, random data, the median. A `fused` row does what a training step
does around the convolution. PyTorch does that by separate ops; in f16 also by cuDNN's graphs, where the Python package
`cudnn` (nvidia-cudnn-frontend) is installed and has a graph for it: forward and grad_filter of what a batch norm and ReLU
precede. Rows come in the order of their share of a step. Those that the budget does not reach are counted; the next run
with the same folder goes on from there, and its tables hold the rows of both. Times in ms; `ratio` is ours / theirs, below 1
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
import torch.nn.functional as F

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
    for name in ("network", "grid", "direction", "form", "only"):
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


# -- PyTorch's convolutions

class Conv:
    """A row's sizes, and each way to do it. Tensors are [n, c, t, h, w]; where their memory is channels-last, conv2d and the
    matrix product see the same memory through other sizes."""

    def __init__(self, row):
        self.n, self.t, self.h, self.w, _ = row["input"]
        self.c_in, self.c_out = row["c_in"], row["c_out"]
        self.filter, self.stride, self.padding = row["filter"], row["stride"], row["padding"]
        self.dilation, self.groups = row["dilation"], row["groups"]
        sizes = zip((self.t, self.h, self.w), self.filter, self.stride, self.padding, self.dilation)
        self.out = [(size + 2 * p - d * (f - 1) - 1) // s + 1 for size, f, s, p, d in sizes]

    def tensors(self, args, memory_format):
        """x, filter, gradient of the output."""
        def random(*shape):
            return torch.randn(shape, device=args.device, dtype=args.torch_dtype).to(memory_format=memory_format)
        x = random(self.n, self.c_in, self.t, self.h, self.w)
        f = random(self.c_out, self.c_in // self.groups, *self.filter)
        return x, f, random(self.n, self.c_out, *self.out)

    def folds(self):
        """name -> (memory format, what x and dy are seen as, what the filter is seen as, stride, padding, dilation)."""
        s, p, d = self.stride, self.padding, self.dilation
        same = lambda tensor: tensor
        last = torch.channels_last_3d
        ways = {"conv3d channels-last": (last, same, same, s, p, d),
                "conv3d contiguous": (torch.contiguous_format, same, same, s, p, d)}
        is_pointwise_in_t = (self.filter[0], s[0], p[0]) == (1, 1, 0)
        is_pointwise_in_hw = (self.filter[1:], s[1:], p[1:]) == ([1, 1], [1, 1], [0, 0])
        if is_pointwise_in_t:
            ways["conv2d over n*t"] = (last, lambda x: rows(x).flatten(0, 1).permute(0, 3, 1, 2), lambda f: f[:, :, 0],
                                       s[1:], p[1:], d[1:])
        if is_pointwise_in_hw and not is_pointwise_in_t:
            ways["conv2d over h*w"] = (last, lambda x: rows(x).flatten(2, 3).permute(0, 3, 1, 2), lambda f: f[..., 0],
                                       [s[0], 1], [p[0], 0], [d[0], 1])
        if is_pointwise_in_t and is_pointwise_in_hw and self.groups == 1:
            ways["matmul"] = (last, lambda x: rows(x).flatten(0, 3), lambda f: f[:, :, 0, 0, 0], None, None, None)
        return ways

    def run(self, way, direction):
        """A function of (x, filter, dy) for one of `folds`."""
        _, see, see_filter, stride, padding, dilation = way
        if stride is None:
            return {"forward": lambda x, f, dy: x @ f.t(), "grad_input": lambda x, f, dy: dy @ f,
                    "grad_filter": lambda x, f, dy: dy.t() @ x}[direction]
        conv = torch.conv2d if len(stride) == 2 else torch.conv3d
        if direction == "forward":
            return lambda x, f, dy: conv(x, f, None, stride, padding, dilation, self.groups)
        mask = [direction == "grad_input", direction == "grad_filter", False]
        which = mask.index(True)

        def backward(x, f, dy):
            return torch.ops.aten.convolution_backward(
                dy, x, f, None, stride, padding, dilation, False, [0] * len(stride), self.groups, mask)[which]
        return backward

    def ways(self, args, direction):
        """name -> a call of it, on tensors of its own layout."""
        tensors, calls = {}, {}
        for name, way in self.folds().items():
            if way[0] not in tensors:
                tensors[way[0]] = self.tensors(args, way[0])
            x, f, dy = tensors[way[0]]
            seen = way[1](x), way[2](f), way[1](dy)
            run = self.run(way, direction)
            calls[name] = lambda run=run, seen=seen: run(*seen)
        return calls


def rows(x):
    """[n, c, t, h, w] as [n, t, h, w, c]: a view of channels-last memory."""
    return x.permute(0, 2, 3, 4, 1)


# -- what surrounds a convolution in a step, by separate ops

class Norm:
    """A batch norm of `c` channels: PyTorch's own pieces on a GPU, the formulas elsewhere."""

    def __init__(self, args, c):
        self.is_cuda = args.device == "cuda"
        self.vectors = [torch.randn(c, device=args.device) for _ in range(6)]
        self.count = torch.ones(1, device=args.device, dtype=torch.int32)

    def shaped(self, i):
        return self.vectors[i].view(1, -1, 1, 1, 1)

    def apply(self, x):
        weight, bias, mean, invstd, _, _ = self.vectors
        if self.is_cuda:
            return torch.batch_norm_elemt(x, weight, bias, mean, invstd, 1e-5)
        return x * self.shaped(0) + self.shaped(1)

    def statistics(self, y):
        return torch.batch_norm_stats(y, 1e-5) if self.is_cuda else torch.var_mean(y, (0, 2, 3, 4))

    def gradient(self, g, y):
        weight, _, mean, invstd, sum_dy, sum_dy_xmu = self.vectors
        if self.is_cuda:
            return torch.batch_norm_backward_elemt(g, y, mean, invstd, weight, sum_dy, sum_dy_xmu, self.count)
        return g * self.shaped(0) + y * self.shaped(1) + self.shaped(2)

    def sums(self, g, y):
        weight, _, mean, invstd, _, _ = self.vectors
        if self.is_cuda:
            return torch.batch_norm_backward_reduce(g, y, mean, invstd, weight, True, True, True)
        return g.sum((0, 2, 3, 4)), (g * y).sum((0, 2, 3, 4))


def separate_ops(args, conv, row, way):
    """The row's fused work around the convolution's best way. grad_filter reads what forward and grad_input have stored."""
    fusion, direction = row["fusion"], row["direction"]
    memory_format, see, see_filter = way[:3]
    x, f, dy = conv.tensors(args, memory_format)
    run, seen_filter = conv.run(way, direction), see_filter(f)
    if direction == "grad_filter":
        seen = see(x), seen_filter, see(dy)
        if fusion["bias"]:
            return lambda: (run(*seen), dy.sum((0, 2, 3, 4)))
        return lambda: run(*seen)
    residual = torch.randn_like(x)
    before, shortcut, after = (Norm(args, c) for c in (conv.c_in, conv.c_in, conv.c_out))
    seen_x, seen_dy = see(x), see(dy)
    y, bias = torch.randn_like(dy), torch.randn(1, conv.c_out, 1, 1, 1, device=args.device, dtype=args.torch_dtype)
    like_x = lambda seen: seen.view(conv.n, conv.t, conv.h, conv.w, -1).permute(0, 4, 1, 2, 3)
    like_y = lambda seen: seen.view(conv.n, *conv.out, -1).permute(0, 4, 1, 2, 3)

    def whole(seen, like):
        """The convolution's result as [n, c, t, h, w]."""
        if seen.dim() == 5:
            return seen
        return like(seen if seen.dim() == 2 else seen.permute(0, 2, 3, 1))

    def forward():
        value = x
        if fusion["input"] != "stored":
            value = before.apply(x)
            if fusion["input"].startswith("join"):
                value.add_(shortcut.apply(residual) if "norm" in fusion["input"] else residual)
            value.relu_()
        out = whole(run(see(value), seen_filter, seen_dy), like_y)
        if fusion["bias"]:
            out.add_(bias)
        return after.statistics(out) if fusion["statistics"] else out

    def grad_input():
        grad = after.gradient(dy, y) if fusion["grad_norm"] else dy
        dx = whole(run(seen_x, seen_filter, see(grad)), like_x)
        if fusion["accumulate"]:
            dx = dx.add_(residual)
        if fusion["mask"] != "none":
            dx = torch.ops.aten.threshold_backward(dx, x, 0)
        return [norm.sums(dx, value) for norm, value in ((before, x), (shortcut, residual))[: fusion["norms"]]] or dx

    return forward if direction == "forward" else grad_input


# -- cuDNN's graphs

class Graphs:
    """cuDNN's graph fusions through its Python frontend, in f16; `why_not` says why there are none."""

    def __init__(self, args):
        self.why_not, self.cudnn = None, None
        if args.device != "cuda" or args.dtype != "f16":
            self.why_not = "cuDNN's graphs: timed with --dtype f16 on a GPU only"
            return
        try:
            import cudnn
            self.cudnn, self.handle = cudnn, cudnn.create_handle()
            cudnn.set_stream(handle=self.handle, stream=torch.cuda.current_stream().cuda_stream)
        except Exception as error:  # a broken installation must not end the comparison
            self.cudnn = None
            self.why_not = f"cuDNN's graphs: the package nvidia-cudnn-frontend cannot be used ({error})"

    def call(self, args, conv, row):
        """(call, None), or (None, why there is no graph for this row)."""
        fusion, direction = row["fusion"], row["direction"]
        if self.cudnn is None:
            return None, self.why_not
        if direction == "grad_input" or fusion["input"].startswith("join"):
            return None, "cuDNN's Python frontend has no graph for a join or for the sums of grad_input"
        if fusion["input"] == "stored" and not fusion["statistics"]:
            return None, "nothing to fuse"
        try:
            return self.build(args, conv, fusion, direction), None
        except Exception as error:  # cuDNN says in many types that it has no engine for a graph
            return None, f"cuDNN's graph: {str(error).splitlines()[0] if str(error) else type(error).__name__}"

    def build(self, args, conv, fusion, direction):
        cudnn = self.cudnn
        name = next((n for n in ("conv2d over n*t", "conv2d over h*w") if n in conv.folds()), "conv3d channels-last")
        way = conv.folds()[name]
        _, see, see_filter, stride, padding, dilation = way
        x, f, dy = conv.tensors(args, way[0])
        memory = {"x": see(x), "filter": see_filter(f), "dy": see(dy)}
        vector = [1, conv.c_in] + [1] * len(stride)
        for key in ("scale", "shift"):
            memory[key] = torch.randn(vector, device="cuda", dtype=torch.float16)
        graph = cudnn.pygraph(io_data_type=cudnn.data_type.HALF, intermediate_data_type=cudnn.data_type.FLOAT,
                              compute_data_type=cudnn.data_type.FLOAT, handle=self.handle)
        nodes = {}

        def node(key):
            if key not in nodes:
                m = memory[key]
                nodes[key] = graph.tensor(name=key, dim=list(m.size()), stride=list(m.stride()), data_type=cudnn.data_type.HALF)
            return nodes[key]

        image = node("x")
        if fusion["input"] == "norm":
            image = graph.relu(input=graph.bias(input=graph.scale(input=image, scale=node("scale")), bias=node("shift")))
        sizes = dict(padding=padding, stride=stride, dilation=dilation)
        results = {}
        if direction == "forward":
            out = graph.conv_fprop(image=image, weight=node("filter"), **sizes)
            out.set_output(True)
            results[out] = torch.empty_like(memory["dy"])
            if fusion["statistics"]:
                for total in graph.genstats(input=out):
                    total.set_output(True).set_data_type(cudnn.data_type.FLOAT)
                    results[total] = torch.empty(conv.c_out, device="cuda")
        else:
            out = graph.conv_wgrad(image=image, loss=node("dy"), **sizes)
            out.set_output(True).set_dim(list(memory["filter"].size()))
            results[out] = torch.empty_like(memory["filter"])
        graph.validate()
        graph.build_operation_graph()
        graph.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
        graph.check_support()
        graph.build_plans()
        workspace = torch.empty(max(graph.get_workspace_size(), 1), device="cuda", dtype=torch.uint8)
        pack = {nodes[key]: memory[key] for key in nodes}
        pack.update(results)
        return lambda: graph.execute(pack, workspace, handle=self.handle)


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
        if "ratio" in row:
            print("peer", row["id"], number(row["ms"], 5), number(row["peer_ms"], 5), sep="\t", flush=True)
    return done


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
    stem = Path(args.out) / f"peer_conv3d_{args.dtype if args.device == 'cuda' else 'cpu'}"
    return stem.with_suffix(".json"), stem.with_suffix(".md")


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
