//! The committer: writes what the hubs took to the log, behind the streams, many sessions in one transaction.
//!
//! Complete messages are written with whatever else comes within [`COMMIT_SPACING`], because most of a transaction's cost does
//! not depend on its size. The end of a turn waits for nothing. Partials wait for more, for [`COMMIT_DELAY`] before that. A store
//! that many servers share asks for a longer spacing, and there partials wait for [`SHARED_COMMIT_DELAY`], or for a complete
//! message of their session. A transaction that takes longer delays the next, so that batches grow under load by themselves.
//!
//! An append that cannot be written, or that the store is long about, delays no other session: it is tried again by itself, behind
//! the others' backs, and its own session waits for it.

use std::{
    mem,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ash_core::ports::{Append, RunnerStore, StoreError};
use tokio::{
    sync::{Notify, Semaphore},
    task::JoinSet,
    time::{Instant, sleep, timeout, timeout_at},
};

use crate::{
    hub::{Hub, Place, Urgency},
    limits::{
        COMMIT_BATCHES, COMMIT_DELAY, COMMIT_LANES, COMMIT_RETRY, COMMIT_SPACING, COMMIT_TRIES, COMMIT_TURN,
        SHARED_COMMIT_DELAY,
    },
    metrics::Metrics,
};

/// The queue of sessions with something to commit. Holds each at most once, so it is bounded by their number.
#[derive(Debug, Default)]
pub(crate) struct CommitQueue {
    dirty: Mutex<Vec<Waiting>>,
    some: Notify,
    urgent: Notify,
    immediate: Notify,
}

/// A session in the queue.
#[derive(Debug)]
struct Waiting {
    hub: Arc<Hub>,
    since: Instant,
}

impl CommitQueue {
    /// Queues a session.
    pub(crate) fn push(&self, hub: &Arc<Hub>, urgency: Urgency) {
        if urgency == Urgency::None {
            return;
        }
        if hub.queue(urgency) {
            let waiting = Waiting { hub: Arc::clone(hub), since: Instant::now() };
            self.dirty.lock().unwrap_or_else(PoisonError::into_inner).push(waiting);
            self.some.notify_one();
        }
        if urgency >= Urgency::Soon {
            self.urgent.notify_one();
        }
        if urgency == Urgency::Now {
            self.immediate.notify_one();
        }
    }

    /// Since when the first of them waits.
    async fn oldest(&self) -> Instant {
        loop {
            let some = self.some.notified();
            let first = self.dirty.lock().unwrap_or_else(PoisonError::into_inner).first().map(|waiting| waiting.since);
            match first {
                Some(since) => return since,
                None => some.await,
            }
        }
    }

    /// Takes those whose time has come: what is more than partials, or waits for so long.
    fn take(&self, delay: Duration) -> Vec<Arc<Hub>> {
        let mut dirty = self.dirty.lock().unwrap_or_else(PoisonError::into_inner);
        let is_due = |waiting: &mut Waiting| waiting.since.elapsed() >= delay || waiting.hub.urgency() >= Urgency::Soon;
        dirty.extract_if(.., is_due).map(|waiting| waiting.hub).collect()
    }
}

/// Commits for as long as the process lives. Dropping the future gives up what is under way.
pub(crate) async fn run(queue: Arc<CommitQueue>, store: Arc<dyn RunnerStore>, metrics: Arc<Metrics>) {
    let committer = Committer { queue, store, metrics, failed: Mutex::default(), some_failed: Notify::new() };
    let committer = Arc::new(committer);
    tokio::join!(committer.commit(), committer.try_again());
}

/// The queue's two readers: one writes what is new, the other what could not be written before. A session is in the hands of one
/// of them from its being queued to the answer, so that its appends follow each other.
struct Committer {
    queue: Arc<CommitQueue>,
    store: Arc<dyn RunnerStore>,
    metrics: Arc<Metrics>,
    /// What could not be written when it was last tried; each session at most once.
    failed: Mutex<Vec<Pending>>,
    some_failed: Notify,
}

/// An append on its way to the store.
struct Pending {
    hub: Arc<Hub>,
    append: Append,
    /// How often it was tried.
    tries: u32,
}

impl Pending {
    /// Whether the session is in the epoch still that this belongs to. Where it left its sandbox meanwhile, what the new epoch did
    /// not wait for is withdrawn.
    fn counts(&self) -> bool {
        self.append.after.epoch() == self.hub.epoch()
    }
}

impl Committer {
    /// Writes what is new, in batches. A store that is long about one keeps the next from nothing but its company.
    async fn commit(self: &Arc<Self>) {
        let shared = self.store.append_spacing();
        let (delay, spacing) =
            if shared.is_zero() { (COMMIT_DELAY, COMMIT_SPACING) } else { (SHARED_COMMIT_DELAY, shared) };
        let batches = Arc::new(Semaphore::new(COMMIT_BATCHES));
        let mut slow = JoinSet::new();
        loop {
            let Ok(turn) = Arc::clone(&batches).acquire_owned().await else { return };
            let oldest = self.queue.oldest().await;
            let _ = timeout_at(oldest + delay, self.queue.urgent.notified()).await;
            let _ = timeout(spacing, self.queue.immediate.notified()).await;
            // The partials of others hardly make a transaction dearer, where they do not take rows of a shared database.
            let batch = self.batch(self.queue.take(if shared.is_zero() { Duration::ZERO } else { delay }));
            if batch.is_empty() {
                continue;
            }
            let mut writing = Box::pin(Arc::clone(self).write(batch));
            if timeout(COMMIT_TURN, &mut writing).await.is_err() {
                self.metrics.commits_slow.inc();
                slow.spawn(async move {
                    writing.await;
                    drop(turn);
                });
            }
            while slow.try_join_next().is_some() {}
        }
    }

    /// Tries again what could not be written, few of them together, so that one that cannot be written does not take many along.
    async fn try_again(self: &Arc<Self>) {
        let lanes = Arc::new(Semaphore::new(COMMIT_LANES));
        let mut tries = JoinSet::new();
        loop {
            self.some_failed.notified().await;
            sleep(COMMIT_RETRY).await;
            let failed = mem::take(&mut *self.failed.lock().unwrap_or_else(PoisonError::into_inner));
            let (failed, left): (Vec<_>, Vec<_>) = failed.into_iter().partition(Pending::counts);
            for Pending { hub, .. } in left {
                self.give_back(&hub);
            }
            let together = failed.len().div_ceil(COMMIT_LANES);
            let mut failed = failed.into_iter().peekable();
            while failed.peek().is_some() {
                let some: Vec<_> = failed.by_ref().take(together).collect();
                let Ok(lane) = Arc::clone(&lanes).acquire_owned().await else { return };
                self.metrics.commits_retried.inc_by(some.len() as u64);
                let committer = Arc::clone(self);
                tries.spawn(async move {
                    committer.write(some).await;
                    drop(lane);
                });
            }
            while tries.try_join_next().is_some() {}
        }
    }

    /// What there is to write of each of these sessions.
    fn batch(&self, hubs: Vec<Arc<Hub>>) -> Vec<Pending> {
        let pending = |hub: Arc<Hub>| {
            let (after, entries) = hub.uncommitted();
            if entries.is_empty() {
                self.give_back(&hub);
                return None;
            }
            let append = Append { session: hub.session, after, entries };
            Some(Pending { hub, append, tries: 0 })
        };
        hubs.into_iter().filter_map(pending).collect()
    }

    /// Writes once, and does with each session what its answer asks for.
    async fn write(self: Arc<Self>, batch: Vec<Pending>) {
        let appends = batch.iter().map(|pending| pending.append.clone()).collect();
        let results = self.store.append(appends).await;
        let again: Vec<_> = batch
            .into_iter()
            .zip(results)
            .filter_map(|(pending, result)| self.settle(Pending { tries: pending.tries + 1, ..pending }, result))
            .collect();
        let Some(tries) = again.iter().map(|pending| pending.tries).max() else { return };
        tracing::warn!(sessions = again.len(), tries, "the log cannot be written at the moment: trying again");
        self.failed.lock().unwrap_or_else(PoisonError::into_inner).extend(again);
        self.some_failed.notify_one();
    }

    /// Does what an answer asks for. Gives back what is to be tried again.
    fn settle(&self, pending: Pending, result: Result<(), StoreError>) -> Option<Pending> {
        let Pending { hub, append, tries } = &pending;
        match result {
            Ok(()) => {
                self.metrics.committed(append.entries.len());
                acknowledge(hub, append);
            }
            Err(_) if !pending.counts() => {}
            Err(StoreError::Full | StoreError::Unavailable(_)) if *tries < COMMIT_TRIES => return Some(pending),
            Err(error) => {
                self.metrics.commit_failures.inc();
                tracing::error!(session = %hub.session, %error, "the log cannot be written: the turn fails");
                if let Some(sandbox) = hub.fail(unwritten(&error)) {
                    sandbox.abandon();
                }
            }
        }
        self.give_back(hub);
        None
    }

    /// Lets a session be queued again, and queues it where it wrote more meanwhile.
    fn give_back(&self, hub: &Arc<Hub>) {
        self.queue.push(hub, hub.commit_over());
    }
}

/// Why a log cannot be written, for the session's reader. What a database says about itself may name files of the server: all
/// but the one thing that a person can do something about stays in the server's log.
pub(crate) fn unwritten(error: &StoreError) -> String {
    match error {
        StoreError::Full => error.to_string(),
        _ => "the session's log cannot be written; the server's log says why".to_owned(),
    }
}

fn acknowledge(hub: &Hub, append: &Append) {
    let Some(last) = append.entries.last() else { return };
    hub.committed(last.sequence);
    if let Place::Live(sandbox) | Place::Recovering(sandbox) = hub.place() {
        sandbox.bridge.acknowledge(last.sequence);
    }
}

#[cfg(test)]
mod tests;
