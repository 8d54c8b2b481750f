#!/usr/bin/env bash
# A real Kubernetes on one machine, with no container engine and no network outside.
#
#   cluster.sh check             whether this machine can run it; says what is missing
#   cluster.sh up [NODES]        start NODES nodes (default 2)
#   cluster.sh hold [NODES]      the same until the end of its input, also when whoever holds the other end is killed
#   cluster.sh down              stop everything; nothing stays behind
#   cluster.sh sweep             wait until the clusters of test runs that are gone are down, or take them down
#   cluster.sh load ARCHIVE...   import images (OCI archives) on every running node that has not got them
#   cluster.sh run COMMAND...    run a command of this machine in the cluster's network, with KUBECONFIG set: tests, helm, curl
#   cluster.sh kubectl ARG...    kubectl as an administrator
#   cluster.sh kill NODE         power off a node, hard; not node1, which has the control plane
#   cluster.sh boot NODE         power it on again: its disk is as it was
#   cluster.sh stop-api          kill the API server, as if it were away; what runs goes on
#   cluster.sh start-api         start it again
#   cluster.sh kill-container NODE ID   kill the first process of a container
#   cluster.sh inside NODE COMMAND...   run a command in all namespaces of a node
#   cluster.sh logs NODE DAEMON  what a daemon has logged
#
# A node is a mount, network, PID, IPC and UTS namespace with a containerd, kubelet, kube-proxy and kube-router
# (NetworkPolicy) of its own; node1 also runs etcd, the control plane and CoreDNS. Several clusters may run at once:
# each has a folder.
#
#   ASH_CLUSTER_DIR   the cluster's folder (default: ash-cluster in the temporary folder)
#   ASH_CLUSTER_BIN   what build.sh made
#   ASH_CLUSTER_AUDIT anything: the API server notes who writes what, in node1/audit.log of the folder
#   ASH_CLUSTER_OWNER the process that it is for: `sweep` takes the cluster down when that is gone
# shellcheck source-path=SCRIPTDIR
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
temporary=${TMPDIR:-/tmp}
cluster=${ASH_CLUSTER_DIR:-$temporary/ash-cluster}
programs=${ASH_CLUSTER_BIN:-$HOME/.cache/ash/k8s-$(cat "$here/kubernetes.version")}
pki=$cluster/pki
# Every cluster has these addresses: its network is its own.
network=192.168.210
api=$network.1
pods=10.244
services=10.96.0.0/16
dns=10.96.0.10
pause_image=localhost/pause:1
# The chart's only pool of nodes in values.yaml.
labels=ash.dev/node-pool=default
cgroup=$(basename "$cluster")
# Machine-wide settings that a kubelet changes, as they were before the first cluster.
settings=$temporary/ash-cluster.sysctl

. "$here/lib/common.sh"
. "$here/lib/config.sh"
. "$here/lib/node.sh"
. "$here/lib/daemons.sh"
. "$here/lib/check.sh"

up() {
  local count=$1 number
  [ ! -e "$cluster" ] || { echo "$cluster is there already; take it down first: $0 down" >&2; return 1; }
  mkdir -p "$cluster/pause"
  begun=$(milliseconds)
  if [ -n "${ASH_CLUSTER_OWNER:-}" ]; then
    process_key $PPID >"$cluster/keeper"
    process_key "$ASH_CLUSTER_OWNER" >"$cluster/owner"
  fi
  [ -e "$settings" ] || sysctl vm.overcommit_memory kernel.panic kernel.panic_on_oops | tr -d ' ' >"$settings"
  cp "$programs/pause" "$cluster/pause/"
  python3 "$here/mkimage.py" "$cluster/pause.tar" $pause_image "$cluster/pause" --entrypoint /pause
  # shellcheck disable=SC2046 # one word per node
  "$here/pki.sh" "$pki" $api $(seq -f node%g "$count")
  for number in $(seq "$count"); do
    node_namespaces "$number"
    node_config "$number"
  done
  control_plane
  took "API server"
  for number in $(seq "$count"); do node_daemons "$number" & done
  wait
  until_ok 90 all_ready "$count"
  took "nodes ready"
  for number in $(seq "$count"); do
    kubectl patch node "node$number" -p \
      "{\"spec\":{\"podCIDR\":\"$pods.$number.0/24\",\"podCIDRs\":[\"$pods.$number.0/24\"]}}" >/dev/null
    node_policy "node$number"
  done
  cluster_dns >/dev/null
  kubectl apply -f "$here/runtime-classes.yaml" >/dev/null
  until_ok 60 kubectl -n default get serviceaccount default
  took "cluster up"
}

