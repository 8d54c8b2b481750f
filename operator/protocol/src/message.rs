//! The JSON messages inside frames: how host and bridge greet each other, what a host asks, what a bridge reports.

mod event;
mod files;
mod tree;

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::{
    bound::BridgeBound,
    fleet::Hidden,
    options::{SessionOptions, TurnOptions},
    sequence::{Epoch, Sequence},
    tree::ListedFile,
    version::ProtocolVersion,
};

pub use event::{BridgeEvent, Resolution, RestartReason, TranscriptPart, TurnFailure};
pub use files::{ExecDone, FileEntry, FileList, FileRead};
pub use tree::{Notes, TreeListed, TreeRead, TreeRestored};

/// The bridge's first message.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Hello {
    /// The version that the bridge speaks.
    pub protocol: ProtocolVersion,
    /// The release of the bridge.
    pub bridge: String,
    /// The sandbox that it was started for.
    pub sandbox: String,
    /// How far the bridge got; the same for a new bridge and one whose host was restarted.
    pub progress: Progress,
    /// The port, inside the sandbox, of the listener that comes with this message as ancillary data; `None` where the gateway
    /// is reached over the network.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway_port: Option<u16>,
}

/// How far a bridge got.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "phase", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Progress {
    /// Claude Code was not started yet.
    New,
    /// Claude Code is up; no session has claimed it.
    Warm,
    /// It serves a session.
    Bound {
        /// The session.
        session: Uuid,
        /// The epoch in which the bridge numbers its entries.
        epoch: Epoch,
        /// The last entry that it wrote; the epoch's opening where it wrote none.
        last: Sequence,
        /// The turn in progress.
        turn: Option<RunningTurn>,
        /// Permission requests that wait for an answer, by id.
        permissions: Vec<String>,
    },
    /// It served a session and was told to rest ([`Request::Rest`]): Claude Code is stopped, workspace and conversation are kept.
    Resting {
        /// The session.
        session: Uuid,
        /// The epoch in which the bridge numbered its entries.
        epoch: Epoch,
        /// The last entry that it wrote.
        last: Sequence,
    },
}

/// A turn in progress.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct RunningTurn {
    /// The uuid of its user message.
    pub id: Uuid,
    /// The entry of its user message.
    pub first: Sequence,
}

/// The host's answer to [`Hello`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Welcome {
    /// The version that both will speak: the bridge's.
    pub protocol: ProtocolVersion,
    /// Every entry up to here is committed; the bridge drops those and sends the rest again, then `Synced`.
    pub acknowledged: Sequence,
    /// The session went on without this bridge, in a newer epoch: the bridge ends itself.
    #[serde(default)]
    pub overtaken: bool,
}

