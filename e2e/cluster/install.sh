#!/usr/bin/env bash
# install.sh NAMESPACE [HELM ARGUMENT...]: installs or upgrades Ash in the cluster of KUBECONFIG, from this repository's
# chart. The journeys and `make kind-up` share it.
#
# ASH_CHART is the folder of another chart to install: that of an earlier release.
#
# Makes the keys where there are none yet (Secret ash-keys), with the model's key from ANTHROPIC_API_KEY. The database
# is the caller's (Secret ash-database).
set -euo pipefail
top=$(cd "$(dirname "$0")/../.." && pwd)
namespace=$1
# Until every process is ready. Far beyond what it takes once the images are there.
bound=3m

kubectl get namespace "$namespace" >/dev/null 2>&1 || kubectl create namespace "$namespace" >/dev/null
if ! kubectl get secret -n "$namespace" ash-keys >/dev/null 2>&1; then
  # Through files: an argument could be read in the list of processes.
  keys=$(mktemp -d)
  trap 'rm -rf "$keys"' EXIT
  for key in fleet-secret token-key credential-key; do openssl rand -hex 32 | tr -d '\n' >"$keys/$key"; done
  printf 'ash_%s' "$(openssl rand -hex 24)" >"$keys/api-key"
  [ -z "${ANTHROPIC_API_KEY:-}" ] || printf '%s' "$ANTHROPIC_API_KEY" >"$keys/anthropic-api-key"
  kubectl create secret generic -n "$namespace" ash-keys --from-file="$keys" >/dev/null
fi
helm upgrade --install ash "${ASH_CHART:-$top/charts/ash}" --namespace "$namespace" --wait --timeout "$bound" "${@:2}"
