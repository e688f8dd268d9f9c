#!/usr/bin/env bash
# Tests and measures the kernels on a machine with a GPU and its driver; needs nothing else. Part of the GPU bundle.
#
#   ./run.sh                all stages;   ./run.sh unit tests   these
#   ./run.sh list           the stages and what they do
#
# Results go to ./results, or to $OUT where it is set: results.json and results.md, results.tsv that both are made of, log.txt,
# calibration.tar.gz, and what peer_conv3d writes: at most 8 files, of 16 MiB at most. A stage run again replaces its results.
# To join results of several machines or calls: cat their results.tsv into one, and ./run.sh summary. peer_conv3d may have more layers
# than fit into 8 minutes: run again on the same machine it goes on, and VCYCLE_PEER_ARGS='--part 2/4' gives a machine its fourth
# (VCYCLE_PEER_ARGS: arguments of peer_conv3d.py, such as --dtype f16).
#
# A stage is ended after VCYCLE_STAGE_SECONDS, 470 unless told: each fits into a call of 8 minutes. Every stage runs, whatever
# the others did; the exit status is 0 only if none failed.
# shellcheck disable=SC2329 # stages are called by name
set -uo pipefail
[ -z "${OUT:-}" ] || { mkdir -p "$OUT" && OUT=$(cd "$OUT" && pwd); }
cd "$(dirname "$0")" || exit 1
[ ! -f programs.tar.gz ] || { tar -xzf programs.tar.gz && rm programs.tar.gz; } || exit 1
out=${OUT:-$PWD/results}
mkdir -p "$out" || exit 1
readonly MAX_BYTES=$((16 << 20)) LIMIT_S=${VCYCLE_STAGE_SECONDS:-470}
export VCYCLE_CASES=$PWD/cases VCYCLE_REQUIRE_GPU=1 VCYCLE_DEVICE=cuda VCYCLE_RESULTS=$out/results.tsv

# name, what it does
readonly STAGES="report the device, the driver, the program
unit one kernel a PTX instruction; what they write goes to calibration.tar.gz
tests the kernel tests of every op, each op in a process of its own
sync the same, waiting after each launch
sanitizer memcheck, racecheck and synccheck over a small test of each op
bench criterion over the kernels of every op but conv3d, each op in a process of its own
bench_conv3d criterion over the convolutions
peer PyTorch beside resample
peer_conv3d PyTorch beside the convolutions, the most important first; again: goes on"

# ---- stages: each runs in a process of its own and prints its log --------------------------------------------------
# What goes into results.tsv are the lines that begin with `=result` and a tab.
result() { printf '=result\t%s\n' "$(IFS=$'\t'; echo "$*")"; }
skip() { echo "SKIPPED: $*"; exit 77; }
# Sets `gpu` to its name, memory and so on, as `vcycle devices` says it.
need_gpu() {
  local devices
  devices=$(./vcycle devices 2>&1)
  gpu=$(sed -nE 's/^  cuda  *(cuda:.* SMs.*)/\1/p' <<< "$devices")
  [ -n "$gpu" ] || { echo "no device: $(grep -m 1 '^  cuda ' <<< "$devices" | sed 's/^  cuda *none: //')"; exit 78; }
}

stage_report() {
  cat VERSION
  ./vcycle devices
  result fact commit "$(sed -n 's/^commit //p' VERSION)"
  if command -v nvidia-smi > /dev/null; then
    nvidia-smi
    result fact driver "$(nvidia-smi --query-gpu=driver_version --format=csv,noheader | head -n 1)"
  fi
  need_gpu
  result fact device "$gpu"
}

stage_unit() {
  need_gpu
  local name status
  name=$(sed -E 's/^cuda:[0-9]+, //; s/ \(.*//' <<< "$gpu" | tr -cs '[:alnum:]\n' _ | tr '[:upper:]' '[:lower:]')
  mkdir -p "$scratch/$name"
  VCYCLE_CALIBRATION_OUT=$scratch/$name ./suite --nocapture every_instruction_gives_its_meaning_on_a_gpu
  status=$?
  { cat "$scratch/$name/device.txt"; cat VERSION; } > "$scratch/device.txt" && mv "$scratch/device.txt" "$scratch/$name/"
  tar -C "$scratch" -czf "$out/calibration.tar.gz" "$name"
  result fact calibration "$(find "$scratch/$name" -name '*.jsonl' | wc -l) kernels in calibration.tar.gz, folder $name"
  exit "$status"
}

