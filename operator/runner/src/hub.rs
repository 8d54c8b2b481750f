//! A session's live state: the tail of its log, its turn, and everybody who waits for either.
//!
//! The hub never waits for the store. Readers hold a position and are woken; what fell out of the tail they read from the log.
//! What concerns one of its parts only is in the part's file; here is what changes them together.

mod permission;
mod place;
mod tail;
mod turn;

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ash_core::{
    Epoch, Sequence,
    id::{SessionId, TurnId},
    intake::Intake,
    opening::Opening,
    ports::LoggedEntry,
    session::Session,
};
use tokio::sync::Notify;

pub(crate) use self::{
    permission::PermissionGate,
    place::Place,
    tail::{NotTaken, Tail, Urgency},
    turn::{Reservation, Reserve, Turn},
};
use self::{permission::Permissions, tail::Unwritten, turn::Turns};
use crate::{
    budget::Share,
    limits::{ENTRY_COST_BYTES, OWN_BYTES},
    metering::Metering,
    metrics::Metrics,
    sandbox::Sandbox,
};

/// The live state of one session. There is at most one per session in a process.
#[derive(Debug)]
pub(crate) struct Hub {
    pub(crate) session: SessionId,
    pub(crate) metrics: Arc<Metrics>,
    inner: Mutex<Inner>,
    /// Wakes readers and whoever waits for a commit or for the sandbox.
    changed: Notify,
}

#[derive(Debug)]
struct Inner {
    /// The session as the store has it, but for `last`, which is `committed`.
    row: Session,
    intake: Intake,
    metering: Arc<Metering>,
    /// What is not committed, beyond what every session may have.
    share: Share,
    unwritten: Unwritten,
    metrics: Arc<Metrics>,
    committed: Sequence,
    /// Everything after this position is in `tail`.
    tail_after: Sequence,
    tail: VecDeque<Arc<LoggedEntry>>,
    /// Bytes of the committed part of the tail.
    committed_bytes: usize,
    turns: Turns,
    permissions: Permissions,
    place: Place,
    /// Whether the committer has this hub: in its queue, or what it wrote is on its way to the store.
    queued: bool,
    /// How soon the committer should come for what it was not given yet.
    urgency: Urgency,
    /// Why the log cannot be written; the next epoch clears it.
    broken: Option<String>,
}

