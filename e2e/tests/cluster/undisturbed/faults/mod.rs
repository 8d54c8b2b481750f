//! Journeys in which parts of the installed system are killed or taken away while real sessions talk: nothing is lost,
//! nothing comes twice, and what can go on goes on.
//!
//! All that need the cluster alone are here, side by side: whoever waits for it to be free holds up those that share it.

mod dependencies;
mod files;
mod nodes;
mod processes;
mod random;
mod runners;
mod sandboxes;

use std::time::Duration;

use ash_client::{Error, FrameStream, Session};
use ash_e2e::{
    cluster::{Cluster, SYSTEM_NAMESPACE},
    harness::{Turn, burst, check_order, compare_with_log, counted, without_superseded, without_withdrawn},
};
use serde_json::Value;

use crate::tenant::Tenant;

/// The pause before each delta of a turn.
const PACE: Duration = Duration::from_millis(10);
/// Deltas that a client has seen when the disturbance begins.
const SEEN: usize = 20;

/// A turn that is going on.
struct Talk {
    session: Session,
    turn: Turn,
    stream: FrameStream,
    deltas: usize,
}

/// Begins a turn with partials of so many deltas, on a connection of its own, and reads its beginning.
async fn begin(tenant: &Tenant<'_>, session: &Session, deltas: usize) -> Result<Talk, Error> {
    let mut stream = tenant.client().send_message(&session.id, &burst(deltas, PACE)).await?;
    let mut turn = Turn::default();
    for _ in 0..SEEN {
        turn.read_until(&mut stream, "text_delta").await;
    }
    Ok(Talk { session: session.clone(), turn, stream, deltas })
}

impl Talk {
    /// Reads the turn to its end, which has to be a good one, and compares it with the log and with what the model said;
    /// how often the client had to connect again.
    async fn end(mut self, tenant: &Tenant<'_>, round: &str) -> u64 {
        while let Some(frame) = self.stream.next().await {
            self.turn.frames.push(frame.unwrap_or_else(|error| panic!("{round}: the stream goes on: {error}")));
        }
        let frames = &self.turn.frames;
        check_order(frames);
        assert_eq!(self.turn.error(), None, "{round}: {:?}", self.turn.names());
        let expected = counted(self.deltas);
        assert_eq!(without_superseded(&without_withdrawn(frames)), expected, "{round}");
        assert_eq!(self.turn.result().as_deref().map(str::trim), Some(expected.trim()), "{round}");
        compare_with_log(&tenant.client(), &self.session, frames, round).await;
        self.stream.reconnects()
    }
}

/// Does something in the middle of a turn of each session; how often each client had to connect again.
pub(crate) fn disturbed(
    tenant: &Tenant<'_>,
    sessions: &[Session],
    deltas: usize,
    round: &str,
    disturb: impl FnOnce() + Send,
) -> Vec<u64> {
    tenant.cluster.run(async {
        let mut talks = Vec::new();
        for session in sessions {
            talks.push(begin(tenant, session, deltas).await.expect("the message is taken"));
        }
        // The streams are not read meanwhile: what they miss is no more than the sockets' buffers hold.
        tokio::task::block_in_place(disturb);
        let mut reconnects = Vec::new();
        for talk in talks {
            reconnects.push(talk.end(tenant, round).await);
        }
        reconnects
    })
}

/// The pods of a part of the control plane that run and are not about to go.
fn parts(cluster: &Cluster, component: &str) -> Vec<Value> {
    let selector = format!("app.kubernetes.io/component={component}");
    let pods = cluster.json(&["get", "pods", "-n", SYSTEM_NAMESPACE, "-l", &selector]);
    let items = pods["items"].as_array().cloned().unwrap_or_default();
    items.into_iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null()).collect()
}

fn name(object: &Value) -> String {
    object["metadata"]["name"].as_str().expect("a name").to_owned()
}

fn is_ready(pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array();
    conditions.is_some_and(|all| all.iter().any(|one| one["type"] == "Ready" && one["status"] == "True"))
}

/// Waits until so many pods of a part are ready, none of them one of these.
fn wait_parts(cluster: &Cluster, component: &str, count: usize, gone: &[String]) {
    cluster.eventually(&format!("{count} {component} pods are ready"), |cluster| {
        let pods = parts(cluster, component);
        let ready = pods.iter().filter(|pod| is_ready(pod) && !gone.contains(&name(pod))).count();
        (ready == count && pods.len() == count).then_some(())
    });
}

/// Deletes a pod of the control plane, and leaves it this many seconds; does not wait for its end.
fn delete_part(cluster: &Cluster, pod: &str, grace: u32) {
    let grace = format!("--grace-period={grace}");
    cluster.done(&["delete", "pod", pod, "-n", SYSTEM_NAMESPACE, "--wait=false", &grace]);
}

/// The session's resource as its status says, once it has a pod.
pub(crate) fn pod_of(tenant: &Tenant<'_>, session: &Session) -> String {
    tenant.cluster.eventually("the session's status names its pod", |_| {
        Some(tenant.resource(&session.id)?["status"]["pod"].as_str()?.to_owned())
    })
}

/// The node that a pod of a tenant is on.
fn node_of(tenant: &Tenant<'_>, pod: &str) -> String {
    tenant.done(&["get", "pod", pod, "-o", "jsonpath={.spec.nodeName}"])
}

/// The runner pod of a node.
fn runner_of(cluster: &Cluster, node: &str) -> String {
    let pods = parts(cluster, "runner");
    name(pods.iter().find(|pod| pod["spec"]["nodeName"] == node).expect("the node's runner"))
}

/// A session of an agent that has said something, so that there is a conversation to keep.
pub(crate) fn begun(tenant: &Tenant<'_>, agent: &str) -> Session {
    let session = tenant.create(agent);
    assert_eq!(tenant.answer(&session.id, "[[count]]"), "1");
    session
}

/// Ends sessions.
fn end(tenant: &Tenant<'_>, sessions: &[Session]) {
    let client = tenant.client();
    tenant.cluster.run(async {
        for session in sessions {
            client.end_session(&session.id).await.expect("an end");
        }
    });
}
