#![allow(clippy::unwrap_used)]

use std::{collections::HashMap, future::pending};

use ash_core::{
    Entry, EntryFlags, EntryKind, Epoch, Sequence,
    agent::AgentVersion,
    id::{AgentId, SessionId, TenantId, TurnId},
    ports::{OpenEpoch, Page, SnapshotRow, TurnRecord},
    session::Session,
    transcript::Transcript,
};
use async_trait::async_trait;
use bytes::Bytes;
use tokio::{sync::watch, time::Duration};

use super::*;
use crate::hub::tests::{entry, hub, open};

/// The time of these tests passes when nothing else is to be done.
const LONG: Duration = Duration::from_secs(3600);

/// What becomes of a session's appends.
#[derive(Clone, Copy)]
enum Fate {
    /// Refused so often, then written.
    Unavailable(u32),
    /// Nobody hears of it again, nor of what is in its batch.
    Silent,
}

/// A store of which only appends are asked.
#[derive(Default)]
struct Appends {
    fates: HashMap<SessionId, Fate>,
    /// How often each session was tried.
    tries: Mutex<HashMap<SessionId, u32>>,
    /// What was written of each session, in order.
    written: Mutex<HashMap<SessionId, Vec<Sequence>>>,
    tried: watch::Sender<()>,
    /// What the store asks for.
    spacing: Duration,
}

impl Appends {
    fn tries(&self, hub: &Hub) -> u32 {
        self.tries.lock().unwrap().get(&hub.session).copied().unwrap_or_default()
    }

    fn written(&self, hub: &Hub) -> Vec<Sequence> {
        self.written.lock().unwrap().get(&hub.session).cloned().unwrap_or_default()
    }

    async fn wait_tried(&self, hub: &Hub, times: u32) {
        let mut tried = self.tried.subscribe();
        timeout(LONG, tried.wait_for(|()| self.tries(hub) >= times)).await.unwrap().unwrap();
    }
}

#[async_trait]
impl RunnerStore for Appends {
    fn append_spacing(&self) -> Duration {
        self.spacing
    }

    async fn append(&self, appends: Vec<Append>) -> Vec<Result<(), StoreError>> {
        let mut results = Vec::new();
        let mut answers = true;
        for Append { session, entries, .. } in appends {
            let tries = {
                let mut tries = self.tries.lock().unwrap();
                let tries = tries.entry(session).or_default();
                *tries += 1;
                *tries
            };
            results.push(match self.fates.get(&session) {
                Some(Fate::Unavailable(times)) if tries <= *times => Err(StoreError::Unavailable("away".to_owned())),
                Some(Fate::Silent) => {
                    answers = false;
                    Ok(())
                }
                _ => {
                    let sequences = entries.iter().map(|entry| entry.sequence);
                    self.written.lock().unwrap().entry(session).or_default().extend(sequences);
                    Ok(())
                }
            });
        }
        self.tried.send_replace(());
        if !answers {
            pending::<()>().await;
        }
        results
    }

    async fn session(&self, _: &TenantId, _: SessionId) -> Result<Option<Session>, StoreError> {
        unreachable!()
    }

    async fn placed_sessions(&self) -> Result<Vec<Session>, StoreError> {
        unreachable!()
    }

    async fn session_exists(&self, _: SessionId) -> Result<bool, StoreError> {
        unreachable!()
    }

    async fn agent_version(&self, _: &TenantId, _: AgentId, _: u32) -> Result<Option<AgentVersion>, StoreError> {
        unreachable!()
    }

    async fn bundle(&self, _: &TenantId, _: &str) -> Result<Option<Bytes>, StoreError> {
        unreachable!()
    }

    async fn open_epoch(&self, _: OpenEpoch) -> Result<Session, StoreError> {
        unreachable!()
    }

    async fn read(&self, _: SessionId, _: Sequence, _: usize) -> Result<Page, StoreError> {
        unreachable!()
    }

    async fn transcript(&self, _: SessionId) -> Result<Option<Transcript>, StoreError> {
        unreachable!()
    }

    async fn unfinished_turn(&self, _: SessionId) -> Result<Option<TurnId>, StoreError> {
        unreachable!()
    }

    async fn last_turn(&self, _: SessionId) -> Result<Option<TurnId>, StoreError> {
        unreachable!()
    }

    async fn add_snapshot(&self, _: Epoch, _: SnapshotRow) -> Result<(), StoreError> {
        unreachable!()
    }

    async fn snapshots(&self, _: SessionId) -> Result<Vec<SnapshotRow>, StoreError> {
        unreachable!()
    }

    async fn snapshot_damaged(&self, _: SessionId, _: &str) -> Result<(), StoreError> {
        unreachable!()
    }

    async fn turn(&self, _: SessionId, _: TurnId) -> Result<Option<TurnRecord>, StoreError> {
        unreachable!()
    }
}

struct World {
    queue: Arc<CommitQueue>,
    store: Arc<Appends>,
    metrics: Arc<Metrics>,
}

impl World {
    fn start(fates: impl IntoIterator<Item = (SessionId, Fate)>) -> Self {
        Self::with(Appends { fates: fates.into_iter().collect(), ..Appends::default() })
    }

    fn with(store: Appends) -> Self {
        let store = Arc::new(store);
        let (queue, metrics) = (Arc::<CommitQueue>::default(), Arc::<Metrics>::default());
        tokio::spawn(run(Arc::clone(&queue), Arc::clone(&store) as _, Arc::clone(&metrics)));
        Self { queue, store, metrics }
    }

