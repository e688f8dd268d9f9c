#!/usr/bin/env python3
"""`make kernel-report`: what the compilers made of the kernels, as a markdown table on standard output.

Compiles every file of kernels/ (but not kernels/unit, which programs do not hold) from clean, with the options of
build/nvcc.rs, JOBS at a time; reads registers, static shared memory and spills from ptxas, and counts instructions in the
disassembly of cuobjdump. Exits 1, and says why, if a register is spilled, a kernel of tensor cores has no such instruction, no
test launches a kernel, or time or size pass their limit.

    scripts/kernel_report.py [--jobs 2] [--launches FILE] > docs/records/DATE-ptxas/README.md

FILE holds what the kernels' tests print with `VCYCLE_PRINT_LAUNCHES=1` (`make kernel-report` runs them): from it comes which kernels
they launch, and the largest dynamic shared memory of each.
nvcc is looked for as in build/nvcc.rs; cuobjdump beside it, on PATH, or it is downloaded (scripts/cuda_toolkit.sh).
"""

import argparse
import collections
import concurrent.futures
import datetime
import os
import pathlib
import platform
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
MAX_SECONDS, MAX_FATBIN_MB = 360, 20
# Column -> the instructions that it counts, by the beginning of their name.
COUNTED = {
    "HMMA": ("HMMA",), "HGMMA": ("HGMMA",), "LDSM": ("LDSM",), "LDGSTS": ("LDGSTS",), "UTMALDG": ("UTMALDG",),
    "UTMASTG": ("UTMASTG",), "SYNCS": ("SYNCS",), "BAR": ("BAR",), "16-byte global": (), "local": ("LDL", "STL"),
}


def fail(message):
    sys.exit(f"kernel-report: {message}")


def first_executable(places, what):
    for place in filter(None, places):
        found = shutil.which(str(place))
        if found:
            return found
    fail(f"no {what}; `make cuda-toolkit` brings it, or set CUDA_HOME")


def find_nvcc():
    home = os.environ.get("CUDA_HOME")
    return first_executable(
        [os.environ.get("NVCC"), home and f"{home}/bin/nvcc", "nvcc", "/usr/local/cuda/bin/nvcc", ROOT / ".cuda/bin/nvcc"], "nvcc")


def find_cuobjdump(nvcc):
    beside = pathlib.Path(nvcc).parent / "cuobjdump"
    for place in (beside, "cuobjdump"):
        if shutil.which(str(place)) and (shutil.which("nvdisasm") or (beside.parent / "nvdisasm").exists()):
            return shutil.which(str(place))
    folder = subprocess.run([ROOT / "scripts/cuda_toolkit.sh", "disassembler"], stdout=subprocess.PIPE, text=True, check=True).stdout
    return f"{folder.strip()}/cuobjdump"


def options_of_the_build():
    """nvcc's options and the architectures, as build/nvcc.rs has them."""
    text = (ROOT / "build/nvcc.rs").read_text()
    flags = re.search(r"const FLAGS: .*?= \[(.*?)\];", text, re.DOTALL)
    archs = re.search(r'const DEFAULT_ARCHS: &str = "(.*?)";', text)
    if not flags or not archs:
        fail("build/nvcc.rs has no FLAGS or DEFAULT_ARCHS as this script knows them")
    return re.findall(r'"(.*?)"', flags[1]), os.environ.get("VCYCLE_CUDA_ARCHS", archs[1]).split(",")


def gencode(source, archs):
    """As in build/nvcc.rs: *_sm90.cu is compiled for sm_90a alone."""
    chosen = [arch for arch in archs if arch == "sm_90a" or not source.name.endswith("_sm90.cu")]
    return [word for arch in chosen for word in ("-gencode", f"arch=compute_{arch.split('_')[1]},code={arch}")]


def compile_all(nvcc, jobs, folder):
    """Compiles all files; file -> (fatbin, what nvcc said), the seconds, the processor seconds."""
    flags, archs = options_of_the_build()
    sources = sorted(f for f in (ROOT / "kernels").rglob("*.cu") if f.relative_to(ROOT).parts[1] not in ("simt", "unit"))

    def compile_one(source):
        target = folder / f"{source.stem}.fatbin"
        command = [nvcc, *flags, *gencode(source, archs), "-o", target, source]
        done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode:
            fail(f"{source.relative_to(ROOT)}: nvcc failed:\n{done.stdout}")
        return source, (target, done.stdout)

    begin, used = time.monotonic(), resource.getrusage(resource.RUSAGE_CHILDREN)
    with concurrent.futures.ThreadPoolExecutor(jobs) as pool:
        compiled = dict(pool.map(compile_one, sources))
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - used.ru_utime - used.ru_stime
    return compiled, time.monotonic() - begin, cpu


def resources(log):
    """(kernel, arch) -> registers, static shared bytes, stack bytes, spilled bytes."""
    found = {}
    for block in log.split("Compiling entry function '")[1:]:
        kernel, arch = re.match(r"(\w+)' for '(\w+)'", block).groups()

        def number(pattern):
            return sum(int(n) for n in re.findall(pattern, block))

        found[kernel, arch] = (
            number(r"Used (\d+) registers"), number(r"(\d+) bytes smem"), number(r"(\d+) bytes stack frame"),
            number(r"(\d+) bytes spill stores") + number(r"(\d+) bytes spill loads"))
    return found


