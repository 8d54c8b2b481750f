//! The options of a session and of a turn, as REST takes them and as the bridge carries them out.
//!
//! Field names are those of the REST contract. Structured values that only Claude Code understands travel as raw JSON.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// What a tool call needs before it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PermissionMode {
    /// Every tool call runs: the sandbox is the boundary. The default.
    #[default]
    BypassPermissions,
    /// What the agent's own settings allow runs; everything else asks.
    #[serde(alias = "permissionsByAgent")]
    Default,
    /// File edits run without asking.
    AcceptEdits,
    /// Nothing is changed; Claude Code plans.
    Plan,
}

impl PermissionMode {
    /// The name that Claude Code uses.
    pub fn claude_name(self) -> &'static str {
        match self {
            Self::BypassPermissions => "bypassPermissions",
            Self::Default => "default",
            Self::AcceptEdits => "acceptEdits",
            Self::Plan => "plan",
        }
    }
}

/// How hard the model thinks about a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Effort {
    /// Least.
    Low,
    /// Less than usual.
    Medium,
    /// The usual.
    High,
    /// Most.
    Max,
}

impl Effort {
    /// The name that Claude Code uses.
    pub fn claude_name(self) -> &'static str {
        match self {
            Self::Low => "low",
            Self::Medium => "medium",
            Self::High => "high",
            Self::Max => "max",
        }
    }
}

/// The thinking configuration of a turn: `{"type": "enabled" | "disabled" | "adaptive", "budgetTokens"?}`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase", rename_all_fields = "camelCase")]
pub enum Thinking {
    /// Think within a budget.
    Enabled {
        /// Tokens that thinking may take.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        budget_tokens: Option<u32>,
    },
    /// Do not think.
    Disabled {},
    /// The model decides.
    Adaptive {},
}

/// A constraint on a turn's final answer: `{"type": "json_schema", "schema": {...}}`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct OutputFormat {
    /// Always `json_schema`.
    #[serde(rename = "type")]
    pub kind: OutputFormatKind,
    /// The JSON schema, as it came.
    pub schema: Box<RawValue>,
}

impl PartialEq for OutputFormat {
    fn eq(&self, other: &Self) -> bool {
        self.kind == other.kind && self.schema.get() == other.schema.get()
    }
}

/// The kinds of output format that there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OutputFormatKind {
    /// An object that satisfies a JSON schema.
    JsonSchema,
}

/// Options that hold for a whole session, until they are changed.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct SessionOptions {
    /// The model's name. None: the agent's, or Claude Code's default.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Replaces the agent's system prompt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_prompt: Option<String>,
    /// What a tool call needs before it runs.
    pub permission_mode: PermissionMode,
    /// Tools that run without asking. None: as the mode says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub allowed_tools: Option<Vec<String>>,
    /// Tools that do not exist for this session.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disallowed_tools: Option<Vec<String>>,
    /// Beta flags of the model API.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub betas: Option<Vec<String>>,
    /// Sub-agents by name, as Claude Code's `agents` takes them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub subagents: Option<serde_json::Map<String, serde_json::Value>>,
    /// The sub-agent that leads the conversation.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub initial_agent: Option<String>,
    /// MCP servers by name; they override the folder's of the same name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mcp_servers: Option<serde_json::Map<String, serde_json::Value>>,
    /// Environment variables of the session, complete: agent `env`, then `extraEnv` over it. Values may be secrets of the
    /// tenant's own: they travel to the sandbox and to no listing or log.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub environment: BTreeMap<String, String>,
}

/// Options that hold for one turn, over the session's.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TurnOptions {
    /// The model's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Agentic turns at the most, from 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_turns: Option<u32>,
    /// Money that the turn may cost, in US dollars, over 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_budget_usd: Option<f64>,
    /// How hard the model thinks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub effort: Option<Effort>,
    /// Whether the model thinks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub thinking: Option<Thinking>,
    /// What the final answer must look like.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub output_format: Option<OutputFormat>,
}
