//! Which sessions have messages that wait, as far as this process knows: so that a turn's end costs nothing where none do.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ash_core::id::SessionId;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, futures::Notified};

/// Sessions whose queues are looked after at once. Others are looked at by the next sweep.
const MAX_AT_ONCE: usize = 64;

/// What this process knows of queues.
pub(crate) struct Queues {
    inner: Mutex<Inner>,
    hinted: Notify,
    changed: Notify,
    permits: Arc<Semaphore>,
}

#[derive(Default)]
struct Inner {
    /// Sessions with an open entry, as of the last sweep.
    known: HashSet<SessionId>,
    /// Those noted since the sweep began that is under way: it may have missed them.
    fresh: HashSet<SessionId>,
    /// Those in which something has happened.
    hints: HashSet<SessionId>,
    /// Those that are being looked after, and whether something has happened in them since.
    busy: HashMap<SessionId, bool>,
}

impl Default for Queues {
    fn default() -> Self {
        Self {
            inner: Mutex::default(),
            hinted: Notify::new(),
            changed: Notify::new(),
            permits: Arc::new(Semaphore::new(MAX_AT_ONCE)),
        }
    }
}

impl Queues {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether a session may have messages that wait.
    pub(crate) fn has(&self, session: SessionId) -> bool {
        self.lock().known.contains(&session)
    }

    /// A session has a message that waits, or is about to.
    pub(crate) fn note(&self, session: SessionId) {
        let mut inner = self.lock();
        inner.known.insert(session);
        inner.fresh.insert(session);
    }

    /// Nothing waits in a session, unless something was noted since the sweep.
    pub(super) fn forget(&self, session: SessionId) {
        let mut inner = self.lock();
        if !inner.fresh.contains(&session) {
            inner.known.remove(&session);
        }
    }

    /// A sweep begins: what is noted from now on counts beside what it finds.
    pub(super) fn begin_sweep(&self) {
        self.lock().fresh.clear();
    }

    /// What a sweep found; gives how many sessions are known.
    pub(super) fn swept(&self, found: Vec<SessionId>) -> usize {
        let mut inner = self.lock();
        inner.known = found.into_iter().chain(inner.fresh.iter().copied().collect::<Vec<_>>()).collect();
        inner.known.len()
    }

    /// Something has happened in a session: a turn has ended, its state has changed. Nothing to do where nothing waits.
    pub(crate) fn hint(&self, session: SessionId) {
        let mut inner = self.lock();
        if inner.known.contains(&session) && inner.hints.insert(session) {
            self.hinted.notify_one();
        }
    }

    /// Waits for a hint.
    pub(super) fn hinted(&self) -> Notified<'_> {
        self.hinted.notified()
    }

    /// The sessions in which something has happened since this was asked last.
    pub(super) fn take_hints(&self) -> HashSet<SessionId> {
        std::mem::take(&mut self.lock().hints)
    }

    /// Takes the right to look after a session's queue; where another task has it, that one looks again. `None` also at the bound.
    pub(super) fn begin(&self, session: SessionId) -> Option<OwnedSemaphorePermit> {
        let mut inner = self.lock();
        if let Some(again) = inner.busy.get_mut(&session) {
            *again = true;
            return None;
        }
        let permit = Arc::clone(&self.permits).try_acquire_owned().ok()?;
        inner.busy.insert(session, false);
        Some(permit)
    }

    /// Gives the right back, unless something has happened since: then it is to be looked at again.
    pub(super) fn end(&self, session: SessionId) -> bool {
        let mut inner = self.lock();
        if let Some(again) = inner.busy.get_mut(&session)
            && std::mem::take(again)
        {
            return false;
        }
        inner.busy.remove(&session);
        true
    }

    /// An entry has changed.
    pub(crate) fn changed(&self) {
        self.changed.notify_waiters();
    }

    /// The next change of an entry by this process.
    pub(super) fn next_change(&self) -> Notified<'_> {
        self.changed.notified()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use ash_core::id::SessionId;
    use uuid::Uuid;

    use super::{MAX_AT_ONCE, Queues};

    fn session(n: u128) -> SessionId {
        SessionId(Uuid::from_u128(n))
    }

    #[test]
    fn what_is_noted_during_a_sweep_stays_known() {
        let queues = Queues::default();
        queues.note(session(1));
        queues.begin_sweep();
        queues.note(session(2));
        queues.forget(session(2));
        assert_eq!(queues.swept(vec![session(3)]), 2);
        assert!(!queues.has(session(1)) && queues.has(session(2)) && queues.has(session(3)));
        queues.forget(session(3));
        assert!(!queues.has(session(3)));
    }

    #[test]
    fn a_session_without_a_queue_costs_nothing() {
        let queues = Queues::default();
        queues.hint(session(1));
        assert!(queues.take_hints().is_empty());
        queues.note(session(1));
        queues.hint(session(1));
        assert_eq!(queues.take_hints().len(), 1);
        assert!(queues.take_hints().is_empty());
    }

    #[test]
    fn one_looks_and_looks_again() {
        let queues = Queues::default();
        let permit = queues.begin(session(1)).unwrap();
        assert!(queues.begin(session(1)).is_none());
        assert!(!queues.end(session(1)), "something has happened");
        assert!(queues.end(session(1)));
        drop(permit);
        let held: Vec<_> = (0..).map_while(|n| queues.begin(session(n))).collect();
        assert_eq!(held.len(), MAX_AT_ONCE);
    }
}
