//! What a bridge writes into the log of its own.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use uuid::Uuid;

use crate::sequence::Sequence;

/// What a bridge writes into the log beside Claude Code's own lines. The body of an entry of kind `Bridge`.
///
/// Tagged from outside, like [`super::Request`] and for the same reason.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", rename_all_fields = "camelCase")]
pub enum BridgeEvent {
    /// The turn ended without a result. Ends the turn.
    TurnFailed {
        /// The turn.
        turn: Uuid,
        /// A stable category.
        category: TurnFailure,
        /// A sentence for a person.
        message: String,
    },
    /// Claude Code printed something that is no message.
    InvalidOutput {
        /// A sentence that says what, without repeating more than 200 characters of it.
        message: String,
    },
    /// Claude Code was started again with the conversation so far.
    ClaudeRestarted {
        /// Why.
        reason: RestartReason,
    },
    /// A tool call waits for consent, or the agent asks a question.
    PermissionRequest {
        /// The id to answer to.
        id: String,
        /// The turn that it belongs to.
        turn: Uuid,
        /// The tool.
        tool_name: String,
        /// The tool's input, as it came.
        input: Box<RawValue>,
        /// Milliseconds since 1970 at which it is denied.
        expires_at_ms: i64,
    },
    /// A permission request was decided.
    PermissionResolved {
        /// The id.
        id: String,
        /// How.
        resolution: Resolution,
    },
    /// Partials were superseded: Claude Code repeats a model call that was cut.
    Superseded {
        /// The first partial that does not count.
        from: Sequence,
        /// The last one.
        to: Sequence,
    },
    /// MCP servers that are not connected, by name and state.
    McpServersFailed {
        /// Name to state.
        servers: BTreeMap<String, String>,
    },
}

/// Why a turn ended without a result.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TurnFailure {
    /// Claude Code's process ended.
    ClaudeDied,
    /// Claude Code could not be started for the turn.
    ClaudeFailed,
    /// Claude Code refused an option of the turn.
    OptionRefused,
}

/// Why Claude Code was started again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RestartReason {
    /// It had died.
    Died,
    /// An option can only be given at start.
    Options,
    /// It grew over its memory bound.
    Memory,
}

/// How a permission request was decided.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resolution {
    /// Somebody allowed it.
    Allowed,
    /// Somebody denied it.
    Denied,
    /// Nobody answered in time: denied.
    Expired,
    /// The turn was interrupted or ended before an answer.
    Withdrawn,
}

/// The head of an entry of kind `Transcript`: this as one line of JSON, a newline, then the bytes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TranscriptPart {
    /// Claude Code's own id of the conversation.
    pub conversation: Uuid,
    /// Where in the transcript the bytes belong. 0 begins it anew.
    pub offset: u64,
}

impl TranscriptPart {
    /// Splits an entry's body into its head and the bytes of the transcript; `None` when it is no such entry.
    pub fn split(body: &[u8]) -> Option<(Self, &[u8])> {
        let newline = memchr::memchr(b'\n', body)?;
        let head = serde_json::from_slice(&body[..newline]).ok()?;
        Some((head, &body[newline + 1..]))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use uuid::Uuid;

    use super::{BridgeEvent, TranscriptPart};

    #[test]
    fn raw_input_survives_an_event() {
        let json = r#"{"permission_request":{"id":"1","turn":"00000000-0000-0000-0000-000000000000","toolName":"Bash","input":{"a": 1},"expiresAtMs":5}}"#;
        let BridgeEvent::PermissionRequest { input, .. } = serde_json::from_str(json).unwrap() else { panic!() };
        assert_eq!(input.get(), r#"{"a": 1}"#);
    }

    #[test]
    fn a_transcript_part_keeps_newlines_in_its_bytes() {
        let head = TranscriptPart { conversation: Uuid::nil(), offset: 7 };
        let mut body = serde_json::to_vec(&head).unwrap();
        body.extend_from_slice(b"\na\nb\n");
        assert_eq!(TranscriptPart::split(&body), Some((head, &b"a\nb\n"[..])));
        assert_eq!(TranscriptPart::split(b"no head"), None);
    }
}
