#!/usr/bin/env bash
# `make gpu-bundle`: what a machine with a GPU and a driver, but without Rust and network, needs to test and measure the
# kernels. Fills dist/gpu; copy that folder there and start ./run.sh. VCYCLE_BUNDLE_PROFILE=dev builds faster, for trying.
set -euo pipefail
cd "$(dirname "$0")/.."

readonly MAX_MIB=40
readonly SMALL_TESTS='.*::(.*small_integers_are_exact(_on_every_executor)?|whole_(numbers|pixels)_are_exact|powers_of_two_are_exact|sums_of_integer_gradients_are_exact|max_of_integers_is_exact_and_the_first_of_equals_wins|kernels_move_every_type|the_mask_is_the_same_on_every_executor|a_label_that_is_no_class_shows|batch_norm_and_relu_on_load|a_nan_sets_the_skip_flag|the_table_is_the_gradient_of_batch_norm|normalised_on_store)'
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
cp benches/peer/conv3d.py "$bundle/peer_conv3d.py"
cp benches/peer/conv3d_pytorch.py "$bundle/"
chmod +x "$bundle/run.sh"

# The ops are the folders of kernels; one small test of each is for compute-sanitizer, under which a kernel takes long.
tests=$("$bundle/suite" --list 2>/dev/null | sed -n 's/: test$//p')
for folder in kernels/*/; do
  op=$(basename "$folder")
  case $op in common | simt | unit) continue ;; esac
  grep -q "^$op::" <<< "$tests" || die "no test of the op $op"
  echo "$op"
done > "$bundle/ops"
grep -xE "$SMALL_TESTS" <<< "$tests" > "$bundle/small_tests" || die "none of the small tests is there"
while read -r op; do
  grep -q "^$op::" "$bundle/small_tests" || die "no small test of the op $op: name one in SMALL_TESTS"
done < "$bundle/ops"
{
  echo "commit $(git rev-parse HEAD 2>/dev/null || echo unknown)$(git diff --quiet HEAD 2>/dev/null || echo ' with local changes')"
  echo "built $(date -u +%Y-%m-%dT%H:%M:%SZ) with $(rustc --version)"
} > "$bundle/VERSION"

# Half as large; run.sh unpacks them.
tar -C "$bundle" -czf "$bundle/programs.tar.gz" vcycle suite kernels_bench
rm "$bundle"/{vcycle,suite,kernels_bench}

size_mib=$(du -sm "$bundle" | cut -f1)
[ "$size_mib" -le "$MAX_MIB" ] || die "$bundle has $size_mib MiB, more than $MAX_MIB"
echo "gpu-bundle: $bundle, $size_mib MiB"
