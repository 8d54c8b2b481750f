# shellcheck shell=bash
# Sourced by cluster.sh: the daemons of the control plane and of the nodes.

# etcd does not wait for the disk: that of a test machine is not what is tested. Say so beside figures.
control_plane() {
  start node1 etcd "$programs/etcd" --name e1 --data-dir "$cluster/node1/etcd" --unsafe-no-fsync --log-level warn \
    --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 \
    --listen-peer-urls http://127.0.0.1:2380 --initial-advertise-peer-urls http://127.0.0.1:2380 \
    --initial-cluster e1=http://127.0.0.1:2380
  api_server
  until_ok 90 kubectl get --raw /readyz
  # It exits where the bootstrap roles are not there yet, so it starts now.
  local common=(--bind-address=127.0.0.1 --leader-elect=false --profiling=false --kube-api-qps=200 --kube-api-burst=400)
  start node1 controller-manager "$programs/kube-controller-manager" "${common[@]}" \
    --kubeconfig="$pki/controller-manager.kubeconfig" \
    --authentication-kubeconfig="$pki/controller-manager.kubeconfig" \
    --authorization-kubeconfig="$pki/controller-manager.kubeconfig" \
    --root-ca-file="$pki/ca.crt" --service-account-private-key-file="$pki/sa.key" --use-service-account-credentials=true \
    --cluster-signing-cert-file="$pki/ca.crt" --cluster-signing-key-file="$pki/ca.key" \
    --node-monitor-period=2s --node-monitor-grace-period=12s
  start node1 scheduler "$programs/kube-scheduler" "${common[@]}" --kubeconfig="$pki/scheduler.kubeconfig" \
    --authentication-kubeconfig="$pki/scheduler.kubeconfig" --authorization-kubeconfig="$pki/scheduler.kubeconfig"
}

# With ASH_CLUSTER_AUDIT, a line for each write: who wrote what.
audit() {
  [ -n "${ASH_CLUSTER_AUDIT:-}" ] || return 0
  cat >"$cluster/node1/audit.yaml" <<END
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - {level: None, verbs: [get, list, watch]}
  - {level: None, resources: [{group: coordination.k8s.io}]}
  - {level: Metadata}
END
  echo "--audit-policy-file=$cluster/node1/audit.yaml --audit-log-path=$cluster/node1/audit.log"
}

# A node that is gone is NotReady after 12 s and loses its pods 5 s later, where a person's cluster takes five minutes.
# shellcheck disable=SC2046 # one word per argument
api_server() {
  start node1 api-server "$programs/kube-apiserver" --etcd-servers=http://127.0.0.1:2379 \
    --bind-address=$api --advertise-address=$api --secure-port=6443 \
    --tls-cert-file="$pki/apiserver.crt" --tls-private-key-file="$pki/apiserver.key" --client-ca-file="$pki/ca.crt" \
    --kubelet-client-certificate="$pki/kubelet-client.crt" --kubelet-client-key="$pki/kubelet-client.key" \
    --kubelet-certificate-authority="$pki/ca.crt" --kubelet-preferred-address-types=InternalIP \
    --service-account-issuer=https://kubernetes.default.svc \
    --service-account-key-file="$pki/sa.pub" --service-account-signing-key-file="$pki/sa.key" \
    --requestheader-client-ca-file="$pki/ca.crt" --requestheader-allowed-names=front-proxy-client \
    --requestheader-username-headers=X-Remote-User --requestheader-group-headers=X-Remote-Group \
    --requestheader-extra-headers-prefix=X-Remote-Extra- \
    --proxy-client-cert-file="$pki/front-proxy.crt" --proxy-client-key-file="$pki/front-proxy.key" \
    --authorization-mode=Node,RBAC --enable-admission-plugins=NodeRestriction --allow-privileged=true \
    --service-cluster-ip-range=$services --profiling=false \
    --default-not-ready-toleration-seconds=5 --default-unreachable-toleration-seconds=5 $(audit)
}

# The daemons that a node cannot be Ready without.
node_daemons() {
  local node=node$1 path=$programs:/usr/sbin:/usr/bin:/sbin:/bin
  keep "$node" containerd env PATH="$path" "$programs/containerd" -c "$cluster/$node/containerd.toml"
  until_ok 60 inside "$node" "$programs/ctr" version
  inside "$node" "$programs/ctr" -n k8s.io images import "$cluster/pause.tar" >/dev/null 2>&1
  keep "$node" kubelet env PATH="$path" "$programs/kubelet" --config="$cluster/$node/kubelet.yaml" \
    --kubeconfig="$pki/$node.kubeconfig" --hostname-override="$node" --node-ip="$network.$1" --node-labels="$labels" --v=1
  keep "$node" kube-proxy env PATH="$path" "$programs/kube-proxy" --config="$cluster/$node/kube-proxy.yaml"
}

# Enforces NetworkPolicy, and does nothing else of what kube-router can do.
node_policy() {
  keep "$1" kube-router "$programs/kube-router" --kubeconfig="$pki/admin.kubeconfig" --hostname-override="$1" \
    --run-firewall=true --run-router=false --run-service-proxy=false --service-cluster-ip-range=$services \
    --iptables-sync-period=60s --health-port=0
}

# CoreDNS is a process of node1 behind the usual Service.
cluster_dns() {
  cat >"$cluster/node1/Corefile" <<END
.:53 {
  bind $api
  errors
  kubernetes cluster.local in-addr.arpa {
    kubeconfig $pki/admin.kubeconfig
  }
  cache 5
}
END
  start node1 coredns "$programs/coredns" -conf "$cluster/node1/Corefile"
  kubectl apply -f - <<END
apiVersion: v1
kind: Service
metadata: {name: kube-dns, namespace: kube-system}
spec:
  clusterIP: $dns
  ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53, protocol: TCP}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: kube-dns, namespace: kube-system, labels: {kubernetes.io/service-name: kube-dns}}
addressType: IPv4
ports: [{name: dns, port: 53, protocol: UDP}, {name: dns-tcp, port: 53, protocol: TCP}]
endpoints: [{addresses: [$api], conditions: {ready: true}}]
END
}
