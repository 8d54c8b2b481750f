//! The committer: writes what the hubs took to the log, behind the streams, many sessions in one transaction.
//!
//! Complete messages are written with whatever else comes within [`COMMIT_SPACING`], because most of a transaction's cost does
//! not depend on its size. The end of a turn waits for nothing. Partials wait for more, for [`COMMIT_DELAY`] before that. A store
//! that many servers share asks for more than both. A transaction that takes longer delays the next, so that batches grow under
//! load by themselves.

use std::{
    mem,
    sync::{Arc, Mutex, PoisonError},
};

use ash_core::ports::{Append, RunnerStore, StoreError};
use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};

use crate::{
    hub::{Hub, Place, Urgency},
    limits::{COMMIT_DELAY, COMMIT_RETRY, COMMIT_SPACING, COMMIT_TRIES},
    metrics::Metrics,
};

/// The queue of sessions with something to commit. Holds each at most once, so it is bounded by their number.
#[derive(Debug, Default)]
pub(crate) struct CommitQueue {
    dirty: Mutex<Vec<Arc<Hub>>>,
    some: Notify,
    urgent: Notify,
    immediate: Notify,
}

impl CommitQueue {
    /// Queues a session.
    pub(crate) fn push(&self, hub: &Arc<Hub>, urgency: Urgency) {
        if urgency == Urgency::None {
            return;
        }
        if hub.queue() {
            self.dirty.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(hub));
            self.some.notify_one();
        }
        if urgency >= Urgency::Soon {
            self.urgent.notify_one();
        }
        if urgency == Urgency::Now {
            self.immediate.notify_one();
        }
    }

    fn take(&self) -> Vec<Arc<Hub>> {
        mem::take(&mut *self.dirty.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Commits for as long as the process lives. Dropping the future stops it between two transactions.
pub(crate) async fn run(queue: Arc<CommitQueue>, store: Arc<dyn RunnerStore>, metrics: Arc<Metrics>) {
    let (delay, spacing) = (COMMIT_DELAY.max(store.append_spacing()), COMMIT_SPACING.max(store.append_spacing()));
    loop {
        queue.some.notified().await;
        let _ = timeout(delay, queue.urgent.notified()).await;
        let _ = timeout(spacing, queue.immediate.notified()).await;
        let hubs = queue.take();
        commit(&queue, &*store, &metrics, hubs).await;
    }
}

async fn commit(queue: &CommitQueue, store: &dyn RunnerStore, metrics: &Metrics, hubs: Vec<Arc<Hub>>) {
    let (mut pending, appends): (Vec<_>, Vec<_>) = hubs
        .into_iter()
        .filter_map(|hub| {
            let (after, entries) = hub.uncommitted();
            let session = hub.session;
            (!entries.is_empty()).then_some((hub, Append { session, after, entries }))
        })
        .unzip();
    let mut appends = appends;
    for attempt in 1..=COMMIT_TRIES {
        if appends.is_empty() {
            return;
        }
        let results = store.append(appends.clone()).await;
        let mut again = (Vec::new(), Vec::new());
        for ((hub, append), result) in pending.into_iter().zip(appends).zip(results) {
            match result {
                Ok(()) => {
                    metrics.committed(append.entries.len());
                    acknowledge(queue, &hub, &append);
                }
                Err(StoreError::Full | StoreError::Unavailable(_)) if attempt < COMMIT_TRIES => {
                    again.0.push(hub);
                    again.1.push(append);
                }
                // The session left its sandbox meanwhile; what the new epoch did not wait for is withdrawn.
                Err(StoreError::Overtaken { .. }) if append.after.epoch() != hub.epoch() => {}
                Err(error) => {
                    metrics.commit_failures.inc();
                    tracing::error!(session = %hub.session, %error, "the log cannot be written: the turn fails");
                    if let Some(sandbox) = hub.fail(unwritten(&error)) {
                        sandbox.abandon();
                    }
                }
            }
        }
        (pending, appends) = again;
        if !pending.is_empty() {
            tracing::warn!(sessions = pending.len(), attempt, "the log cannot be written at the moment: trying again");
            sleep(COMMIT_RETRY).await;
        }
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

fn acknowledge(queue: &CommitQueue, hub: &Arc<Hub>, append: &Append) {
    let Some(last) = append.entries.last() else { return };
    if hub.committed(last.sequence) {
        queue.push(hub, Urgency::Now);
    }
    if let Place::Live(sandbox) | Place::Recovering(sandbox) = hub.place() {
        sandbox.bridge.acknowledge(last.sequence);
    }
}
