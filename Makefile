# The verbs of the project; `.ci/run` calls the same ones. `make help` lists them.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

# Reference results and real clips are not part of the repository. Where they lie beside the clone they are used;
# without them the tests that need them say SKIPPED.
ifneq ($(wildcard ../shared/golden),)
export VCYCLE_GOLDEN ?= $(abspath ../shared/golden)
endif
ifneq ($(wildcard ../shared/data),)
export VCYCLE_TEST_DATA ?= $(abspath ../shared/data)
endif

SIMT_TESTS := emulator:: conv3d:: resample:: resize:: batch_norm:: pool3d:: pointwise:: attention:: linear:: dropout:: mixup:: sgd:: \
  softmax_loss:: gram:: model::fused_step ::everywhere::

.PHONY: help
help: ## this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 16

.PHONY: demo
demo: ## trains on the built-in synthetic set with both cycles, about two minutes, and writes a report
	cargo build --release
	rm -rf runs/demo
	./target/release/vcycle train --cfg configs/moving_shapes_multigrid.yaml OUTPUT_DIR runs/demo

.PHONY: cuda-toolkit
cuda-toolkit: ## brings nvcc and the CUDA headers into .cuda (pip wheels) unless a toolkit is there
	scripts/cuda_toolkit.sh

.PHONY: test
test: cuda-toolkit ## compiles all kernels, runs every test: library, suite, docs, kernels on the emulator with its checker
	cargo test --features simt
	cargo test --features simt-check --test suite -- $(SIMT_TESTS)

.PHONY: golden
golden: ## only the tests against the reference results; prints `N cases passed`
	@test -d "$${VCYCLE_GOLDEN:-}" || { echo "golden: set VCYCLE_GOLDEN to the folder of reference results"; exit 1; }
	@log=$$(mktemp); \
	if VCYCLE_REQUIRE_GOLDEN=1 cargo test --test suite golden_ -- --nocapture > $$log 2>&1; \
	then sed -nE 's/^.*(golden: .*: [0-9]+ cases)$$/\1/p' $$log | sort; \
	     sed -nE 's/^.*golden: .*: ([0-9]+) cases$$/\1/p' $$log | awk '{n += $$1} END {print n " cases passed"}'; rm -f $$log; \
	else cat $$log; rm -f $$log; exit 1; fi

.PHONY: check-new-op
check-new-op: cuda-toolkit ## follows docs/add_a_kernel.md in a temporary clone: adds an op, builds, runs its four tests
	scripts/check_new_op.sh

.PHONY: test-long
test-long: ## fuzzing, kill series, training comparisons: hours, run by hand, leaves records
	cargo build --release
	VCYCLE_FUZZ_SECONDS=$${VCYCLE_FUZZ_SECONDS:-600} cargo test --test suite -- fuzz:: --test-threads 1 --nocapture
	scripts/kill_series.sh
	scripts/compare_training.py -- DATA_LOADER.NUM_WORKERS 1 SOLVER.BASE_LR 0.03 SOLVER.STEPS '[0,29,37]' SOLVER.MAX_EPOCH 42 \
	  TRAIN.EVAL_PERIOD 14 VCYCLE.MOVING_SHAPES.LABEL_NOISE 0.15 MULTIGRID.EPOCH_FACTOR 1.2

.PHONY: lint
lint: ## formatting, clippy, where unsafe lives, licences of the dependencies, the optional cust feature
	cargo fmt --check
	cargo clippy --all-targets -- -D warnings
	cargo clippy --lib --no-default-features -- -D warnings
	@! grep -rnE '\bunsafe (fn|impl|extern)|\bunsafe \{' src build --include='*.rs' | grep -v '^src/device/' \
		|| { echo "lint: unsafe outside of src/device"; exit 1; }
	DOCS_RS=1 cargo check --quiet --features cust --lib --example 08_cust_stream
	python3 scripts/licences.py

.PHONY: doc
doc: ## the crate's documentation, with warnings as errors
	RUSTDOCFLAGS="-D warnings" cargo doc --no-deps

.PHONY: kernel-report
kernel-report: cuda-toolkit ## registers, spills, instructions of all kernels as a table; fails if no test launches one of them
	@mkdir -p target; VCYCLE_PRINT_LAUNCHES=1 cargo test --features simt --test suite -- --nocapture $(SIMT_TESTS) > target/launches.log 2>&1 \
		|| { tail -n 50 target/launches.log; exit 1; }
	@grep -aoE 'launch [^:]+: .* shared bytes' target/launches.log | sort -u > target/launches.txt
	@python3 scripts/kernel_report.py --launches target/launches.txt

.PHONY: bench
bench: ## every kernel's bench
	cargo bench --bench kernels

.PHONY: check-peer
check-peer: ## tries the comparison with PyTorch on tiny layers on the CPU; needs PyTorch
	python3 benches/peer/conv3d.py --device cpu --test --again --only s5 --out target/peer

.PHONY: gpu-bundle
gpu-bundle: cuda-toolkit ## dist/gpu: binaries and run.sh for a GPU machine without Rust and network
	scripts/gpu_bundle.sh
