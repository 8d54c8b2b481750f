//! The end of a session's log, in memory: what came from the bridge, what of it is committed, what readers get.

use std::{sync::Arc, time::Duration};

use ash_core::{
    Entry, EntryKind, Sequence,
    chunk::ChunkClass,
    id::TurnId,
    intake::{Admission, Refused},
    meter::LogFull,
    ports::{Batch, LoggedEntry},
};

use ash_protocol::message::BridgeEvent;

use super::{Hub, Inner, Place, Turn};
use crate::limits::{
    BATCH_BYTES, BATCH_ENTRIES, COMMIT_BYTES, COMMIT_ENTRIES, COMMIT_SESSION_BYTES, COMMIT_TURN_CHANGES,
    COMMITTED_TAIL_BYTES, ENTRY_COST_BYTES,
};
use crate::metrics::Metrics;

/// How soon the committer should come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Urgency {
    /// Nothing new.
    None,
    /// Partials only: they may wait for more.
    Later,
    /// A complete message, or a part of the transcript.
    Soon,
    /// The end of a turn, many bytes, or somebody waits for it.
    Now,
}

/// What taking entries led to.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Taken {
    pub(crate) urgency: Urgency,
    pub(crate) turn_ended: bool,
    /// How long the bridge is not read from, because it writes faster than a session may.
    pub(crate) pause: Duration,
}

/// Why entries were not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum NotTaken {
    /// The bridge is broken or impersonated.
    #[error("the bridge sent {0}")]
    Refused(#[from] Refused),
    /// The session wrote as much as a session may.
    #[error(transparent)]
    Full(#[from] LogFull),
}

/// What a reader gets from a hub.
#[derive(Debug)]
pub(crate) enum Tail {
    /// These entries, up to here.
    Entries { batch: Batch, through: Sequence },
    /// Nothing yet.
    Nothing,
    /// What it needs is in the log only.
    InLog,
    /// The log cannot be written.
    Broken(String),
}

/// Counts a session while its last entries are not in the log.
#[derive(Debug)]
pub(super) struct Unwritten {
    metrics: Arc<Metrics>,
    is_counted: bool,
}

impl Unwritten {
    pub(super) fn new(metrics: &Arc<Metrics>) -> Self {
        Self { metrics: Arc::clone(metrics), is_counted: false }
    }

    pub(super) fn set(&mut self, is_unwritten: bool) {
        let was = std::mem::replace(&mut self.is_counted, is_unwritten);
        match (was, is_unwritten) {
            (false, true) => drop(self.metrics.unwritten_sessions.inc()),
            (true, false) => drop(self.metrics.unwritten_sessions.dec()),
            _ => {}
        }
    }
}

impl Drop for Unwritten {
    fn drop(&mut self) {
        self.set(false);
    }
}

impl Hub {
    /// Takes entries from the bridge and wakes readers. Those before one that is not taken count.
    pub(crate) fn take(&self, entries: Vec<Entry>) -> Result<Taken, NotTaken> {
        let mut taken = Taken { urgency: Urgency::None, turn_ended: false, pause: Duration::ZERO };
        let mut inner = self.lock();
        let now = inner.metering.now();
        let all_taken = entries.into_iter().try_for_each(|entry| inner.take(entry, now, &mut taken));
        inner.count_uncommitted();
        if inner.intake.pending_bytes() > COMMIT_BYTES {
            taken.urgency = taken.urgency.max(Urgency::Now);
        }
        drop(inner);
        self.changed.notify_waiters();
        all_taken.map(|()| taken)
    }

    /// Counts frames of the bridge that are no entries, and gives how long it is not read from after them.
    pub(crate) fn pace(&self, frames: usize, bytes: usize) -> Duration {
        let inner = self.lock();
        let now = inner.metering.now();
        inner.metering.pace(bytes + frames * ENTRY_COST_BYTES, now)
    }

    /// Gives the hub to the committer, which should come so soon: true when it did not have it.
    pub(crate) fn queue(&self, urgency: Urgency) -> bool {
        let mut inner = self.lock();
        inner.urgency = inner.urgency.max(urgency);
        !std::mem::replace(&mut inner.queued, true)
    }

    /// How soon the committer should come for what it was not given yet.
    pub(crate) fn urgency(&self) -> Urgency {
        self.lock().urgency
    }

    /// Says that the committer is done with the hub for now: how soon it should come again, where there is more that may be
    /// written.
    pub(crate) fn commit_over(&self) -> Urgency {
        let mut inner = self.lock();
        inner.queued = false;
        let is_more = inner.broken.is_none() && inner.last() > inner.committed;
        if is_more { inner.urgency.max(Urgency::Later) } else { Urgency::None }
    }

    /// The entries to commit next and the one that they follow.
    pub(crate) fn uncommitted(&self) -> (Sequence, Vec<Entry>) {
        let mut inner = self.lock();
        let (mut bytes, mut turn_changes) = (0, 0);
        let start = inner.tail.partition_point(|logged| logged.entry.sequence <= inner.committed);
        let entries: Vec<Entry> = inner
            .tail
            .range(start..)
            .take(COMMIT_ENTRIES)
            .map(|logged| &logged.entry)
            .take_while(|entry| {
                // Each is a statement of the transaction; an honest bridge has two in a turn.
                turn_changes += usize::from(entry.kind == EntryKind::User || entry.ends_turn());
                let fits = bytes == 0 || bytes + entry.body.len() <= COMMIT_SESSION_BYTES;
                bytes += entry.body.len().max(1);
                fits && turn_changes <= COMMIT_TURN_CHANGES
            })
            .cloned()
            .collect();
        let is_all = start + entries.len() == inner.tail.len();
        inner.urgency = if is_all { Urgency::None } else { Urgency::Now };
        (inner.committed, entries)
    }

    /// Says that everything up to `last` is committed.
    pub(crate) fn committed(&self, last: Sequence) {
        let mut inner = self.lock();
        if last <= inner.committed || last.epoch() != inner.row.epoch {
            return;
        }
        let from = inner.tail.partition_point(|logged| logged.entry.sequence <= inner.committed);
        let to = inner.tail.partition_point(|logged| logged.entry.sequence <= last);
        let bytes: usize = inner.tail.range(from..to).map(|logged| logged.entry.body.len() + ENTRY_COST_BYTES).sum();
        inner.intake.committed(bytes);
        inner.count_uncommitted();
        inner.committed = last;
        inner.committed_bytes += bytes;
        let keep = if inner.turns.current().is_some() { COMMITTED_TAIL_BYTES } else { 0 };
        inner.trim(keep);
        drop(inner);
        self.changed.notify_waiters();
    }

    /// Whether everything taken is committed, and if not, whether that is still to be hoped for.
    pub(crate) async fn wait_committed(&self) -> bool {
        self.wait_until(|inner| match &inner.broken {
            _ if inner.last() <= inner.committed => Some(true),
            Some(_) => Some(false),
            None => None,
        })
        .await
    }

    /// Waits until everything up to here is committed: false where that will never be.
    pub(crate) async fn wait_committed_to(&self, last: Sequence) -> bool {
        self.wait_until(|inner| match &inner.broken {
            _ if last <= inner.committed => Some(true),
            Some(_) => Some(false),
            None => None,
        })
        .await
    }

    /// Bytes that are taken and not committed.
    pub(crate) fn uncommitted_bytes(&self) -> usize {
        self.lock().intake.pending_bytes()
    }

    /// The last entry there is, committed or not.
    pub(crate) fn last(&self) -> Sequence {
        self.lock().last()
    }

    /// The next change; for readers, which look first.
    pub(crate) fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.changed.notified()
    }

    /// What a reader at `position` gets.
    pub(crate) fn after(&self, position: Sequence) -> Tail {
        let inner = self.lock();
        if let Some(message) = &inner.broken {
            return Tail::Broken(message.clone());
        }
        if position < inner.tail_after {
            return Tail::InLog;
        }
        if matches!(inner.place, Place::Recovering(_)) {
            return Tail::Nothing;
        }
        let start = inner.tail.partition_point(|logged| logged.entry.sequence <= position);
        let mut bytes = 0;
        let mut through = position;
        let mut batch = Batch::new();
        for logged in inner.tail.range(start..) {
            bytes += logged.entry.body.len();
            if !batch.is_empty() && (bytes > BATCH_BYTES || batch.len() >= BATCH_ENTRIES) {
                break;
            }
            through = logged.entry.sequence;
            if logged.entry.kind != EntryKind::Transcript {
                batch.push(Arc::clone(logged));
            }
        }
        if through > position { Tail::Entries { batch, through } } else { Tail::Nothing }
    }

    /// Whether a reader at `position` has something to come: entries, or a turn that runs or is about to.
    pub(crate) fn expects_more(&self, position: Sequence) -> bool {
        let inner = self.lock();
        inner.turns.current().is_some()
            || inner.last() > position
            || matches!(inner.place, Place::Recovering(_) | Place::Leaving(_))
    }
}

