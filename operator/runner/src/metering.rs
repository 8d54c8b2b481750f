//! The meter of a session's log, with a clock. It outlives the session's hub, so that a session that sleeps and wakes again
//! is counted on; a server that starts anew counts from nothing.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use ash_core::meter::{LogBounds, LogFull, LogMeter};

/// How much a session wrote.
#[derive(Debug)]
pub(crate) struct Metering {
    began: Instant,
    meter: Mutex<LogMeter>,
}

impl Metering {
    pub(crate) fn new(bounds: LogBounds) -> Self {
        Self { began: Instant::now(), meter: Mutex::new(LogMeter::new(bounds)) }
    }

    /// The time of the meter's clock.
    pub(crate) fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// Takes so many bytes and gives how long the bridge is not read from after them.
    pub(crate) fn take(&self, bytes: usize, now: Duration) -> Result<Duration, LogFull> {
        self.lock().take(u64::try_from(bytes).unwrap_or(u64::MAX), now)
    }

    /// Counts bytes that came and are not logged, and gives how long the bridge is not read from after them.
    pub(crate) fn pace(&self, bytes: usize, now: Duration) -> Duration {
        self.lock().pace(u64::try_from(bytes).unwrap_or(u64::MAX), now)
    }

    /// Lets go of what a session wrote that has ended.
    pub(crate) fn close(&self) {
        self.lock().close();
    }

    /// Whether the session may write at all.
    pub(crate) fn check(&self) -> Result<(), LogFull> {
        self.lock().check()
    }

    /// Bytes that the session wrote.
    pub(crate) fn total_bytes(&self) -> u64 {
        self.lock().total_bytes()
    }

    fn lock(&self) -> MutexGuard<'_, LogMeter> {
        self.meter.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
