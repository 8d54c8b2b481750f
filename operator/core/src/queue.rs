//! Messages that wait for their turn: what may happen to each, and what is done next for the first of a session. Pure.
//!
//! A queue is rows of the store, so it is the same for every process. Whoever looks at it ([`step`]) decides from the row, the
//! session and the log; what it does is a compare-and-set of the row's version, so that of several who look at once one does it.
//! An entry is begun in two steps: it is claimed, which names the turn and how long nobody else is to try; then the message is sent
//! under that turn's id, which bridge, host and log take once. Whoever claimed may die in between: another one sends the same turn
//! again for as long as only one bridge can have had it (the [`fence`](QueueEntry::fence)), and calls the attempt lost otherwise.
//! So an attempt is begun at most once, and no entry is forgotten.

use std::time::Duration;

use ash_protocol::{
    message::{BridgeEvent, TurnFailure},
    options::TurnOptions,
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{
    Entry, EntryKind, Epoch,
    id::{SessionId, TenantId, TurnId},
    opening::{Opening, OpeningReason},
    session::{PausedReason, SessionEvent, SessionState},
};

/// Entries of a session that wait or are being begun, at the most.
pub const MAX_QUEUED: usize = 32;
/// Bytes of the messages of those, together, at the most: 8 MiB.
pub const MAX_QUEUED_BYTES: usize = 8 << 20;
/// Entries of a session that are over and still listed: the latest ones.
pub const MAX_SETTLED: usize = 64;
/// Further attempts that one may ask for.
pub const MAX_RETRIES: u32 = 5;
/// Characters of a message that a listing shows.
pub const MAX_PREVIEW_CHARS: usize = 200;
/// How long a claimed entry is left to whoever claimed it, who says more often that it is still at it.
pub const CLAIM_LEASE: Duration = Duration::from_secs(15);
/// The pause before an entry is tried again that met no room, or a process that stops.
pub const NO_ROOM_PAUSE: Duration = Duration::from_secs(5);
/// The pause before the next attempt at an entry whose attempt was cut off.
pub const RETRY_PAUSE: Duration = Duration::from_secs(5);
/// The pause before an entry is tried again that met a turn which the log does not have yet.
pub const BUSY_PAUSE: Duration = Duration::from_secs(1);

/// What is said of entries whose session ended.
pub const SESSION_ENDED: &str = "The session ended before its turn came.";
/// What is said of an attempt of which nobody knows whether it began.
pub const LOST: &str =
    "Whoever was beginning it was lost, and it may have begun; look at the history, and send it again.";

/// A message in a session's queue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueEntry {
    /// Its name: the turn of its first attempt. A UUID of version 5, by which the turn is found again in the log.
    pub id: TurnId,
    /// The session.
    pub session: SessionId,
    /// Whose it is.
    pub tenant: TenantId,
    /// Its place: lower ones come first. Never used again within a session.
    pub position: u64,
    /// What has become of it.
    pub state: EntryState,
    /// The attempt that runs, or ran last, from 1; 0 before the first.
    pub attempt: u32,
    /// Further attempts after one that was cut off; 0 unless asked for.
    pub retries: u32,
    /// The last epoch whose bridge can be given the attempt by whoever claimed it.
    pub fence: Epoch,
    /// Counts its changes: each is a compare-and-set.
    pub version: u64,
    /// The beginning of its text.
    pub preview: String,
    /// Why it failed, or was cancelled: a sentence.
    pub error: Option<String>,
    /// When it was queued.
    pub created_at: Timestamp,
}

impl QueueEntry {
    /// The turn of the current attempt, or of the first one.
    pub fn turn(&self) -> TurnId {
        self.id.of_attempt(self.attempt)
    }

    /// The entry after an event. A claim begins the next attempt; one that is released was not begun, and is the next one again.
    pub fn after(&self, event: EntryEvent, fence: Option<Epoch>, error: Option<String>) -> Result<Self, NotInQueue> {
        let attempt = match event {
            EntryEvent::Claim => self.attempt + 1,
            EntryEvent::Release => self.attempt.saturating_sub(1),
            _ => self.attempt,
        };
        Ok(Self {
            state: self.state.after(event)?,
            attempt,
            fence: fence.unwrap_or(self.fence),
            version: self.version + 1,
            error,
            ..self.clone()
        })
    }
}

/// What an entry says, and the options of its turn: kept as one JSON.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct QueuedMessage {
    /// A JSON string or an array of content blocks, as it came.
    pub content: Box<RawValue>,
    /// The options of the turn.
    pub options: TurnOptions,
}

