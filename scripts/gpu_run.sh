#!/usr/bin/env bash
# Tests and measures the kernels on a machine with a GPU and its driver; needs nothing else. Part of the GPU bundle.
#
#   ./run.sh             results in ./results, or in $OUT where it is set: at most 8 files of at most 16 MiB
#   ./run.sh test        only the tests;   ./run.sh bench   only the speed
#
# Every stage runs, whatever the others did; the exit status is 0 only if all of them passed.
set -uo pipefail
[ -z "${OUT:-}" ] || { mkdir -p "$OUT" && OUT=$(cd "$OUT" && pwd); }
cd "$(dirname "$0")" || exit 1
out=${OUT:-$PWD/results}
mkdir -p "$out"
what=${1:-all}
readonly MAX_BYTES=$((16 << 20))
export VCYCLE_CASES=$PWD/cases VCYCLE_REQUIRE_GPU=1 VCYCLE_DEVICE=cuda
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
failed=()

# stage NAME FILE COMMAND…: runs it, keeps what it says (the end of it, should it be long) and notes a failure.
stage() {
  local name=$1 file=$out/$2; shift 2
  echo "=== $name" | tee "$scratch/log"
  "$@" >> "$scratch/log" 2>&1
  local status=$?
  echo "exit status $status" >> "$scratch/log"
  tail -c "$MAX_BYTES" "$scratch/log" > "$file"
  [ "$status" -eq 0 ] || failed+=("$name")
  tail -n 3 "$file"
}

report() {
  cat VERSION
  ./vcycle devices || return
  command -v nvidia-smi >/dev/null && nvidia-smi
  grep -q '^  cuda .*SMs' <<< "$(./vcycle devices)" || { echo "no GPU can be used"; return 1; }
}

sanitize() {
  # memcheck and racecheck are slow: one test with every kernel variant is enough.
  for tool in memcheck racecheck; do
    compute-sanitizer --tool "$tool" --error-exitcode 9 ./suite --test-threads 1 cases_agree_with_the_reference || return
  done
}

has_torch() { command -v python3 >/dev/null && python3 -c 'import torch; assert torch.cuda.is_available()' 2>/dev/null; }

stage "device report" 1_devices.txt report
if [ "$what" != bench ]; then
  stage "tests on the GPU" 2_tests.txt ./suite --test-threads 1 emulator:: conv3d:: resample:: resize:: batch_norm:: pool3d:: pointwise:: device:: attention:: dropout:: linear:: sgd:: softmax_loss::
  VCYCLE_SYNC=1 stage "tests, waiting after each launch" 3_tests_sync.txt ./suite --test-threads 1 conv3d:: resample:: resize:: batch_norm:: pool3d:: pointwise:: attention:: ::everywhere::
  if command -v compute-sanitizer >/dev/null; then
    stage "compute-sanitizer" 4_sanitizer.txt sanitize
  else
    echo "SKIPPED: compute-sanitizer is not installed" | tee "$out/4_sanitizer.txt"
  fi
fi
if [ "$what" != test ]; then
  CRITERION_HOME=$scratch/criterion stage "speed" 5_bench.txt \
    ./kernels_bench --bench --noplot --warm-up-time 1 --measurement-time 2 'conv3d|resample|resize|batch_norm|pool3d|pointwise|attention|dropout|linear|sgd|softmax_loss'
  if has_torch; then
    stage "speed of PyTorch" 6_bench_pytorch.txt python3 peer_resample.py cases/resample.toml
  else
    echo "SKIPPED: there is no PyTorch with CUDA" | tee "$out/6_bench_pytorch.txt"
  fi
fi
{
  cat VERSION
  if [ ${#failed[@]} -eq 0 ]; then echo "all stages passed"; else printf 'FAILED: %s\n' "${failed[@]}"; fi
} | tee "$out/0_summary.txt"
[ ${#failed[@]} -eq 0 ]
