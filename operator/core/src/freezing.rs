//! When a runner freezes, goes on, and ends. Pure: time is passed in, of the runner's own monotonic clock.
//!
//! A runner may be called lost [`LOST_AFTER`] after a coordinator wrote that it lives. Its sessions answer elsewhere then, so it has
//! to have stopped before: it serves for [`FREEZE_AFTER`] from the moment at which it *began* to say what was answered, which is
//! never later than what was written. The [`MARGIN`] between the two is for stopping, and for clocks that do not go alike.
//!
//! An answer of a coordinator that cannot write keeps a runner going, which is safe by the rules of [`crate::loss`], and never
//! thaws one: between its freezing and such an answer it may have been called lost.

use std::time::Duration;

use crate::{
    loss::{LOST_AFTER, RESTART},
    placement::HEARTBEAT,
};

/// How long a runner serves that nobody answers: 2 heartbeats.
pub const FREEZE_AFTER: Duration = Duration::from_secs(2 * HEARTBEAT.as_secs());
/// The time between a runner's freezing and the first moment at which it may be called lost: 1 heartbeat.
pub const MARGIN: Duration = Duration::from_secs(LOST_AFTER.as_secs() - FREEZE_AFTER.as_secs());
/// How long a runner serves that announced a restart: it is called lost after [`RESTART`].
pub const RESTART_SERVED: Duration = Duration::from_secs(RESTART.as_secs() - MARGIN.as_secs());

/// What a runner heard, or that time has passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// A heartbeat was answered.
    Heard {
        /// When the runner began to send it.
        begun: Duration,
        /// Whether it is in the store that the runner lives.
        written: bool,
    },
    /// The store does not know the runner (any more): it may have been called lost, and its sessions may be served elsewhere.
    Unregistered,
    /// A registration was answered, and what the answer says is done: sessions that are served elsewhere are given up.
    Registered {
        /// When the runner began to register.
        begun: Duration,
    },
    /// It is in the store that the runner starts anew (after SIGTERM).
    Announced {
        /// When the runner began to say so.
        begun: Duration,
    },
    /// Another process is registered under the runner's name.
    Superseded,
    /// Nothing but time.
    Time,
}

/// What a runner has to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// It stops its sandboxes, cuts what is open, and serves nobody.
    Freeze,
    /// It goes on.
    Thaw,
    /// It serves nobody any more, and ends its sandboxes.
    End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Phase {
    Serving,
    Frozen,
    Ended,
}

/// What a runner knows of its own life in the fleet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Freezing {
    phase: Phase,
    /// It serves until then, in the phase in which it serves.
    until: Duration,
    /// It was not registered when it last heard of that, and no answer to a registration has come since. One may have come to the
    /// store: so what is written of its heartbeats says nothing of its sessions.
    unregistered: bool,
}

impl Freezing {
    /// A runner that is registered; it began to register at `begun`.
    pub fn registered(begun: Duration) -> Self {
        Self { phase: Phase::Serving, until: begun + FREEZE_AFTER, unregistered: false }
    }

    /// Whether it serves: its sandboxes run, and have an answer of the model; its readers are given what there is.
    pub fn serves(&self, now: Duration) -> bool {
        self.phase == Phase::Serving && now < self.until
    }

    /// Until when it serves if it hears nothing more; `None` where it does not serve.
    pub fn until(&self) -> Option<Duration> {
        (self.phase == Phase::Serving).then_some(self.until)
    }

    /// Whether it has to register before it may go on.
    pub fn has_to_register(&self) -> bool {
        self.unregistered && self.phase != Phase::Ended
    }

    /// Takes in what happened by `now`, and says what to do.
    pub fn learn(&mut self, news: News, now: Duration) -> Option<Order> {
        if self.phase == Phase::Ended {
            return None;
        }
        let serves = self.serves(now);
        match news {
            News::Superseded => {
                self.phase = Phase::Ended;
                return Some(Order::End);
            }
            News::Unregistered => self.unregistered = true,
            News::Registered { begun } => {
                self.unregistered = false;
                self.until = self.until.max(begun + FREEZE_AFTER);
            }
            News::Heard { .. } | News::Announced { .. } if self.unregistered => {}
            News::Heard { begun, written } if serves || written => self.until = self.until.max(begun + FREEZE_AFTER),
            News::Announced { begun } if serves => self.until = self.until.max(begun + RESTART_SERVED),
            // One that does not serve any more is thawed by what was written of a heartbeat only.
            News::Heard { .. } | News::Announced { .. } | News::Time => {}
        }
        let may_serve = now < self.until;
        match self.phase {
            Phase::Serving if !may_serve => {
                self.phase = Phase::Frozen;
                Some(Order::Freeze)
            }
            Phase::Frozen if may_serve => {
                self.phase = Phase::Serving;
                Some(Order::Thaw)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod model;
#[cfg(test)]
mod tests;
