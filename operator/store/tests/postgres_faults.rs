//! Postgres goes away, comes back, and connections break between a statement and its answer: what was acknowledged is there.

#![allow(clippy::unwrap_used, dead_code)]

mod contract;
mod fleet;
mod postgres_proxy;

use std::sync::Arc;

use ash_core::{
    Entry, EntryKind,
    id::{SessionId, TenantId},
    placement::Stage,
    ports::{
        AgentStore as _, Clear, CredentialKind, CredentialStore as _, EventLog as _, KeyStore as _, Load,
        MembershipStore as _, NewKey, PodStore as _, Reserved, SessionStore as _, Store, StoreError,
    },
    session::Session,
};
use ash_store::{Database as _, PostgresError, PostgresStore};
use ash_test_postgres::Postgres;
use contract::fixtures::{agent, append_one, deployment, entry, log_after, new_session, now, opening_of, placed};
use postgres_proxy::Proxy;
use tokio::sync::mpsc;

/// Tries of a write that Postgres' absence fails; each waits as long as a call does.
const TRIES: usize = 20;

async fn open(server: &Postgres) -> PostgresStore {
    PostgresStore::open(&server.url("postgres").into()).await.unwrap()
}

fn line(session: &Session, n: u32) -> Entry {
    entry(session.epoch, n, EntryKind::Claude, format!("{{\"n\":{n}}}"))
}

#[tokio::test]
async fn while_postgres_is_away_calls_are_unavailable_and_later_they_work() {
    let mut server = Postgres::start();
    let store = open(&server).await;
    let session = placed(&store).await;
    server.stop();
    let entries = vec![line(&session, 2)];
    let nowhere = "postgres://me:hunter2@127.0.0.1:1/ash".to_owned().into();
    let (appended, read, refused) = tokio::join!(
        append_one(&store, &session, entries.clone()),
        store.session(&session.tenant, session.id),
        PostgresStore::open(&nowhere)
    );
    assert!(matches!(appended, Err(StoreError::Unavailable(_))), "{appended:?}");
    assert!(matches!(read, Err(StoreError::Unavailable(_))), "{read:?}");
    let refused = refused.map(drop).unwrap_err();
    assert!(matches!(&refused, PostgresError::Unavailable { .. }), "{refused}");
    assert!(
        refused.to_string().contains("ash at 127.0.0.1:1") && !format!("{refused:?}").contains("hunter2"),
        "{refused}"
    );
    assert!(store.statistics().failed_transactions > 0);
    server.start_again();
    append_one(&store, &session, entries.clone()).await.unwrap();
    assert_eq!(log_after(&store, session.id, session.last, 1 << 16).await, entries);
    store.close().await;
    assert!(matches!(store.agents(&session.tenant).await, Err(StoreError::Unavailable(_))));
}

/// Seen with twenty creations at once on a busy machine: each made a connection of its own, and none was there in time.
#[tokio::test]
async fn calls_at_once_share_the_connection_that_there_is_while_no_other_can_be_made() {
    let server = Postgres::start();
    let proxy = Proxy::start(server.socket()).await;
    let store = PostgresStore::open(&proxy.url().into()).await.unwrap();
    let session = placed(&store).await;
    proxy.fill();
    let calls = (0..40).map(|_| store.session(&session.tenant, session.id));
    for found in futures::future::join_all(calls).await {
        assert!(found.unwrap().is_some());
    }
}

