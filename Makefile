# What people run. `make help` lists it.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

export CARGO_TERM_COLOR ?= auto
# What a person's machine cannot run is skipped, and said; in CI it fails.
ifdef CI
export ASH_TEST_REQUIRE_KUBERNETES := yes
endif

.PHONY: help
help: ## This list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

.PHONY: quickstart
quickstart: tools ## Install what is missing, build, and hold a first conversation with an agent
	@scripts/quickstart.sh

.PHONY: test
test: tools test-tools ## Everything that CI runs: format, lints, tests, documentation
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- --deny warnings
	cargo build --workspace --bins --locked
	cargo test --workspace --locked
	RUSTDOCFLAGS="--deny warnings" cargo doc --workspace --no-deps --document-private-items --locked

.PHONY: bench
bench: tools ## Measure what Ash adds, each figure beside its limit
	cargo build --release --workspace --bins --locked
	target/release/ash-bench --markdown docs/benchmarks.md

.PHONY: tools
tools: ## Install what Ash needs beside Rust: bubblewrap and the pinned Claude Code
	@scripts/install-tools.sh

.PHONY: test-tools
test-tools: ## Install what only the tests need: Postgres, Python and the published client, a Kubernetes API server
	@scripts/install-test-tools.sh

.PHONY: generate
generate: ## Write every generated file: crds/, docs/conditions.md, config/base (a test fails when one is stale)
	cargo run --quiet --locked --package ash-crd --bin ash-generate
	scripts/render-config.sh

.PHONY: format
format: ## Format all code
	cargo fmt --all
