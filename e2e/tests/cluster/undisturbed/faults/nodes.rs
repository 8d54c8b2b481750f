//! A node is powered off, and the API server is taken away: what the harness does to the cluster, without Ash.

use ash_e2e::cluster::Cluster;

use crate::{nodes::readiness, pods::pod};

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