# Each op in a process of its own, since a fault of a kernel spoils the rest of its process. What failed runs once more by
# itself, and tells each launch before it starts.
stage_tests() {
  need_gpu
  local op status failed="" log=$scratch/op.log
  for op in device $(cat ops); do
    timeout --foreground -k 5 $((LIMIT_S / 3)) ./suite --test-threads 1 "$op::" 2>&1 | tee "$log"
    status=${PIPESTATUS[0]}
    if grep -q '^test result: ok' "$log"; then
      result test "$op" pass "$(grep -c '^test .* ok$' "$log") passed"
      continue
    fi
    failed+=" $op"
    local names=() name
    # Of a process that died, the test under way is the last line without a verdict.
    mapfile -t names < <(sed -nE 's/^test ([a-z0-9_:]+) \.\.\. FAILED$/\1/p; $s/^test ([a-z0-9_:]+) \.\.\. .*$/\1/p' "$log" | sort -u)
    [ "$status" -ne 124 ] || echo "not done after $((LIMIT_S / 3)) s, ended"
    result test "$op" FAIL "exit status $status (124: not done after $((LIMIT_S / 3)) s), ${names[*]:-before any test}"
    for name in "${names[@]:0:8}"; do
      echo "--- $name by itself"
      VCYCLE_SYNC=1 VCYCLE_PRINT_LAUNCHES=1 timeout --foreground -k 5 60 ./suite --test-threads 1 --exact "$name" 2>&1 | tail -n 60
    done
  done
  [ -z "$failed" ] || { echo "failed:$failed"; exit 1; }
}

stage_sync() { export VCYCLE_SYNC=1; stage_tests; }

stage_sanitizer() {
  need_gpu
  command -v compute-sanitizer > /dev/null || skip "compute-sanitizer is not installed"
  local tool failed=""
  for tool in memcheck racecheck synccheck; do
    echo "--- $tool"
    # shellcheck disable=SC2046 # one word a test
    if timeout --foreground -k 5 $((LIMIT_S / 3)) compute-sanitizer --tool "$tool" --error-exitcode 9 ./suite --test-threads 1 --exact $(cat small_tests); then
      result test "$tool" pass "$(wc -w < small_tests) tests"
    else
      result test "$tool" FAIL "exit status $? (124: its third of the time was over)"
      failed+=" $tool"
    fi
  done
  [ -z "$failed" ] || { echo "failed:$failed"; exit 1; }
}

# shellcheck disable=SC2046 # one word an op
stage_bench() { bench $(grep -vx conv3d ops); }
stage_bench_conv3d() { bench conv3d conv3d_backward conv3d_grad_filter; }
bench() {
  need_gpu
  local op failed=""
  for op in "$@"; do
    CRITERION_HOME=$scratch/criterion VCYCLE_BENCH_OP=$op ./kernels_bench --bench --noplot --sample-size 10 --warm-up-time 0.2 \
      --measurement-time 0.6 || failed+=" $op"
  done
  [ -z "$failed" ] || { echo "failed:$failed"; exit 1; }
}

peer() {
  need_gpu
  [ -f "$1" ] || skip "$1 is not in this bundle"
  python3 -c 'import torch; assert torch.cuda.is_available()' 2> /dev/null || skip "there is no PyTorch with CUDA"
  PYTHONUNBUFFERED=1 python3 "$@"
}
stage_peer() { peer peer_resample.py cases/resample.toml; }
stage_peer_conv3d() {
  local arguments
  read -ra arguments <<< "${VCYCLE_PEER_ARGS:-}"
  peer peer_conv3d.py "${arguments[@]}"
}

# ---- results --------------------------------------------------------------------------------------------------------
# results.tsv: stage, kind (stage, fact, test, bench, peer), and what the kind says.
render() {
  LC_ALL=C awk -F '\t' -v json="$out/results.json" -v md="$out/results.md" '
    function text(s) { gsub(/\\/, "\\\\", s); gsub(/"/, "\\\"", s); gsub(/[[:cntrl:]]/, " ", s); return "\"" s "\"" }
    function row(list, s) { n[list]++; lines[list] = lines[list] (n[list] > 1 ? ",\n" : "") "    " s }
    function cell(list, s) { cells[list] = cells[list] s "\n" }
    $2 == "fact" { row("facts", text($3) ": " text($4)); cell("facts", "- " $3 ": " $4) }
    $2 == "stage" { row("stages", "{\"stage\": " text($1) ", \"outcome\": " text($3) ", \"seconds\": " $4 ", \"note\": " text($5) "}")
                    cell("stages", "| " $1 " | " $3 " | " $4 " | " $5 " |") }
    $2 == "test" { row("tests", "{\"stage\": " text($1) ", \"of\": " text($3) ", \"outcome\": " text($4) ", \"note\": " text($5) "}")
                   cell("tests", "| " $1 " | " $3 " | " $4 " | " $5 " |") }
    $2 == "bench" { row("benches", "{\"id\": " text($3) ", \"median_ns\": " $4 ", \"low_ns\": " $5 ", \"high_ns\": " $6 "}")
                    cell("benches", sprintf("| %s | %.4f |", $3, $4 / 1e6)) }
    $2 == "peer" && $5 > 0 && $4 > 0 {
                   row("peers", "{\"id\": " text($3) ", \"ours_ms\": " $4 ", \"theirs_ms\": " $5 ", \"ratio\": " sprintf("%.4f", $4 / $5) "}")
                   cell("peers", sprintf("| %s | %s | %s | %.3f |", $3, $4, $5, $4 / $5)); logs += log($4 / $5) }
    END {
      printf "{\n  \"facts\": {\n%s\n  }", lines["facts"] > json
      split("stages tests benches peers", lists, " ")
      for (i = 1; i <= 4; i++) printf ",\n  \"%s\": [\n%s\n  ]", lists[i], lines[lists[i]] > json
      if (n["peers"]) printf ",\n  \"geometric_mean_of_ratios\": %.4f", exp(logs / n["peers"]) > json
      print "\n}" > json
      printf "# Results of the GPU bundle\n\n%s\n| stage | outcome | seconds | note |\n|---|---|--:|---|\n%s", cells["facts"], cells["stages"] > md
      if (n["tests"]) printf "\n| stage | of | outcome | note |\n|---|---|---|---|\n%s", cells["tests"] > md
      if (n["peers"]) printf "\n| beside PyTorch | ours, ms | theirs, ms | ratio |\n|---|--:|--:|--:|\n%s\nGeometric mean of the ratios: %.3f\n", cells["peers"], exp(logs / n["peers"]) > md
      if (n["benches"]) printf "\n| bench | median, ms |\n|---|--:|\n%s", cells["benches"] > md
    }' "$VCYCLE_RESULTS"
}