impl Hub {
    pub(crate) fn new(row: Session, metering: Arc<Metering>, share: Share, metrics: Arc<Metrics>) -> Self {
        let last = row.last;
        Self {
            session: row.id,
            metrics: Arc::clone(&metrics),
            inner: Mutex::new(Inner {
                intake: Intake::new(row.epoch, last),
                metering,
                share,
                unwritten: Unwritten::new(&metrics),
                metrics,
                committed: last,
                tail_after: last,
                tail: VecDeque::new(),
                committed_bytes: 0,
                turns: Turns::default(),
                permissions: Permissions::default(),
                place: Place::None,
                queued: false,
                urgency: Urgency::None,
                broken: None,
                row,
            }),
            changed: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // A panic while the lock is held leaves plain data that every method can go on with.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The session as it is now.
    pub(crate) fn session(&self) -> Session {
        let inner = self.lock();
        Session { last: inner.committed, ..inner.row.clone() }
    }

    /// Replaces what is known of the session beside its log (its options, for example).
    pub(crate) fn update_session(&self, change: impl FnOnce(&mut Session)) {
        change(&mut self.lock().row);
    }

    /// Takes over what the store has of the session, where the hub was made from something older: true where it was. A session
    /// that is on a sandbox, or leaving one, knows better than a row: it stays as it is. One whose bridge is waited for learns
    /// what the host before committed after this one had read the row.
    pub(crate) fn refresh(&self, row: Session) -> bool {
        let mut inner = self.lock();
        let idle = match inner.place {
            Place::None | Place::Starting => true,
            Place::Recovering(_) => row.epoch == inner.row.epoch,
            _ => false,
        };
        if !idle || inner.last() > inner.committed || (row.epoch, row.last) <= (inner.row.epoch, inner.committed) {
            return false;
        }
        inner.intake = Intake::new(row.epoch, row.last);
        inner.count_uncommitted();
        inner.committed = row.last;
        inner.tail.clear();
        inner.committed_bytes = 0;
        inner.tail_after = row.last;
        inner.turns.move_to(row.last);
        inner.row = row;
        drop(inner);
        self.changed.notify_waiters();
        true
    }

    /// Lets go of what the session wrote: it has ended, and nothing remembers it for that.
    pub(crate) fn close_meter(&self) {
        self.lock().metering.close();
    }

    pub(crate) fn epoch(&self) -> Epoch {
        self.lock().row.epoch
    }

    /// Takes over a new epoch that the store opened: what was not committed is withdrawn, an interrupted turn is over.
    pub(crate) fn open_epoch(&self, row: Session, opening: &Opening, place: Place) {
        let interrupted = opening.interrupted.map(TurnId);
        let opening = opening.entry(row.epoch);
        let mut inner = self.lock();
        let committed = inner.committed;
        while inner.tail.back().is_some_and(|logged| logged.entry.sequence > committed) {
            inner.tail.pop_back();
        }
        // A claim may report an earlier turn as interrupted while the next one is reserved already.
        if interrupted.is_some() && inner.turns.current().map(|turn| turn.id) == interrupted {
            inner.end_turn("interrupted");
        }
        inner.intake = Intake::new(row.epoch, opening.sequence);
        inner.count_uncommitted();
        inner.committed = opening.sequence;
        inner.committed_bytes += opening.body.len() + ENTRY_COST_BYTES;
        inner.turns.move_to(opening.sequence);
        inner.tail.push_back(Arc::new(LoggedEntry::new(opening)));
        inner.row = row;
        inner.place = place;
        inner.broken = None;
        drop(inner);
        self.changed.notify_waiters();
    }

    /// Says that the log cannot be written: readers end with this message, the turn is over. Takes the session off its sandbox,
    /// where it has one, in the same moment, so that no next turn gets there, and gives it: it has to be abandoned.
    pub(crate) fn fail(&self, message: String) -> Option<Arc<Sandbox>> {
        let mut inner = self.lock();
        let abandoned = inner.place.sandbox().cloned();
        if let Some(sandbox) = &abandoned {
            inner.leave(sandbox);
        }
        inner.broken = Some(message);
        inner.end_turn("failed: its log cannot be written");
        drop(inner);
        self.changed.notify_waiters();
        abandoned
    }

    /// Waits until `look` finds what is waited for, looking again after every change.
    async fn wait_until<T>(&self, look: impl Fn(&Inner) -> Option<T>) -> T {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if let Some(found) = look(&self.lock()) {
                return found;
            }
            changed.await;
        }
    }
}

impl Inner {
    /// The last entry there is, committed or not.
    fn last(&self) -> Sequence {
        self.intake.last().max(self.committed)
    }

    /// Counts what is taken and not committed: towards the memory of all sessions, and for whoever asks.
    fn count_uncommitted(&mut self) {
        let bytes = self.intake.pending_bytes();
        self.share.set(bytes.saturating_sub(OWN_BYTES));
        self.unwritten.set(bytes > 0);
    }

    fn end_turn(&mut self, how: &'static str) {
        let last = self.last();
        if self.turns.end(last, how) {
            self.metrics.turns_forgotten.inc();
        }
    }

    /// Begins to take the session off this sandbox.
    fn leave(&mut self, sandbox: &Arc<Sandbox>) {
        self.place = Place::Leaving(Arc::clone(sandbox));
        self.turns.begin_leaving();
    }
}

#[cfg(test)]
pub(crate) mod tests;
