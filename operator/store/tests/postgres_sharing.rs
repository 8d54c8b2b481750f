//! Many servers on one Postgres database: what one writes the others see, and what it costs.

#![allow(clippy::unwrap_used, dead_code)]

mod contract;
mod postgres_server;

use std::sync::Arc;

use ash_core::{
    Entry, EntryKind, Sequence,
    id::TenantId,
    ports::{AgentStore as _, Append, EventLog as _, SessionStore as _, StoreError},
    session::Session,
};
use ash_store::{Database as _, PostgresStore};
use contract::fixtures::{
    agent, append, append_one, deployment, entry, log_after, new_session, now, opening_of, placed, result, session,
    transcript_part, user,
};
use postgres_server::TestDatabase;
use sqlx::{AssertSqlSafe, Executor as _, Row as _};
use uuid::Uuid;

fn line(session: &Session, n: u32) -> Entry {
    entry(session.epoch, n, EntryKind::Claude, format!("{{\"n\":{n}}}"))
}

#[tokio::test]
async fn what_one_server_writes_the_others_see() {
    let database = TestDatabase::create().await;
    let (one, other) = (database.open().await, database.open().await);
    let tenant = TenantId::default_tenant();
    let first = agent(&one, &tenant).await;
    assert_eq!(other.agent(&tenant, "tester").await.unwrap(), Some(first.clone()));
    let second = one.deploy_agent(deployment(&tenant, "tester")).await.unwrap();
    assert_eq!(other.agent(&tenant, "tester").await.unwrap(), Some(second.clone()));

    let (made, _) = one.create_session(new_session(&second)).await.unwrap();
    assert_eq!(now(&other, &made).await, made);
    let opened = one.open_epoch(opening_of(&made)).await.unwrap();
    assert_eq!(now(&other, &made).await, opened);
    // By turns, as the appends of one bridge come through whichever coordinator its runner reaches.
    for n in 2..10 {
        let (writer, reader) = if n % 2 == 0 { (&one, &other) } else { (&other, &one) };
        append_one(writer, &opened, vec![user(opened.epoch, n, Uuid::now_v7())]).await.unwrap();
        let written = now(writer, &opened).await;
        assert_eq!(written.last, opened.epoch.sequence(n));
        assert_eq!(now(reader, &opened).await, written);
    }
    let next = other.open_epoch(opening_of(&now(&other, &opened).await)).await.unwrap();
    let late = append_one(&one, &opened, vec![line(&opened, 10)]).await;
    assert_eq!(late, Err(StoreError::Overtaken { session: next.id, epoch: next.epoch, last: next.last }));
    assert_eq!(now(&one, &opened).await, next);

    assert!(other.delete_agent(&tenant, "tester").await.unwrap());
    assert_eq!(one.agent(&tenant, "tester").await.unwrap(), None);
    let anew = other.deploy_agent(deployment(&tenant, "tester")).await.unwrap();
    assert_eq!(one.agent(&tenant, "tester").await.unwrap(), Some(anew));
}

#[tokio::test(flavor = "multi_thread")]
async fn servers_that_fight_for_sessions_lose_and_double_nothing() {
    const SERVERS: usize = 4;
    const SESSIONS: usize = 6;
    const ROUNDS: usize = 12;
    let database = TestDatabase::create().await;
    let mut stores = Vec::new();
    for _ in 0..SERVERS {
        stores.push(Arc::new(database.open().await));
    }
    let mut sessions = Vec::new();
    for _ in 0..SESSIONS {
        sessions.push(session(&*stores[0]).await);
    }
    let tasks: Vec<_> =
        stores.iter().map(|store| tokio::spawn(fight(store.clone(), sessions.clone(), ROUNDS))).collect();
    let mut acknowledged = Vec::new();
    for task in tasks {
        acknowledged.extend(task.await.unwrap());
    }
    for session in &sessions {
        let log = log_after(&*stores[1], session.id, Sequence::START, 1 << 20).await;
        assert_eq!(now(&*stores[2], session).await.last, log.last().unwrap().sequence);
        assert!(log.windows(2).all(|pair| pair[0].sequence < pair[1].sequence));
        let mut expected: Vec<Entry> =
            acknowledged.iter().filter(|(id, _)| *id == session.id).flat_map(|(_, entries)| entries.clone()).collect();
        expected.sort_by_key(|entry| entry.sequence);
        let written: Vec<Entry> = log.into_iter().filter(|entry| entry.kind != EntryKind::Opening).collect();
        assert_eq!(written, expected);
    }
}

