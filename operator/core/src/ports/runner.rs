//! The runner: the data plane that has the sandboxes. In process when standalone, over the network otherwise.

use std::{fmt, sync::OnceLock};

use ash_protocol::{
    Entry, Sequence,
    message::Decision,
    options::{SessionOptions, TurnOptions},
};
use async_trait::async_trait;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{
    agent::AgentVersion,
    id::{SessionId, TurnId},
    session::{Closing, Session, SessionState},
    sse::{self, Position, Rendered},
};

/// What serves sessions.
#[async_trait]
pub trait Runner: Send + Sync {
    /// Keeps sandboxes of this version warm from now on, in place of those of the agent's older versions.
    fn prepare(&self, agent: AgentVersion);

    /// Keeps no sandbox of this agent warm any longer.
    fn forget(&self, agent: &AgentVersion);

    /// Gives a new session a sandbox: a warm one where there is one, else one is started behind the answer where there is room,
    /// else its first message finds it one. Gives the session as it is then. A session is never refused for want of room.
    async fn place(&self, session: Session, agent: AgentVersion) -> Result<Session, RunnerError>;

    /// Begins a turn, once a place for the session's sandbox is reserved (it has one, or one is free or can be freed; waits for
    /// that for a bounded time). A message whose turn is running, or is over, joins it. The reader begins with the turn.
    async fn send(&self, session: Session, agent: AgentVersion, message: NewMessage) -> Result<Sent, RunnerError>;

    /// Reads a session's entries from a position on: what is committed, then what is not, then what comes.
    async fn read(&self, session: &Session, after: Position) -> Result<Box<dyn EntryReader>, RunnerError>;

    /// Interrupts the turn in progress; false when none runs.
    async fn interrupt(&self, session: SessionId) -> Result<bool, RunnerError>;

    /// Answers a permission request of the turn in progress. The first answer wins.
    async fn answer(&self, session: SessionId, permission: &str, decision: Decision) -> Result<(), RunnerError>;

    /// Changes the options of a session that has a sandbox; nothing to do for one that has none.
    async fn configure(&self, session: SessionId, options: SessionOptions) -> Result<(), RunnerError>;

    /// Takes a session off its sandbox because a person wants it: its turn is interrupted, its sandbox ended, its epoch closed.
    /// Gives the session as it is then. [`RunnerError::State`] where its state does not allow it.
    async fn close(&self, session: Session, closing: Closing) -> Result<Session, RunnerError>;

    /// Lets a session that is paused, stopped or in error go on; nothing happens to an active one. Where there is room, its
    /// sandbox is started behind the answer. [`RunnerError::State`] for one that has ended.
    async fn resume(&self, session: Session, agent: AgentVersion) -> Result<Session, RunnerError>;

    /// How much the runner has and does.
    fn load(&self) -> Load;
}

/// One user message.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NewMessage {
    /// The turn that it begins.
    pub turn: TurnId,
    /// A JSON string or an array of content blocks, as it came.
    pub content: Box<RawValue>,
    /// The options of the turn.
    pub options: TurnOptions,
}

/// A message that was taken.
pub struct Sent {
    /// Whether it joined a turn that was there before.
    pub joined: bool,
    /// Reads from the turn's beginning on.
    pub reader: Box<dyn EntryReader>,
}

impl fmt::Debug for Sent {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Sent").field("joined", &self.joined).finish_non_exhaustive()
    }
}

