#!/usr/bin/env bash
# Kills training runs with SIGKILL at random moments (20, or as many as the argument says), resumes each, and compares
# every loss and accuracy with those of a run that was left alone. Writes a record.
# usage: scripts/kill_series.sh [NUMBER]
set -euo pipefail
cd "$(dirname "$0")/.."
number=${1:-20}
record=docs/records/$(date +%F)-cpu-kill_series
mkdir -p "$record"
echo "VCYCLE_KILLS=$number cargo test --test suite cli::killed_at_random_moments"
VCYCLE_KILLS=$number cargo test --test suite cli::killed_at_random_moments -- --nocapture 2>&1 |
    tee >(grep -E '^(kill [0-9]+:|test result)' > "$record/kills.txt")
sleep 1
{
    echo "# Runs killed at random moments"
    echo
    echo "Command: \`scripts/kill_series.sh $number\`  "
    echo "Commit: $(git rev-parse HEAD)  "
    echo "Machine: $(grep -m1 'model name' /proc/cpuinfo | cut -d: -f2- | sed 's/^ //'), $(nproc) cores  "
    echo "Date: $(date +%F)"
    echo
    echo "$(grep -c 'same losses' "$record/kills.txt") of $number runs that were killed with SIGKILL and resumed gave bit for bit the losses,"
    echo "learning rates and accuracies of the run that was left alone; every checkpoint found after a kill could be read."
    echo "\`kills.txt\` has one line a kill. The test is \`killed_at_random_moments_it_goes_on_with_the_same_losses\` in"
    echo "tests/suite/cli.rs."
} > "$record/README.md"
cat "$record/README.md"
