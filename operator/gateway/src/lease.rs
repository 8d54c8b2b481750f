//! Until when the gateway may answer, and the end of what is open then.
//!
//! A time and not a switch: a process that was stopped for a while, and goes on, has it behind itself before anybody could tell it.

use std::sync::{Mutex, PoisonError, RwLock};
use std::time::Instant;

use tokio_util::sync::CancellationToken;

/// Until when; for ever where nobody said.
#[derive(Default)]
pub(crate) struct Lease {
    until: RwLock<Option<Instant>>,
    cut: Mutex<CancellationToken>,
}

impl Lease {
    pub(crate) fn set(&self, until: Instant) {
        *self.until.write().unwrap_or_else(PoisonError::into_inner) = Some(until);
    }

    pub(crate) fn is_over(&self) -> bool {
        self.until.read().unwrap_or_else(PoisonError::into_inner).is_some_and(|until| Instant::now() >= until)
    }

    /// Ends when the connections that are open now are cut.
    pub(crate) fn connection(&self) -> CancellationToken {
        self.cut.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Cuts the connections that are open; those that come after it are not meant.
    pub(crate) fn cut_connections(&self) {
        std::mem::take(&mut *self.cut.lock().unwrap_or_else(PoisonError::into_inner)).cancel();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn it_is_over_when_its_time_is_up_and_not_before() {
        let lease = Lease::default();
        assert!(!lease.is_over());
        lease.set(Instant::now());
        assert!(lease.is_over());
        lease.set(Instant::now() + Duration::from_secs(3600));
        assert!(!lease.is_over());
    }

    #[test]
    fn a_cut_is_for_what_is_open() {
        let lease = Lease::default();
        let open = lease.connection();
        lease.cut_connections();
        assert!(open.is_cancelled() && !lease.connection().is_cancelled());
    }
}