/// Why a runner did not do something.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum RunnerError {
    /// Another turn runs. HTTP 409.
    #[error("a turn is running: wait for its end, or interrupt it")]
    TurnInProgress,
    /// The session's state does not allow it. HTTP 400.
    #[error("Session is {}", .0.name())]
    State(SessionState),
    /// The session wrote as much as a session may. HTTP 409.
    #[error("the session's log has reached its quota of {} MiB: begin another session", quota_bytes >> 20)]
    LogFull {
        /// Bytes that a session's log may take.
        quota_bytes: u64,
    },
    /// Every sandbox is busy. HTTP 503 with `Retry-After`.
    #[error("no sandbox became free within {waited_seconds} s: try again later, or raise --max-sandboxes")]
    NoCapacity {
        /// Seconds that the message waited.
        waited_seconds: u64,
    },
    /// The permission request is not open: answered, expired or of an earlier turn. HTTP 409.
    #[error("the permission request is not open any more")]
    PermissionClosed,
    /// There never was such a permission request in the turn in progress. HTTP 404.
    #[error("no such permission request")]
    UnknownPermission,
    /// An option cannot take effect. HTTP 400.
    #[error("{0}")]
    OptionRefused(String),
    /// The session's runner does not answer, or was lost on the way. HTTP 503 with `Retry-After`.
    #[error("{0}")]
    Unreachable(String),
    /// The session's runner and this process do not share a secret. HTTP 503 with `Retry-After`.
    #[error("the session's runner does not share this process's secret: give both the same --fleet-secret-file")]
    Untrusted,
    /// The session's runner speaks another version of the protocol. HTTP 503 with `Retry-After`.
    #[error("the session's runner is of another release: let the upgrade finish, or run releases of one generation")]
    Incompatible,
    /// The server is shutting down. HTTP 503 with `Retry-After`.
    #[error("the server is shutting down: try again in a moment")]
    ShuttingDown,
    /// The store does not answer or refused. HTTP 503 or 500.
    #[error(transparent)]
    Store(#[from] super::StoreError),
    /// Anything else; the message is for a person. HTTP 500.
    #[error("{0}")]
    Internal(String),
}

/// An entry as readers share it: its frames are made once.
#[derive(Debug)]
pub struct LoggedEntry {
    /// The entry.
    pub entry: Entry,
    rendered: OnceLock<Rendered>,
}

impl LoggedEntry {
    /// An entry whose frames nobody asked for yet.
    pub fn new(entry: Entry) -> Self {
        Self { entry, rendered: OnceLock::new() }
    }

    /// The frames of the entry. Those of an opening depend on the reader and are made by [`sse::render_opening`].
    pub fn rendered(&self, session: SessionId) -> &Rendered {
        self.rendered.get_or_init(|| sse::render(session, &self.entry))
    }
}

/// Entries that a reader got at once, in order.
pub type Batch = Vec<std::sync::Arc<LoggedEntry>>;

/// A reader of a session's entries. Holds a position, not entries: one that falls behind reads from the log.
#[async_trait]
pub trait EntryReader: Send {
    /// The entries that come next: waits for at least one. `None` when the session has ended or the server shuts down.
    ///
    /// Safe to cancel: a call that was dropped has taken nothing.
    async fn next(&mut self) -> Result<Option<Batch>, ReadError>;

    /// The entry up to which everything was given, internal ones included.
    fn position(&self) -> Sequence;

    /// Whether a turn was in progress, or about to begin, when everything that this reader has given so far was all there was.
    fn turn_in_progress(&self) -> bool;
}

/// Why a reader cannot go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReadError {
    /// The log cannot be read. The client reconnects with its last position.
    #[error(transparent)]
    Store(#[from] super::StoreError),
    /// The log cannot be written, for the reason given: the turn has failed. What was not committed is withdrawn as soon as it
    /// can be written again.
    #[error("the turn failed: {0}")]
    Unwritten(String),
    /// The turn that was waited for does not begin, for the reason given.
    #[error("{0}")]
    NotBegun(String),
}

/// How much a runner has and does, as `GET /health` says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Load {
    /// Sandboxes with a process.
    pub total: u32,
    /// Sessions' folders without a process.
    pub cold: u32,
    /// Being started.
    pub warming: u32,
    /// Waiting for a session.
    pub warm: u32,
    /// Between turns.
    pub waiting: u32,
    /// In a turn.
    pub running: u32,
    /// Sandboxes at the most.
    pub max_capacity: u32,
    /// Sleeping sessions that found a warm sandbox.
    pub resume_warm_hits: u64,
    /// Sleeping sessions that had to start one.
    pub resume_cold_hits: u64,
    /// New sessions that found a warm sandbox.
    pub pre_warm_hits: u64,
}
