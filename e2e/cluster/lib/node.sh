# shellcheck shell=bash
# Sourced by cluster.sh: the namespaces of a node, its control groups and its cables.

cgroup_v2() { [ "$(stat -fc %T /sys/fs/cgroup)" = cgroup2fs ]; }

# Runs as the first process of the new namespaces.
node_init() {
  local number=$1 node=node$1 path
  mount --make-rprivate /
  mount -t proc proc /proc
  mount --make-rshared /
  # Folders of the node's own for the paths that kubelet, containerd and CNI have built in.
  for path in run var/log var/lib/kubelet var/lib/containerd var/lib/cni; do
    mkdir -p "$cluster/$node/disk/$path" "/$path"
    mount --bind "$cluster/$node/disk/$path" "/$path"
  done
  mkdir -p /run/netns /run/lock /run/xtables
  hostname "$node"
  ip link set lo up
  ip link add lan type bridge
  ip addr add "$network.$number/24" dev lan
  ip link set lan up
  # Processes on the node reach Services too: kube-proxy rewrites what goes here.
  ip route add "$services" dev lan
  echo 1 >/proc/sys/net/ipv4/ip_forward
  echo 1 >/proc/sys/net/bridge/bridge-nf-call-iptables 2>/dev/null || true
  touch "$cluster/$node/ready"
  exec "$programs/pause"
}

node_groups() {
  local controller group file
  if cgroup_v2; then
    mkdir -p "/sys/fs/cgroup/$cgroup/$1"
    return
  fi
  for controller in cpu cpuacct cpuset memory devices freezer blkio pids systemd; do
    mkdir -p "/sys/fs/cgroup/$controller/$cgroup/$1"
  done
  for group in "$cgroup" "$cgroup/$1"; do
    for file in cpus mems; do
      cat "/sys/fs/cgroup/cpuset/cpuset.$file" >"/sys/fs/cgroup/cpuset/$group/cpuset.$file"
    done
  done
}

# remove_groups GROUP: with all below it. What has just ended may be in one for a moment.
remove_groups() {
  local group
  for group in "/sys/fs/cgroup/$1" /sys/fs/cgroup/*/"$1"; do
    for _ in $(seq 50); do
      [ -d "$group" ] || break
      find "$group" -depth -type d -exec rmdir {} + 2>/dev/null || sleep .1
    done
  done
}

node_namespaces() {
  local number=$1 node=node$1 other
  mkdir -p "$cluster/$node/disk" "$cluster/$node/cni"
  rm -f "$cluster/$node/ready"
  node_groups "$node"
  setsid unshare --mount --net --pid --ipc --uts --fork --kill-child --propagation private \
    "$here/cluster.sh" _init "$number" >"$cluster/$node/init.log" 2>&1 </dev/null &
  local parent=$!
  process_key $parent >"$cluster/$node/parent"
  disown
  until_ok 10 test -e "$cluster/$node/ready" || { cat "$cluster/$node/init.log" >&2; return 1; }
  process_key "$(children_of $parent)" >"$cluster/$node/pid1"
  [ "$number" -gt 1 ] || return 0
  # A cable to the bridge of the first node, and routes between the pods of all.
  nsenter -t "$(first_process node1)" -n -- \
    ip link add "port$number" type veth peer name uplink netns "$(first_process "$node")"
  inside node1 ip link set "port$number" master lan up
  inside "$node" ip link set uplink master lan up
  for other in $(node_numbers); do
    if [ "$other" = "$number" ] || ! is_up "$other"; then continue; fi
    inside "node$other" ip route replace "$pods.$number.0/24" via "$network.$number"
    inside "$node" ip route replace "$pods.$other.0/24" via "$network.$other"
  done
}

# A node that was killed comes back with its disk, but not with what was in its memory.
boot() {
  local node=$1
  ! is_up "${node#node}" || { echo "$node is up" >&2; return 1; }
  until_ok 20 test ! -d "/proc/$(first_process "$node")/task"
  rm -rf "$cluster/$node/disk/run"
  # A kubelet waits three seconds for each container whose group is there and whose task is not.
  remove_groups "$cgroup/$node"
  node_namespaces "${node#node}"
  node_daemons "${node#node}"
  node_policy "$node"
}
