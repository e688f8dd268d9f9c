#!/usr/bin/env python3
"""Trains a baseline and a multigrid configuration alternately with several seeds and writes a record folder.

usage: scripts/compare_training.py [--baseline YAML] [--multigrid YAML] [--seeds 1 2 3] [--out FOLDER]
                                   [--binary PATH] [--work FOLDER] [-- KEY VALUE ...]

KEY VALUE ... is given to both. Needs Python 3.8 and nothing else; build first: cargo build --release.
The record holds README.md (command, machine, table, verdicts), results.csv and, for every run, config.yaml,
summary.json and log.jsonl.gz. A finished run in the work folder is kept if its command, configuration and binary
are the same; any other is done anew. Exit status: 0 when every claim holds, 1 when one does not.
"""

import argparse
import csv
import datetime
import gzip
import hashlib
import json
import os
import pathlib
import platform
import shlex
import shutil
import statistics
import subprocess
import sys

TIME_RATIO, POINTS_LOST, BASELINE_MOST, GAIN_OF_LAST_THIRD = 1 / 3, 1.0, 97.0, 2.0


def parse_arguments():
    today = datetime.date.today().isoformat()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--baseline", default="configs/moving_shapes.yaml")
    parser.add_argument("--multigrid", default="configs/moving_shapes_multigrid.yaml")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--out", default=f"docs/records/{today}-cpu-moving_shapes")
    parser.add_argument("--binary", default="target/release/vcycle")
    parser.add_argument("--work", default="runs/compare_training", help="where the runs write")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("overrides", nargs="*", metavar="KEY VALUE")
    arguments = parser.parse_args()
    for path in (arguments.baseline, arguments.multigrid, arguments.binary):
        if not os.path.isfile(path):
            parser.error(f"{path} is no file")
    return arguments


def sha256(path):
    return hashlib.sha256(pathlib.Path(path).read_bytes()).hexdigest()


def train(arguments, method, config, seed):
    """Runs one training (unless the same one is there already) and returns its folder."""
    folder = pathlib.Path(arguments.work) / f"{method}_seed{seed}"
    command = [arguments.binary, "train", "--cfg", config, "--device", arguments.device]
    command += ["RNG_SEED", str(seed), "OUTPUT_DIR", str(folder)] + arguments.overrides
    asked = {"command": command, "config": sha256(config), "binary": sha256(arguments.binary)}
    note = folder.with_name(folder.name + ".json")  # beside the folder: a run starts in an empty one
    summary = folder / "summary.json"
    if note.exists() and json.loads(note.read_text()) == asked and is_finished(summary):
        print(f"{folder}: finished before, kept", flush=True)
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    note.write_text(json.dumps(asked))
    print(shlex.join(command), flush=True)
    status = subprocess.run(command).returncode
    if status != 0 or not is_finished(summary):
        sys.exit(f"compare_training: the run in {folder} ended with exit status {status} before its schedule did")
    return folder


def is_finished(summary):
    return summary.exists() and json.loads(summary.read_text()).get("finished", False)


def evaluation_s(log, key):
    """Seconds between the last step of each epoch and its end: evaluations, and little else."""
    total, last_step = 0.0, None
    for line in log:
        if line["kind"] == "iteration":
            last_step = line
        elif line["kind"] == "epoch":
            total += line[key] - last_step[key]
    return total


def result_of(folder, method, seed):
    """The numbers of one run that the record compares."""
    summary = json.loads((folder / "summary.json").read_text())
    log = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    epochs = [line for line in log if line["kind"] == "epoch"]
    # The first evaluation from two thirds on: one before would flatter the claim that the last third was needed.
    two_thirds = 2 * epochs[-1]["epoch"] / 3
    at_two_thirds = next(e for e in epochs if e["val_top1"] is not None and e["epoch"] >= two_thirds)
    return {
        "method": method,
        "seed": seed,
        "val_top1": round(summary["val_top1"], 2),
        "top1_at_2/3": round(at_two_thirds["val_top1"], 2),
        "epoch_at_2/3": at_two_thirds["epoch"],
        "epochs": epochs[-1]["epoch"],
        "evaluations": sum(e["val_top1"] is not None for e in epochs),
        "iterations": summary["iterations"],
        "clips": summary["clips"],
        "skipped_steps": summary["skipped_steps"],
        "wall_s": round(summary["wall_s"], 1),
        "cpu_s": round(summary["cpu_s"], 1),
        "train_wall_s": round(summary["wall_s"] - evaluation_s(log, "wall_s"), 1),
        "train_cpu_s": round(summary["cpu_s"] - evaluation_s(log, "cpu_s"), 1),
    }


def mean(results, method, key):
    return statistics.mean(r[key] for r in results if r["method"] == method)


