//! The cluster itself.

use ash_e2e::cluster::Cluster;
use serde_json::Value;

/// The state of a node's `Ready` condition: `True`, `False` or `Unknown`.
fn readiness(cluster: &Cluster, node: &str) -> Option<String> {
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
fn a_node_that_is_killed_is_noticed_and_comes_back() {
    let Some(cluster) = Cluster::alone() else { return };
    let Some(()) = cluster.kill_node("node2") else { return };
    cluster.eventually("node2 is lost", |cluster| readiness(cluster, "node2").filter(|state| state != "True"));
    cluster.boot_node("node2");
    assert_eq!(readiness(&cluster, "node2").as_deref(), Some("True"));
}
