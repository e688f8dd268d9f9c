"""Time of a training step in PyTorch, for comparison with `cargo run --release --example 04_step_time`.

    python3 benches/peer/step_time.py [slowfast|i3d] [B,T,S] [steps] [--threads N] [--channels-last]

The networks have the layers of SlowFast 8x8 R50 and I3D 8x8 R50 (same convolutions, batch norms, pools, projection to
400 classes), random weights, SGD with Nesterov momentum and weight decay.
"""

import argparse
import resource
import statistics
import time

import torch
from torch import nn
from torch.nn import functional as F


def conv(c_in, c_out, kernel, stride=(1, 1, 1)):
    return nn.Conv3d(c_in, c_out, kernel, stride, [k // 2 for k in kernel], bias=False)


class Block(nn.Module):
    """Bottleneck: Tx1x1, 1x3x3 with the stride, 1x1x1, and the shortcut."""

    def __init__(self, c_in, c_inner, c_out, kernel_t, stride):
        super().__init__()
        self.shortcut = None
        if c_in != c_out or stride != 1:
            self.shortcut = nn.Sequential(conv(c_in, c_out, (1, 1, 1), (1, stride, stride)), nn.BatchNorm3d(c_out))
        self.branch = nn.Sequential(
            conv(c_in, c_inner, (kernel_t, 1, 1)), nn.BatchNorm3d(c_inner), nn.ReLU(inplace=True),
            conv(c_inner, c_inner, (1, 3, 3), (1, stride, stride)), nn.BatchNorm3d(c_inner), nn.ReLU(inplace=True),
            conv(c_inner, c_out, (1, 1, 1)), nn.BatchNorm3d(c_out))

    def forward(self, x):
        y = self.branch(x)
        return F.relu(y + (x if self.shortcut is None else self.shortcut(x)), inplace=True)


class Pathway(nn.Module):
    """Stem and four stages. `c_lateral` channels join the input of each stage from the fast pathway."""

    def __init__(self, width, kernel_stem, kernels, c_lateral=(0, 0, 0, 0), pool_t=1):
        super().__init__()
        self.stem = nn.Sequential(
            conv(3, width, (kernel_stem, 7, 7), (1, 2, 2)), nn.BatchNorm3d(width), nn.ReLU(inplace=True),
            nn.MaxPool3d((1, 3, 3), (1, 2, 2), (0, 1, 1)))
        self.stages = nn.ModuleList()
        c_in = width
        for i, blocks in enumerate((3, 4, 6, 3)):
            inner, out = width << i, width << (i + 2)
            layers = []
            for b in range(blocks):
                first = c_in + c_lateral[i] if b == 0 else out
                layers.append(Block(first, inner, out, kernels[i][b % len(kernels[i])], 2 if b == 0 and i else 1))
            self.stages.append(nn.Sequential(*layers))
            c_in = out
        self.pool = nn.MaxPool3d((pool_t, 1, 1), (pool_t, 1, 1)) if pool_t > 1 else None


class I3D(nn.Module):
    def __init__(self, classes=400):
        super().__init__()
        self.path = Pathway(64, 5, ((3,), (3, 1), (3, 1), (1, 3)), pool_t=2)
        self.projection = nn.Linear(2048, classes)

    def inputs(self, b, t, s):
        return [torch.randn(b, 3, t, s, s)]

    def forward(self, xs):
        x = self.path.stem(xs[0])
        for i, stage in enumerate(self.path.stages):
            x = stage(x)
            if i == 0:
                x = self.path.pool(x)
        return self.projection(x.mean((2, 3, 4)))


class SlowFast(nn.Module):
    """Alpha 4, beta 1/8, lateral convolutions of 7 frames with twice the fast pathway's channels."""

    def __init__(self, classes=400):
        super().__init__()
        c_fast = (8, 32, 64, 128)
        self.slow = Pathway(64, 1, ((1,), (1,), (3,), (3,)), [2 * c for c in c_fast])
        self.fast = Pathway(8, 5, ((3,), (3,), (3,), (3,)))
        self.laterals = nn.ModuleList(
            nn.Sequential(
                nn.Conv3d(c, 2 * c, (7, 1, 1), (4, 1, 1), (3, 0, 0), bias=False), nn.BatchNorm3d(2 * c),
                nn.ReLU(inplace=True))
            for c in c_fast)
        self.projection = nn.Linear(2048 + 256, classes)

    def inputs(self, b, t, s):
        return [torch.randn(b, 3, t // 4, s, s), torch.randn(b, 3, t, s, s)]

    def forward(self, xs):
        slow, fast = self.slow.stem(xs[0]), self.fast.stem(xs[1])
        for lateral, slow_stage, fast_stage in zip(self.laterals, self.slow.stages, self.fast.stages):
            slow = slow_stage(torch.cat([slow, lateral(fast)], 1))
            fast = fast_stage(fast)
        return self.projection(torch.cat([slow.mean((2, 3, 4)), fast.mean((2, 3, 4))], 1))


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("arch", nargs="?", default="slowfast", choices=("slowfast", "i3d"))
    parser.add_argument("shape", nargs="?", default="1,32,112")
    parser.add_argument("steps", nargs="?", type=int, default=7)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--channels-last", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    b, t, s = (int(v) for v in args.shape.split(","))
    model = SlowFast() if args.arch == "slowfast" else I3D()
    inputs = model.inputs(b, t, s)
    if args.channels_last:
        model = model.to(memory_format=torch.channels_last_3d)
        inputs = [x.contiguous(memory_format=torch.channels_last_3d) for x in inputs]
    labels = torch.arange(b)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9, nesterov=True, weight_decay=1e-4)

    def step():
        start = time.perf_counter()
        optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
        return time.perf_counter() - start

    step()
    cpu_before = time.process_time()
    times = [step() for _ in range(args.steps)]
    cpu_s = (time.process_time() - cpu_before) / args.steps
    layout = "channels_last_3d" if args.channels_last else "contiguous"
    params = sum(p.numel() for p in model.parameters())
    peak_gib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"PyTorch {torch.__version__} {args.arch} {args.shape} {layout} {args.threads} threads: "
          f"median {statistics.median(times):.3f} s, best {min(times):.3f} s, CPU time {cpu_s:.3f} s a step ({args.steps} steps), "
          f"{params} parameters, peak memory {peak_gib:.2f} GiB")


if __name__ == "__main__":
    main()
