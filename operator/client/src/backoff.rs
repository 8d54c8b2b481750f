//! How long to wait before the next attempt to reconnect.

use std::time::Duration;

/// The longest wait that a server's `Retry-After` is followed: 30 s.
const LONGEST_RETRY_AFTER: Duration = Duration::from_secs(30);

/// How a stream reconnects. With the default it goes on for about 40 s without a sign of life, long enough for a server to be
/// started again; then the stream ends with the last error.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reconnect {
    /// The wait before the first attempt; each further one waits twice as long.
    pub first: Duration,
    /// The longest wait.
    pub longest: Duration,
    /// Attempts in a row without a sign of life (a new frame, or a comment) at the most.
    pub attempts: u32,
}

impl Default for Reconnect {
    fn default() -> Self {
        Self { first: Duration::from_millis(100), longest: Duration::from_secs(5), attempts: 13 }
    }
}

impl Reconnect {
    /// The wait before attempt `attempt` (from 1), or `None` where it would be one too many. `random` spreads the waits of many
    /// clients over the upper half of each.
    pub(crate) fn wait(self, attempt: u32, asked: Option<Duration>, random: u32) -> Option<Duration> {
        if attempt > self.attempts {
            return None;
        }
        let full = self.first.saturating_mul(1 << attempt.saturating_sub(1).min(20)).min(self.longest);
        let spread = (full / 2).mul_f64(f64::from(random) / f64::from(u32::MAX));
        let own = full / 2 + spread;
        Some(own.max(asked.unwrap_or_default().min(LONGEST_RETRY_AFTER)))
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Reconnect;

    #[test]
    fn waits_grow_to_their_bound_and_end() {
        let reconnect = Reconnect::default();
        let waits: Vec<_> = (1..).map_while(|attempt| reconnect.wait(attempt, None, u32::MAX)).collect();
        assert_eq!(waits.len(), 13);
        assert_eq!(waits.first(), Some(&Duration::from_millis(100)));
        assert_eq!(waits.last(), Some(&Duration::from_secs(5)));
        assert!(waits.is_sorted());
        assert_eq!(reconnect.wait(1, None, 0), Some(Duration::from_millis(50)));
    }

    #[test]
    fn a_servers_wish_is_followed_within_bounds() {
        let reconnect = Reconnect::default();
        assert_eq!(reconnect.wait(1, Some(Duration::from_secs(7)), 0), Some(Duration::from_secs(7)));
        assert_eq!(reconnect.wait(1, Some(Duration::from_secs(7000)), 0), Some(Duration::from_secs(30)));
    }
}
