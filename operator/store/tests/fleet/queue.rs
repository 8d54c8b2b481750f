//! Messages that wait for their turn.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use ash_core::{
    Epoch,
    id::{SessionId, TurnId},
    opening::OpeningReason,
    ports::{Enqueued, EntryChange, FleetStore, NewEntry, Store, StoreError},
    queue::{EntryEvent, EntryState, MAX_QUEUED, MAX_QUEUED_BYTES, MAX_SETTLED, QueueEntry, QueuedMessage},
    session::{PausedReason, Session, SessionState},
};
use ash_protocol::options::TurnOptions;
use futures::future::join_all;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::Database;
use crate::contract::fixtures::{append_one, now, opening_of, placed, result, user};

fn message(text: &str) -> QueuedMessage {
    let content = RawValue::from_string(serde_json::to_string(text).unwrap()).unwrap();
    QueuedMessage { content, options: TurnOptions { max_turns: Some(3), ..TurnOptions::default() } }
}

fn new(session: &Session, key: &str, text: &str) -> NewEntry {
    let id = TurnId::from_idempotency_key(session.id, key);
    NewEntry { id, session: session.id, tenant: session.tenant.clone(), retries: 1, message: message(text) }
}

async fn add(store: &dyn FleetStore, session: &Session, key: &str) -> QueueEntry {
    match store.enqueue(new(session, key, key)).await.unwrap() {
        Enqueued::Added(entry) => entry,
        other => panic!("{other:?}"),
    }
}

fn change(event: EntryEvent, pause: Duration) -> EntryChange {
    EntryChange { event, fence: None, error: None, pause }
}

async fn claim(store: &dyn FleetStore, entry: &QueueEntry, fence: Epoch) -> Option<QueueEntry> {
    let claim = EntryChange { fence: Some(fence), ..change(EntryEvent::Claim, Duration::from_secs(60)) };
    store.change_entry(entry, claim).await.unwrap()
}

