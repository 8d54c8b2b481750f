#!/usr/bin/env bash
# render-config.sh [FILE]: writes config/base/ash.yaml, the manifests for people without Helm, as the chart renders them.
set -euo pipefail
top=$(cd "$(dirname "$0")/.." && pwd)
helm=$HOME/.cache/ash/k8s-$(cat "$top/e2e/cluster/kubernetes.version")/helm
[ -x "$helm" ] || helm=$(command -v helm) ||
  { echo "Helm is missing: run scripts/install-chart-tools.sh (it needs Go), or install it, then run this again." >&2; exit 1; }
file=${1:-$top/config/base/ash.yaml}
{
  echo "# Made from charts/ash by \`make generate\`; edit that, not this."
  # What only Helm's own objects should say.
  "$helm" template ash "$top/charts/ash" --namespace ash-system --no-hooks --set crds.install=false |
    sed -e '/helm.sh\/chart: /d' -e '/app.kubernetes.io\/managed-by: Helm/d'
} >"$file.new"
mv "$file.new" "$file"