#[tokio::test]
async fn no_call_notices_that_postgres_was_started_again() {
    let mut server = Postgres::start();
    let store = open(&server).await;
    let tenant = TenantId::default_tenant();
    let mut session = placed(&store).await;
    for (round, crash) in [false, true, false, true, true].into_iter().enumerate() {
        if crash {
            server.crash();
        } else {
            server.stop();
        }
        server.start_again();
        match round {
            0 => append_one(&store, &session, vec![line(&session, 2)]).await.unwrap(),
            1 => assert_eq!(now(&store, &session).await.last, session.epoch.sequence(2)),
            2 => session = store.open_epoch(opening_of(&now(&store, &session).await)).await.unwrap(),
            3 => assert_eq!(store.deploy_agent(deployment(&tenant, "tester")).await.unwrap().version.number, 2),
            _ => assert!(store.create_session(new_session(&agent(&store, &tenant).await)).await.unwrap().1),
        }
    }
    assert!(store.statistics().retries > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_crashes_of_postgres() {
    const SESSIONS: usize = 8;
    const APPENDS: u32 = 120;
    let mut server = Postgres::start();
    let store = Arc::new(open(&server).await);
    let (progress, mut appended) = mpsc::unbounded_channel();
    let mut tasks = Vec::new();
    for _ in 0..SESSIONS {
        let (store, session, progress) = (store.clone(), placed(&*store).await, progress.clone());
        tasks.push(tokio::spawn(async move {
            for n in 2..2 + APPENDS {
                persist(&*store, &session, vec![line(&session, n)]).await;
                progress.send(()).unwrap();
            }
            session
        }));
    }
    drop(progress);
    // In the middle of whatever it does, three times.
    for _ in 0..3 {
        for _ in 0..SESSIONS * 25 {
            appended.recv().await.unwrap();
        }
        server = tokio::task::spawn_blocking(move || {
            server.crash();
            server.start_again();
            server
        })
        .await
        .unwrap();
    }
    for task in tasks {
        let session = task.await.unwrap();
        let log = log_after(&*store, session.id, session.last, 1 << 20).await;
        assert_eq!(log, (2..2 + APPENDS).map(|n| line(&session, n)).collect::<Vec<_>>());
    }
}

/// Appends as the committer does: again while the database is unavailable.
async fn persist(store: &dyn Store, session: &Session, entries: Vec<Entry>) {
    for _ in 0..TRIES {
        match append_one(store, session, entries.clone()).await {
            Ok(()) => return,
            Err(StoreError::Unavailable(_)) => {}
            Err(error) => panic!("{error}"),
        }
    }
    panic!("the database never came back");
}

/// The connection breaks after the statement was carried out and before its answer.
#[tokio::test]
async fn what_is_in_doubt_is_found_and_not_done_twice() {
    let server = Postgres::start();
    let proxy = Proxy::start(server.socket()).await;
    let store = PostgresStore::open(&proxy.url().into()).await.unwrap();
    let tenant = TenantId::default_tenant();
    let agent = agent(&store, &tenant).await;

    let new = new_session(&agent);
    proxy.cut_at(&new.id.to_string());
    let (made, is_new) = store.create_session(new.clone()).await.unwrap();
    assert!(is_new && proxy.has_cut());
    assert!(matches!(store.create_session(new).await, Err(StoreError::Conflict(_))));

    proxy.cut_at(&made.id.to_string());
    let opened = store.open_epoch(opening_of(&made)).await.unwrap();
    assert!(proxy.has_cut());
    assert_eq!(now(&store, &made).await, opened);

    proxy.cut_at(&opened.id.to_string());
    append_one(&store, &opened, vec![line(&opened, 2)]).await.unwrap();
    assert!(proxy.has_cut());
    assert_eq!(log_after(&store, opened.id, opened.last, 1 << 16).await, [line(&opened, 2)]);

    // What cannot be found again is said to be in doubt, and is there once.
    let key = NewKey { tenant: tenant.clone(), name: "k".to_owned(), hash: [7; 32] };
    proxy.cut_at("COMMIT");
    let outcome = store.add_key(key).await;
    assert!(matches!(outcome, Err(StoreError::Unavailable(_))) && proxy.has_cut(), "{outcome:?}");
    assert!(store.key(&[7; 32]).await.unwrap().is_some());

    // Before the commit there is no doubt: it is done again.
    proxy.cut_at("BEGIN");
    assert_eq!(store.deploy_agent(deployment(&tenant, "tester")).await.unwrap().version.number, 2);
    assert!(proxy.has_cut());
}

/// The same for what coordinators share: who asks again has what the first try did.
#[tokio::test]
async fn places_claims_and_credentials_in_doubt_are_found_and_not_taken_twice() {
    let server = Postgres::start();
    let proxy = Proxy::start(server.socket()).await;
    let store = PostgresStore::open(&proxy.url().into()).await.unwrap();
    let store = store.with_credential_keys(fleet::keyring(&[1]));
    let agent = agent(&store, &TenantId::default_tenant()).await;
    let id = fleet::runner("one");
    proxy.cut_at(&id.incarnation.to_string());
    store.register_runner(fleet::new_runner(&id, 8)).await.unwrap();
    assert!(proxy.has_cut());
    proxy.cut_at(&id.incarnation.to_string());
    assert!(store.runner_lives(&id, Load::default()).await.unwrap() && proxy.has_cut());

    let (session, _) = store.create_session(new_session(&agent)).await.unwrap();
    let version = fleet::row(&store, &id).await.unwrap().version;
    proxy.cut_at(&session.id.to_string());
    // It cannot tell its own reservation from another's: it looks again, and finds it.
    assert_eq!(store.reserve(&[session.id], &id, version).await.unwrap(), Reserved::Stale);
    assert!(proxy.has_cut());
    let at = store.routes(&[session.id]).await.unwrap().pop().unwrap().at;
    assert_eq!(at, Some((id.name.clone(), Stage::Reserved)));
    assert_eq!(fleet::row(&store, &id).await.unwrap().used, 1);
    proxy.cut_at(&session.id.to_string());
    let opened = store.open_epoch_on(opening_of(&session), &id.name).await.unwrap();
    assert!(proxy.has_cut());
    assert_eq!(store.sessions_on(&id.name).await.unwrap(), [opened]);

    let mut pods = Vec::new();
    for _ in 0..2 {
        let pod = fleet::pods::pod(&agent, None);
        store.add_pod(pod.clone()).await.unwrap();
        store.admit_pod(&fleet::pods::identity(&pod), &id).await.unwrap().unwrap();
        assert!(store.pod_is_warm(pod.id).await.unwrap());
        pods.push(pod.id);
    }
    let claimant = SessionId::new();
    proxy.cut_at(&claimant.to_string());
    let claimed = store.claim_warm(&agent.tenant, agent.id, 1, claimant).await.unwrap().unwrap();
    assert!(proxy.has_cut());
    let all = store.pods(None).await.unwrap();
    let taken: Vec<_> = all.iter().filter(|pod| pod.session.is_some()).map(|pod| pod.id).collect();
    assert_eq!(taken, [claimed.id], "one, and not the other");

    proxy.cut_at("a-name-of-its-own");
    let secret = Clear::new(b"sesame".as_slice().into());
    let kind = CredentialKind::AnthropicKey;
    store.put_credential(&agent.tenant, "a-name-of-its-own", kind, &secret).await.unwrap();
    assert!(proxy.has_cut());
    assert_eq!(store.credentials(&agent.tenant).await.unwrap().len(), 1);
}

#[tokio::test]
async fn while_postgres_is_away_the_fleet_is_unavailable_and_later_it_is_as_it_was() {
    let mut server = Postgres::start();
    let store = open(&server).await;
    let id = fleet::joined(&store, "one", 8).await;
    let session = placed(&store).await;
    server.stop();
    let (lives, routes, own, claimed) = tokio::join!(
        store.runner_lives(&id, Load::default()),
        store.routes(std::slice::from_ref(&session.id)),
        store.coordinator_lives(uuid::Uuid::new_v4()),
        store.claim_warm(&session.tenant, session.agent, 1, session.id),
    );
    for failed in [lives.map(drop), routes.map(drop), own.map(drop), claimed.map(drop)] {
        assert!(matches!(failed, Err(StoreError::Unavailable(_))), "{failed:?}");
    }
    server.start_again();
    assert!(store.runner_lives(&id, Load::default()).await.unwrap());
}
