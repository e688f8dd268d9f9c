#!/usr/bin/env bash
# Follows docs/add_a_kernel.md in a temporary clone of the commit that is checked out (`make check-new-op`): adds the op
# `maxblur` from scripts/new_op, one line in each of the three lists, then builds, runs its four tests with the kernel on the
# emulator, and takes one step of its bench. So the guide cannot fall behind the code.
#
# Building takes place in target/check-new-op, which stays, so that the next run is quick; CARGO_TARGET_DIR names another
# folder. Do not name the one of a work tree: cargo could then take this op's files for that tree's.
set -euo pipefail

repository=$(cd "$(dirname "$0")/.." && pwd)
export CARGO_TARGET_DIR=${CARGO_TARGET_DIR:-$repository/target/check-new-op}
clone=$(mktemp -d)
trap 'rm -rf "$clone"' EXIT

say() { echo "check-new-op: $*" >&2; }

# Puts `line` behind the one line of `file` that is exactly `after`.
add_line() {
  local file=$1 after=$2 line=$3
  [ "$(grep -cxF -- "$after" "$file")" = 1 ] || { say "$file: expected one line \`$after\`"; exit 1; }
  awk -v after="$after" -v line="$line" '{ print } $0 == after { print line }' "$file" > "$file.new"
  mv "$file.new" "$file"
}

git clone --quiet "$repository" "$clone"
if [ -e "$repository/.cuda" ]; then ln -s "$(readlink -f "$repository/.cuda")" "$clone/.cuda"; fi
cp -R "$repository"/scripts/new_op/. "$clone"
cd "$clone"
rm -rf scripts/new_op
add_line src/ops/mod.rs 'pub mod linear;' 'pub mod maxblur;'
add_line tests/suite/main.rs 'mod mapping;' 'mod maxblur;'
add_line benches/kernels/main.rs 'mod linear;' 'mod maxblur;'
add_line benches/kernels/main.rs '    linear::bench,' '    maxblur::bench,'
say "added $(git status --porcelain --untracked-files=all | grep -c '^??') files and $(git diff --numstat | awk '{ n += $1 } END { print n }') lines"

cargo fmt --check
cargo build --features simt
log=$(cargo test --features simt --test suite maxblur:: 2>&1) || { echo "$log"; exit 1; }
echo "$log" | grep -E '^test (maxblur|result)'
echo "$log" | grep -q '^test result: ok. 4 passed' || { say "expected four tests"; exit 1; }
cargo bench --profile dev --features simt --bench kernels -- --test maxblur
say "the guide holds"
