//! The cluster itself.

use ash_e2e::cluster::Cluster;
use serde_json::Value;

use crate::pods::pod;

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
    let Some(node) = cluster.kill_node("node2") else { return };
    cluster.eventually("node2 is lost", |cluster| readiness(cluster, "node2").filter(|state| state != "True"));
    node.boot();
    assert_eq!(readiness(&cluster, "node2").as_deref(), Some("True"));
}

#[test]
fn the_api_server_goes_and_comes_back_and_pods_run_on() {
    let Some(cluster) = Cluster::alone() else { return };
    let namespace = cluster.namespace("no-api");
    namespace.apply(&pod("runs", &["sleep", "infinity"]).to_string());
    namespace.wait("pod/runs", "condition=Ready");
    let Some(()) = cluster.stop_api_server() else { return };
    cluster.refused(&["get", "nodes", "--request-timeout=1s"], None);
    cluster.start_api_server();
    let pod = namespace.json(&["get", "pod", "runs"]);
    assert_eq!(pod["status"]["containerStatuses"][0]["restartCount"], 0);
    assert_eq!(readiness(&cluster, "node1").as_deref(), Some("True"));
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
