#!/usr/bin/env bash
# build.sh FOLDER [server|cluster|bench]: builds the programs of a local Kubernetes from their Go modules into FOLDER.
#   server    the API server, etcd and kubectl (the default): nine minutes on two cores when nothing is there
#   cluster   those and everything else that cluster.sh starts, gVisor included: 27 minutes
#   bench     those and kwok, which only says that nodes and pods run: the benchmarks want ten thousand; three minutes
# A program is built again when its pinned version, its module graph or its flags have changed, and else never. Needs Go
# 1.26; `cluster` also gcc and libseccomp-dev.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=$(mkdir -p "$1/cni" "$1/.built" && cd "$1" && pwd)
what=${2:-server}

kubernetes=$(cat "$here/kubernetes.version")
# HELM: the chart's tests are run with the same.
# shellcheck source=../chart/tools.versions
. "$here/../chart/tools.versions"
containerd=2.4.2
runc=1.5.2
cni=1.9.1
coredns=1.15.0
kwok=0.8.0
# A commit of gVisor's branch `go`, which has no releases.
gvisor=v0.0.0-20260905035102-160fafc42237

# Almost twice what it takes on two idle cores. What is finished by then stays; the next run goes on from there.
bound=45m
# Two runs at once build the same programs one after the other, so that the second finds them.
if [ -z "${ASH_BUILD_BOUNDED:-}" ]; then
  status=0
  ASH_BUILD_BOUNDED=yes timeout --foreground "$bound" flock "$folder/.lock" "$0" "$@" || status=$?
  [ "$status" != 124 ] || echo "The build took more than $bound and was stopped; another run goes on where it ended." >&2
  exit "$status"
fi

export CGO_ENABLED=0 GOFLAGS="" GOWORK=off
stamp="-X k8s.io/component-base/version.gitVersion=v$kubernetes"
stamp+=" -X k8s.io/component-base/version.gitMajor=$(cut -d. -f1 <<<"$kubernetes")"
stamp+=" -X k8s.io/component-base/version.gitMinor=$(cut -d. -f2 <<<"$kubernetes")"

# current NAME KEY: whether a program is there and was built from what KEY says.
current() { [ -x "$folder/$1" ] && [ "$(cat "$folder/.built/${1//\//-}" 2>/dev/null)" = "$2" ]; }
# keep FILE NAME KEY: puts a finished program in its place. Built beside it, so that a build that is cut off leaves
# nothing that looks whole.
keep() {
  mv "$1" "$folder/$2"
  echo "$3" >"$folder/.built/${2//\//-}"
}

# from_graph NAME PACKAGE GRAPH [FLAGS]: builds a package of the module graph that a folder pins.
from_graph() {
  local key
  key="$2 $(cat "$3/go.mod" "$3/go.sum" | sha256sum | cut -c1-16) ${4:-}"
  ! current "$1" "$key" || return 0
  echo "Building $1 ..." >&2
  (cd "$3" && go build -mod=readonly -trimpath -ldflags "-s -w ${4:-}" -o "$folder/.building" "$2")
  keep "$folder/.building" "$1" "$key"
}

# from_release NAME PACKAGE VERSION [TAGS]: builds a package of a released module with the graph of that release.
from_release() {
  local key="$2@$3 ${4:-}" work
  ! current "$1" "$key" || return 0
  echo "Building $1 $3 ..." >&2
  work=$(mktemp -d)
  GOBIN=$work go install -trimpath -tags "${4:-}" -ldflags "-s -w" "$2@$3"
  keep "$work/$(basename "$1")" "$1" "$key"
  rmdir "$work"
}

# gVisor's shim insists on raising the OOM score of its sandbox, which needs CAP_SYS_RESOURCE. Where a test machine has
# not got that, the shim goes on without: one condition of its source is widened.
runsc_shim() {
  local key="shim@$gvisor permission" work source
  ! current containerd-shim-runsc-v1 "$key" || return 0
  echo "Building containerd-shim-runsc-v1 ..." >&2
  work=$(mktemp -d)
  (cd "$work" && go mod download "gvisor.dev/gvisor@$gvisor")
  cp -r "$(go env GOMODCACHE)/gvisor.dev/gvisor@$gvisor" "$work/source"
  chmod -R u+w "$work/source"
  source=$work/source/pkg/shim/v1/manager.go
  sed -i 's/\(SetOOMScore(cmd.Process.Pid, oomScoreMax); err != nil\) {/\1 \&\& !os.IsPermission(err) {/' "$source"
  grep -q 'oomScoreMax); err != nil && !os.IsPermission' "$source" ||
    { echo "gVisor's shim has changed: look at SetOOMScore in pkg/shim/v1/manager.go and adjust build.sh." >&2; exit 1; }
  (cd "$work/source" && go build -mod=mod -trimpath -ldflags "-s -w" -o "$folder/.building" ./shim)
  keep "$folder/.building" containerd-shim-runsc-v1 "$key"
  rm -rf "$work"
}

from_graph kube-apiserver k8s.io/kubernetes/cmd/kube-apiserver "$here" "$stamp"
from_graph kubectl k8s.io/kubernetes/cmd/kubectl "$here" "$stamp"
from_graph etcd go.etcd.io/etcd/server/v3 "$here"
[ "$what" != server ] || exit 0

for program in kube-controller-manager kube-scheduler kubelet kube-proxy; do
  from_graph $program k8s.io/kubernetes/cmd/$program "$here" "$stamp"
done
# NetworkPolicy needs a module graph of its own: an older one.
from_graph kube-router github.com/cloudnativelabs/kube-router/v2/cmd/kube-router "$here/kube-router"
for program in containerd containerd-shim-runc-v2 ctr; do
  from_release $program github.com/containerd/containerd/v2/cmd/$program v$containerd
done
CGO_ENABLED=1 from_release runc github.com/opencontainers/runc v$runc seccomp
for plugin in main/bridge main/loopback ipam/host-local meta/portmap; do
  from_release "cni/${plugin#*/}" github.com/containernetworking/plugins/plugins/$plugin v$cni
done
from_release coredns github.com/coredns/coredns v$coredns
from_release helm helm.sh/helm/v4/cmd/helm v$HELM
from_release runsc gvisor.dev/gvisor/runsc $gvisor
runsc_shim
key=$(sha256sum <"$here/pause.c")
if ! current pause "$key"; then
  gcc -Os -static -s -o "$folder/.building" "$here/pause.c"
  keep "$folder/.building" pause "$key"
fi
if [ "$what" = bench ]; then from_release kwok sigs.k8s.io/kwok/cmd/kwok v$kwok; fi
