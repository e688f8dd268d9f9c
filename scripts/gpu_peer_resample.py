"""What a PyTorch user would write for the resample op, timed on the GPU beside ours: for each clip of the batch cut out
the box, uint8 to float, trilinear interpolate, normalise, flip, cast to bf16, channels last; then the Slow pathway by
index. Shapes are those of benches/kernels/resample.rs.

    python3 gpu_peer_resample.py tests/cases/resample.toml

With VCYCLE_RESULTS=results.tsv of the GPU bundle, whose stage `bench` has run, it also prints a line `peer ID OURS_MS THEIRS_MS`.
"""
import os
import re
import sys

import torch
import torch.nn.functional as F

FRAMES, HEIGHT, WIDTH, BOX, ALPHA = 64, 256, 340, 240, 4
ROUNDS = 20


def grids(path):
    """name, clips, frames, crop of each [[grid]]; by hand, because old Pythons have no tomllib."""
    for block in open(path, encoding="utf-8").read().split("\n[[grid]]")[1:]:
        fields = dict(re.findall(r'^(\w+) = "?([\w]+)"?', block, re.MULTILINE))
        yield fields["name"], int(fields["clips"]), int(fields["frames"]), int(fields["crop"])


def ours():
    """id -> median ms of our benches, where the bundle has measured them."""
    path = os.environ.get("VCYCLE_RESULTS", "")
    lines = open(path, encoding="utf-8").read().splitlines() if os.path.exists(path) else []
    rows = [line.split("\t") for line in lines]
    return {row[2]: float(row[3]) / 1e6 for row in rows if row[1] == "bench"}


def resample(clips, frames, crop, mean, std):
    """[n] x uint8 [t][h][w][3] boxes -> bf16 [n][3][t][h][w] in channels-last memory, and the Slow pathway of it."""
    fast = []
    for i, clip in enumerate(clips):
        video = clip.permute(3, 0, 1, 2)[None].float().div_(255.0)
        video = F.interpolate(video, size=(frames, crop, crop), mode="trilinear", align_corners=False)
        video = (video - mean) / std
        fast.append(video.flip(4) if i % 2 else video)
    batch = torch.cat(fast).to(torch.bfloat16).contiguous(memory_format=torch.channels_last_3d)
    return batch, batch[:, :, ::ALPHA].contiguous(memory_format=torch.channels_last_3d)


def main():
    device = torch.device("cuda")
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name()}")
    mean = torch.full((1, 3, 1, 1, 1), 0.45, device=device)
    std = torch.full((1, 3, 1, 1, 1), 0.225, device=device)
    generator = torch.Generator().manual_seed(1)
    for name, count, frames, crop in grids(sys.argv[1]):
        sources = [torch.randint(0, 256, (FRAMES, HEIGHT, WIDTH, 3), dtype=torch.uint8, device=device) for _ in range(count)]
        clips = []
        for source in sources:
            y = int(torch.randint(0, HEIGHT - BOX + 1, (1,), generator=generator))
            x = int(torch.randint(0, WIDTH - BOX + 1, (1,), generator=generator))
            clips.append(source[:, y : y + BOX, x : x + BOX])
        for _ in range(3):
            resample(clips, frames, crop, mean, std)
        times = []
        for _ in range(ROUNDS):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            resample(clips, frames, crop, mean, std)
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end))
        times.sort()
        print(f"resample_forward/{name}/pytorch_bf16_n{count} median {times[ROUNDS // 2]:.3f} ms, "
              f"fastest {times[0]:.3f} ms, {count / times[ROUNDS // 2] * 1e3:.0f} clips/s")
        mine = ours().get(f"resample_forward/{name}/linear_cuda_bf16_n{count}")
        if mine:
            print(f"peer\tresample_forward/{name}_n{count}\t{mine:.4f}\t{times[ROUNDS // 2]:.4f}")
        del sources, clips


if __name__ == "__main__":
    main()
