#!/usr/bin/env bash
# `make gpu-bundle`: what a machine with a GPU and a driver, but without Rust and network, needs to test and measure the
# kernels. Fills dist/gpu; copy that folder there and start ./run.sh. VCYCLE_BUNDLE_PROFILE=dev builds faster, for trying.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly MAX_MIB=40
profile=${VCYCLE_BUNDLE_PROFILE:-release}
bundle=dist/gpu
export VCYCLE_UNIT_KERNELS=1  # one kernel an instruction, so that the GPU can be compared with the emulator
die() { echo "gpu-bundle: $*" >&2; exit 1; }

# The newest executable of a cargo target, as cargo itself names it: no guessing among hashes.
executable() {
  "$@" --message-format=json-render-diagnostics \
    | python3 -c 'import json, sys
found = [m["executable"] for m in map(json.loads, sys.stdin) if m.get("reason") == "compiler-artifact" and m.get("executable")
         and m["target"]["name"] == sys.argv[1] and (m["target"]["kind"] == [sys.argv[2]])]
print(found[-1])' "$target_name" "$target_kind"
}

target_name=vcycle target_kind=bin
program=$(executable cargo build --profile "$profile" --bin vcycle)
target_name=suite target_kind=test
suite=$(executable cargo test --profile "$profile" --test suite --no-run)
target_name=kernels target_kind=bench
bench=$(executable cargo bench --profile "$profile" --bench kernels --no-run)

grep -q '^kernels compiled in: [1-9]' <<< "$("$program" devices)" || die "no kernels were compiled in: run make cuda-toolkit first"

rm -rf "$bundle"
mkdir -p "$bundle"
for pair in "$program:vcycle" "$suite:suite" "$bench:kernels_bench"; do
  cp "${pair%%:*}" "$bundle/${pair##*:}"
  strip "$bundle/${pair##*:}"
done
cp -r tests/cases "$bundle/cases"
cp scripts/gpu_run.sh "$bundle/run.sh"
cp scripts/gpu_peer_resample.py "$bundle/peer_resample.py"
chmod +x "$bundle/run.sh"
{
  echo "commit $(git rev-parse HEAD 2>/dev/null || echo unknown)$(git diff --quiet HEAD 2>/dev/null || echo ' with local changes')"
  echo "built $(date -u +%Y-%m-%dT%H:%M:%SZ) with $(rustc --version)"
} > "$bundle/VERSION"

size_mib=$(du -sm "$bundle" | cut -f1)
[ "$size_mib" -le "$MAX_MIB" ] || die "$bundle has $size_mib MiB, more than $MAX_MIB"
echo "gpu-bundle: $bundle, $size_mib MiB"
