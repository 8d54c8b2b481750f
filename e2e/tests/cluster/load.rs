//! A warm pool under a replayed load.

use std::time::Duration;

use ash_e2e::cluster::Cluster;
use serde_json::json;

use crate::tenant::Tenant;

/// When sessions were asked for, in milliseconds after the first: a quarter of a minute of a recorded morning.
const RECORDED: [u64; 5] = [0, 900, 1_300, 6_200, 8_000];
/// The pool's bounds.
const MIN: usize = 1;
const MAX: usize = 3;
/// For how long a session counts: longer than anything takes; and then so short that all of them are past.
const WINDOW: &str = "1h";
const FADED: &str = "10s";

impl Tenant<'_> {
    /// What people see of an agent: its sandboxes that wait, that have a session, and its sessions that sleep.
    fn counts(&self, agent: &str) -> [usize; 3] {
        let status = self.json(&["get", "agent", agent])["status"].clone();
        ["warm", "active", "asleep"].map(|count| status[count].as_u64().map_or(0, |count| count.try_into().unwrap()))
    }
}

/// REST sessions take from the pool without the operator, and count all the same.
#[test]
fn a_pool_follows_a_replayed_load_and_shrinks_again() {
    let Some(cluster) = Cluster::shared() else { return };
    let tenant = Tenant::of_rest(&cluster);
    tenant.agent("demanded", &json!({ "warm": { "min": MIN, "max": MAX, "demandWindow": WINDOW } }));
    tenant.wait("agent/demanded", "condition=PoolReady");
    cluster.eventually("one waits", |_| (tenant.counts("demanded") == [MIN, 0, 0]).then_some(()));
    let client = tenant.client();
    let wanted = ash_client::CreateSession { agent: "demanded".to_owned(), ..ash_client::CreateSession::default() };
    let sessions = cluster.run(async {
        let begun = tokio::time::Instant::now();
        let mut sessions = Vec::new();
        for at in RECORDED {
            // The rhythm is the test's input.
            tokio::time::sleep_until(begun + Duration::from_millis(at)).await;
            sessions.push(client.create_session(&wanted).await.unwrap().id);
        }
        sessions
    });
    assert_eq!(tenant.answer(&sessions[0], "[[count]]"), "1");
    // While it is asked for, more wait than at rest, and never more than may.
    cluster.eventually("the pool has grown", |_| {
        let [warm, active, _] = tenant.counts("demanded");
        assert!(warm <= MAX, "{warm} wait");
        (warm == MAX && active == sessions.len()).then_some(())
    });
    // Whoever is put aside is no active one any more; a person's pause is no sleep.
    let paused = cluster.run(async { client.pause_session(&sessions[0]).await.unwrap() });
    assert_eq!(paused.status, "paused");
    for session in &sessions[1..] {
        cluster.run(async { client.end_session(session).await.unwrap() });
    }
    cluster.eventually("what has ended does not count", |_| (tenant.counts("demanded")[1] <= 1).then_some(()));
    // Demand fades: all beyond the least go.
    let faded = json!({ "spec": { "warm": { "demandWindow": FADED } } }).to_string();
    tenant.done(&["patch", "agent", "demanded", "--type=merge", "-p", &faded]);
    cluster.eventually("the pool is as at rest", |_| (tenant.counts("demanded")[0] == MIN).then_some(()));
    let [warm, _, asleep] = tenant.counts("demanded");
    assert_eq!((warm, asleep), (MIN, 0));
    assert_eq!(tenant.json(&["get", "agent", "demanded"])["status"]["warm"], MIN);
    cluster.run(async { client.end_session(&sessions[0]).await.unwrap() });
    tenant.done(&["delete", "agent", "demanded", "--timeout=60s"]);
}
