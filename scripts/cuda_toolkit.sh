#!/usr/bin/env bash
# Gets nvcc and the CUDA headers from PyPI, for machines without a toolkit (`make cuda-toolkit`). No root, no GPU, no
# driver, and nothing is installed: the pinned wheels are downloaded and unpacked in a cache outside the clone, and
# `.cuda` in the repository points there. Running it again costs nothing; an interrupted run is finished by the next.
#
#   scripts/cuda_toolkit.sh             fills the cache and links .cuda
#   scripts/cuda_toolkit.sh disassembler   brings cuobjdump and nvdisasm (5 MB) into the cache and prints their folder
#   VCYCLE_CUDA_CACHE=DIR …             another cache than ~/.cache/vcycle-cuda-13.0
set -euo pipefail

# crt and nvvm must be pinned beside nvcc: pip would take newer ones, which do not fit it.
WHEELS=(
  nvidia-cuda-nvcc==13.0.88
  nvidia-cuda-crt==13.0.88
  nvidia-nvvm==13.0.88
  nvidia-cuda-runtime==13.0.96
  nvidia-cuda-cccl==13.0.85
)
# Only `make kernel-report` wants them. Earlier releases have no wheels; these read what nvcc 13.0 writes.
DISASSEMBLER=(nvidia-cuda-cuobjdump==13.2.78 nvidia-cuda-nvdisasm==13.2.78)

repository=$(cd "$(dirname "$0")/.." && pwd)
cache=${VCYCLE_CUDA_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/vcycle-cuda-13.0}
root=$cache/toolkit/nvidia/cu13
pins=$(printf '%s\n' "${WHEELS[@]}")

say() { echo "cuda-toolkit: $*" >&2; }
die() { say "$*"; exit 1; }

unpack_wheels() {
  local unpacked=$cache/unpacking.$$
  rm -rf "$cache"/unpacking.*
  mkdir -p "$unpacked"
  local wheel
  for wheel in "$cache"/wheels/*.whl; do
    python3 -m zipfile -e "$wheel" "$unpacked" || { rm -f "$wheel"; die "$wheel was damaged and is removed; run me again"; }
  done
  # zipfile drops the executable bits.
  chmod +x "$unpacked"/nvidia/cu13/bin/* "$unpacked"/nvidia/cu13/nvvm/bin/*
  printf '%s\n' "$pins" > "$unpacked/pins"
  rm -rf "$cache/toolkit"
  mv "$unpacked" "$cache/toolkit"
}

fill_cache() {
  command -v python3 >/dev/null || die "python3 with pip is needed to download the wheels"
  # Wheels of other pins, from an older version of this script.
  [ "$(cat "$cache/wheels/pins" 2>/dev/null)" = "$pins" ] || rm -rf "$cache/wheels"
  mkdir -p "$cache/wheels"
  printf '%s\n' "$pins" > "$cache/wheels/pins"
  say "downloading ${#WHEELS[@]} wheels (about 105 MB) into $cache"
  # pip names a file only when it is complete, so a broken download is simply made again.
  python3 -m pip download --quiet --no-deps --only-binary=:all: --dest "$cache/wheels" "${WHEELS[@]}" \
    || die "pip download failed; with a toolkit of your own set CUDA_HOME or NVCC instead"
  unpack_wheels
}

if [ "${1:-}" = disassembler ]; then
  bin=$cache/disassembler/nvidia/cu13/bin
  if [ ! -x "$bin/nvdisasm" ] || [ ! -x "$bin/cuobjdump" ]; then
    unpacked=$(mktemp -d)
    trap 'rm -rf "$unpacked"' EXIT
    python3 -m pip download --quiet --no-deps --only-binary=:all: --dest "$unpacked" "${DISASSEMBLER[@]}" >&2 \
      || die "pip download failed; put cuobjdump and nvdisasm of a toolkit on PATH instead"
    mkdir -p "$cache/disassembler"
    for wheel in "$unpacked"/*.whl; do python3 -m zipfile -e "$wheel" "$cache/disassembler"; done
    chmod +x "$bin"/*
  fi
  echo "$bin"
  exit 0
fi

# A toolkit of the machine's own serves as well, where build.rs looks for one.
for home in "${CUDA_HOME:-}" /usr/local/cuda; do
  if [ -n "$home" ] && [ -f "$home/include/cuda_fp16.h" ] && "$home/bin/nvcc" --version 2>/dev/null | grep -qE 'release (1[3-9]|[2-9][0-9])\.'; then
    say "using $home"
    exit 0
  fi
done

mkdir -p "$cache"
# Two builds at once: the second one waits and finds the work done.
if command -v flock >/dev/null; then exec 9>"$cache/lock"; flock 9; fi
[ "$(cat "$cache/toolkit/pins" 2>/dev/null)" = "$pins" ] || fill_cache
"$root/bin/nvcc" --version >/dev/null || die "$root/bin/nvcc does not run on this machine"

if [ -e "$repository/.cuda" ] && [ ! -L "$repository/.cuda" ]; then
  die "$repository/.cuda is no link; move it away first"
fi
if [ "$(readlink "$repository/.cuda" || true)" != "$root" ]; then
  ln -sfn "$root" "$repository/.cuda"
  # Cargo does not know of the new compiler otherwise.
  touch "$repository/build.rs"
fi
say "ready: $("$root/bin/nvcc" --version | tail -2 | head -1), .cuda -> $root"
