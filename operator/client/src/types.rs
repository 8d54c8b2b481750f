//! What REST takes and gives. Field names on the wire are camelCase; what this release does not know is kept in `other`.

use std::collections::BTreeMap;

use ash_protocol::options::{PermissionMode, TurnOptions};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// An agent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Agent {
    /// Its id, a UUID.
    pub id: String,
    /// Its name.
    pub name: String,
    /// The version that new sessions get, from 1.
    pub version: u64,
    /// When it was first deployed (RFC 3339).
    pub created_at: String,
    /// When it was last deployed or changed (RFC 3339).
    pub updated_at: String,
    /// Everything else.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// A session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Session {
    /// Its id, a UUID.
    pub id: String,
    /// The agent's name.
    pub agent_name: String,
    /// `starting`, `active`, `paused`, `stopped`, `ended` or `error`.
    pub status: String,
    /// When it was made (RFC 3339).
    pub created_at: String,
    /// When it was last used (RFC 3339).
    pub last_active_at: String,
    /// Everything else.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// What a server says about itself.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Health {
    /// `ok`.
    pub status: String,
    /// The server's release.
    #[serde(default)]
    pub version: String,
    /// Sessions that are active.
    pub active_sessions: u64,
    /// Sandboxes that are there.
    pub active_sandboxes: u64,
    /// Seconds since the server was started.
    pub uptime: u64,
    /// The sandboxes by state.
    pub pool: Pool,
    /// Everything else.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// The sandboxes of a server.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Pool {
    /// All of them.
    pub total: u64,
    /// Being warmed.
    pub warming: u64,
    /// Waiting for a session.
    pub warm: u64,
    /// Waiting for their session's next message.
    pub waiting: u64,
    /// In a turn.
    pub running: u64,
    /// How many there may be.
    pub max_capacity: u64,
    /// Everything else.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// A runner, which has sandboxes for coordinators.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Runner {
    /// Its name.
    pub name: String,
    /// `ready`, `cordoned`, `starting`, `restarting` or `silent`.
    pub status: String,
    /// Sandboxes at the most.
    pub capacity: u64,
    /// Sessions that have a place there.
    pub sessions: u64,
    /// No new sessions go there.
    pub cordoned: bool,
    /// Seconds since it was last heard.
    #[serde(default)]
    pub silent_seconds: u64,
    /// Everything else.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// What a new session is made of. Everything but the agent is optional.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct CreateSession {
    /// The agent's name or slug.
    pub agent: String,
    /// The model instead of the agent's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// The system prompt instead of the agent's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_prompt: Option<String>,
    /// What a tool call needs before it runs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub permission_mode: Option<PermissionMode>,
    /// Tools that run without asking.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed_tools: Option<Vec<String>>,
    /// Tools that are not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disallowed_tools: Option<Vec<String>>,
    /// Beta flags of the model API.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub betas: Option<Vec<String>>,
    /// MCP servers by name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mcp_servers: Option<Map<String, Value>>,
    /// Sub-agents by name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subagents: Option<Map<String, Value>>,
    /// The sub-agent that leads the conversation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initial_agent: Option<String>,
    /// A stored credential.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credential_id: Option<String>,
    /// Environment variables over the agent's.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub extra_env: BTreeMap<String, String>,
    /// What the maker keeps with the session.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub metadata: BTreeMap<String, String>,
}

/// Which sessions to list.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SessionQuery {
    /// Of this agent.
    pub agent: Option<String>,
    /// In this state.
    pub status: Option<String>,
    /// So many at the most; the server's bound otherwise.
    pub limit: Option<u32>,
    /// From this one on.
    pub offset: Option<u32>,
}

/// What a user message says.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Content {
    /// A text.
    Text(String),
    /// Content blocks, as the model API takes them.
    Blocks(Vec<Value>),
}

