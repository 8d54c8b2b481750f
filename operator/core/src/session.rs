//! Sessions and their states.

use std::collections::BTreeMap;

use ash_protocol::options::SessionOptions;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    Epoch, Sequence,
    id::{AgentId, SandboxId, SessionId, TenantId},
    name::AgentName,
    opening::OpeningReason,
};

/// One durable conversation with one agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Session {
    /// Its id.
    pub id: SessionId,
    /// Whose it is.
    pub tenant: TenantId,
    /// The agent.
    pub agent: AgentId,
    /// The agent's name when the session was made.
    pub agent_name: AgentName,
    /// The agent's version, kept for the session's life.
    pub agent_version: u32,
    /// Its state.
    pub state: SessionState,
    /// Why it is in `error`: a sentence.
    pub error: Option<String>,
    /// The sandbox that serves it, if one does.
    pub sandbox: Option<SandboxId>,
    /// Its options, complete.
    pub options: SessionOptions,
    /// What its maker keeps with it.
    pub metadata: BTreeMap<String, String>,
    /// The model API refused its credential when it was last asked.
    #[serde(default)]
    pub model_refused: bool,
    /// A stored credential for the model, in place of the agent's or the server's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credential: Option<uuid::Uuid>,
    /// The current epoch of its log.
    pub epoch: Epoch,
    /// The last committed entry of its log.
    pub last: Sequence,
    /// When it was made.
    pub created_at: Timestamp,
    /// When its state or its options last changed or a turn last began or ended.
    pub last_active_at: Timestamp,
}

/// The state of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "name", content = "reason", rename_all = "lowercase")]
pub enum SessionState {
    /// Declared, not admitted yet.
    Starting,
    /// Takes messages.
    Active,
    /// Put aside, with its reason.
    Paused(PausedReason),
    /// Stopped by a person.
    Stopped,
    /// Final.
    Ended,
    /// Its sandbox could not start; a message tries again.
    Error,
}

/// Why a session is paused. All but [`PausedReason::Person`] are sleep: a message wakes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum PausedReason {
    /// A person paused it.
    Person,
    /// Nobody used it for a while.
    Idle,
    /// Its sandbox was needed for another session.
    Evicted,
    /// Its server or node was taken out of service.
    Drained,
    /// Its sandbox was lost.
    Lost,
}

/// What happens to a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SessionEvent {
    /// It was admitted.
    Admit,
    /// A message came.
    Message,
    /// A message came that may wait for its turn.
    Queue,
    /// It left its sandbox for this reason.
    Pause(PausedReason),
    /// A person resumed it.
    Resume,
    /// A person stopped it.
    Stop,
    /// It was ended.
    End,
    /// Its sandbox could not start.
    Fail,
    /// A person ends the turn in progress.
    Interrupt,
    /// A person changes its options.
    Configure,
    /// Another session begins with its conversation and its files.
    Fork,
}

/// What a person wants that takes a session off its sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Closing {
    /// Put it aside, to be resumed.
    Pause,
    /// The same, under the other name that clients know.
    Stop,
    /// For good.
    End,
}

impl Closing {
    /// What it is for the session's state.
    pub fn event(self) -> SessionEvent {
        match self {
            Self::Pause => SessionEvent::Pause(PausedReason::Person),
            Self::Stop => SessionEvent::Stop,
            Self::End => SessionEvent::End,
        }
    }

    /// What it is for the session's log.
    pub fn reason(self) -> OpeningReason {
        match self {
            Self::Pause | Self::Stop => OpeningReason::Suspended,
            Self::End => OpeningReason::Ended,
        }
    }

    /// What the readers of a turn are told that it interrupted.
    pub fn message(self) -> &'static str {
        match self {
            Self::Pause => "The session was paused.",
            Self::Stop => "The session was stopped.",
            Self::End => "The session was ended.",
        }
    }
}

/// Why an event cannot happen in a state. Maps to HTTP 400, except for resuming an ended session: 410.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("Session is {}", .0.name())]
pub struct Impossible(pub SessionState);

impl SessionState {
    /// Every state.
    pub const ALL: [Self; 10] = [
        Self::Starting,
        Self::Active,
        Self::Paused(PausedReason::Person),
        Self::Paused(PausedReason::Idle),
        Self::Paused(PausedReason::Evicted),
        Self::Paused(PausedReason::Drained),
        Self::Paused(PausedReason::Lost),
        Self::Stopped,
        Self::Ended,
        Self::Error,
    ];