/// What a host asks of a bridge. Every request gets exactly one [`Reply`] with its number, after its data.
///
/// Tagged from outside (`{"admit": {...}}`), because raw JSON does not survive serde's other ways of tagging.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", rename_all_fields = "camelCase")]
pub enum Request {
    /// Starts and initialises Claude Code, and rehearses it where `rehearse` says so. Data: none. Answers [`Warmed`].
    Warm(Box<Warm>),
    /// Gives the sandbox to a session: from here on entries are numbered and kept. Answers [`Bound`].
    ///
    /// A bridge that rests is woken by its own session in a newer epoch: Claude Code starts again with the conversation that the
    /// bridge kept, whatever `resume` and `transcript_offset` say.
    Bind(Box<Bind>),
    /// Stops Claude Code between turns and keeps the workspace and the conversation. Refused (`turn_in_progress`) while a turn
    /// runs; a repeat does nothing. Answers [`Rested`] when the conversation is in the log to its end. Since version 1.1.
    Rest {},
    /// A ticket for the next connection of a bridge that dials over the network, in place of the one before. Since version 1.1.
    Ticket {
        /// The ticket.
        ticket: Hidden,
    },
    /// Changes the session's options between turns; during a turn they hold from the next one on.
    Configure {
        /// The new options, complete.
        options: SessionOptions,
    },
    /// Begins a turn. Refused (`turn_in_progress`) while another one runs; a repeat of the running or a finished turn's id is
    /// acknowledged and does nothing.
    Admit(Box<Admit>),
    /// Interrupts the turn in progress; nothing happens when none runs.
    Interrupt {
        /// Only this turn, where given.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        turn: Option<Uuid>,
    },
    /// Answers a permission request. Refused (`unknown_permission`) when it is not open (answered, expired, interrupted).
    Answer {
        /// The id of the request.
        permission: String,
        /// What was decided.
        decision: Decision,
    },
    /// Puts a conversation back before `Bind` (and before `Warm`, where that names it): data frames follow with the
    /// transcript's bytes.
    RestoreTranscript {
        /// Claude Code's own id of the conversation.
        conversation: Uuid,
    },
    /// Runs a shell command in the workspace. Data: output as it comes, standard error flagged. Answers [`ExecDone`].
    Exec {
        /// For `sh -c`.
        command: String,
        /// Milliseconds until it is killed, with what it started.
        timeout_ms: u64,
        /// Bytes of output at the most; what comes beyond is dropped and `truncated` is set.
        max_output_bytes: u64,
    },
    /// Writes a file of the workspace, whole: data frames follow. Its folders are made.
    PutFile {
        /// Relative to the workspace.
        path: String,
        /// Permission bits; 0o644 where absent.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        mode: Option<u32>,
    },
    /// Reads a file of the workspace. Data: its bytes, within the credit. Answers [`FileRead`].
    GetFile {
        /// Relative to the workspace.
        path: String,
    },
    /// Lists the files of the workspace. Answers [`FileList`].
    ListFiles {
        /// A folder relative to the workspace; empty for all of it.
        #[serde(default)]
        path: String,
        /// Files at the most; `truncated` says that there are more.
        limit: u32,
    },
    /// Removes a file of the workspace, or a folder with all that is in it.
    DeleteFile {
        /// Relative to the workspace.
        path: String,
    },
    /// Sends the workspace as a tar stream, within the credit.
    Archive {},
    /// Unpacks a tar stream over the workspace: data frames follow. Entries that would leave it are refused.
    Unpack {
        /// Bytes that the unpacked files may take.
        max_bytes: u64,
    },
    /// Lists what is in the workspace, for a snapshot. Data, within the credit and behind everything else that is to be sent: a
    /// line of JSON for each entry ([`crate::tree::Entry`]), a folder before what is in it. Refused (`invalid`) where there is
    /// more than `limit`. Answers [`TreeListed`]. Since version 1.2.
    ListTree {
        /// Entries at the most.
        limit: u64,
    },
    /// Reads files of the workspace, for a snapshot. Data, within the credit and behind everything else that is to be sent: the
    /// bytes of one file after the other, each ended by a frame with [`DATA_FILE_END`](crate::frame::DATA_FILE_END), also where
    /// there are none. A hole of a file may be a frame with [`DATA_HOLE`](crate::frame::DATA_HOLE) instead of its zeros. Answers
    /// [`TreeRead`]. Since version 1.2.
    ReadTree {
        /// Which; at most [`MAX_READ_FILES`](crate::tree::MAX_READ_FILES).
        files: Vec<ListedFile>,
    },
    /// Removes everything that is in the workspace and makes it anew from the data that follows: a line of JSON for each entry
    /// ([`crate::tree::Entry`]), a folder before what is in it, and behind that of a file its bytes; of one with holes an
    /// [`Extent`](crate::tree::Extent) before each part. What leaves the workspace is refused by the kernel. Answers [`TreeRestored`]. Since version 1.2.
    RestoreTree {},
    /// Gives up a request in progress, which is answered with a refusal (`not_ready`). Nothing happens where there is none.
    /// Since version 1.2.
    Cancel {
        /// The number of that request.
        request: u64,
    },
    /// Stops Claude Code and all that it and the bridge started (SIGSTOP), because the host may serve nobody for now; a repeat does
    /// nothing. It holds until [`Request::Thaw`], or until the next host has answered the greeting. Since version 1.3.
    Freeze {},
    /// Has what was stopped go on. Since version 1.3.
    Thaw {},
    /// Ends Claude Code and then the bridge, so that the sandbox goes away. A running turn is given until the deadline.
    Shutdown {
        /// Milliseconds.
        deadline_ms: u64,
    },
}

/// How Claude Code is started in a sandbox.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Warm {
    /// The program's path inside the sandbox.
    pub program: String,
    /// The environment of the process, complete: built from an allowlist by the host.
    pub environment: BTreeMap<String, String>,
    /// The options of the agent, with which it is initialised.
    pub options: SessionOptions,
    /// Whether to rehearse a turn against the gateway. The host says no for an agent with hooks of its own.
    pub rehearse: bool,
    /// Start with this conversation, restored before (`--resume`): a sandbox that is started for one session. Then there is
    /// no rehearsal, and a `Bind` with the same conversation and options finds the process ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resume: Option<Uuid>,
    /// Resident bytes over which Claude Code is restarted between turns.
    pub memory_bound_bytes: u64,
}