impl QueuedMessage {
    /// The beginning of its text, for listings: at most [`MAX_PREVIEW_CHARS`], on one line.
    pub fn preview(&self) -> String {
        #[derive(Deserialize)]
        struct Block {
            text: Option<String>,
        }
        let text = serde_json::from_str::<String>(self.content.get()).ok().or_else(|| {
            let blocks: Vec<Block> = serde_json::from_str(self.content.get()).ok()?;
            blocks.into_iter().find_map(|block| block.text)
        });
        let plain = |character: char| if character.is_control() { ' ' } else { character };
        text.unwrap_or_default().chars().take(MAX_PREVIEW_CHARS).map(plain).collect()
    }
}

/// What has become of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EntryState {
    /// It waits.
    Pending,
    /// It was claimed: its turn is about to begin, or runs.
    Processing,
    /// Its turn came to Claude Code's own result, whatever that says.
    Completed,
    /// Its turn was cut off, or could not begin.
    Failed,
    /// It was taken back, or its session ended before it began.
    Cancelled,
}

/// What happens to an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum EntryEvent {
    /// Somebody begins it.
    Claim,
    /// It was not begun after all: it waits again.
    Release,
    /// Its turn came to a result.
    Complete,
    /// Its attempt was cut off, and another one is allowed.
    Retry,
    /// Its attempt was cut off, or cannot begin.
    Fail,
    /// A person takes it back.
    TakeBack,
    /// Its session ended.
    SessionEnds,
}

/// Why an event cannot happen to an entry. HTTP 409.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the entry is {}: {}", .0.name(), .0.advice())]
pub struct NotInQueue(pub EntryState);

impl EntryState {
    /// Every state.
    pub const ALL: [Self; 5] = [Self::Pending, Self::Processing, Self::Completed, Self::Failed, Self::Cancelled];

    /// Its name in the API and the store.
    pub fn name(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Processing => "processing",
            Self::Completed => "completed",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    /// The state of a name; `None` for what no release wrote.
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.name() == name)
    }

    /// Whether it is still to come, or is being begun.
    pub fn is_open(self) -> bool {
        matches!(self, Self::Pending | Self::Processing)
    }

    fn advice(self) -> &'static str {
        match self {
            Self::Processing => "its turn has come; interrupt the session to end it",
            _ => "nothing of it is left to be done",
        }
    }

    /// The state after an event. Total: every pair is decided. `-` is refused.
    ///
    /// | event | pending | processing | completed | failed | cancelled |
    /// |---|---|---|---|---|---|
    /// | claim | processing | - | - | - | - |
    /// | release | - | pending | - | - | - |
    /// | complete | - | completed | - | - | - |
    /// | retry | - | pending | - | - | - |
    /// | fail | failed | failed | - | - | - |
    /// | take back | cancelled | - | - | - | cancelled |
    /// | session ends | cancelled | failed | - | - | - |
    pub fn after(self, event: EntryEvent) -> Result<Self, NotInQueue> {
        use EntryEvent as Event;
        Ok(match (self, event) {
            (Self::Pending, Event::Claim) => Self::Processing,
            (Self::Processing, Event::Release | Event::Retry) => Self::Pending,
            (Self::Processing, Event::Complete) => Self::Completed,
            (Self::Pending | Self::Processing, Event::Fail) | (Self::Processing, Event::SessionEnds) => Self::Failed,
            (Self::Pending | Self::Cancelled, Event::TakeBack) | (Self::Pending, Event::SessionEnds) => Self::Cancelled,
            (state, _) => return Err(NotInQueue(state)),
        })
    }
}

/// What the store knows beside the first open entry of a session, read at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// The session's state.
    pub state: SessionState,
    /// Its epoch.
    pub epoch: Epoch,
    /// Whether it has a sandbox.
    pub has_sandbox: bool,
    /// Whether a turn has begun and not ended, as far as the log knows.
    pub turn_runs: bool,
    /// What the log has of the attempt's turn.
    pub attempt: Logged,
    /// The pause before the entry is tried, or the lease of whoever claimed it, is over.
    pub is_due: bool,
}

/// What the log has of a turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Logged {
    /// Nothing.
    Nothing,
    /// Its beginning.
    Begun,
    /// Its end, which came to this.
    Ended(Ending),
}

/// What a turn came to, as far as its queue is concerned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ending {
    /// Claude Code's own result, an error or not, or what a person made of it.
    Result,
    /// It was cut off for this reason. Another attempt may do better where that is `true`.
    Cut(String, bool),
}

