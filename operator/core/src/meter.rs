//! How much a session may write to its log: how fast in the long run, and how much in all.
//!
//! Entries fill a bucket that time drains. While it is not over its rim nothing waits; over it, the writer pauses until it is not.
//! So a burst passes at once, and a flood is slowed down to the rate. What was written in all is counted too: at the quota
//! nothing more is taken.

use std::time::Duration;

/// What one session may write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogBounds {
    /// Bytes that may come at once.
    pub burst_bytes: u64,
    /// Bytes per second in the long run; at least 1.
    pub bytes_per_second: u64,
    /// Bytes in all.
    pub quota_bytes: u64,
}

/// What one session wrote.
#[derive(Debug, Clone)]
pub struct LogMeter {
    bounds: LogBounds,
    /// What is in the bucket, and when it was so.
    level_bytes: u64,
    at: Duration,
    total_bytes: u64,
    full: bool,
}

/// The log has reached its quota. Stays so.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("The session's log has reached its quota of {} MiB: begin another session.", quota_bytes >> 20)]
pub struct LogFull {
    /// Bytes that a session's log may take.
    pub quota_bytes: u64,
}

impl LogMeter {
    /// The meter of a session that wrote nothing yet, as far as its host knows.
    pub fn new(bounds: LogBounds) -> Self {
        Self { bounds, level_bytes: 0, at: Duration::ZERO, total_bytes: 0, full: false }
    }

    /// Takes so many bytes, at a time of a clock that does not go back. Gives how long the writer pauses now, before it writes
    /// more. What would go beyond the quota is not taken, nor is anything after it.
    ///
    /// # Errors
    /// [`LogFull`] at the quota.
    pub fn take(&mut self, bytes: u64, now: Duration) -> Result<Duration, LogFull> {
        let total_bytes = self.total_bytes.saturating_add(bytes);
        self.full |= total_bytes > self.bounds.quota_bytes;
        self.check()?;
        self.total_bytes = total_bytes;
        Ok(self.pace(bytes, now))
    }

    /// Counts bytes that are not written to the log, and cost their reader as much: as [`take`](Self::take), without the quota.
    pub fn pace(&mut self, bytes: u64, now: Duration) -> Duration {
        self.level_bytes = self.level_bytes.saturating_sub(self.drained(now)).saturating_add(bytes);
        self.at = self.at.max(now);
        let over = self.level_bytes.saturating_sub(self.bounds.burst_bytes);
        // Rounded up to a whole millisecond, so that no pause is too short.
        Duration::from_millis(over.saturating_mul(1000).div_ceil(self.bounds.bytes_per_second.max(1)))
    }

    /// Lets go of what was counted in all: a session that has ended writes nothing more.
    pub fn close(&mut self) {
        self.total_bytes = 0;
        self.full = true;
    }

    /// Whether a session may go on.
    ///
    /// # Errors
    /// [`LogFull`] where it reached its quota.
    pub fn check(&self) -> Result<(), LogFull> {
        if self.full { Err(LogFull { quota_bytes: self.bounds.quota_bytes }) } else { Ok(()) }
    }

    /// Bytes taken in all.
    pub fn total_bytes(&self) -> u64 {
        self.total_bytes
    }

    fn drained(&self, now: Duration) -> u64 {
        let passed = now.saturating_sub(self.at).as_nanos().saturating_mul(u128::from(self.bounds.bytes_per_second));
        u64::try_from(passed / 1_000_000_000).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::{LogBounds, LogFull, LogMeter};

    const BOUNDS: LogBounds = LogBounds { burst_bytes: 1000, bytes_per_second: 100, quota_bytes: 50_000 };

    proptest! {
        #[test]
        fn a_writer_that_pauses_as_told_keeps_to_rate_and_quota(
            writes in prop::collection::vec((0u64..3000, 0u64..20_000), 1..100),
        ) {
            let mut meter = LogMeter::new(BOUNDS);
            let (mut now, mut total, mut full) = (Duration::ZERO, 0, false);
            for (bytes, idle_ms) in writes {
                match meter.take(bytes, now) {
                    Ok(pause) => {
                        prop_assert!(!full);
                        // What was written before this write, and has been paused for, fits the burst and the rate.
                        let rate = u64::try_from(now.as_millis()).unwrap_or(u64::MAX) * BOUNDS.bytes_per_second / 1000;
                        prop_assert!(total <= BOUNDS.burst_bytes + rate, "{total} by {now:?}");
                        total += bytes;
                        now += pause + Duration::from_millis(idle_ms);
                    }
                    Err(LogFull { quota_bytes }) => {
                        prop_assert!(full || total + bytes > quota_bytes);
                        full = true;
                    }
                }
                prop_assert_eq!(meter.total_bytes(), total);
                prop_assert!(total <= BOUNDS.quota_bytes);
                prop_assert_eq!(meter.check().is_err(), full);
            }
        }

        #[test]
        fn a_burst_does_not_wait(parts in prop::collection::vec(0u64..100, 0..10)) {
            let mut meter = LogMeter::new(BOUNDS);
            for bytes in parts {
                prop_assert_eq!(meter.take(bytes, Duration::from_secs(5)), Ok(Duration::ZERO));
            }
        }
    }

    #[test]
    fn a_flood_waits_until_the_bucket_is_not_over_its_rim() {
        let mut meter = LogMeter::new(BOUNDS);
        assert_eq!(meter.take(1500, Duration::ZERO), Ok(Duration::from_secs(5)));
        assert_eq!(meter.take(0, Duration::from_secs(5)), Ok(Duration::ZERO));
        assert_eq!(meter.take(100, Duration::from_secs(5)), Ok(Duration::from_secs(1)));
        assert_eq!(
            meter.pace(100, Duration::from_secs(5)),
            Duration::from_secs(2),
            "what is not logged is slowed down too"
        );
        assert_eq!(meter.total_bytes(), 1600);
    }
}