# What benches and peers print, as lines of results.tsv without the stage. Of criterion `id time: [low median high]`, on one line
# or, for a long id, on two; of a peer `peer ID OURS_MS THEIRS_MS` with tabs between.
times() {
  LC_ALL=C awk '/^[a-z0-9_]+\// { id = $1 }
    match($0, /time: +\[[^]]*\]/) {
      split(substr($0, RSTART, RLENGTH), t, /[][ ]+/)
      unit["ps"] = 1e-3; unit["ns"] = 1; unit["µs"] = 1e3; unit["us"] = 1e3; unit["ms"] = 1e6; unit["s"] = 1e9
      printf "bench\t%s\t%.1f\t%.1f\t%.1f\n", id, t[4] * unit[t[5]], t[2] * unit[t[3]], t[6] * unit[t[7]]
    }
    /^peer\t/'
}

# run_stage NAME: in a process of its own with the time limit; its lines replace what results.tsv had of it.
run_stage() {
  local name=$1 file=$out/log.txt begin=$SECONDS status outcome note
  echo "=== $name"
  timeout -k 10 "$LIMIT_S" bash ./run.sh --inside "$name" > "$scratch/log" 2>&1
  status=$?
  case $status in
    0) outcome=pass note="" ;;
    77) outcome=SKIPPED note=$(sed -n 's/^SKIPPED: //p' "$scratch/log" | tail -n 1) ;;
    78) outcome="NO DEVICE" note=$(sed -n 's/^no device: //p' "$scratch/log" | tail -n 1) ;;
    124 | 137) outcome=STOPPED note="not done within its limit of $LIMIT_S s; it came to: $(last_line)" ;;
    *) outcome=FAIL note="exit status $status: $(last_line)" ;;
  esac
  [ "$outcome" = pass ] || [ "$outcome" = SKIPPED ] || failed=1
  touch "$VCYCLE_RESULTS"
  {
    awk -F '\t' -v name="$name" '$1 != name' "$VCYCLE_RESULTS"
    printf '%s\tstage\t%s\t%s\t%s\n' "$name" "$outcome" $((SECONDS - begin)) "${note//$'\t'/ }"
    { sed -n 's/^=result\t//p' "$scratch/log"; times < "$scratch/log"; } | sed "s/^/$name\t/"
  } > "$scratch/tsv" && mv "$scratch/tsv" "$VCYCLE_RESULTS"
  { echo "=== $name: $outcome"; grep -v '^=result' "$scratch/log" | tail -c $((MAX_BYTES / 8)); } >> "$file"
  tail -c "$MAX_BYTES" "$file" > "$scratch/log" && cp "$scratch/log" "$file"
  echo "$name: $outcome, $((SECONDS - begin)) s${note:+: $note}"
  render
}

last_line() { grep -vE '^=result|Terminated|Killed' "$scratch/log" | grep . | tail -n 1 | cut -c1-200; }

scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
if [ "${1:-}" = --inside ]; then
  "stage_$2"
  exit
fi
if [ "${1:-}" = list ]; then echo "$STAGES"; exit; fi
if [ "${1:-}" = summary ]; then render; cat "$out/results.md"; exit; fi

wanted=("$@")
[ $# -gt 0 ] || mapfile -t wanted < <(cut -d' ' -f1 <<< "$STAGES")
for name in "${wanted[@]}"; do
  grep -q "^$name " <<< "$STAGES" || { echo "no stage $name; there are: $(cut -d' ' -f1 <<< "$STAGES" | tr '\n' ' ')" >&2; exit 2; }
done
command -v timeout > /dev/null || { echo "run.sh needs timeout (coreutils)" >&2; exit 2; }
failed=0
for name in "${wanted[@]}"; do run_stage "$name"; done
echo
sed '/^| bench | median/,$d' "$out/results.md"
exit "$failed"
