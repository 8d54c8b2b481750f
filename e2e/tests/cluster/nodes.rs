//! The cluster itself.

use ash_e2e::cluster::Cluster;
use serde_json::Value;

use crate::pods::pod;

/// The state of a node's `Ready` condition: `True`, `False` or `Unknown`.
pub(crate) fn readiness(cluster: &Cluster, node: &str) -> Option<String> {
    let node = cluster.json(&["get", "node", node]);
    let conditions = node["status"]["conditions"].as_array()?;
    let ready = conditions.iter().find(|condition| condition["type"] == "Ready")?;
    ready["status"].as_str().map(str::to_owned)
}

#[test]
fn two_nodes_are_ready() {
    let Some(cluster) = Cluster::shared() else { return };
    let nodes = cluster.json(&["get", "nodes"]);
    let names: Vec<&str> = nodes["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|node| &node["metadata"]["name"])
        .filter_map(Value::as_str)
        .collect();
    assert!(names.len() >= 2, "{names:?}");
    for name in names {
        assert_eq!(readiness(&cluster, name).as_deref(), Some("True"), "{name}");
    }
}

#[test]
fn a_container_that_is_killed_starts_again_in_its_pod() {
    let Some(cluster) = Cluster::shared() else { return };
    let namespace = cluster.namespace("killed");
    let mut pod = pod("restarts", &["sleep", "infinity"]);
    pod["spec"]["restartPolicy"] = "Always".into();
    namespace.apply(&pod.to_string());
    namespace.wait("pod/restarts", "condition=Ready");
    let Some(()) = cluster.kill_container(namespace.name(), "restarts", "sandbox") else { return };
    namespace.wait("pod/restarts", "jsonpath={.status.containerStatuses[0].restartCount}=1");
    namespace.wait("pod/restarts", "condition=Ready");
}
