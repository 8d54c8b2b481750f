//! What every sandbox may do now: the bindings of all sandboxes of this process.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use crate::egress::EgressPolicy;
use crate::error::BindError;
use crate::id::{Epoch, SandboxId};
use crate::limits::Limits;
use crate::phase::{Change, Holder, Phase, step};
use crate::upstream::UpstreamTarget;

const MINUTE: Duration = Duration::from_mins(1);

/// What a sandbox is bound to, ready for use by its requests.
pub(crate) struct Bound {
    pub(crate) sandbox: SandboxId,
    pub(crate) holder: Holder,
    pub(crate) egress: EgressPolicy,
    pub(crate) upstream: Arc<UpstreamTarget>,
    /// Ends every call and tunnel that was opened under this binding.
    pub(crate) cut: CancellationToken,
    refusals: Mutex<(Instant, u32)>,
}

impl Bound {
    fn new(
        sandbox: SandboxId,
        holder: Holder,
        egress: EgressPolicy,
        upstream: Arc<UpstreamTarget>,
        cut: CancellationToken,
    ) -> Self {
        Self { sandbox, holder, egress, upstream, cut, refusals: Mutex::new((Instant::now(), 0)) }
    }

    /// Whether the session's log is told of one more refusal: a fixed number per minute.
    pub(crate) fn may_report(&self, per_minute: u32) -> bool {
        let mut window = lock(&self.refusals);
        if window.0.elapsed() >= MINUTE {
            *window = (Instant::now(), 0);
        }
        window.1 = window.1.saturating_add(1);
        window.1 <= per_minute
    }
}

/// The bounds of one sandbox, shared by all its connections.
pub(crate) struct Slots {
    pub(crate) model_calls: Arc<Semaphore>,
    pub(crate) tunnels: Arc<Semaphore>,
    pub(crate) lookups: Arc<Semaphore>,
}

/// What a request of a sandbox gets.
pub(crate) enum Access {
    /// The token is valid, but nobody has told this process about the sandbox yet.
    Unknown,
    /// It has no session yet.
    Unclaimed,
    /// It works for a session.
    Bound(Arc<Bound>, Arc<Slots>),
    /// Its claim is over.
    Released,
}

struct Entry {
    phase: Phase,
    bound: Option<Arc<Bound>>,
    slots: Arc<Slots>,
}

/// All sandboxes.
pub(crate) struct Registry {
    entries: Mutex<HashMap<SandboxId, Entry>>,
    limits: Limits,
}

impl Registry {
    pub(crate) fn new(limits: Limits) -> Self {
        Self { entries: Mutex::new(HashMap::new()), limits }
    }

    pub(crate) fn access(&self, sandbox: SandboxId) -> Access {
        let entries = lock(&self.entries);
        match entries.get(&sandbox) {
            None => Access::Unknown,
            Some(entry) => match (&entry.phase, &entry.bound) {
                (Phase::Unclaimed, _) => Access::Unclaimed,
                (Phase::Bound(_), Some(bound)) => Access::Bound(bound.clone(), entry.slots.clone()),
                (Phase::Bound(_) | Phase::Released(_), _) => Access::Released,
            },
        }
    }

    pub(crate) fn register(&self, sandbox: SandboxId) -> Result<(), BindError> {
        let mut entries = lock(&self.entries);
        let current = entries.get(&sandbox).map(|entry| &entry.phase);
        let next = step(sandbox, current, Change::Register)?;
        self.entry(&mut entries, sandbox).phase = next.phase;
        Ok(())
    }

    /// Binds for the first time (`again` false) or again.
    pub(crate) fn bind(
        &self,
        sandbox: SandboxId,
        holder: Holder,
        egress: EgressPolicy,
        upstream: Arc<UpstreamTarget>,
        again: bool,
    ) -> Result<(), BindError> {
        let mut entries = lock(&self.entries);
        let current = entries.get(&sandbox).map(|entry| &entry.phase);
        let change = if again { Change::Rebind(holder.clone()) } else { Change::Bind(holder.clone()) };
        let next = step(sandbox, current, change)?;
        let entry = self.entry(&mut entries, sandbox);
        // A change of settings within one epoch leaves its open calls alone, and a later cut still
        // reaches them.
        let cut = match entry.bound.take() {
            Some(before) if next.cut => {
                before.cut.cancel();
                CancellationToken::new()
            }
            Some(before) => before.cut.clone(),
            None => CancellationToken::new(),
        };
        entry.phase = next.phase;
        entry.bound = Some(Arc::new(Bound::new(sandbox, holder, egress, upstream, cut)));
        Ok(())
    }

    pub(crate) fn release(&self, sandbox: SandboxId, epoch: Epoch) -> Result<(), BindError> {
        let mut entries = lock(&self.entries);
        let current = entries.get(&sandbox).map(|entry| &entry.phase);
        let next = step(sandbox, current, Change::Release(epoch))?;
        let entry = self.entry(&mut entries, sandbox);
        entry.phase = next.phase;
        if let Some(bound) = entry.bound.take() {
            bound.cut.cancel();
        }
        Ok(())
    }

    /// Forgets a sandbox that no longer exists.
    pub(crate) fn remove(&self, sandbox: SandboxId) {
        let removed = lock(&self.entries).remove(&sandbox);
        if let Some(bound) = removed.and_then(|entry| entry.bound) {
            bound.cut.cancel();
        }
    }

    /// Ends what one sandbox has open, or all of them; the bindings stay.
    pub(crate) fn cut(&self, sandbox: Option<SandboxId>) {
        let mut entries = lock(&self.entries);
        for (id, entry) in entries.iter_mut() {
            if sandbox.is_some_and(|wanted| wanted != *id) {
                continue;
            }
            if let Some(bound) = entry.bound.take() {
                bound.cut.cancel();
                entry.bound = Some(Arc::new(Bound::new(
                    bound.sandbox,
                    bound.holder.clone(),
                    bound.egress.clone(),
                    bound.upstream.clone(),
                    CancellationToken::new(),
                )));
            }
        }
    }

    pub(crate) fn len(&self) -> usize {
        lock(&self.entries).len()
    }

    fn entry<'a>(&self, entries: &'a mut HashMap<SandboxId, Entry>, sandbox: SandboxId) -> &'a mut Entry {
        entries.entry(sandbox).or_insert_with(|| Entry {
            phase: Phase::Unclaimed,
            bound: None,
            slots: Arc::new(Slots {
                model_calls: Arc::new(Semaphore::new(self.limits.model_calls)),
                tunnels: Arc::new(Semaphore::new(self.limits.tunnels)),
                lookups: Arc::new(Semaphore::new(self.limits.lookups)),
            }),
        })
    }
}

/// A panic in another task leaves the data whole: every change is one assignment.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