pub async fn entries_are_kept_in_order_and_once<D: Database>() {
    let database = D::fresh().await;
    let (store, beside) = (database.store().await, database.beside().await);
    let session = placed(&*store as &dyn Store).await;
    let other = placed(&*store as &dyn Store).await;
    for key in ["one", "two", "three"] {
        add(&*store, &session, key).await;
    }
    let again = beside.enqueue(new(&session, "two", "something else")).await.unwrap();
    let queue = beside.queue(session.id).await.unwrap();
    assert_eq!(again, Enqueued::Known(queue[1].clone()), "one that is there is not added again");
    let previews: Vec<&str> = queue.iter().map(|entry| entry.preview.as_str()).collect();
    assert_eq!(previews, ["one", "two", "three"]);
    assert!(queue.is_sorted_by_key(|entry| entry.position));
    let first = &queue[0];
    assert_eq!((first.state, first.attempt, first.retries), (EntryState::Pending, 0, 1));
    let kept = beside.queued_message(session.id, first.id).await.unwrap().unwrap();
    assert_eq!((kept.content.get(), kept.options), (r#""one""#, message("one").options));
    assert_eq!(store.queue_entry(session.id, first.id).await.unwrap().as_ref(), Some(first));
    assert_eq!(store.queue_entry(other.id, first.id).await.unwrap(), None);
    assert_eq!(store.queue(other.id).await.unwrap(), []);
    assert!(store.queued_sessions(100).await.unwrap().contains(&session.id));
    assert!(!store.queued_sessions(100).await.unwrap().contains(&other.id));
}

pub async fn the_bounds_hold_however_many_come_at_once<D: Database>() {
    let database = D::fresh().await;
    let (store, beside) = (database.store().await, database.beside().await);
    let session = placed(&*store as &dyn Store).await;
    let added = join_all((0..MAX_QUEUED + 8).map(|number| {
        let store = if number % 2 == 0 { &store } else { &beside };
        store.enqueue(new(&session, &number.to_string(), "x"))
    }))
    .await;
    let full = added.iter().filter(|added| matches!(added, Ok(Enqueued::Full))).count();
    assert_eq!(full, 8, "{added:?}");
    let queue = store.queue(session.id).await.unwrap();
    assert_eq!(queue.len(), MAX_QUEUED);
    assert!(queue.windows(2).all(|pair| pair[0].position < pair[1].position), "each has a place of its own");
    // What is over makes room.
    store.change_entry(&queue[0], change(EntryEvent::TakeBack, Duration::ZERO)).await.unwrap().unwrap();
    add(&*store, &session, "one more").await;

    let large = placed(&*store as &dyn Store).await;
    let text = "x".repeat(MAX_QUEUED_BYTES / 2 + 1);
    assert!(matches!(store.enqueue(new(&large, "one", &text)).await.unwrap(), Enqueued::Added(_)));
    assert_eq!(store.enqueue(new(&large, "two", &text)).await.unwrap(), Enqueued::Full);
    assert!(matches!(store.enqueue(new(&large, "three", "x")).await.unwrap(), Enqueued::Added(_)));
}

pub async fn one_of_many_claims_it<D: Database>() {
    let database = D::fresh().await;
    let (store, beside) = (database.store().await, database.beside().await);
    let session = placed(&*store as &dyn Store).await;
    let entry = add(&*store, &session, "one").await;
    let claims = join_all((0..20).map(|number| {
        let store = if number % 2 == 0 { &store } else { &beside };
        claim(&**store, &entry, session.epoch)
    }))
    .await;
    let claimed: Vec<QueueEntry> = claims.into_iter().flatten().collect();
    assert_eq!(claimed.len(), 1);
    let claimed = &claimed[0];
    assert_eq!((claimed.state, claimed.attempt, claimed.fence), (EntryState::Processing, 1, session.epoch));
    assert_eq!(claimed.turn(), entry.id);
    let refused = store.change_entry(claimed, change(EntryEvent::TakeBack, Duration::ZERO)).await;
    assert!(matches!(&refused, Err(StoreError::Conflict(reason)) if reason.contains("processing")), "{refused:?}");
    // Released, it is the same attempt again; cut off, the next one.
    let released = store.change_entry(claimed, change(EntryEvent::Release, Duration::ZERO)).await.unwrap().unwrap();
    assert_eq!((released.state, released.attempt), (EntryState::Pending, 0));
    assert_eq!(store.change_entry(claimed, change(EntryEvent::Release, Duration::ZERO)).await.unwrap(), None);
    let claimed = claim(&*store, &released, session.epoch).await.unwrap();
    let retried = store.change_entry(&claimed, change(EntryEvent::Retry, Duration::ZERO)).await.unwrap().unwrap();
    let claimed = claim(&*beside, &retried, session.epoch).await.unwrap();
    assert_eq!((claimed.attempt, claimed.turn()), (2, entry.id.of_attempt(2)));
    let failure = EntryChange { error: Some("why".to_owned()), ..change(EntryEvent::Fail, Duration::ZERO) };
    let failed = store.change_entry(&claimed, failure).await.unwrap().unwrap();
    assert_eq!((failed.state, failed.error.as_deref()), (EntryState::Failed, Some("why")));
    assert!(store.queued_message(session.id, entry.id).await.unwrap().is_none(), "what it said is not kept");
}

async fn due(store: &dyn FleetStore, session: SessionId) -> bool {
    store.due_sessions(1000).await.unwrap().contains(&session)
}

async fn put(store: &dyn FleetStore, session: &Session, state: SessionState, has_sandbox: bool) -> Session {
    let mut open = opening_of(&now(store, session).await);
    open.state = state;
    open.opening.reason = OpeningReason::Asleep;
    open.opening.interrupted = store.unfinished_turn(session.id).await.unwrap().map(|turn| turn.0);
    if !has_sandbox {
        open.sandbox = None;
    }
    store.open_epoch(open).await.unwrap()
}

pub async fn what_decides_is_read_at_once<D: Database>() {
    let database = D::fresh().await;
    let store = database.store().await;
    let session = placed(&*store as &dyn Store).await;
    assert_eq!(store.queue_head(session.id).await.unwrap(), None);
    let first = add(&*store, &session, "one").await;
    add(&*store, &session, "two").await;
    let head = store.queue_head(session.id).await.unwrap().unwrap();
    assert_eq!((&head.entry, head.state, head.epoch), (&first, SessionState::Active, session.epoch));
    assert!(head.has_sandbox && head.is_due && !head.turn_runs);
    assert!(due(&*store, session.id).await);

    // A turn of somebody else runs.
    let epoch = session.epoch;
    append_one(&*store, &session, vec![user(epoch, 2, Uuid::new_v4())]).await.unwrap();
    assert!(store.queue_head(session.id).await.unwrap().unwrap().turn_runs);
    assert!(!due(&*store, session.id).await);
    append_one(&*store, &session, vec![result(epoch, 3)]).await.unwrap();
    assert!(due(&*store, session.id).await);

    let claimed = claim(&*store, &first, epoch).await.unwrap();
    let head = store.queue_head(session.id).await.unwrap().unwrap();
    assert_eq!((head.begun, head.ended, head.is_due), (None, None, false));
    assert!(!due(&*store, session.id).await, "it is its owner's");
    append_one(&*store, &session, vec![user(epoch, 4, claimed.turn().0)]).await.unwrap();
    let head = store.queue_head(session.id).await.unwrap().unwrap();
    assert_eq!((head.begun, head.ended, head.turn_runs), (Some(epoch.sequence(4)), None, true));
    assert!(!due(&*store, session.id).await);
    append_one(&*store, &session, vec![result(epoch, 5)]).await.unwrap();
    let head = store.queue_head(session.id).await.unwrap().unwrap();
    assert_eq!((head.ended, head.turn_runs), (Some(epoch.sequence(5)), false));
    assert!(due(&*store, session.id).await, "its end is to be noted");
    store.change_entry(&claimed, change(EntryEvent::Complete, Duration::ZERO)).await.unwrap().unwrap();

    // The second one is first now. Whoever put the session aside keeps it waiting.
    let second = store.queue_head(session.id).await.unwrap().unwrap();
    assert_eq!(second.entry.preview, "two");
    for (state, has_sandbox, is_due) in [
        (SessionState::Paused(PausedReason::Idle), false, true),
        (SessionState::Paused(PausedReason::Person), false, false),
        (SessionState::Active, true, true),
        (SessionState::Stopped, false, false),
        (SessionState::Error, false, true),
        (SessionState::Ended, false, true),
    ] {
        put(&*store, &session, state, has_sandbox).await;
        let head = store.queue_head(session.id).await.unwrap().unwrap();
        assert_eq!((head.state, head.has_sandbox), (state, has_sandbox));
        assert_eq!(due(&*store, session.id).await, is_due, "{state:?}");
    }
}

pub async fn what_is_over_is_listed_for_a_while<D: Database>() {
    let database = D::fresh().await;
    let store = database.store().await;
    let session = placed(&*store as &dyn Store).await;
    let stays = add(&*store, &session, "stays").await;
    for number in 0..MAX_SETTLED + 5 {
        let entry = add(&*store, &session, &format!("entry {number}")).await;
        store.change_entry(&entry, change(EntryEvent::TakeBack, Duration::ZERO)).await.unwrap().unwrap();
    }
    let queue = store.queue(session.id).await.unwrap();
    assert_eq!(queue.len(), MAX_SETTLED + 1);
    assert_eq!(queue[0], stays, "what waits is not forgotten");
    assert_eq!(queue[1].preview, "entry 5");
    let taken_back = queue.last().unwrap();
    assert_eq!(taken_back.state, EntryState::Cancelled);
    let again = store.enqueue(new(&session, &format!("entry {}", MAX_SETTLED + 4), "x")).await.unwrap();
    assert_eq!(again, Enqueued::Known(taken_back.clone()), "a repeat of what was taken back is not queued");
}

pub async fn a_claim_ends_by_itself_and_is_taken_over_once<D: Database>() {
    let database = D::fresh().await;
    let (store, beside) = (database.store().await, database.beside().await);
    let session = placed(&*store as &dyn Store).await;
    let entry = add(&*store, &session, "one").await;
    let at_once = EntryChange { fence: Some(session.epoch), ..change(EntryEvent::Claim, Duration::ZERO) };
    let claimed = store.change_entry(&entry, at_once).await.unwrap().unwrap();
    assert!(due(&*store, session.id).await, "its owner is gone");
    assert!(store.renew_entry(&claimed, Duration::from_secs(60)).await.unwrap());
    assert!(!due(&*store, session.id).await);
    assert!(store.renew_entry(&claimed, Duration::ZERO).await.unwrap());
    assert!(due(&*store, session.id).await);
    let lease = Duration::from_secs(60);
    let (one, other) = tokio::join!(store.take_over_entry(&claimed, lease), beside.take_over_entry(&claimed, lease));
    let mut taken: Vec<QueueEntry> = [one.unwrap(), other.unwrap()].into_iter().flatten().collect();
    assert_eq!(taken.len(), 1);
    let taken = taken.remove(0);
    assert_eq!((taken.turn(), taken.attempt), (claimed.turn(), claimed.attempt));
    assert!(!store.renew_entry(&claimed, lease).await.unwrap(), "the owner before is told");
    let release = change(EntryEvent::Release, Duration::ZERO);
    assert_eq!(store.change_entry(&claimed, release.clone()).await.unwrap(), None);
    store.change_entry(&taken, release).await.unwrap().unwrap();
}

pub async fn who_listens_hears_of_ends_and_changes<D: Database>() {
    let database = D::fresh().await;
    let store = database.store().await;
    let heard: Arc<Mutex<Vec<SessionId>>> = Arc::default();
    let listener = Arc::clone(&heard);
    store.listen(Arc::new(move |session| listener.lock().unwrap().push(session)));
    let take = || std::mem::take(&mut *heard.lock().unwrap());
    let session = placed(&*store as &dyn Store).await;
    assert_eq!(take(), [session.id], "its state has changed");
    append_one(&*store, &session, vec![user(session.epoch, 2, Uuid::new_v4())]).await.unwrap();
    assert_eq!(take(), []);
    append_one(&*store, &session, vec![result(session.epoch, 3)]).await.unwrap();
    assert_eq!(take(), [session.id]);
    // One that is refused changes nothing.
    append_one(&*store, &session, vec![result(session.epoch, 9)]).await.unwrap_err();
    assert_eq!(take(), []);
}
