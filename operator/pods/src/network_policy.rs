//! The policies of a served namespace: a sandbox reaches the runners of its installation, and nothing else; nothing reaches it.

use std::collections::BTreeMap;

use ash_crd::names;
use k8s_openapi::{
    api::networking::v1::{
        IPBlock, NetworkPolicy, NetworkPolicyEgressRule, NetworkPolicyPeer, NetworkPolicyPort, NetworkPolicySpec,
    },
    apimachinery::pkg::{
        apis::meta::v1::{LabelSelector, ObjectMeta},
        util::intstr::IntOrString,
    },
};

use crate::manifest::{BRIDGE_PORT, GATEWAY_PORT};

/// The policy of sandboxes.
pub const SANDBOXES: &str = "ash-sandboxes";
/// The policy of pods that clone a repository.
pub const CLONES: &str = "ash-git-clone";
/// The label that every namespace has, with its name.
const NAMESPACE_NAME: &str = "kubernetes.io/metadata.name";
/// The value of [`names::COMPONENT`] of runners.
const RUNNER: &str = "runner";
/// Addresses of IPv4 that are nobody's public ones: this network, private, shared, loopback, link-local (where clouds answer with
/// a node's own credentials), multicast and reserved (RFC 6890).
const NOT_PUBLIC: [&str; 9] = [
    "0.0.0.0/8",
    "10.0.0.0/8",
    "100.64.0.0/10",
    "127.0.0.0/8",
    "169.254.0.0/16",
    "172.16.0.0/12",
    "192.168.0.0/16",
    "224.0.0.0/4",
    "240.0.0.0/4",
];
/// The same of IPv6: loopback, IPv4 behind a translator, unique local, link-local, multicast.
const NOT_PUBLIC_6: [&str; 5] = ["::1/128", "64:ff9b::/96", "fc00::/7", "fe80::/10", "ff00::/8"];

/// The policies of a namespace. `system` is the namespace of the runners.
pub fn policies(namespace: &str, system: &str) -> [NetworkPolicy; 2] {
    let port = |number: u16| NetworkPolicyPort {
        port: Some(IntOrString::Int(number.into())),
        protocol: Some("TCP".to_owned()),
        end_port: None,
    };
    let runners = NetworkPolicyPeer {
        namespace_selector: Some(selector(NAMESPACE_NAME, system)),
        pod_selector: Some(selector(names::COMPONENT, RUNNER)),
        ip_block: None,
    };
    let to_runners =
        NetworkPolicyEgressRule { to: Some(vec![runners]), ports: Some(vec![port(BRIDGE_PORT), port(GATEWAY_PORT)]) };
    let peer = |cidr: &str, except: &[&str]| NetworkPolicyPeer {
        ip_block: Some(IPBlock {
            cidr: cidr.to_owned(),
            except: Some(except.iter().map(|block| (*block).to_owned()).collect()),
        }),
        ..NetworkPolicyPeer::default()
    };
    // The tenant chooses the address: public ones only. An installation whose repositories are elsewhere says so in the chart.
    let public = NetworkPolicyEgressRule {
        to: Some(vec![peer("0.0.0.0/0", &NOT_PUBLIC), peer("::/0", &NOT_PUBLIC_6)]),
        ports: Some(vec![port(443), port(22)]),
    };
    let names = NetworkPolicyPeer {
        namespace_selector: Some(selector(NAMESPACE_NAME, "kube-system")),
        pod_selector: Some(selector("k8s-app", "kube-dns")),
        ip_block: None,
    };
    let datagrams = NetworkPolicyPort { protocol: Some("UDP".to_owned()), ..port(53) };
    let resolve = NetworkPolicyEgressRule { to: Some(vec![names]), ports: Some(vec![port(53), datagrams]) };
    [
        policy(namespace, SANDBOXES, names::SANDBOX, vec![to_runners]),
        policy(namespace, CLONES, names::GIT_CLONE, vec![public, resolve]),
    ]
}

fn policy(namespace: &str, name: &str, component: &str, egress: Vec<NetworkPolicyEgressRule>) -> NetworkPolicy {
    NetworkPolicy {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            namespace: Some(namespace.to_owned()),
            labels: Some(BTreeMap::from([(names::MANAGED_BY.to_owned(), names::MANAGER.to_owned())])),
            ..ObjectMeta::default()
        },
        spec: Some(NetworkPolicySpec {
            pod_selector: Some(selector(names::COMPONENT, component)),
            policy_types: Some(vec!["Ingress".to_owned(), "Egress".to_owned()]),
            ingress: None,
            egress: Some(egress),
        }),
    }
}

fn selector(name: &str, value: &str) -> LabelSelector {
    LabelSelector { match_labels: Some(BTreeMap::from([(name.to_owned(), value.to_owned())])), match_expressions: None }
}

#[cfg(test)]
mod tests {
    #[test]
    fn policies() {
        insta::assert_yaml_snapshot!(super::policies("team", "ash-system"));
    }
}
