//! A full disk and the death of the process: what was acknowledged is there.

#![allow(clippy::unwrap_used, clippy::print_stdout, dead_code)]

mod contract;

use std::{
    io::{BufRead, BufReader},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::Arc,
};

use ash_core::{
    Entry, EntryKind, Sequence,
    ports::{EventLog, SessionStore, Store, StoreError},
    session::Session,
};
use ash_store::{Database as _, OpenError, Settings, SqliteStore};
use contract::fixtures::{append_one, entry, log_after, noise, now, opening_of, placed, session};

/// Tells a test that it is the child, and where its data are.
const CHILD_DIRECTORY: &str = "ASH_STORE_TEST_DIRECTORY";
/// Rounds of killing.
const KILLS: usize = 5;
/// Appends that a child has acknowledged when it is killed, and so many more per round.
const APPENDS_PER_ROUND: usize = 30;

fn line(session: &Session, n: u32, length: u32) -> Entry {
    entry(session.epoch, n, EntryKind::Claude, noise(n, length))
}

/// Appends until the store refuses; gives how far it came and why it ended.
async fn fill(store: &dyn Store, session: &Session, length: u32) -> (Sequence, StoreError) {
    let mut last = now(store, session).await.last;
    for n in last.n() + 1..100_000 {
        match append_one(store, session, vec![line(session, n, length)]).await {
            Ok(()) => last = session.epoch.sequence(n),
            Err(error) => return (last, error),
        }
    }
    panic!("the store never became full");
}

#[tokio::test]
async fn a_full_quota_loses_nothing_and_passes() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ash.db");
    let settings = Settings { max_bytes: Some(1 << 20), ..Settings::default() };
    let store = SqliteStore::open_with(&path, settings).await.unwrap();
    let session = placed(&store).await;
    let (last, error) = fill(&store, &session, 20_000).await;
    assert_eq!(error, StoreError::Full);
    assert_eq!(now(&store, &session).await.last, last);
    let log = log_after(&store, session.id, session.last, 1 << 16).await;
    assert_eq!(log.last().unwrap().sequence, last);
    // What is small may still fit; what is not fails again, and a failed one hurts none beside it.
    let next = last.n() + 1;
    assert_eq!(append_one(&store, &session, vec![line(&session, next, 50_000)]).await, Err(StoreError::Full));
    assert!(store.statistics().failed_transactions >= 2);

    store.set_max_bytes(None).await.unwrap();
    append_one(&store, &session, vec![line(&session, next, 50_000)]).await.unwrap();
    store.close().await;
    let store = SqliteStore::open(&path).await.unwrap();
    assert_eq!(log_after(&store, session.id, session.last, 1 << 16).await.len(), log.len() + 1);
}

#[tokio::test]
async fn one_that_is_too_large_does_not_fail_those_beside_it() {
    let directory = tempfile::tempdir().unwrap();
    let settings = Settings { max_bytes: Some(1 << 20), ..Settings::default() };
    let store = Arc::new(SqliteStore::open_with(&directory.path().join("ash.db"), settings).await.unwrap());
    let (large, mut tasks) = (placed(&*store).await, Vec::new());
    for _ in 0..10 {
        let (store, small) = (store.clone(), placed(&*store).await);
        tasks.push(tokio::spawn(async move { append_one(&*store, &small, vec![line(&small, 2, 200)]).await }));
    }
    let outcome = append_one(&*store, &large, vec![line(&large, 2, 2 << 20)]).await;
    assert_eq!(outcome, Err(StoreError::Full));
    for task in tasks {
        assert_eq!(task.await.unwrap(), Ok(()));
    }
    assert_eq!(now(&*store, &large).await, large);
}

/// Runs one of the ignored tests below in a process of its own.
fn child(command: &mut Command, test: &str, directory: &Path) -> Child {
    command.args(["--exact", test, "--ignored", "--nocapture", "--test-threads=1"]);
    command.env(CHILD_DIRECTORY, directory).stdout(Stdio::piped()).stdin(Stdio::null()).spawn().unwrap()
}

fn child_directory() -> PathBuf {
    std::env::var_os(CHILD_DIRECTORY).expect("run by another test").into()
}