impl Ending {
    /// What the entry that ended a turn says of it.
    pub fn of(entry: &Entry) -> Self {
        const UNKNOWN: &str = "The turn was interrupted.";
        match entry.kind {
            EntryKind::Opening => {
                let Ok(opening) = Opening::read(&entry.body) else { return Self::Cut(UNKNOWN.to_owned(), false) };
                let by_person = matches!(opening.reason, OpeningReason::Suspended | OpeningReason::Ended);
                Self::Cut(opening.message.unwrap_or_else(|| UNKNOWN.to_owned()), !by_person)
            }
            EntryKind::Bridge => match serde_json::from_slice(&entry.body) {
                Ok(BridgeEvent::TurnFailed { category, message, .. }) => {
                    Self::Cut(message, category != TurnFailure::OptionRefused)
                }
                _ => Self::Cut(UNKNOWN.to_owned(), false),
            },
            _ => Self::Result,
        }
    }
}

/// What is done next for the first open entry of a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Nothing: something else has to happen first.
    Wait,
    /// Claim it, then send its message. Whoever claims it may give it to bridges up to this epoch.
    Claim(Epoch),
    /// Send its message again under the same turn: the claim's owner is gone, and only one bridge can have had it. Whoever does
    /// it takes the lease.
    Resend,
    /// It is over, or waits for its next attempt.
    Settle(EntryEvent, Option<String>),
}

/// The epoch up to which a bridge can be given an attempt that is claimed now: that of the bridge which the session is on, else
/// that of the next claim of a sandbox.
pub fn fence(facts: &Facts) -> Epoch {
    if facts.has_sandbox && facts.state == SessionState::Active { facts.epoch } else { next(facts.epoch) }
}

fn next(epoch: Epoch) -> Epoch {
    epoch.next().unwrap_or(epoch)
}

/// Whether the epoch that made this state began when everything of the one before was written.
fn was_left_in_peace(state: SessionState) -> bool {
    match state {
        SessionState::Paused(reason) => reason != PausedReason::Lost,
        SessionState::Stopped => true,
        SessionState::Starting | SessionState::Active | SessionState::Ended | SessionState::Error => false,
    }
}

/// What is done next for the first open entry of a session.
pub fn step(entry: &QueueEntry, facts: &Facts) -> Step {
    let ended = facts.state == SessionState::Ended;
    match (entry.state, &facts.attempt) {
        (EntryState::Pending, _) if ended => settle_by_end(),
        (EntryState::Pending, _) => {
            let may_begin = facts.state.after(SessionEvent::Message).is_ok();
            // Without a sandbox no turn runs: one that the log has left open is ended by the next opening.
            let turn_runs = facts.turn_runs && facts.has_sandbox;
            if may_begin && facts.is_due && !turn_runs { Step::Claim(fence(facts)) } else { Step::Wait }
        }
        (EntryState::Processing, Logged::Ended(Ending::Result)) => Step::Settle(EntryEvent::Complete, None),
        (EntryState::Processing, Logged::Ended(Ending::Cut(reason, may_retry))) => {
            cut(entry, reason, *may_retry && !ended)
        }
        (EntryState::Processing, Logged::Begun) => Step::Wait,
        (EntryState::Processing, Logged::Nothing) if ended => settle_by_end(),
        (EntryState::Processing, Logged::Nothing) if !facts.is_due => Step::Wait,
        // A sandbox that could not be started is the end of the attempt that asked for it.
        (EntryState::Processing, Logged::Nothing)
            if facts.state == SessionState::Error && facts.epoch >= entry.fence =>
        {
            cut(entry, "The session's sandbox could not be started.", true)
        }
        // The only bridge that can have had it was left in peace, with all that it had written: the turn was not begun.
        (EntryState::Processing, Logged::Nothing)
            if was_left_in_peace(facts.state) && facts.epoch <= next(entry.fence) =>
        {
            Step::Settle(EntryEvent::Release, None)
        }
        (EntryState::Processing, Logged::Nothing) if facts.epoch > entry.fence => cut(entry, LOST, true),
        (EntryState::Processing, Logged::Nothing) => Step::Resend,
        (EntryState::Completed | EntryState::Failed | EntryState::Cancelled, _) => Step::Wait,
    }
}

fn settle_by_end() -> Step {
    Step::Settle(EntryEvent::SessionEnds, Some(SESSION_ENDED.to_owned()))
}

/// What becomes of an entry whose attempt was cut off.
pub fn cut(entry: &QueueEntry, reason: &str, may_retry: bool) -> Step {
    let event = if may_retry && entry.attempt <= entry.retries { EntryEvent::Retry } else { EntryEvent::Fail };
    Step::Settle(event, Some(reason.to_owned()))
}

#[cfg(test)]
mod histories;
#[cfg(test)]
mod tests;
