#!/usr/bin/env python3
"""Trains a baseline and a multigrid configuration alternately with several seeds and writes a record folder.

usage: scripts/compare_training.py [--baseline YAML] [--multigrid YAML] [--seeds 1 2 3] [--out FOLDER]
                                   [--binary PATH] [--work FOLDER] [-- KEY VALUE ...]

KEY VALUE ... is given to both. Needs Python 3.8 and nothing else; build first: cargo build --release.
The record holds README.md (command, machine, table, verdicts), results.csv and, for every run, config.yaml,
summary.json and log.jsonl.gz. A run that is already in the work folder and finished is not repeated.
"""

import argparse
import csv
import datetime
import gzip
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
    return parser.parse_args()


def train(arguments, config, seed):
    """Runs one training (unless it is there already) and returns its folder."""
    folder = pathlib.Path(arguments.work) / f"{pathlib.Path(config).stem}_seed{seed}"
    summary = folder / "summary.json"
    if summary.exists() and json.loads(summary.read_text()).get("finished"):
        print(f"{folder}: finished before, kept", flush=True)
        return folder
    shutil.rmtree(folder, ignore_errors=True)
    folder.parent.mkdir(parents=True, exist_ok=True)
    command = [arguments.binary, "train", "--cfg", config, "--device", arguments.device]
    command += ["RNG_SEED", str(seed), "OUTPUT_DIR", str(folder)] + arguments.overrides
    print(shlex.join(command), flush=True)
    subprocess.run(command, check=True)
    return folder


def read_log(folder):
    return [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]


def result_of(folder, method, seed):
    """The numbers of one run that the record compares."""
    summary = json.loads((folder / "summary.json").read_text())
    epochs = [line for line in read_log(folder) if line["kind"] == "epoch"]
    two_thirds = 2 * epochs[-1]["epoch"] // 3
    evaluated = [e for e in epochs if e["val_top1"] is not None and e["epoch"] <= two_thirds]
    return {
        "method": method,
        "seed": seed,
        "val_top1": summary["val_top1"],
        "val_top1_at_two_thirds": evaluated[-1]["val_top1"] if evaluated else None,
        "epoch_at_two_thirds": evaluated[-1]["epoch"] if evaluated else None,
        "epochs": epochs[-1]["epoch"],
        "iterations": summary["iterations"],
        "clips": summary["clips"],
        "skipped_steps": summary["skipped_steps"],
        "wall_s": round(summary["wall_s"], 1),
        "cpu_s": round(summary["cpu_s"], 1),
    }


def mean(results, method, key):
    values = [r[key] for r in results if r["method"] == method]
    return None if None in values else statistics.mean(values)


def verdicts(results):
    """The claims of the comparison, each with whether it holds."""
    base, grid = mean(results, "baseline", "val_top1"), mean(results, "multigrid", "val_top1")
    base_earlier = mean(results, "baseline", "val_top1_at_two_thirds")
    base_s, grid_s = mean(results, "baseline", "wall_s"), mean(results, "multigrid", "wall_s")
    claims = [
        (f"multigrid reaches the baseline's accuracy within {POINTS_LOST:g} point: {grid:.2f} against {base:.2f}",
         grid >= base - POINTS_LOST),
        (f"in at most a third of its time: {grid_s:.1f} s against {base_s:.1f} s, {base_s / grid_s:.2f}x less",
         grid_s <= base_s * TIME_RATIO),
        (f"the baseline is not saturated: {base:.2f} is at most {BASELINE_MOST:g}", base <= BASELINE_MOST),
    ]
    if base_earlier is not None:
        claims.append((f"the baseline is not overlong: {base_earlier:.2f} at two thirds of its epochs is at least "
                       f"{GAIN_OF_LAST_THIRD:g} points lower", base_earlier <= base - GAIN_OF_LAST_THIRD))
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


def write_record(arguments, results, folders):
    out = pathlib.Path(arguments.out)
    out.mkdir(parents=True, exist_ok=True)
    with open(out / "results.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(results[0]))
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
        f"Machine: {machine()}  ",
        f"Commit: {output_of('git', 'rev-parse', 'HEAD')}  ",
        f"Compiler: {output_of('rustc', '--version')}  ",
        f"Date: {datetime.date.today().isoformat()}",
        "",
        "Same network, same data, same machine, runs one after the other, baseline and multigrid in turn. Times are of",
        "whole runs, evaluations included; top-1 in percent, always at the default shape.",
        "",
        *table,
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
            folder = train(arguments, config, seed)
            folders.append(folder)
            results.append(result_of(folder, method, seed))
            print(json.dumps(results[-1]), flush=True)
    write_record(arguments, results, folders)
    return 0 if all(holds for _, holds in verdicts(results)) else 1


if __name__ == "__main__":
    sys.exit(main())