#[tokio::test]
async fn what_was_acknowledged_survives_kill_9() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("ash.db");
    let store = SqliteStore::open(&path).await.unwrap();
    let mut session = session(&store).await;
    store.close().await;
    for round in 1..=KILLS {
        let mut child = child(
            &mut Command::new(std::env::current_exe().unwrap()),
            "child_appends_until_it_is_killed",
            directory.path(),
        );
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut acknowledged =
            lines.map_while(Result::ok).filter_map(|line| line.strip_prefix("acknowledged ")?.parse::<u64>().ok());
        let mut last = acknowledged.nth(round * APPENDS_PER_ROUND).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        // What it said before it died counts too.
        last = acknowledged.last().unwrap_or(last).max(last);

        let store = SqliteStore::open(&path).await.unwrap();
        session = now(&store, &session).await;
        assert!(session.last.0 >= last, "round {round}: {} of {last}", session.last);
        let log = log_after(&store, session.id, session.epoch.opening(), 1 << 16).await;
        let expected: Vec<_> = (2..=session.last.n()).map(|n| line(&session, n, n * 7 % 3_000)).collect();
        assert_eq!(log, expected, "round {round}");
        store.close().await;
    }
}

#[tokio::test]
#[ignore = "run by what_was_acknowledged_survives_kill_9"]
async fn child_appends_until_it_is_killed() {
    let store = SqliteStore::open(&child_directory().join("ash.db")).await.unwrap();
    let tenant = ash_core::id::TenantId::default_tenant();
    let filter = ash_core::ports::SessionFilter { limit: 1, ..Default::default() };
    let before = store.sessions(&tenant, &filter).await.unwrap().sessions.remove(0);
    let session = store.open_epoch(opening_of(&before)).await.unwrap();
    for n in 2.. {
        append_one(&store, &session, vec![line(&session, n, n * 7 % 3_000)]).await.unwrap();
        println!("acknowledged {}", session.epoch.sequence(n));
    }
}

/// A disk of 1 MiB in a mount namespace of its own. Where this user may not have one, the quota above is the proof.
#[tokio::test]
async fn a_full_disk_loses_nothing_and_passes() {
    let directory = tempfile::tempdir().unwrap();
    let script = r#"mount -t tmpfs -o size=1m tmpfs "$ASH_STORE_TEST_DIRECTORY" || exit 77; exec "$0" "$@""#;
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "--mount", "sh", "-c", script]).arg(std::env::current_exe().unwrap());
    let output = child(&mut command, "child_fills_its_disk", directory.path()).wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    if output.status.code() == Some(77) || !said.contains("running 1 test") {
        println!("not run: this user may not mount a file system in a namespace of its own");
        return;
    }
    assert!(output.status.success(), "{said}");
}

#[tokio::test]
#[ignore = "run by a_full_disk_loses_nothing_and_passes"]
async fn child_fills_its_disk() {
    let directory = child_directory();
    let path = directory.join("ash.db");
    let ballast = directory.join("ballast");
    std::fs::write(&ballast, noise(1, 300_000)).unwrap();
    let store = SqliteStore::open(&path).await.unwrap();
    let session = placed(&store).await;
    let (last, error) = fill(&store, &session, 9_000).await;
    assert_eq!(error, StoreError::Full);
    let log = log_after(&store, session.id, session.last, 1 << 16).await;
    assert_eq!((log.last().unwrap().sequence, now(&store, &session).await.last), (last, last));
    let next = last.n() + 1;
    assert_eq!(append_one(&store, &session, vec![line(&session, next, 30_000)]).await, Err(StoreError::Full));

    std::fs::remove_file(&ballast).unwrap();
    append_one(&store, &session, vec![line(&session, next, 30_000)]).await.unwrap();
    store.close().await;

    // A start on a full disk either works or says that it is full; then all is there.
    let mut size = 1 << 20;
    while size > 0 {
        let filler = std::fs::OpenOptions::new().append(true).create(true).open(&ballast).unwrap();
        let written = std::io::Write::write(&mut &filler, &noise(2, size)).unwrap_or(0);
        if written == 0 {
            size /= 2;
        }
    }
    match SqliteStore::open(&path).await {
        Ok(store) => {
            assert_eq!(now(&store, &session).await.last.n(), next);
            store.close().await;
        }
        Err(error) => assert!(matches!(error, OpenError::Full { .. }), "{error}"),
    }
    std::fs::remove_file(&ballast).unwrap();
    let store = SqliteStore::open(&path).await.unwrap();
    assert_eq!(log_after(&store, session.id, session.last, 1 << 16).await.len(), log.len() + 1);
}
