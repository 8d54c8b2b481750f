//! How much sessions may write to the snapshot storage: a burst each, and then at a rate. Pure.

use std::{collections::HashMap, time::Duration};

use ash_core::id::SessionId;
use tokio::time::Instant;

use crate::limits::SNAPSHOT_BYTES_PER_SECOND;

/// What one session has left. Below zero is what it owes.
#[derive(Debug, Clone, Copy)]
struct Allowance {
    level: i64,
    at: Instant,
}

/// Those of all sessions that wrote something; the others have theirs in full.
#[derive(Debug)]
pub(super) struct Allowances {
    burst: i64,
    sessions: HashMap<SessionId, Allowance>,
}

impl Allowances {
    /// `burst` bytes for each.
    pub(super) fn new(burst: u64) -> Self {
        Self { burst: i64::try_from(burst).unwrap_or(i64::MAX), sessions: HashMap::new() }
    }

    fn level(&self, allowance: Allowance, now: Instant) -> i64 {
        let seconds = now.saturating_duration_since(allowance.at).as_secs();
        let earned = i64::try_from(seconds.saturating_mul(SNAPSHOT_BYTES_PER_SECOND)).unwrap_or(i64::MAX);
        allowance.level.saturating_add(earned).min(self.burst)
    }

    /// Whether a session may write now. One that leaves its sandbox may owe as much as it may have.
    pub(super) fn may_write(&self, session: SessionId, is_leaving: bool, now: Instant) -> bool {
        let level = self.sessions.get(&session).map_or(self.burst, |known| self.level(*known, now));
        level > if is_leaving { -self.burst } else { 0 }
    }

    /// Counts what a session wrote.
    pub(super) fn spend(&mut self, session: SessionId, bytes: u64, now: Instant) {
        if bytes == 0 {
            return;
        }
        let level = self.sessions.get(&session).map_or(self.burst, |known| self.level(*known, now));
        if self.sessions.len() == self.sessions.capacity() {
            let mut sessions = std::mem::take(&mut self.sessions);
            sessions.retain(|_, known| self.level(*known, now) < self.burst);
            self.sessions = sessions;
        }
        let level = level.saturating_sub(i64::try_from(bytes).unwrap_or(i64::MAX));
        self.sessions.insert(session, Allowance { level, at: now });
    }
}

/// How long so many bytes may take, at a rate and with what everything takes that has to do with a sandbox.
pub(super) fn time_for(base: Duration, bytes: u64, bytes_per_second: u64) -> Duration {
    base.saturating_add(Duration::from_secs(bytes / bytes_per_second.max(1)))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use ash_core::id::SessionId;
    use tokio::time::Instant;

    use super::Allowances;
    use crate::limits::SNAPSHOT_BYTES_PER_SECOND;

    #[test]
    fn a_session_writes_a_burst_and_then_at_a_rate() {
        const BURST: u64 = 100 << 20;
        let mut allowances = Allowances::new(BURST);
        let (session, other) = (SessionId::new(), SessionId::new());
        let start = Instant::now();
        let later = |bytes: u64| start + Duration::from_secs(bytes.div_ceil(SNAPSHOT_BYTES_PER_SECOND) + 1);
        assert!(allowances.may_write(session, false, start));
        // What was begun is written, also beyond.
        allowances.spend(session, BURST + (50 << 20), start);
        assert!(!allowances.may_write(session, false, start) && allowances.may_write(session, true, start));
        assert!(allowances.may_write(other, false, start));
        assert!(!allowances.may_write(session, false, later(49 << 20)));
        assert!(allowances.may_write(session, false, later(50 << 20)));
        allowances.spend(session, 50 << 20, start);
        assert!(!allowances.may_write(session, true, start), "it owes as much as it may have");
        // No more than a burst is saved.
        let much_later = later(1000 * BURST);
        allowances.spend(session, BURST, much_later);
        assert!(!allowances.may_write(session, false, much_later));
    }
}