def means_table(results):
    """Means over the seeds and the ratio baseline / multigrid."""
    rows = ["| mean over the seeds | baseline | multigrid | ratio |", "|---|---|---|---|"]
    for key in ("val_top1", "wall_s", "cpu_s", "train_wall_s", "train_cpu_s", "iterations", "clips"):
        base, grid = mean(results, "baseline", key), mean(results, "multigrid", key)
        rows.append(f"| {key} | {base:.2f} | {grid:.2f} | {base / grid:.2f} |")
    return rows


def verdicts(results):
    """The claims of the comparison, each with whether it holds."""
    base, grid = mean(results, "baseline", "val_top1"), mean(results, "multigrid", "val_top1")
    base_earlier, epochs = mean(results, "baseline", "top1_at_2/3"), results[0]["epochs"]
    claims = [
        (f"multigrid reaches the baseline's accuracy within {POINTS_LOST:g} point: {grid:.2f} against {base:.2f}",
         grid >= base - POINTS_LOST),
    ]
    for key, what in (("train_wall_s", "training time"), ("train_cpu_s", "processor time of training")):
        base_s, grid_s = mean(results, "baseline", key), mean(results, "multigrid", key)
        claims.append((f"in at most a third of its {what}: {grid_s:.1f} s against {base_s:.1f} s, "
                       f"{base_s / grid_s:.2f}x less", grid_s <= base_s * TIME_RATIO))
    claims.append((f"the baseline is not saturated: {base:.2f} is at most {BASELINE_MOST:g}", base <= BASELINE_MOST))
    claims.append((f"the baseline is not overlong: {base_earlier:.2f} at two thirds (epoch {results[0]['epoch_at_2/3']} "
                   f"of {epochs}) is at least {GAIN_OF_LAST_THIRD:g} points lower than at its end",
                   base_earlier <= base - GAIN_OF_LAST_THIRD))
    return claims


def machine():
    model = "unknown processor"
    info = pathlib.Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
        model = names[0] if names else model
    return f"{model}, {len(os.sched_getaffinity(0))} cores, {platform.system()} {platform.machine()}"


def output_of(*command):
    done = subprocess.run(command, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else "unknown"


def commit():
    changed = output_of("git", "status", "--porcelain", "--untracked-files=no")
    return output_of("git", "rev-parse", "HEAD") + (" with uncommitted changes" if changed else "")


def write_record(arguments, results, folders):
    out = pathlib.Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "results.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(results[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(results)
    for folder in folders:
        target = out / folder.name
        target.mkdir(exist_ok=True)
        for name in ("config.yaml", "summary.json"):
            shutil.copy(folder / name, target / name)
        with open(folder / "log.jsonl", "rb") as source, gzip.GzipFile(target / "log.jsonl.gz", "wb", mtime=0) as packed:
            shutil.copyfileobj(source, packed)
    columns = list(results[0])
    table = ["| " + " | ".join(columns) + " |", "|" + "---|" * len(columns)]
    table += ["| " + " | ".join(str(r[c]) for c in columns) + " |" for r in results]
    lines = [
        "# Baseline against multigrid",
        "",
        f"Command: `{shlex.join([pathlib.Path(sys.argv[0]).as_posix()] + sys.argv[1:])}`  ",
        f"Configurations: `{arguments.baseline}`, `{arguments.multigrid}`  ",
        f"Machine: {machine()}  ",
        f"Commit: {commit()}  ",
        f"Compiler: {output_of('rustc', '--version')}  ",
        f"Date: {datetime.date.today().isoformat()}",
        "",
        "Same network, same data, same machine, runs one after the other, baseline and multigrid in turn. `wall_s` and `cpu_s`",
        "are of whole runs, `train_wall_s` and `train_cpu_s` leave evaluations out. Top-1 in percent, always at the default",
        "shape; `top1_at_2/3` is of the first evaluation from two thirds of the epochs on.",
        "",
        *table,
        "",
        *means_table(results),
        "",
        *[f"- {'holds' if holds else 'DOES NOT HOLD'}: {claim}" for claim, holds in verdicts(results)],
        "",
    ]
    (out / "README.md").write_text("\n".join(lines))
    print("\n".join(lines))


def main():
    arguments = parse_arguments()
    results, folders = [], []
    for seed in arguments.seeds:
        for method, config in (("baseline", arguments.baseline), ("multigrid", arguments.multigrid)):
            folder = train(arguments, method, config, seed)
            folders.append(folder)
            results.append(result_of(folder, method, seed))
            print(json.dumps(results[-1]), flush=True)
    write_record(arguments, results, folders)
    return 0 if all(holds for _, holds in verdicts(results)) else 1


if __name__ == "__main__":
    sys.exit(main())