/// A message to a session.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Message {
    /// What it says.
    pub content: Content,
    /// Whether the stream has the text as it is written, too.
    pub include_partial_messages: bool,
    /// Options of this turn.
    #[serde(flatten)]
    pub options: TurnOptions,
    /// Whether it may wait for its turn where another one runs.
    #[serde(skip_serializing_if = "is_false")]
    pub queue: bool,
    /// How often it is tried again where its turn is cut off, of one that may wait: at most 5 times.
    #[serde(skip_serializing_if = "is_zero")]
    pub retries: u32,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_false(value: &bool) -> bool {
    !*value
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde gives a reference")]
fn is_zero(value: &u32) -> bool {
    *value == 0
}

impl Message {
    /// A text, with its answer as it is written.
    pub fn text(text: impl Into<String>) -> Self {
        Self {
            content: Content::Text(text.into()),
            include_partial_messages: true,
            options: TurnOptions::default(),
            queue: false,
            retries: 0,
        }
    }
}

/// A message in a session's queue.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct QueueEntry {
    /// Its id, a UUID.
    pub id: String,
    /// `pending`, `processing`, `completed`, `failed` or `cancelled`.
    pub status: String,
    /// Its place: lower ones come first.
    pub position: u64,
    /// The beginning of its text.
    pub preview: String,
    /// Why it failed, or was cancelled.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// When it was queued (RFC 3339).
    pub created_at: String,
    /// Everything else.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// Options of a session that change in its life. What is `None` stays; `Some(None)` is as the agent has it.
#[allow(clippy::option_option, reason = "absent, null and a value are three things")]
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct SessionChanges {
    /// The model.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<Option<String>>,
    /// Tools that run without asking.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed_tools: Option<Option<Vec<String>>>,
    /// Tools that are not there.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disallowed_tools: Option<Option<Vec<String>>>,
    /// Beta flags of the model API.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub betas: Option<Option<Vec<String>>>,
    /// Sub-agents by name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subagents: Option<Option<Map<String, Value>>>,
    /// The sub-agent that leads the conversation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initial_agent: Option<Option<String>>,
    /// What is kept with the session, complete.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<BTreeMap<String, String>>,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use ash_protocol::options::{OutputFormat, OutputFormatKind};
    use serde_json::value::RawValue;

    use super::{Message, Session, SessionChanges};

    #[test]
    fn a_message_has_its_options_beside_its_content() {
        let mut message = Message::text("hello");
        message.options.max_turns = Some(3);
        let schema = RawValue::from_string(r#"{"type": "object"}"#.to_owned()).unwrap();
        message.options.output_format = Some(OutputFormat { kind: OutputFormatKind::JsonSchema, schema });
        assert_eq!(
            serde_json::to_string(&message).unwrap(),
            r#"{"content":"hello","includePartialMessages":true,"maxTurns":3,"outputFormat":{"type":"json_schema","schema":{"type": "object"}}}"#
        );
    }

    #[test]
    fn a_message_says_that_it_may_wait_only_where_it_may() {
        let message = Message { include_partial_messages: false, queue: true, retries: 2, ..Message::text("x") };
        let text = r#"{"content":"x","includePartialMessages":false,"queue":true,"retries":2}"#;
        assert_eq!(serde_json::to_string(&message).unwrap(), text);
    }

    #[test]
    fn a_change_says_what_it_changes_and_what_it_takes_away() {
        let changes =
            SessionChanges { model: Some(None), betas: Some(Some(vec!["b".to_owned()])), ..SessionChanges::default() };
        assert_eq!(serde_json::to_string(&changes).unwrap(), r#"{"model":null,"betas":["b"]}"#);
    }

    #[test]
    fn what_is_not_known_is_kept() {
        let text =
            r#"{"id":"1","agentName":"a","status":"paused","createdAt":"x","lastActiveAt":"y","pausedReason":"idle"}"#;
        let session: Session = serde_json::from_str(text).unwrap();
        assert_eq!(session.other["pausedReason"], "idle");
        assert_eq!(serde_json::to_string(&session).unwrap(), text);
    }
}
