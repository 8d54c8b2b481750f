//! Processes of the control plane are killed in the middle of turns.

use ash_e2e::cluster::{Cluster, SYSTEM_NAMESPACE};
use serde_json::json;

use super::{begun, delete_part, disturbed, end, name, node_of, parts, pod_of, runner_of, wait_parts};
use crate::tenant::{Tenant, session};

#[test]
fn a_runner_that_is_killed_or_deleted_in_a_turn_loses_nothing() {
    let Some(cluster) = Cluster::alone() else { return };
    let tenant = Tenant::of_rest(&cluster);
    tenant.agent("runner-faults", &json!({}));
    let session = begun(&tenant, "runner-faults");
    let pod = pod_of(&tenant, &session);
    let node = node_of(&tenant, &pod);
    let sessions = [session];

    let runner = runner_of(&cluster, &node);
    disturbed(&tenant, &sessions, 300, "the runner is killed", || {
        let _ = cluster.kill_container(SYSTEM_NAMESPACE, &runner, "runner");
    });
    assert_eq!(tenant.answer(&sessions[0].id, "[[count]]"), "3");

    // As an upgrade or a drain does: it says so, and its successor takes over.
    wait_parts(&cluster, "runner", 2, &[]);
    let runner = runner_of(&cluster, &node);
    disturbed(&tenant, &sessions, 300, "the runner is deleted", || delete_part(&cluster, &runner, 60));
    assert_eq!(tenant.answer(&sessions[0].id, "[[count]]"), "5");
    wait_parts(&cluster, "runner", 2, &[runner]);
    assert_eq!(pod_of(&tenant, &sessions[0]), pod, "it stays in its sandbox");
    end(&tenant, &sessions);
}

#[test]
fn a_client_whose_api_process_is_deleted_goes_on_at_another() {
    let Some(cluster) = Cluster::alone() else { return };
    let tenant = Tenant::of_rest(&cluster);
    tenant.agent("api-faults", &json!({}));
    let sessions = [begun(&tenant, "api-faults"), begun(&tenant, "api-faults")];
    // The turns last longer than the deletions, on a busy machine too.
    let reconnects = disturbed(&tenant, &sessions, 1800, "an API process is deleted", || {
        // One after the other, so that every client loses its own.
        for pod in parts(&cluster, "api").iter().map(name) {
            delete_part(&cluster, &pod, 1);
            wait_parts(&cluster, "api", 2, &[pod]);
        }
    });
    assert!(reconnects.iter().all(|times| *times > 0), "{reconnects:?}");
    for session in &sessions {
        assert_eq!(tenant.answer(&session.id, "[[count]]"), "3");
    }
    end(&tenant, &sessions);
}

#[test]
fn sessions_go_on_without_an_operator_and_it_catches_up() {
    let Some(cluster) = Cluster::alone() else { return };
    let tenant = Tenant::of_rest(&cluster);
    // Its pool is as at rest soon after.
    tenant.agent("operator-faults", &json!({ "warm": { "demandWindow": "10s" } }));
    let sessions = [begun(&tenant, "operator-faults")];
    let pod = pod_of(&tenant, &sessions[0]);
    disturbed(&tenant, &sessions, 300, "the operators are killed", || {
        for pod in parts(&cluster, "operator").iter().map(name) {
            delete_part(&cluster, &pod, 0);
        }
        let message = json!({ "message": { "content": "[[text: taken]] [[count]]" } });
        tenant.apply(&session("applied-meanwhile", "operator-faults", &message));
    });
    tenant.wait("session/applied-meanwhile", "condition=Ready");
    tenant.wait("session/applied-meanwhile", "condition=MessageTaken");
    wait_parts(&cluster, "operator", 2, &[]);
    // What one did that is gone is not done again by the next: one pod for each session, and the pool's.
    let id = tenant.done(&["get", "session", "applied-meanwhile", "-o", "jsonpath={.metadata.uid}"]);
    assert_eq!(tenant.answer_in_time(&id, "[[count]]"), "2");
    assert_eq!(tenant.answer(&sessions[0].id, "[[count]]"), "3");
    assert_eq!(pod_of(&tenant, &sessions[0]), pod, "it stays in its sandbox");
    cluster.eventually("one pod for each session, and one warm", |_| {
        let pods = tenant.json(&["get", "pods", "-l", "ash.dev/agent=operator-faults"]);
        let pods = pods["items"].as_array().expect("pods");
        let warm = pods.iter().filter(|pod| pod["metadata"]["labels"]["ash.dev/warm"] == "true").count();
        (pods.len() == 3 && warm == 1).then_some(())
    });
    tenant.done(&["delete", "session", "applied-meanwhile", "--wait=false"]);
    end(&tenant, &sessions);
}