# Whoever started it waits for the line "cluster up" or for the end of the output.
hold() {
  local starting
  setsid "$0" up "$1" </dev/null &
  starting=$!
  # Nobody else keeps the output open: its end says that the cluster did not start.
  exec >/dev/null
  cat
  kill -- "-$starting" 2>/dev/null || true
  wait
  down
}

all_ready() { [ "$(kubectl get nodes 2>/dev/null | grep -c ' Ready')" = "$1" ]; }

down() {
  local file pid group
  # A node that was still starting has no first process yet, but a parent whose end ends it.
  for file in "$cluster"/node*/pid1 "$cluster"/node*/parent; do
    is_alive "$file" || continue
    pid=$(cut -d' ' -f1 "$file")
    # The first process of a PID namespace: all that is inside ends with it.
    kill -9 "$pid" 2>/dev/null || true
    until_ok 20 test ! -d "/proc/$pid/task" || true
  done
  remove_groups "$cgroup"
  # What a mount namespace that has just ended held may be busy for a moment.
  for _ in $(seq 50); do
    rm -rf "$cluster" "$cluster.log" 2>/dev/null && break
    sleep .1
  done
  if ! compgen -G "$temporary/ash-cluster*/node1" >/dev/null && [ -e "$settings" ]; then
    sysctl -q -p "$settings" 2>/dev/null || true
    rm -f "$settings"
  fi
  [ ! -e "$cluster" ] || { echo "$cluster could not be removed" >&2; return 1; }
}

# The clusters of runs that are gone: waits for those whose keeper is at it, and removes those that have lost theirs
# too.
sweep() {
  local file folder
  for file in "$temporary"/ash-cluster*/owner; do
    folder=$(dirname "$file")
    ! is_alive "$file" || continue
    if is_alive "$folder/keeper"; then
      until_ok 60 test ! -e "$folder"
    elif [ -e "$file" ]; then
      echo "Removing $folder, which a run that was killed has left." >&2
      ASH_CLUSTER_DIR=$folder "$0" down
    fi
  done
}

load() {
  local archive number failed=0
  for archive in "$@"; do
    archive=$(realpath -e "$archive")
    for number in $(node_numbers); do load_on "node$number" "$archive" & done
    for number in $(node_numbers); do wait -n || failed=1; done
  done
  return $failed
}

load_on() {
  local node=$1 archive=$2 digest said
  is_up "${node#node}" || return 0
  digest=$(tar -xOf "$archive" index.json | grep -o 'sha256:[0-9a-f]*' | head -n 1)
  ! inside "$node" "$programs/ctr" -n k8s.io images ls 2>/dev/null | grep -qF "$digest" || return 0
  said=$(inside "$node" "$programs/ctr" -n k8s.io images import "$archive" 2>&1) || { echo "$node: $said" >&2; return 1; }
}

case ${1:-} in
  _init) node_init "$2" ;;
  check) check ;;
  up)
    trap '[ $? = 0 ] || echo "The cluster did not start; its logs: $cluster/node*/*.log" >&2' EXIT
    up "${2:-2}"
    ;;
  hold) hold "${2:-2}" ;;
  down) down ;;
  sweep) sweep ;;
  load) load "${@:2}" ;;
  run) KUBECONFIG=$pki/admin.kubeconfig PATH=$programs:$PATH exec nsenter -t "$(first_process node1)" -n -- "${@:2}" ;;
  kubectl) kubectl "${@:2}" ;;
  kill) [ "$2" != node1 ] && is_up "${2#node}" && kill -9 "$(first_process "$2")" ;;
  boot) boot "$2" ;;
  stop-api) stop node1 api-server ;;
  start-api) api_server && until_ok 90 kubectl get --raw /readyz ;;
  kill-container) inside "$2" "$programs/ctr" -n k8s.io task kill --signal SIGKILL "$3" 2>/dev/null ;;
  inside) inside "${@:2}" ;;
  logs) cat "$cluster/$2/$3.log" ;;
  *) sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p}' "$0" ;;
esac
