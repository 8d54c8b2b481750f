//! The options of a session, as a manifest has them. The names are those of REST.

use ash_protocol::options as protocol;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    environment::{self, EnvironmentVariable},
    schema::{self, one_line_rule, rule},
};

/// Options of a session. What a running session can take over may change, as over REST: model, allowedTools, disallowedTools,
/// betas, subagents, initialAgent. The others are fixed when it is created.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline, extend("x-kubernetes-validations" = [
    rule(
        "has(self.systemPrompt) == has(oldSelf.systemPrompt) && (!has(self.systemPrompt) || self.systemPrompt == \
         oldSelf.systemPrompt)",
        "options.systemPrompt cannot change in a session's life: create another Session",
    ),
    rule(
        "self.permissionMode == oldSelf.permissionMode",
        "options.permissionMode cannot change in a session's life: create another Session",
    ),
    rule(
        "has(self.env) == has(oldSelf.env) && (!has(self.env) || self.env == oldSelf.env)",
        "options.env cannot change in a session's life: create another Session",
    ),
    rule(
        "has(self.mcpServers) == has(oldSelf.mcpServers)",
        "options.mcpServers cannot change in a session's life: create another Session",
    ),
]))]
pub struct SessionOptions {
    /// The model. The agent's where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256), extend("x-kubernetes-validations" = [one_line_rule()]))]
    pub model: Option<String>,
    /// Takes the place of the agent's system prompt. Never changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1_048_576))]
    pub system_prompt: Option<String>,
    /// What a tool call needs before it runs. bypassPermissions: nothing, since the sandbox is the wall; the default. default:
    /// what the agent's own settings allow runs, everything else asks. acceptEdits: edits of files run without asking. plan:
    /// nothing is changed. Never changes.
    #[serde(default)]
    pub permission_mode: PermissionMode,
    /// Tools that run without asking. As permissionMode says where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "words")]
    pub allowed_tools: Option<Vec<String>>,
    /// Tools that do not exist for this session.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "words")]
    pub disallowed_tools: Option<Vec<String>>,
    /// Beta flags of the model API.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "words")]
    pub betas: Option<Vec<String>>,
    /// Sub-agents by name, each an object as Claude Code's option `agents` takes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::any_objects")]
    pub subagents: Option<Map<String, Value>>,
    /// The sub-agent that leads the conversation.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256), extend("x-kubernetes-validations" = [one_line_rule()]))]
    pub initial_agent: Option<String>,
    /// MCP servers by name, each an object as in .mcp.json; they stand over the agent's of the same name. Never changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "mcp_servers")]
    pub mcp_servers: Option<Map<String, Value>>,
    /// Environment variables of the session, over the agent's of the same name. REST calls them extraEnv. Never changes.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "environment::list")]
    pub env: Vec<EnvironmentVariable>,
}

/// What a tool call needs before it runs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub enum PermissionMode {
    /// Nothing.
    #[default]
    BypassPermissions,
    /// What the agent's own settings allow runs; everything else asks.
    Default,
    /// Edits of files run without asking.
    AcceptEdits,
    /// Nothing is changed.
    Plan,
}

impl From<PermissionMode> for protocol::PermissionMode {
    fn from(mode: PermissionMode) -> Self {
        match mode {
            PermissionMode::BypassPermissions => Self::BypassPermissions,
            PermissionMode::Default => Self::Default,
            PermissionMode::AcceptEdits => Self::AcceptEdits,
            PermissionMode::Plan => Self::Plan,
        }
    }
}

/// Texts on one line each.
fn words(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schemars::json_schema!({
        "type": "array",
        "maxItems": 256,
        "x-kubernetes-list-type": "atomic",
        "items": {
            "type": "string",
            "maxLength": 1024,
            "x-kubernetes-validations": [one_line_rule()],
        },
    })
}

fn mcp_servers(generator: &mut schemars::SchemaGenerator) -> schemars::Schema {
    let mut servers = schema::any_objects(generator);
    servers.insert(
        "x-kubernetes-validations".to_owned(),
        serde_json::json!([rule(
            "self == oldSelf",
            "options.mcpServers cannot change in a session's life: create another Session",
        )]),
    );
    servers
}