def instructions(cuobjdump, fatbin):
    """(kernel, arch) -> counts by column, and `all`."""
    process = subprocess.Popen([cuobjdump, "-sass", fatbin], stdout=subprocess.PIPE, text=True,
                               env={**os.environ, "PATH": f"{pathlib.Path(cuobjdump).parent}:{os.environ['PATH']}"})
    counts, arch, of_kernel = {}, None, None
    for line in process.stdout:
        if "code for sm_" in line:
            arch = line.split()[-1]
        elif "Function : " in line:
            of_kernel = counts.setdefault((line.split()[-1], arch), collections.Counter())
        elif match := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(?:\{ )?(?:@!?U?P\w+ )?([A-Z][\w.]*)", line):
            name = match[1]
            of_kernel["all"] += 1
            for column, beginnings in COUNTED.items():
                of_kernel[column] += name.split(".")[0] in beginnings
            of_kernel["16-byte global"] += name.startswith(("LDG", "STG")) and ".128" in name
    if process.wait():
        fail(f"cuobjdump failed on {fatbin.name}")
    return counts


def largest_shared(path):
    """kernel -> the largest dynamic shared memory of its launches in the file, as src/device/launch.rs prints them."""
    largest = {}
    launch = r"launch [^:]+: (\w+), \d+ x \d+ x \d+ blocks of \d+ threads, (\d+) shared bytes"
    for match in re.finditer(launch, pathlib.Path(path).read_text(errors="replace")):
        largest[match[1]] = max(largest.get(match[1], 0), int(match[2]))
    if not largest:
        fail(f"{path} has no line as VCYCLE_PRINT_LAUNCHES=1 prints them")
    return largest


def wrong_with(kernel, arch, spilled, counts):
    """What must not be."""
    if spilled:
        yield f"{kernel} for {arch} spills {spilled} bytes"
    if counts["all"] == 0:
        yield f"{kernel} for {arch} has no disassembly"
    for method, column in (("_mma", "HMMA"), ("_wgmma", "HGMMA")):
        if method in kernel and not counts[column]:
            yield f"{kernel} for {arch} has no {column}"


def markdown(columns, rows):
    yield "| " + " | ".join(columns) + " |"
    yield "|" + "---|" * 2 + "--:|" * (len(columns) - 2)
    for row in rows:
        yield "| " + " | ".join(str(cell) for cell in row) + " |"


def command_output(*command):
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=ROOT).stdout.strip()


def main():
    parser = argparse.ArgumentParser(description="registers, shared memory, spills and instructions of all kernels")
    parser.add_argument("--jobs", type=int, default=2, help="files compiled at a time")
    parser.add_argument("--launches", help="output of a run with VCYCLE_PRINT_LAUNCHES=1")
    args = parser.parse_args()
    nvcc = find_nvcc()
    cuobjdump = find_cuobjdump(nvcc)
    dynamic = largest_shared(args.launches) if args.launches else {}
    errors, rows, totals = [], [], collections.Counter()
    with tempfile.TemporaryDirectory() as folder:
        compiled, seconds, cpu = compile_all(nvcc, args.jobs, pathlib.Path(folder))
        size_mb = sum(fatbin.stat().st_size for fatbin, _ in compiled.values()) / 1e6
        for fatbin, log in compiled.values():
            counts = instructions(cuobjdump, fatbin)
            for (kernel, arch), (registers, static, stack, spilled) in resources(log).items():
                of_kernel = counts.get((kernel, arch), collections.Counter())
                errors += wrong_with(kernel, arch, spilled, of_kernel)
                if args.launches and kernel not in dynamic:
                    errors.append(f"no test launches {kernel} (for {arch})")
                totals[arch] += 1
                rows.append([kernel, arch, registers, static, dynamic.get(kernel, "-"), stack, spilled,
                             *(of_kernel[column] for column in COUNTED), of_kernel["all"]])
    # A machine that is shared takes longer than its processor seconds tell.
    if min(seconds, cpu / args.jobs) > MAX_SECONDS:
        errors.append(f"compiling takes {seconds:.0f} s, more than {MAX_SECONDS}")
    if size_mb > MAX_FATBIN_MB:
        errors.append(f"the fatbins have {size_mb:.1f} MB, more than {MAX_FATBIN_MB}")
    print("# Registers, shared memory and instructions of all kernels\n")
    print(f"Command: `scripts/kernel_report.py {' '.join(sys.argv[1:])}`  ")
    print(f"Commit: {command_output('git', 'rev-parse', 'HEAD')}  ")
    print(f"Compiler: nvcc {re.search(r'V([0-9.]+)', command_output(nvcc, '--version'))[1]}, {platform.machine()}, "
          f"{args.jobs} files at a time of {os.cpu_count()} cores  ")
    print(f"Date: {datetime.date.today()}\n")
    archs = ", ".join(f"{count} for {arch}" for arch, count in sorted(totals.items()))
    print(f"- {len(compiled)} files, kernels: {archs}; as PTX for compute_80 too. Spilled bytes: {sum(row[6] for row in rows)}.")
    print(f"- From clean {seconds:.0f} s, {cpu:.0f} processor seconds (limit {MAX_SECONDS} s on 2 cores).")
    print(f"- Embedded fatbins: {size_mb:.1f} MB (limit {MAX_FATBIN_MB} MB).")
    print(f"- {'FAILED: ' + '; '.join(errors) if errors else 'Nothing is out of bounds.'}\n")
    print("Bytes of shared memory are of a block: static as ptxas says, dynamic the most that a test launched it with (`-`: none did, or"
          "\nno launches were given). 16-byte global: loads and stores of 16 bytes. local: loads and stores of local memory. all: instructions.\n")
    columns = ["kernel", "arch", "registers", "static", "dynamic", "stack", "spills", *COUNTED, "all"]
    print("\n".join(markdown(columns, sorted(rows, key=lambda row: (row[0], row[1])))))
    if errors:
        fail("; ".join(errors))


if __name__ == "__main__":
    main()
