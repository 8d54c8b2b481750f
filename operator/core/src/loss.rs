//! When a runner is lost, and what a coordinator may say that cannot write. Pure: time is passed in.
//!
//! A runner is lost after [`LOST_AFTER`] in which no coordinator wrote that it lives. A coordinator that cannot reach the store may
//! hear runners that the others do not know to live; so it answers them for [`ANSWERS_UNWRITTEN`] only, and nobody is called lost
//! while a coordinator that did not deregister has been silent in the store for more than [`SILENT_AFTER`] and less than
//! [`GONE_AFTER`]. One that can write again writes first whom it heard, and then its own row: a property test found that it has to.
//! And only a coordinator that could write all that time may say that nobody else did.

use std::time::Duration;

use uuid::Uuid;

use crate::{
    fleet::RunnerId,
    ports::{CoordinatorRow, RunnerRow},
};

/// How long a runner may be silent: 3 heartbeats. Then it is lost.
pub const LOST_AFTER: Duration = Duration::from_secs(15);
/// How long a runner that announced a restart may be silent.
pub const RESTART: Duration = Duration::from_secs(60);
/// How often a coordinator writes its row.
pub const OWN_ROW: Duration = Duration::from_secs(2);
/// The silence of a coordinator after which it may be one that cannot write.
pub const SILENT_AFTER: Duration = Duration::from_secs(5);
/// How long a coordinator that cannot write goes on answering heartbeats.
pub const ANSWERS_UNWRITTEN: Duration = Duration::from_secs(60);
/// The silence of a coordinator after which it answers nobody any more: [`ANSWERS_UNWRITTEN`] and a margin.
pub const GONE_AFTER: Duration = Duration::from_secs(75);

/// What a coordinator knows of its own writing. Times are of its own monotonic clock.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct OwnWrites {
    /// Since when every write of its row came through in time.
    since: Option<Duration>,
    /// When the last write that came through was begun.
    last: Option<Duration>,
}

impl OwnWrites {
    /// Its row was written; the write was begun at `begun`.
    pub fn wrote(&mut self, begun: Duration) {
        let in_time = self.last.is_some_and(|last| begun.saturating_sub(last) <= SILENT_AFTER);
        if !in_time || self.since.is_none() {
            self.since = Some(begun);
        }
        self.last = Some(begun);
    }

    /// Its row could not be written.
    pub fn failed(&mut self) {
        self.since = None;
    }

    /// Whether it may call runners lost: it could write for as long as they have to be silent.
    pub fn may_judge(&self, now: Duration) -> bool {
        let recent = self.last.is_some_and(|last| now.saturating_sub(last) <= SILENT_AFTER);
        recent && self.since.is_some_and(|since| now.saturating_sub(since) >= LOST_AFTER)
    }

    /// The same by a clock that shows so much less; what is older than what matters becomes as old as that.
    #[cfg(test)]
    pub(crate) fn aged(self, by: Duration, oldest_since: Duration, oldest_last: Duration) -> Self {
        let aged = |time: Duration, oldest: Duration| time.saturating_sub(by).max(oldest);
        Self {
            since: self.since.map(|since| aged(since, oldest_since)),
            last: self.last.map(|last| aged(last, oldest_last)),
        }
    }

    /// Whether it may tell a runner that it was heard although that cannot be written now.
    pub fn may_answer_unwritten(&self, now: Duration) -> bool {
        self.last.is_some_and(|last| now.saturating_sub(last) < ANSWERS_UNWRITTEN)
    }
}

/// Whether a coordinator may be hearing runners without being able to write it.
pub fn may_hear_unwritten(coordinator: &CoordinatorRow) -> bool {
    coordinator.silent > SILENT_AFTER && coordinator.silent < GONE_AFTER
}

/// Whether a runner has been silent for too long.
pub fn is_overdue(runner: &RunnerRow) -> bool {
    runner.silent >= LOST_AFTER && runner.restarting.is_none_or(|rest| rest.is_zero())
}

/// The runners that are lost, as far as this coordinator may say so.
pub fn lost(
    own: Uuid,
    writes: &OwnWrites,
    now: Duration,
    runners: &[RunnerRow],
    coordinators: &[CoordinatorRow],
) -> Vec<RunnerId> {
    let is_known = coordinators.iter().any(|one| one.id == own);
    if !is_known || !writes.may_judge(now) || coordinators.iter().any(may_hear_unwritten) {
        return Vec::new();
    }
    runners.iter().filter(|runner| is_overdue(runner)).map(|runner| runner.id.clone()).collect()
}

#[cfg(test)]
mod tests;
