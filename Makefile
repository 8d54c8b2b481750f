# What people run. `make help` lists it.
.DEFAULT_GOAL := help
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c

export CARGO_TERM_COLOR ?= auto
# Tests wait for other processes more than they compute: on two processors four run at once.
export RUST_TEST_THREADS ?= $(shell processors=$$(getconf _NPROCESSORS_ONLN); echo $$((processors < 4 ? 4 : processors)))
# What a person's machine cannot run is skipped, and said; in CI it fails.
ifdef CI
export ASH_TEST_REQUIRE_KUBERNETES := yes
# A build that nobody continues: what makes the next one faster is as large as what it made.
export CARGO_INCREMENTAL := 0
endif

.PHONY: help
help: ## This list
	@grep -hE '^[a-z0-9-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 14

.PHONY: quickstart
quickstart: tools ## Install what is missing, build, and hold a first conversation with an agent
	@scripts/quickstart.sh

.PHONY: fleet
fleet: tools ## A fleet on this machine until Ctrl-C: 2 coordinators behind HAProxy, 3 runners, Postgres, object storage
	@scripts/install-fleet-tools.sh
	cargo build --release --locked -p ash -p ash-bridge -p ash-e2e --bin ash --bin ash-bridge --bin ash-fleet
	@exec target/release/ash-fleet $(FLEET)

.PHONY: test
test: tools test-tools ## Everything that CI runs: format, lints, tests (also on Kubernetes), documentation
	cargo fmt --all --check
	cargo clippy --workspace --all-targets --locked -- --deny warnings
	cargo build --workspace --bins --locked
	cargo test --workspace --locked --no-fail-fast
	@e2e/cluster/cluster.sh sweep
	RUSTDOCFLAGS="--deny warnings" cargo doc --workspace --no-deps --document-private-items --locked

.PHONY: e2e
e2e: export ASH_TEST_REQUIRE_KUBERNETES := yes
e2e: export ASH_TEST_KUBECONFIG := $(KUBECONFIG)
e2e: tools test-tools ## The journeys on Kubernetes: on the cluster of KUBECONFIG, else on two nodes made here
	cargo build --workspace --bins --locked
	status=0; cargo test --locked --package ash-e2e --test cluster || status=$$?; \
	e2e/cluster/cluster.sh sweep; exit $$status

.PHONY: kind-up kind-down
kind-up: ## Ash on a kind cluster, where there is Docker or Podman (CI has none and does not run this)
	@e2e/cluster/kind.sh up
kind-down: ## Take that cluster down
	@e2e/cluster/kind.sh down

.PHONY: bench
bench: tools test-tools ## Measure what Ash adds, each figure beside its limit
	e2e/cluster/build.sh "$$HOME/.cache/ash/k8s-$$(cat e2e/cluster/kubernetes.version)" bench
	cargo build --release --workspace --bins --locked
	target/release/ash-bench --markdown docs/benchmarks.md

.PHONY: tools
tools: ## Install what Ash needs beside Rust: bubblewrap and the pinned Claude Code
	@scripts/install-tools.sh

.PHONY: test-tools
test-tools: ## Install what only the tests need: Postgres, HAProxy, Python and the published client, a local Kubernetes
	@scripts/install-test-tools.sh

.PHONY: generate
generate: ## Write every generated file: crds/, docs/conditions.md, config/base (a test fails when one is stale)
	cargo run --quiet --locked --package ash-crd --bin ash-generate
	scripts/render-config.sh

.PHONY: format
format: ## Format all code
	cargo fmt --all