impl Inner {
    fn take(&mut self, entry: Entry, now: Duration, taken: &mut Taken) -> Result<(), NotTaken> {
        // What the log has no room for was not admitted either.
        let mut intake = self.intake.clone();
        let cost = entry.body.len() + ENTRY_COST_BYTES;
        if intake.admit(&entry)? == Admission::Repeated {
            taken.pause = self.metering.pace(cost, now);
            return Ok(());
        }
        taken.pause = self.metering.take(cost, now)?;
        self.intake = intake;
        let urgency = match ChunkClass::of(entry.kind) {
            _ if entry.ends_turn() => Urgency::Now,
            // A conversation without its last lines could not be gone on with.
            ChunkClass::Complete | ChunkClass::Transcript => Urgency::Soon,
            ChunkClass::Partial => Urgency::Later,
        };
        taken.urgency = taken.urgency.max(urgency);
        if entry.kind == EntryKind::Bridge
            && let Ok(event) = serde_json::from_slice::<BridgeEvent>(&entry.body)
        {
            self.metrics.bridge_event(&event);
            self.permissions.take(event, &self.metrics);
        }
        // The bridge admits turns. It may have one from a host before this one, or from a request whose sender is gone by now.
        if self.turns.current().is_none()
            && let Some(id) = entry.begins_turn()
        {
            let after = Sequence(entry.sequence.0.saturating_sub(1));
            self.turns.begin(self.row.id, Turn { id: TurnId(id), after });
        }
        if entry.ends_turn() {
            // A tail that comes again after a restart may hold the end of the turn before the one that runs.
            if self.turns.current().is_none_or(|turn| entry.sequence > turn.after) {
                self.end_turn("ended");
                self.turns.ended_in_time();
            }
            taken.turn_ended = true;
        }
        self.tail.push_back(Arc::new(LoggedEntry::new(entry)));
        Ok(())
    }

    fn trim(&mut self, keep: usize) {
        while self.committed_bytes > keep || keep == 0 {
            let Some(front) = self.tail.front().filter(|front| front.entry.sequence <= self.committed) else { break };
            self.tail_after = front.entry.sequence;
            self.committed_bytes = self.committed_bytes.saturating_sub(front.entry.body.len() + ENTRY_COST_BYTES);
            self.tail.pop_front();
        }
        if self.tail.is_empty() {
            self.tail.shrink_to(16);
        }
    }
}