    /// The session's bridge ends a turn.
    fn say(&self, hub: &Arc<Hub>, n: u32) -> Sequence {
        self.log(hub, n, EntryKind::Claude, EntryFlags::ENDS_TURN)
    }

    fn log(&self, hub: &Arc<Hub>, n: u32, kind: EntryKind, flags: EntryFlags) -> Sequence {
        let said: Entry = entry(hub.epoch().sequence(n), kind, flags);
        let sequence = said.sequence;
        self.queue.push(hub, hub.take(vec![said]).unwrap().urgency);
        sequence
    }
}

fn opened() -> Arc<Hub> {
    let hub = Arc::new(hub());
    open(&hub, None);
    hub
}

#[tokio::test(start_paused = true)]
async fn one_that_cannot_be_written_delays_no_other_and_is_given_up_after_its_tries() {
    let (bad, good) = (opened(), opened());
    let world = World::start([(bad.session, Fate::Unavailable(u32::MAX))]);
    world.say(&bad, 2);
    world.store.wait_tried(&bad, 2).await;
    for n in 2..10 {
        let last = world.say(&good, n);
        assert_eq!(timeout(COMMIT_RETRY / 2, good.wait_committed()).await, Ok(true), "entry {n}");
        assert_eq!(world.store.written(&good).last(), Some(&last));
    }
    assert!(world.store.tries(&bad) < COMMIT_TRIES, "it is being tried still");
    assert_eq!(timeout(LONG, bad.wait_committed()).await, Ok(false));
    assert_eq!(world.store.tries(&bad), COMMIT_TRIES);
    assert_eq!((world.metrics.commit_failures.get(), world.metrics.commits_retried.get()), (1, 19));
}

#[tokio::test(start_paused = true)]
async fn one_that_the_store_never_answers_for_delays_no_other() {
    let (bad, good) = (opened(), opened());
    let world = World::start([(bad.session, Fate::Silent)]);
    world.say(&bad, 2);
    world.store.wait_tried(&bad, 1).await;
    // What the session says meanwhile waits for its answer.
    world.say(&bad, 3);
    world.say(&good, 2);
    assert_eq!(timeout(LONG, good.wait_committed()).await, Ok(true));
    assert_eq!((world.store.tries(&bad), world.metrics.commits_slow.get()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn what_is_tried_again_is_written_once_and_in_order() {
    let hubs: Vec<_> = (0..3 * COMMIT_LANES).map(|_| opened()).collect();
    let fate = |(number, hub): (usize, &Arc<Hub>)| (hub.session, Fate::Unavailable(u32::try_from(number % 5).unwrap()));
    let world = World::start(hubs.iter().enumerate().map(fate));
    for n in 2..50 {
        for hub in &hubs {
            world.say(hub, n);
        }
        sleep(COMMIT_SPACING).await;
    }
    for hub in &hubs {
        assert_eq!(timeout(LONG, hub.wait_committed()).await, Ok(true));
        let all: Vec<_> = (2..50).map(|n| hub.epoch().sequence(n)).collect();
        assert_eq!(world.store.written(hub), all);
    }
    assert_eq!(world.metrics.commit_failures.get(), 0);
}

#[tokio::test(start_paused = true)]
async fn a_session_that_went_on_without_what_could_not_be_written_is_written_again() {
    let hub = opened();
    let world = World::start([(hub.session, Fate::Unavailable(3))]);
    world.say(&hub, 2);
    world.store.wait_tried(&hub, 1).await;
    open(&hub, None);
    let first = world.say(&hub, 2);
    assert_eq!(timeout(LONG, hub.wait_committed()).await, Ok(true));
    assert_eq!(world.store.written(&hub), [first], "what was withdrawn is not written");
}

#[tokio::test(start_paused = true)]
async fn partials_take_few_rows_of_a_shared_database_and_a_turns_end_waits_for_nothing() {
    const SPACING: Duration = Duration::from_millis(250);
    let (talking, busy) = (opened(), opened());
    let world = World::with(Appends { spacing: SPACING, ..Appends::default() });
    for n in 2..1002 {
        world.log(&talking, n, EntryKind::Partial, EntryFlags::default());
        if n % 100 == 0 {
            // The complete messages of others take no partials of this one along.
            world.log(&busy, n / 100 + 1, EntryKind::Claude, EntryFlags::default());
        }
        sleep(Duration::from_millis(3)).await;
    }
    assert_eq!(world.store.tries(&talking), 1, "3 s of partials");
    assert!(world.store.tries(&busy) >= 5, "{}", world.store.tries(&busy));
    let end = world.say(&talking, 1002);
    assert_eq!(timeout(COMMIT_SPACING, talking.wait_committed()).await, Ok(true));
    assert_eq!((world.store.tries(&talking), world.store.written(&talking).last()), (2, Some(&end)));
    assert_eq!(world.store.written(&talking).len(), 1001);
}

#[tokio::test(start_paused = true)]
async fn partials_alone_are_written_in_the_end() {
    let hub = opened();
    let world = World::with(Appends { spacing: Duration::from_millis(250), ..Appends::default() });
    world.log(&hub, 2, EntryKind::Partial, EntryFlags::default());
    assert_eq!(timeout(SHARED_COMMIT_DELAY * 2, hub.wait_committed()).await, Ok(true));
}
