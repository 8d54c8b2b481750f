//! Compaction of finished turns.

use std::time::Duration;

use ash_core::{
    Entry, EntryKind, Sequence,
    compaction::Dropped,
    ports::{CompactableTurn, FleetStore, Store},
    session::Session,
};
use uuid::Uuid;

use super::Database;
use crate::contract::fixtures::{append_one, entry, log_after, now, opening_of, placed, result, user};

const LEASE: Duration = Duration::from_secs(600);
const DELTA: &str =
    r#"{"type":"stream_event","event":{"type":"content_block_delta","delta":{"type":"text_delta","text":"a"}}}"#;
const STOP: &str = r#"{"type":"stream_event","event":{"type":"message_stop"}}"#;
const ASSISTANT: &str = r#"{"type":"assistant","message":{}}"#;

/// A turn of `deltas`, from entry `n` on: its complete message behind them, its result at the end.
fn turn(session: &Session, n: u32, turn: Uuid, deltas: u32) -> Vec<Entry> {
    let partial = |n, body: &str| entry(session.epoch, n, EntryKind::Partial, body.to_owned());
    let mut entries = vec![user(session.epoch, n, turn)];
    entries.extend((n + 1..=n + deltas).map(|n| partial(n, DELTA)));
    let next = n + deltas + 1;
    entries.push(entry(session.epoch, next, EntryKind::Claude, ASSISTANT));
    entries.push(partial(next + 1, STOP));
    entries.push(result(session.epoch, next + 2));
    entries
}

async fn append_in_batches(store: &dyn Store, session: &Session, entries: &[Entry], size: usize) {
    for batch in entries.chunks(size) {
        append_one(store, session, batch.to_vec()).await.unwrap();
    }
}

async fn take(store: &dyn FleetStore, session: &Session) -> Vec<CompactableTurn> {
    let mut turns = store.take_compactable(Duration::ZERO, LEASE, 10).await.unwrap();
    turns.retain(|turn| turn.session == session.id);
    turns
}

/// What is left of a turn of [`turn`].
fn compacted(entries: &[Entry]) -> Vec<Entry> {
    let partials = |at: &dyn Fn(&Entry) -> bool| -> Vec<Sequence> {
        let of = entries.iter().filter(|entry| entry.kind == EntryKind::Partial && at(entry));
        of.map(|entry| entry.sequence).collect()
    };
    let assistant = entries.iter().position(|entry| entry.body == ASSISTANT).unwrap();
    let message = entries[assistant].sequence;
    let (said, stops) = (partials(&|entry| entry.sequence < message), partials(&|entry| entry.sequence > message));
    let entry = |range: &[Sequence]| Dropped { from: range[0], to: *range.last().unwrap() }.entry();
    let mut left = vec![entries[0].clone()];
    if !said.is_empty() {
        left.push(entry(&said));
    }
    left.push(entries[assistant].clone());
    left.push(entry(&stops));
    left.push(entries.last().unwrap().clone());
    left
}

pub async fn partials_of_finished_turns_are_dropped<D: Database>() {
    let database = D::fresh().await;
    let store = database.store().await;
    for (size, max_bytes) in [(1000, 1 << 20), (1, 1 << 20), (7, 100), (50, 0)] {
        let session = placed(&*store as &dyn Store).await;
        let first = turn(&session, 2, Uuid::new_v4(), 100);
        let second = turn(&session, 106, Uuid::new_v4(), 0);
        let running = Uuid::new_v4();
        let third: Vec<Entry> = turn(&session, 110, running, 60).into_iter().take(50).collect();
        let all: Vec<Entry> = [first.clone(), second.clone(), third.clone()].concat();
        append_in_batches(&*store, &session, &all, size).await;
        assert_eq!(take(&*store, &session).await.len(), 2, "one runs");
        assert_eq!(take(&*store, &session).await, [], "they are somebody's");
        let turns = [(&first, 2), (&second, 106)].map(|(entries, first)| {
            let (turn, last) = (uuid_of(&entries[0]), entries.last().unwrap().sequence);
            CompactableTurn { session: session.id, turn, first: session.epoch.sequence(first), last }
        });
        // One after the other, or what they share is written once.
        for turns in turns.chunks(if size == 1000 || size == 7 { 2 } else { 1 }) {
            let saved = store.compact(turns).await.unwrap();
            assert!(saved > 0 || turns[0].turn == uuid_of(&second[0]), "{saved}");
            assert_eq!(store.compact(turns).await.unwrap(), 0, "nothing is left to drop");
        }
        let expected = [compacted(&first), compacted(&second), third].concat();
        assert_eq!(log_after(&*store, session.id, session.last, max_bytes).await, expected, "in batches of {size}");
        let middle = session.epoch.sequence(60);
        let after: Vec<Entry> = expected.into_iter().filter(|entry| entry.sequence > middle).collect();
        assert_eq!(log_after(&*store, session.id, middle, max_bytes).await, after, "from where partials were");
        // The session goes on, and what is appended is numbered on.
        let session = now(&*store, &session).await;
        let rest = turn(&session, 110, running, 60).into_iter().skip(50).collect();
        append_one(&*store, &session, rest).await.unwrap();
    }
}

fn uuid_of(entry: &Entry) -> ash_core::id::TurnId {
    let line: serde_json::Value = serde_json::from_slice(&entry.body).unwrap();
    line["uuid"].as_str().unwrap().parse().unwrap()
}

pub async fn turns_are_given_out_once_until_they_are_compacted<D: Database>() {
    let database = D::fresh().await;
    let (store, beside) = (database.store().await, database.beside().await);
    let mut session = placed(&*store as &dyn Store).await;
    append_one(&*store, &session, turn(&session, 2, Uuid::new_v4(), 3)).await.unwrap();
    let interrupted = Uuid::new_v4();
    append_one(&*store, &session, vec![user(session.epoch, 9, interrupted)]).await.unwrap();
    session = now(&*store, &session).await;
    let mut open = opening_of(&session);
    open.opening.interrupted = Some(interrupted);
    store.open_epoch(open).await.unwrap();
    assert_eq!(store.take_compactable(LEASE, LEASE, 10).await.unwrap(), [], "they have just ended");
    for _ in 0..2 {
        // Who was given them and died leaves them to the next, once the lease is over.
        assert_eq!(store.take_compactable(Duration::ZERO, Duration::ZERO, 10).await.unwrap().len(), 2);
    }
    let one = store.take_compactable(Duration::ZERO, LEASE, 1).await.unwrap();
    let other = beside.take_compactable(Duration::ZERO, LEASE, 10).await.unwrap();
    assert_eq!((one.len(), other.len()), (1, 1));
    assert_ne!(one, other);
    assert!([&one[0], &other[0]].iter().any(|turn| turn.turn.0 == interrupted));
    assert_eq!(store.take_compactable(Duration::ZERO, LEASE, 10).await.unwrap(), []);
    store.compact(&one[..1]).await.unwrap();
    store.compact(&other[..1]).await.unwrap();
}
