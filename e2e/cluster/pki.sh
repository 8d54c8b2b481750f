#!/usr/bin/env bash
# pki.sh FOLDER ADDRESS NODE...: the keys, certificates and kubeconfigs of a cluster whose API server has this address.
# A node nodeN has the address in the same network that ends in N.
set -euo pipefail
address=$2
nodes=("${@:3}")
mkdir -p "$1"
cd "$1"
days=3650

key() { openssl ecparam -name prime256v1 -genkey -noout -out "$1.key" 2>/dev/null; }

# sign NAME SUBJECT USAGE [NAMES]: a certificate of the cluster's authority.
sign() {
  key "$1"
  openssl req -new -key "$1.key" -subj "$2" -out "$1.csr"
  {
    echo "keyUsage=critical,digitalSignature,keyEncipherment"
    echo "extendedKeyUsage=$3"
    [ -z "${4:-}" ] || echo "subjectAltName=$4"
  } >"$1.extensions"
  openssl x509 -req -in "$1.csr" -CA ca.crt -CAkey ca.key -CAcreateserial -days $days -extfile "$1.extensions" \
    -out "$1.crt" 2>/dev/null
  rm "$1.csr" "$1.extensions"
}

# client NAME SUBJECT: a certificate with the kubeconfig that uses it.
client() {
  sign "$1" "$2" clientAuth
  cat >"$1.kubeconfig" <<END
apiVersion: v1
kind: Config
clusters: [{name: ash, cluster: {server: "https://$address:6443", certificate-authority: $PWD/ca.crt}}]
users: [{name: $1, user: {client-certificate: $PWD/$1.crt, client-key: $PWD/$1.key}}]
contexts: [{name: ash, context: {cluster: ash, user: $1}}]
current-context: ash
END
}

key ca
openssl req -x509 -new -key ca.key -subj /CN=kubernetes-ca -days $days -out ca.crt \
  -addext basicConstraints=critical,CA:true -addext keyUsage=critical,keyCertSign,cRLSign,digitalSignature
names=DNS:kubernetes,DNS:kubernetes.default,DNS:kubernetes.default.svc,DNS:kubernetes.default.svc.cluster.local
sign apiserver /CN=kube-apiserver serverAuth "$names,DNS:localhost,IP:127.0.0.1,IP:10.96.0.1,IP:$address"
sign kubelet-client /O=system:masters/CN=kube-apiserver-kubelet-client clientAuth
sign front-proxy /CN=front-proxy-client clientAuth
client admin /O=system:masters/CN=admin
client controller-manager /CN=system:kube-controller-manager
client scheduler /CN=system:kube-scheduler
client proxy /CN=system:kube-proxy
for node in "${nodes[@]}"; do
  client "$node" "/O=system:nodes/CN=system:node:$node"
  sign "$node-serving" "/O=system:nodes/CN=system:node:$node" serverAuth \
    "DNS:$node,IP:127.0.0.1,IP:${address%.*}.${node#node}"
done
openssl genrsa -out sa.key 2048 2>/dev/null
openssl rsa -in sa.key -pubout -out sa.pub 2>/dev/null
chmod 600 ./*.key