    /// The state's name in the API and the store.
    pub fn name(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Active => "active",
            Self::Paused(_) => "paused",
            Self::Stopped => "stopped",
            Self::Ended => "ended",
            Self::Error => "error",
        }
    }

    /// Why it is paused, where it is.
    pub fn paused_reason(self) -> Option<PausedReason> {
        match self {
            Self::Paused(reason) => Some(reason),
            _ => None,
        }
    }

    /// The state behind a name and a reason of the store; `None` for what no release wrote.
    pub fn from_parts(name: &str, reason: Option<PausedReason>) -> Option<Self> {
        Some(match (name, reason) {
            ("starting", _) => Self::Starting,
            ("active", _) => Self::Active,
            ("paused", Some(reason)) => Self::Paused(reason),
            ("stopped", _) => Self::Stopped,
            ("ended", _) => Self::Ended,
            ("error", _) => Self::Error,
            _ => return None,
        })
    }

    /// The state after an event. Total: every pair is decided. `=` stays as it is, `-` is refused.
    ///
    /// | event | starting | active | asleep | paused | stopped | ended | error |
    /// |---|---|---|---|---|---|---|---|
    /// | admit | active | = | = | = | = | - | = |
    /// | message | active | = | active | - | - | - | active |
    /// | queue | = | = | = | - | - | - | = |
    /// | sleep | asleep | asleep | asleep | = | = | = | = |
    /// | pause | paused | paused | paused | = | - | - | paused |
    /// | resume | active | = | active | active | active | - | active |
    /// | stop | stopped | stopped | stopped | stopped | = | - | stopped |
    /// | end | ended | ended | ended | ended | ended | = | ended |
    /// | fail | error | error | error | = | = | = | = |
    /// | interrupt | = | = | = | = | = | = | = |
    /// | configure | = | = | = | = | = | - | = |
    /// | fork | - | = | = | = | = | = | = |
    ///
    /// *asleep* is paused for a reason other than a person's, *sleep* the pause for one; *paused* is by a person. A message wakes
    /// what sleeps and retries what failed; one that may wait changes nothing by itself. What a person chose is changed by a
    /// person's wish only: sleep, loss and failure leave it as it is. What has ended can still be read, and so forked; what was
    /// not admitted yet has nothing to fork.
    pub fn after(self, event: SessionEvent) -> Result<Self, Impossible> {
        use SessionEvent as Event;
        let chosen = matches!(self, Self::Paused(PausedReason::Person) | Self::Stopped);
        match (self, event) {
            (_, Event::Interrupt) => Ok(self),
            (Self::Ended, Event::End | Event::Fail | Event::Fork) => Ok(Self::Ended),
            (Self::Ended, Event::Pause(reason)) if reason != PausedReason::Person => Ok(Self::Ended),
            (Self::Ended, _) | (Self::Starting, Event::Fork) => Err(Impossible(self)),
            (_, Event::Configure | Event::Fork) => Ok(self),
            (_, Event::End) => Ok(Self::Ended),
            (_, Event::Stop) => Ok(Self::Stopped),
            (Self::Stopped, Event::Pause(PausedReason::Person)) => Err(Impossible(self)),
            (_, Event::Pause(PausedReason::Person)) => Ok(Self::Paused(PausedReason::Person)),
            (_, Event::Pause(_) | Event::Fail) if chosen => Ok(self),
            (_, Event::Message | Event::Queue) if chosen => Err(Impossible(self)),
            (_, Event::Queue) => Ok(self),
            (Self::Error, Event::Pause(_)) => Ok(Self::Error),
            (_, Event::Pause(reason)) => Ok(Self::Paused(reason)),
            (_, Event::Fail) => Ok(Self::Error),
            (_, Event::Message | Event::Resume) => Ok(Self::Active),
            (Self::Starting, Event::Admit) => Ok(Self::Active),
            (_, Event::Admit) => Ok(self),
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use proptest::prelude::*;

    use super::{PausedReason, SessionEvent, SessionState};

    fn reason() -> impl Strategy<Value = PausedReason> {
        prop::sample::select(vec![
            PausedReason::Person,
            PausedReason::Idle,
            PausedReason::Evicted,
            PausedReason::Drained,
            PausedReason::Lost,
        ])
    }

    fn event() -> impl Strategy<Value = SessionEvent> {
        prop_oneof![
            Just(SessionEvent::Admit),
            Just(SessionEvent::Message),
            reason().prop_map(SessionEvent::Pause),
            Just(SessionEvent::Resume),
            Just(SessionEvent::Stop),
            Just(SessionEvent::End),
            Just(SessionEvent::Fail),
            Just(SessionEvent::Queue),
            Just(SessionEvent::Interrupt),
            Just(SessionEvent::Configure),
            Just(SessionEvent::Fork),
        ]
    }

    /// The table of [`SessionState::after`], as its documentation has it.
    fn table() -> Vec<Vec<&'static str>> {
        let source = include_str!("session.rs");
        let lines = source.lines().map(str::trim).filter_map(|line| line.strip_prefix("/// | ")?.strip_suffix(" |"));
        lines.map(|line| line.split(" | ").map(|cell| cell.trim_matches([' ', '|'])).collect()).collect()
    }

    #[test]
    fn every_pair_is_decided_as_the_table_says() {
        let asleep = SessionState::Paused(PausedReason::Evicted);
        let states = [
            ("starting", SessionState::Starting),
            ("active", SessionState::Active),
            ("asleep", asleep),
            ("paused", SessionState::Paused(PausedReason::Person)),
            ("stopped", SessionState::Stopped),
            ("ended", SessionState::Ended),
            ("error", SessionState::Error),
        ];
        let events = [
            ("admit", SessionEvent::Admit),
            ("message", SessionEvent::Message),
            ("queue", SessionEvent::Queue),
            ("sleep", SessionEvent::Pause(PausedReason::Evicted)),
            ("pause", SessionEvent::Pause(PausedReason::Person)),
            ("resume", SessionEvent::Resume),
            ("stop", SessionEvent::Stop),
            ("end", SessionEvent::End),
            ("fail", SessionEvent::Fail),
            ("interrupt", SessionEvent::Interrupt),
            ("configure", SessionEvent::Configure),
            ("fork", SessionEvent::Fork),
        ];
        let table = table();
        assert_eq!(table[0], ["event", "starting", "active", "asleep", "paused", "stopped", "ended", "error"]);
        assert_eq!(table.len(), events.len() + 1);
        for (row, (name, event)) in table[1..].iter().zip(events) {
            assert_eq!(row[0], name);
            for (cell, (_, state)) in row[1..].iter().zip(states) {
                let expected = match *cell {
                    "=" => Ok(state),
                    "-" => Err(super::Impossible(state)),
                    name => Ok(states.iter().find(|(other, _)| *other == name).unwrap().1),
                };
                assert_eq!(state.after(event), expected, "{name} in {state:?}");
            }
        }
    }

    proptest! {
        #[test]
        fn an_ended_session_stays_ended(events in prop::collection::vec(event(), 0..20)) {
            let mut state = SessionState::Ended;
            for event in events {
                state = state.after(event).unwrap_or(state);
                prop_assert_eq!(state, SessionState::Ended);
            }
        }

        #[test]
        fn every_other_state_can_be_resumed_and_ended(events in prop::collection::vec(event(), 0..20)) {
            let mut state = SessionState::Starting;
            for event in events {
                state = state.after(event).unwrap_or(state);
            }
            if state != SessionState::Ended {
                prop_assert_eq!(state.after(SessionEvent::Resume), Ok(SessionState::Active));
            }
            prop_assert_eq!(state.after(SessionEvent::End), Ok(SessionState::Ended));
        }

        #[test]
        fn sleep_never_overrides_a_person(reason in reason()) {
            for state in [SessionState::Stopped, SessionState::Paused(PausedReason::Person)] {
                if reason != PausedReason::Person {
                    prop_assert_eq!(state.after(SessionEvent::Pause(reason)), Ok(state));
                }
                prop_assert!(state.after(SessionEvent::Message).is_err());
            }
        }
    }

    #[test]
    fn a_message_wakes_whatever_sleeps() {
        for reason in [PausedReason::Idle, PausedReason::Evicted, PausedReason::Drained, PausedReason::Lost] {
            assert_eq!(SessionState::Paused(reason).after(SessionEvent::Message), Ok(SessionState::Active));
        }
        assert_eq!(SessionState::Error.after(SessionEvent::Message), Ok(SessionState::Active));
    }

    #[test]
    fn names_and_reasons_round_trip() {
        for state in SessionState::ALL {
            assert_eq!(SessionState::from_parts(state.name(), state.paused_reason()), Some(state));
        }
    }
}
