#!/usr/bin/env bash
# kind.sh up|down: Ash on a kind cluster (kind.yaml) with images that are built here, and a Postgres of its own. Needs
# kind, and Docker or Podman. With ANTHROPIC_API_KEY set, agents talk to the model.
#
# CI does not run this: it has no container engine. What it does after the cluster is there is what the journeys do.
set -euo pipefail
top=$(cd "$(dirname "$0")/../.." && pwd)
namespace=ash-system
cluster=ash
# Helm and kubectl of the tests, where this machine has none.
PATH=$PATH:$HOME/.cache/ash/k8s-$(cat "$top/e2e/cluster/kubernetes.version")

engine=
for candidate in docker podman; do
  if command -v $candidate >/dev/null && $candidate info >/dev/null 2>&1; then engine=$candidate && break; fi
done
if [ -z "$engine" ]; then
  echo "No container engine answers: start Docker or Podman. Without one, e2e/cluster/cluster.sh makes a cluster." >&2
  exit 1
fi
for tool in kind kubectl helm openssl; do
  command -v $tool >/dev/null || { echo "$tool is missing: install it, then run this again." >&2; exit 1; }
done
[ $engine = docker ] || export KIND_EXPERIMENTAL_PROVIDER=$engine

up() {
  local work image
  kind get clusters 2>/dev/null | grep -qx $cluster || kind create cluster --config "$top/kind.yaml" --wait 3m
  work=$(mktemp -d)
  # shellcheck disable=SC2064 # the folder of now
  trap "rm -rf '$work'" EXIT
  # Whatever the person's kubeconfig says: nothing of this goes to another cluster.
  kind get kubeconfig --name $cluster >"$work/kubeconfig"
  export KUBECONFIG=$work/kubeconfig
  for image in ash:operator ash-bridge:bridge-image; do
    $engine build -f "$top/${image#*:}/Containerfile" -t "localhost/${image%:*}:dev" "$top"
    $engine save -o "$work/image.tar" "localhost/${image%:*}:dev"
    kind load image-archive --name $cluster "$work/image.tar"
  done
  kubectl get namespace $namespace >/dev/null 2>&1 || kubectl create namespace $namespace
  if ! kubectl get secret -n $namespace ash-database >/dev/null 2>&1; then
    openssl rand -hex 24 | tr -d '\n' >"$work/password"
    printf 'postgres://ash:%s@postgres.%s.svc:5432/ash' "$(cat "$work/password")" $namespace >"$work/url"
    kubectl create secret generic -n $namespace ash-database --from-file="$work/password" --from-file="$work/url"
  fi
  kubectl apply -k "$top/config/postgres"
  kubectl rollout status -n $namespace statefulset/postgres --timeout 3m
  "$top/e2e/cluster/install.sh" $namespace --values "$top/e2e/cluster/values.yaml" \
    --set api.replicas=1 --set operator.replicas=1
  echo "Ash is up. kubectl --context kind-$cluster apply -k config/samples makes an agent and a session."
}

case ${1:-} in
  up) up ;;
  down) kind delete cluster --name $cluster ;;
  *) echo "usage: kind.sh up|down" >&2 && exit 2 ;;
esac
