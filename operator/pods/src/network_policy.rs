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
/// Where clouds answer with a node's own credentials: link-local addresses, RFC 3927.
const LINK_LOCAL: &str = "169.254.0.0/16";

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
    let anywhere = |cidr: &str, except: Option<Vec<String>>| NetworkPolicyPeer {
        ip_block: Some(IPBlock { cidr: cidr.to_owned(), except }),
        ..NetworkPolicyPeer::default()
    };
    let out = NetworkPolicyEgressRule {
        to: Some(vec![anywhere("0.0.0.0/0", Some(vec![LINK_LOCAL.to_owned()])), anywhere("::/0", None)]),
        ports: None,
    };
    [
        policy(namespace, SANDBOXES, names::SANDBOX, vec![to_runners]),
        // A repository may be anywhere, also on a server of the cluster.
        policy(namespace, CLONES, names::GIT_CLONE, vec![out]),
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
