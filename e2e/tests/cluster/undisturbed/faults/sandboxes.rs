//! Sandboxes are lost: a pod, and a node with all its pods.

use ash_e2e::cluster::Cluster;
use serde_json::json;

use super::{begun, end, node_of, pod_of};
use crate::tenant::Tenant;

/// Waits until a session's resource says that it lost its sandbox; why it did.
fn why_lost(tenant: &Tenant<'_>, session: &str) -> String {
    tenant.cluster.eventually("the resource says that its sandbox was lost", |_| {
        let status = tenant.resource(session)?["status"].clone();
        let ready = status["conditions"].as_array()?.iter().find(|condition| condition["type"] == "Ready")?.clone();
        (status["pausedReason"] == "lost" && ready["reason"] == "Asleep")
            .then(|| ready["message"].as_str().unwrap_or_default().to_owned())
    })
}

#[test]
fn a_session_whose_pod_is_deleted_sleeps_and_wakes_in_another() {
    let Some(cluster) = Cluster::alone() else { return };
    let tenant = Tenant::of_rest(&cluster);
    tenant.agent("pod-faults", &json!({}));
    let session = begun(&tenant, "pod-faults");
    let pod = pod_of(&tenant, &session);
    tenant.done(&["delete", "pod", &pod, "--wait=false"]);
    let client = tenant.client();
    let asleep = cluster.eventually("the session is asleep", |cluster| {
        let found = cluster.run(async { client.session(&session.id).await }).ok()?;
        (found.status == "paused").then_some(found)
    });
    assert_eq!(asleep.other["pausedReason"], "lost", "{asleep:?}");
    let why = why_lost(&tenant, &session.id);
    assert!(why.starts_with("NodeLost: ") && why.contains(&pod), "{why}");
    assert_eq!(tenant.answer(&session.id, "[[count]]"), "2", "with its conversation");
    cluster.eventually("the status names the other pod", |_| {
        let status = tenant.resource(&session.id)?["status"].clone();
        (status["state"] == "active" && status["pod"].as_str().is_some_and(|now| now != pod)).then_some(())
    });
    end(&tenant, &[session]);
}

#[test]
fn sessions_of_a_node_that_dies_answer_on_the_other_with_their_conversation() {
    let Some(cluster) = Cluster::alone() else { return };
    let tenant = Tenant::of_rest(&cluster);
    tenant.agent("node-faults", &json!({}));
    let mut sessions = Vec::new();
    let doomed = loop {
        let session = begun(&tenant, "node-faults");
        let pod = pod_of(&tenant, &session);
        let place = node_of(&tenant, &pod);
        sessions.push(session);
        if place == "node2" {
            break sessions.last().expect("it").clone();
        }
        assert!(sessions.len() < 12, "no pod comes to node2");
    };
    let Some(node) = cluster.kill_node("node2") else { return };
    // Whichever is missed first: its runner, or with the node its pod.
    let why = why_lost(&tenant, &doomed.id);
    assert!(["RunnerLost: ", "NodeLost: "].iter().any(|reason| why.starts_with(reason)), "{why}");
    for session in &sessions {
        let answer = tenant.answer_in_time(&session.id, "[[count]]");
        assert_eq!(answer, "2", "with its conversation");
    }
    let pod = pod_of(&tenant, &doomed);
    cluster.eventually("its pod is on the other node", |_| (node_of(&tenant, &pod) == "node1").then_some(()));
    end(&tenant, &sessions);
    node.boot();
}
