//! What the frames of a stream say, in types.

use std::collections::BTreeMap;

use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, value::RawValue};

use crate::Error;

/// What a frame says. Source: the REST and SSE contract, "A message and its stream".
#[derive(Debug, Clone)]
#[non_exhaustive]
pub enum Event {
    /// The answer to a message begins.
    SessionStart {
        /// The session.
        session_id: String,
        /// The server's version.
        version: String,
    },
    /// More text.
    TextDelta(String),
    /// More of what the model thinks.
    ThinkingDelta(String),
    /// The model calls a tool.
    ToolUse {
        /// The call's id.
        id: String,
        /// The tool's name.
        name: String,
        /// What it is called with.
        input: Value,
    },
    /// A tool answered.
    ToolResult {
        /// The call's id.
        tool_use_id: String,
        /// A text, or content blocks.
        content: Value,
        /// Whether the call failed.
        is_error: bool,
    },
    /// Claude Code's `result`.
    TurnComplete {
        /// Model calls that the turn took.
        num_turns: u64,
        /// The final text, where there is one.
        result: Option<String>,
    },
    /// A message of Claude Code, as it printed it.
    Message(Box<RawValue>),
    /// A tool call needs consent, or the agent asks a question.
    PermissionRequest {
        /// The request's id, to answer it with.
        id: String,
        /// The tool.
        tool_name: String,
        /// What it would be called with.
        input: Value,
        /// When it is denied by itself (RFC 3339).
        expires_at: String,
    },
    /// A permission request was answered, expired or withdrawn.
    PermissionResolved {
        /// The request's id.
        id: String,
        /// How: `allowed`, `denied`, `expired`, `withdrawn`.
        resolution: String,
    },
    /// The frames from `from` to `to` do not count: the next message stands for them.
    Replaced {
        /// The first entry that does not count.
        from: String,
        /// The last one.
        to: String,
    },
    /// Frames that were seen after this position do not count.
    Withdrawn {
        /// The last entry that counts.
        after: String,
    },
    /// Claude Code was started again, with its conversation.
    ClaudeRestarted {
        /// Why.
        reason: Value,
    },
    /// MCP servers that are not connected, by name and state.
    McpStatus {
        /// Name to state.
        servers: BTreeMap<String, String>,
    },
    /// The turn failed.
    Error(String),
    /// The turn is over.
    Done {
        /// The session; absent where no turn was running.
        session_id: Option<String>,
    },
    /// A type that this release does not know.
    Other,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct SessionStart {
    session_id: String,
    version: String,
}

#[derive(Deserialize)]
struct Delta {
    delta: String,
}

#[derive(Deserialize)]
struct ToolUse {
    id: String,
    name: String,
    #[serde(default)]
    input: Value,
}

#[derive(Deserialize)]
struct ToolResult {
    tool_use_id: String,
    #[serde(default)]
    content: Value,
    #[serde(default)]
    is_error: bool,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TurnComplete {
    #[serde(default)]
    num_turns: u64,
    #[serde(default)]
    result: Value,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct PermissionRequest {
    id: String,
    tool_name: String,
    #[serde(default)]
    input: Value,
    #[serde(default)]
    expires_at: String,
}

#[derive(Deserialize)]
struct PermissionResolved {
    id: String,
    resolution: String,
}

#[derive(Deserialize)]
struct Replaced {
    from: String,
    to: String,
}

#[derive(Deserialize)]
struct Withdrawn {
    after: String,
}

#[derive(Deserialize)]
struct ClaudeRestarted {
    #[serde(default)]
    reason: Value,
}

#[derive(Deserialize)]
struct McpStatus {
    servers: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Failure {
    error: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Done {
    #[serde(default)]
    session_id: Option<String>,
}

impl Event {
    /// Reads a frame's data by its type.
    pub(crate) fn read(event: &str, data: &str) -> Result<Self, Error> {
        fn json<T: DeserializeOwned>(event: &str, data: &str) -> Result<T, Error> {
            serde_json::from_str(data).map_err(|error| Error::InvalidAnswer {
                what: format!("a frame of type {event}"),
                reason: error.to_string(),
            })
        }
        Ok(match event {
            "session_start" => {
                let SessionStart { session_id, version } = json(event, data)?;
                Self::SessionStart { session_id, version }
            }
            "text_delta" => Self::TextDelta(json::<Delta>(event, data)?.delta),
            "thinking_delta" => Self::ThinkingDelta(json::<Delta>(event, data)?.delta),
            "tool_use" => {
                let ToolUse { id, name, input } = json(event, data)?;
                Self::ToolUse { id, name, input }
            }
            "tool_result" => {
                let ToolResult { tool_use_id, content, is_error } = json(event, data)?;
                Self::ToolResult { tool_use_id, content, is_error }
            }
            "turn_complete" => {
                let TurnComplete { num_turns, result } = json(event, data)?;
                Self::TurnComplete { num_turns, result: result.as_str().map(ToOwned::to_owned) }
            }
            "message" => Self::Message(json(event, data)?),
            "permission_request" => {
                let PermissionRequest { id, tool_name, input, expires_at } = json(event, data)?;
                Self::PermissionRequest { id, tool_name, input, expires_at }
            }
            "permission_resolved" => {
                let PermissionResolved { id, resolution } = json(event, data)?;
                Self::PermissionResolved { id, resolution }
            }
            "replaced" => {
                let Replaced { from, to } = json(event, data)?;
                Self::Replaced { from, to }
            }
            "withdrawn" => Self::Withdrawn { after: json::<Withdrawn>(event, data)?.after },
            "claude_restarted" => Self::ClaudeRestarted { reason: json::<ClaudeRestarted>(event, data)?.reason },
            "mcp_status" => Self::McpStatus { servers: json::<McpStatus>(event, data)?.servers },
            "error" => Self::Error(json::<Failure>(event, data)?.error),
            "done" => Self::Done { session_id: json::<Done>(event, data)?.session_id },
            _ => Self::Other,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::Event;

    #[test]
    fn what_the_contract_names_is_read() {
        let Event::ToolResult { is_error, .. } =
            Event::read("tool_result", r#"{"tool_use_id":"t","content":"x"}"#).unwrap()
        else {
            panic!("no tool result")
        };
        assert!(!is_error);
        let Event::TurnComplete { num_turns, result } =
            Event::read("turn_complete", r#"{"numTurns":2,"result":null}"#).unwrap()
        else {
            panic!("no turn_complete")
        };
        assert_eq!((num_turns, result), (2, None));
        assert!(matches!(Event::read("something_new", "?").unwrap(), Event::Other));
        assert!(Event::read("done", "?").is_err());
    }
}