/// Opens epochs and appends to them, all sessions in one call; gives what was acknowledged.
async fn fight(
    store: Arc<PostgresStore>,
    sessions: Vec<Session>,
    rounds: usize,
) -> Vec<(ash_core::id::SessionId, Vec<Entry>)> {
    let mut acknowledged = Vec::new();
    for _ in 0..rounds {
        let mut appends: Vec<Append> = Vec::new();
        for session in &sessions {
            let current = now(&*store, session).await;
            match store.open_epoch(opening_of(&current)).await {
                Ok(opened) => appends.push(append(&opened, vec![line(&opened, 2), line(&opened, 3)])),
                Err(error) => assert!(matches!(error, StoreError::Overtaken { .. }), "{error}"),
            }
        }
        // Each server in an order of its own.
        fastrand::shuffle(&mut appends);
        for (given, outcome) in appends.clone().into_iter().zip(store.append(appends).await) {
            match outcome {
                Ok(()) => acknowledged.push((given.session, given.entries)),
                Err(error) => assert!(matches!(error, StoreError::Overtaken { .. }), "{error}"),
            }
        }
    }
    acknowledged
}

#[tokio::test]
async fn servers_that_start_at_once_make_the_schema_once() {
    let database = TestDatabase::create().await;
    let url = database.url();
    let tasks: Vec<_> = (0..8)
        .map(|_| {
            let url = url.clone();
            tokio::spawn(
                async move { PostgresStore::open(&url.into()).await.map(drop).map_err(|error| error.to_string()) },
            )
        })
        .collect();
    for task in tasks {
        assert_eq!(task.await.unwrap(), Ok(()));
    }
}

#[tokio::test]
async fn a_newer_schema_lets_this_release_go_on_and_a_changed_one_does_not() {
    let database = TestDatabase::create().await;
    let session = placed(&database.open().await).await;
    let mut connection = database.connect().await;
    let later = "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) \
                 VALUES (9999, 'later', TRUE, 'x', 1)";
    connection.execute(later).await.unwrap();
    assert_eq!(now(&database.open().await, &session).await, session);
    connection.execute("UPDATE _sqlx_migrations SET checksum = 'x' WHERE version = 1").await.unwrap();
    let error = PostgresStore::open(&database.url().into()).await.map(drop).unwrap_err().to_string();
    assert!(error.contains("migration 1 of the database"), "{error}");
}

#[tokio::test]
async fn appends_of_many_sessions_are_one_round_trip() {
    let database = TestDatabase::create().await;
    let store = database.open().await;
    let mut sessions = Vec::new();
    for _ in 0..50 {
        sessions.push(placed(&store).await);
    }
    for n in 2..6 {
        let before = store.statistics();
        let appends = sessions.iter().map(|session| append(session, vec![line(session, n)])).collect();
        assert!(store.append(appends).await.iter().all(Result::is_ok));
        let after = store.statistics();
        assert_eq!(after.round_trips - before.round_trips, 1);
        assert_eq!((after.transactions - before.transactions, after.writes - before.writes), (1, 50));
    }
    let before = store.statistics().round_trips;
    let opened = store.open_epoch(opening_of(&now(&store, &sessions[0]).await)).await.unwrap();
    assert_eq!(store.statistics().round_trips - before, 2, "the version of what is cached, and the opening");
    append_one(&store, &opened, vec![line(&opened, 2), line(&opened, 3)]).await.unwrap();
    let before = store.statistics().round_trips;
    store.create_session(new_session(&agent(&store, &opened.tenant).await)).await.unwrap();
    assert_eq!(store.statistics().round_trips - before, 2, "the agent's version, and the session");
}

/// What a turn of 500 deltas writes that is committed at once, as the sum of all rows.
#[tokio::test]
async fn a_turn_that_is_committed_at_once_writes_five_rows() {
    const TABLES: [&str; 3] = ["sessions", "log_chunks", "turns"];
    let database = TestDatabase::create().await;
    let store = database.open().await;
    let session = placed(&store).await;
    let mut connection = database.connect().await;
    // A trigger counts what is written, each row of each table; a test may use what the store may not.
    connection.execute("CREATE TABLE written (n BIGINT)").await.unwrap();
    let count = "CREATE FUNCTION count_written() RETURNS TRIGGER AS \
                 'BEGIN INSERT INTO written VALUES (1); RETURN NULL; END' LANGUAGE plpgsql";
    connection.execute(count).await.unwrap();
    for table in TABLES {
        let trigger = format!(
            "CREATE TRIGGER count_written AFTER INSERT OR UPDATE OR DELETE ON {table} \
             FOR EACH ROW EXECUTE FUNCTION count_written()"
        );
        connection.execute(AssertSqlSafe(trigger)).await.unwrap();
    }
    let mut turn = vec![user(session.epoch, 2, Uuid::now_v7())];
    turn.extend((3..503).map(|n| entry(session.epoch, n, EntryKind::Partial, format!("{{\"delta\":{n}}}"))));
    turn.push(line(&session, 503));
    let part = transcript_part(Uuid::from_u128(1), 0, b"line\n");
    turn.push(entry(session.epoch, 504, EntryKind::Transcript, part));
    turn.push(result(session.epoch, 505));
    append_one(&store, &session, turn).await.unwrap();
    let row = connection.fetch_one("SELECT COUNT(*) FROM written").await.unwrap();
    assert_eq!(row.get::<i64, _>(0), 5, "session, turn, and a row for each class of entries");
}
