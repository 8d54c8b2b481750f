#!/usr/bin/env bash
# Builds what the chart's tests need from Go modules, each only where it is not there yet: Helm beside the programs of
# Kubernetes, and kubeconform with the schemas that it checks against. Needs Go 1.26. Three minutes when nothing is there.
set -euo pipefail
top=$(cd "$(dirname "$0")/.." && pwd)
. "$top/e2e/chart/tools.versions"
kubernetes=$(cat "$top/e2e/cluster/kubernetes.version")
programs=$HOME/.cache/ash/k8s-$kubernetes
folder=$HOME/.cache/ash/kubeconform-$KUBECONFORM
export CGO_ENABLED=0 GOFLAGS=
work=
trap 'rm -rf "$work"' EXIT

# Built beside its place: a build that is cut off leaves nothing that looks whole.
install() { # FOLDER PROGRAM PACKAGE@VERSION
  [ ! -x "$1/$2" ] || return 0
  echo "Building $2 ..." >&2
  mkdir -p "$1"
  work=$(mktemp -d "$1/.$2.XXXXXX")
  GOBIN=$work go install -trimpath -ldflags '-s -w' "$3"
  mv "$work/$2" "$1/$2"
  rm -rf "$work"
}
install "$programs" helm "helm.sh/helm/v4/cmd/helm@v$HELM"
install "$folder" kubeconform "github.com/yannh/kubeconform/cmd/kubeconform@v$KUBECONFORM"

module() { # MODULE@VERSION: its folder
  (cd "$top/e2e/cluster" && go mod download -json "$1") | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p'
}
# Named after all that is in it, so that another version is fetched.
schemas=$folder/schemas-$kubernetes-$GATEWAY_API-$PROMETHEUS_OPERATOR
if [ ! -d "$schemas" ]; then
  echo "Fetching the schemas of Kubernetes, of the Gateway API and of the Prometheus operator ..." >&2
  work=$(mktemp -d "$folder/.schemas.XXXXXX")
  cp "$(module "k8s.io/kubernetes@v$kubernetes")/api/openapi-spec/swagger.json" "$work/"
  cp "$(module "sigs.k8s.io/gateway-api@v$GATEWAY_API")/config/crd/standard/gateway.networking.k8s.io_httproutes.yaml" "$work/"
  monitoring=$(module "github.com/prometheus-operator/prometheus-operator@v$PROMETHEUS_OPERATOR")/example/prometheus-operator-crd
  cp "$monitoring"/monitoring.coreos.com_{servicemonitors,prometheusrules}.yaml "$work/"
  chmod -R u+w,go+rX "$work"
  # Two runs at once may both have fetched them: the second finds them in place.
  mv -T "$work" "$schemas" 2>/dev/null || [ -d "$schemas" ]
fi
