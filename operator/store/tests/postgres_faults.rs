//! Postgres goes away, comes back, and connections break between a statement and its answer: what was acknowledged is there.

#![allow(clippy::unwrap_used, dead_code)]

mod contract;
mod postgres_proxy;

use std::sync::Arc;

use ash_core::{
    Entry, EntryKind,
    id::TenantId,
    ports::{AgentStore as _, EventLog as _, KeyStore as _, NewKey, SessionStore as _, Store, StoreError},
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
