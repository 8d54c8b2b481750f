#!/usr/bin/env bash
# Runs every test. Journeys that need a cluster to themselves wait for most of their time, for nodes that are found to be dead and
# for pods that come back: they have a cluster of their own and run beside all others, and what they say comes after those.
set -euo pipefail
cd "$(dirname "$0")/.."
said=$(mktemp)
beside=
# What is given up is ended: the tests take their cluster down themselves.
trap 'if [ -n "$beside" ]; then kill -- "-$beside" 2>/dev/null || true; wait "$beside" || true; fi; rm -f "$said"' EXIT

cargo test --workspace --locked --no-run
# In a process group of its own, which can be ended. With the workspace's features, or all is built a second time.
set -m
env -u ASH_TEST_CLUSTER cargo test --workspace --locked --no-fail-fast --test cluster -- undisturbed:: >"$said" 2>&1 &
beside=$!
set +m
status=0
cargo test --workspace --locked --no-fail-fast -- --skip undisturbed:: || status=$?
wait "$beside" || status=$?
beside=
cat "$said"
exit "$status"
