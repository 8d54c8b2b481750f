# shellcheck shell=bash
# Sourced by cluster.sh: whether a cluster can run here.

# The programs that build.sh makes and a cluster cannot do without.
needed="kube-apiserver kube-controller-manager kube-scheduler kubelet kube-proxy kubectl etcd containerd containerd-shim-runc-v2
  ctr runc coredns kube-router helm runsc containerd-shim-runsc-v1 pause cni/bridge cni/loopback cni/host-local cni/portmap"

check() {
  local tool missing=()
  [ "$(uname -s)" = Linux ] || { echo "it needs Linux"; return 1; }
  [ "$(id -u)" = 0 ] || { echo "it needs root, for namespaces of nodes"; return 1; }
  for tool in iptables ipset ip conntrack openssl python3 nsenter unshare mmdebstrap buildah; do
    command -v $tool >/dev/null || missing+=("$tool")
  done
  [ ${#missing[@]} = 0 ] || { echo "missing: ${missing[*]}; scripts/install-test-tools.sh installs them"; return 1; }
  for tool in $needed; do
    [ -x "$programs/$tool" ] || { echo "$tool is not in $programs: e2e/cluster/build.sh $programs cluster"; return 1; }
  done
  # A container without the rights of a machine fails here rather than in the middle.
  unshare --mount --net --pid --ipc --uts --fork --propagation private \
    sh -c 'mount -t proc proc /proc && ip link add probe type bridge && iptables -w -t nat -L -n' >/dev/null 2>&1 ||
    { echo "this machine allows no namespaces with mounts, bridges and iptables of their own"; return 1; }
  [ -w /sys/fs/cgroup ] || { echo "/sys/fs/cgroup cannot be written"; return 1; }
}
