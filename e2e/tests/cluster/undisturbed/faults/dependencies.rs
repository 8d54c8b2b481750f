//! What Ash stands on is taken away for a while: the API server, and Postgres.

use ash_client::CreateSession;
use ash_e2e::cluster::Cluster;
use serde_json::json;

use super::{begun, disturbed, end};
use crate::tenant::{Tenant, session};

fn wanted(agent: &str) -> CreateSession {
    CreateSession { agent: agent.to_owned(), ..CreateSession::default() }
}

#[test]
fn without_an_api_server_sessions_go_on_and_changes_are_refused() {
    let Some(cluster) = Cluster::alone() else { return };
    let tenant = Tenant::of_rest(&cluster);
    tenant.agent("kubernetes-faults", &json!({}));
    let sessions = [begun(&tenant, "kubernetes-faults")];
    let id = &sessions[0].id;
    let Some(()) = cluster.stop_api_server() else { return };
    disturbed(&tenant, &sessions, 300, "the API server is away", || ());
    let client = tenant.client();
    cluster.run(async {
        let created = client.create_session(&wanted("kubernetes-faults")).await;
        assert_eq!(created.as_ref().expect_err("no creation").status(), Some(503), "{created:?}");
        let paused = client.pause_session(id).await;
        assert_eq!(paused.as_ref().expect_err("no suspension").status(), Some(503), "{paused:?}");
        let ended = client.end_session(id).await;
        assert_eq!(ended.as_ref().expect_err("no end").status(), Some(503), "{ended:?}");
    });
    assert_eq!(tenant.answer(id, "[[count]]"), "3");
    cluster.start_api_server();
    assert_eq!(tenant.answer(id, "[[count]]"), "4");
    let later = cluster.eventually("a session can be made again", |cluster| {
        cluster.run(async { client.create_session(&wanted("kubernetes-faults")).await.ok() })
    });
    assert_eq!(tenant.answer(&later.id, "[[count]]"), "1");
    end(&tenant, &[later, sessions[0].clone()]);
}

#[test]
fn without_postgres_a_turn_ends_and_creations_wait_or_are_refused() {
    let Some(cluster) = Cluster::alone() else { return };
    let tenant = Tenant::of_rest(&cluster);
    tenant.agent("postgres-faults", &json!({}));
    let sessions = [begun(&tenant, "postgres-faults")];
    let postgres = || tenant.installation.postgres.lock().expect("Postgres");
    let client = tenant.client();
    disturbed(&tenant, &sessions, 500, "Postgres is away", || {
        cluster.inside(|| postgres().stop());
        let created = cluster.run(async { client.create_session(&wanted("postgres-faults")).await });
        assert_eq!(created.as_ref().expect_err("no creation").status(), Some(503), "{created:?}");
        tenant.apply(&session("waits-for-postgres", "postgres-faults", &json!({})));
        cluster.eventually("the applied session says what it waits for", |_| {
            let session = tenant.json(&["get", "session", "waits-for-postgres"]);
            let conditions = session["status"]["conditions"].as_array()?.clone();
            conditions.iter().any(|one| one["reason"] == "StoreUnavailable").then_some(())
        });
        cluster.inside(|| postgres().start_again());
    });
    tenant.wait("session/waits-for-postgres", "condition=Ready");
    assert_eq!(tenant.answer(&sessions[0].id, "[[count]]"), "3");
    let id = tenant.done(&["get", "session", "waits-for-postgres", "-o", "jsonpath={.metadata.uid}"]);
    assert_eq!(tenant.answer(&id, "[[count]]"), "1");
    tenant.done(&["delete", "session", "waits-for-postgres", "--wait=false"]);
    end(&tenant, &sessions);
}