/// The answer to [`Request::Warm`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Warmed {
    /// What `--version` printed, without the newline; the first 100 characters.
    pub version: String,
    /// Whether a rehearsal was completed.
    pub rehearsed: bool,
}

/// How a session takes over a sandbox.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Bind {
    /// The tenant that the session belongs to.
    pub tenant: String,
    /// The session.
    pub session: Uuid,
    /// Its epoch: the bridge numbers from n = 2.
    pub epoch: Epoch,
    /// The session's options, complete.
    pub options: SessionOptions,
    /// The conversation to go on with, restored before; `None` for a new one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub resume: Option<Uuid>,
    /// The highest offset of the conversation's transcript that the log already has.
    #[serde(default)]
    pub transcript_offset: u64,
}

/// The answer to [`Request::Bind`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Bound {
    /// How the sandbox came to the session.
    pub how: Claimed,
}

/// The answer to [`Request::Rest`].
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Rested {
    /// The last entry of the log, which may come after this answer; none follows until the session is woken.
    pub last: Sequence,
}

/// How a sandbox came to a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Claimed {
    /// The warm process took the session's identity.
    Live,
    /// Claude Code had to be started again in a sandbox that was there.
    Restarted,
    /// There was no warm sandbox.
    Cold,
}

/// One user message for a session.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Admit {
    /// The uuid of the message and of its turn.
    pub turn: Uuid,
    /// The message's content: a JSON string or an array of content blocks, as it came.
    pub content: Box<RawValue>,
    /// The options of this turn.
    #[serde(default)]
    pub options: TurnOptions,
    /// Milliseconds after which a permission request of this turn is denied.
    pub permission_timeout_ms: u64,
}

/// What was decided about a tool call; also the body of the REST request that answers it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Decision {
    /// Whether it runs.
    pub behavior: Behavior,
    /// When allowed: it runs with this input instead.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub updated_input: Option<Box<RawValue>>,
    /// When allowed: the answers to the agent's questions, by question.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub answers: Option<Box<RawValue>>,
    /// When denied: what the agent is told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// Whether a tool call runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Behavior {
    /// It runs.
    Allow,
    /// It does not run.
    Deny,
}

/// The answer to a request: `{"ok": ...}` or `{"error": ...}`.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum Reply {
    /// It was done; the value depends on the request (`null` where there is nothing to say).
    Ok(Box<RawValue>),
    /// It was not done.
    Error(Refusal),
}

/// Why a bridge did not do what it was asked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
#[serde(rename_all = "camelCase")]
pub struct Refusal {
    /// A stable category.
    pub category: RefusalCategory,
    /// A sentence for a person.
    pub message: String,
}

/// The categories of refusals.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusalCategory {
    /// The request makes no sense in the bridge's phase (for example a turn before `Bind`).
    NotReady,
    /// Another turn runs.
    TurnInProgress,
    /// The permission request is not open.
    UnknownPermission,
    /// Claude Code did not start; the message holds the last lines of its standard error.
    ClaudeFailed,
    /// Claude Code refuses an option; the message names it.
    OptionRefused,
    /// No such file.
    NotFound,
    /// A path that leaves the workspace, a file that is too large, an archive that is none.
    Invalid,
    /// The operating system said no (for example a full disk).
    Io,
}

/// What a bridge reports outside the log, when it changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Status {
    /// How often Claude Code was started in this sandbox.
    pub claude_starts: u32,
    /// Unacknowledged bytes that the bridge keeps.
    pub unacknowledged_bytes: u64,
    /// Whether the bridge stopped reading from Claude Code because of them.
    pub stalled: bool,
    /// How often the bridge met each of its bounds since the status before this one.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub bounds: BTreeMap<BridgeBound, u32>,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use serde_json::value::RawValue;
    use uuid::Uuid;

    use super::{Admit, Request, TurnOptions};

    #[test]
    fn raw_content_survives_a_request() {
        let content = RawValue::from_string(r#"[{"type":"text",  "text":"1.0e2"}]"#.to_owned()).unwrap();
        let admit = Admit { turn: Uuid::nil(), content, options: TurnOptions::default(), permission_timeout_ms: 1 };
        let json = serde_json::to_string(&Request::Admit(Box::new(admit))).unwrap();
        let Request::Admit(back) = serde_json::from_str(&json).unwrap() else { panic!("{json}") };
        assert_eq!(back.content.get(), r#"[{"type":"text",  "text":"1.0e2"}]"#);
    }
}
