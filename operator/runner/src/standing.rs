//! Whether the runner may serve, as everything sees it that serves: what `ash_core::freezing` decided, and the time until which that
//! holds.
//!
//! The time is looked at with everything that is served: a process that was stopped for a while, and goes on, has it behind itself
//! before anybody could tell it.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use tokio_util::sync::CancellationToken;

/// Whether the runner may serve.
#[derive(Debug)]
pub(crate) struct Standing {
    began: Instant,
    /// Nanoseconds since `began`; the largest number stands for ever.
    until: AtomicU64,
    frozen: AtomicBool,
    /// Ends everything that was begun to be served since the runner was last frozen.
    cut: Mutex<CancellationToken>,
}

impl Standing {
    /// A runner that may serve until then; for ever, where nobody could call it lost.
    pub(crate) fn new(until: Option<Instant>) -> Self {
        let standing = Self {
            began: Instant::now(),
            until: AtomicU64::new(u64::MAX),
            frozen: AtomicBool::new(false),
            cut: Mutex::default(),
        };
        if let Some(until) = until {
            standing.set(until);
        }
        standing
    }

    /// Whether it may serve now.
    pub(crate) fn serves(&self) -> bool {
        let until = self.until.load(Ordering::Acquire);
        !self.is_frozen() && (until == u64::MAX || self.began.elapsed() < Duration::from_nanos(until))
    }

    /// Whether its sandboxes are to be stopped.
    pub(crate) fn is_frozen(&self) -> bool {
        self.frozen.load(Ordering::Acquire)
    }

    /// Ends when the runner is frozen. It does not begin anew: whoever is served after that asks for another one.
    pub(crate) fn cut(&self) -> CancellationToken {
        self.lock().clone()
    }

    /// It may serve until then.
    pub(crate) fn set(&self, until: Instant) {
        let nanoseconds = until.saturating_duration_since(self.began).as_nanos();
        // 584 years do not go by.
        self.until.store(u64::try_from(nanoseconds).unwrap_or(u64::MAX - 1), Ordering::Release);
    }

    /// Serves nobody any more, and ends what is open.
    pub(crate) fn freeze(&self) {
        self.frozen.store(true, Ordering::Release);
        self.lock().cancel();
    }

    /// Serves again, until then.
    pub(crate) fn thaw(&self, until: Instant) {
        self.set(until);
        *self.lock() = CancellationToken::new();
        self.frozen.store(false, Ordering::Release);
    }

    fn lock(&self) -> MutexGuard<'_, CancellationToken> {
        self.cut.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(3600);

    #[test]
    fn nobody_is_served_when_the_time_is_up_or_the_runner_frozen() {
        assert!(Standing::new(None).serves());
        let standing = Standing::new(Some(Instant::now()));
        assert!(!standing.serves() && !standing.is_frozen(), "also before anybody froze it");
        standing.set(Instant::now() + LONG);
        let cut = standing.cut();
        assert!(standing.serves() && !cut.is_cancelled());
        standing.freeze();
        assert!(!standing.serves() && cut.is_cancelled() && standing.cut().is_cancelled());
        standing.thaw(Instant::now() + LONG);
        assert!(standing.serves() && cut.is_cancelled() && !standing.cut().is_cancelled(), "what was cut stays cut");
    }
}
