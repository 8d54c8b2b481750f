//! A node pool whose runner cannot serve: what its sessions say, and that they go on once it can.

use ash_e2e::cluster::{Cluster, SYSTEM_NAMESPACE};
use serde_json::{Value, json};

use crate::tenant::{Tenant, agent, session};

/// The label of nodes and pods that names a pool.
const POOL: &str = "ash.dev/node-pool";
/// The pool of this journey.
const STRANGE: &str = "strange";

/// A `DaemonSet` or Service of the chart's pool, for another one.
fn of_strange_pool(cluster: &Cluster, kind: &str) -> Value {
    let mut object = cluster.json(&["get", kind, "ash-runner-default", "-n", SYSTEM_NAMESPACE]);
    let metadata = object["metadata"].clone();
    object["metadata"] = json!({
        "name": format!("ash-runner-{STRANGE}"),
        "namespace": SYSTEM_NAMESPACE,
        "labels": metadata["labels"],
    });
    object.as_object_mut().unwrap().remove("status");
    for field in ["clusterIP", "clusterIPs"] {
        object["spec"].as_object_mut().unwrap().remove(field);
    }
    let text = object.to_string().replace(r#""ash.dev/node-pool":"default""#, r#""ash.dev/node-pool":"strange""#);
    serde_json::from_str(&text.replace("ASH_RUNNER_DEFAULT_SERVICE_HOST", "ASH_RUNNER_STRANGE_SERVICE_HOST")).unwrap()
}

/// Gives a node to a pool.
fn label(cluster: &Cluster, node: &str, pool: &str) {
    cluster.done(&["label", "node", node, &format!("{POOL}={pool}"), "--overwrite"]);
}

/// The node is the default pool's again, however the journey ends.
struct Lent<'a>(&'a Cluster, &'static str);

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        label(self.0, self.1, "default");
    }
}

#[test]
fn a_runner_with_another_secret_is_named_by_the_sessions_that_wait_for_it() {
    let Some(cluster) = Cluster::alone() else { return };
    let tenant = Tenant::named(&cluster, "team-b");
    let mut keys = cluster.json(&["get", "secret", "ash-keys", "-n", SYSTEM_NAMESPACE]);
    keys["metadata"] = json!({ "name": "strange-keys", "namespace": SYSTEM_NAMESPACE });
    let right = keys["data"]["fleet-secret"].clone();
    keys["data"]["fleet-secret"] = keys["data"]["credential-key"].clone();
    cluster.apply(&keys.to_string());
    cluster.apply(&of_strange_pool(&cluster, "service").to_string());
    let mut runners = of_strange_pool(&cluster, "daemonset");
    runners = serde_json::from_str(&runners.to_string().replace("ash-keys", "strange-keys")).unwrap();
    let lent = Lent(&cluster, "node2");
    label(&cluster, lent.1, STRANGE);

    // The pool is there, and nothing that runs in it.
    let settings = json!({ "sandbox": { "nodePool": STRANGE }, "warm": { "min": 0 } });
    tenant.apply(&agent("stranger", &settings));
    tenant.apply(&session("strange", "stranger", &json!({ "ttlAfterEnd": "1s" })));
    let said = tenant.reason("session/strange", "Ready", "NoRunner");
    assert!(said.contains("ash-runner-strange"), "{said}");

    cluster.apply(&runners.to_string());
    let said = tenant.reason("session/strange", "Ready", "RunnerSecretRefused");
    assert!(said.contains("another secret") && !said.contains("--fleet-secret-file"), "{said}");

    // With the right one the session goes on by itself.
    keys["data"]["fleet-secret"] = right;
    cluster.apply(&keys.to_string());
    cluster.done(&["delete", "pods", "-n", SYSTEM_NAMESPACE, "-l", &format!("{POOL}={STRANGE}"), "--wait=false"]);
    tenant.wait("session/strange", "condition=Ready");
    tenant.wait("session/strange", "jsonpath={.status.state}=active");
    tenant.done(&["delete", "session/strange", "agent/stranger", "--timeout=60s"]);
    let (daemonset, service) = (format!("daemonset/ash-runner-{STRANGE}"), format!("service/ash-runner-{STRANGE}"));
    cluster.done(&["delete", &daemonset, &service, "secret/strange-keys", "-n", SYSTEM_NAMESPACE]);
}
