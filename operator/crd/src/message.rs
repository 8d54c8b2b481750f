//! The first message of a session, as a manifest has it. The names are those of a message over REST.

use ash_protocol::options as protocol;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::schema::{self, budget_rule, one_line_rule, rule};

/// The first message of a session.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct FirstMessage {
    /// What you say to the agent. At most 256 KiB.
    #[schemars(
        length(max = 262_144),
        extend("x-kubernetes-validations" = [rule(
            "self.size() > 0",
            "the first message is empty: say something in content, or remove message",
        )])
    )]
    pub content: String,
    /// The model of this turn. The session's where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256), extend("x-kubernetes-validations" = [one_line_rule()]))]
    pub model: Option<String>,
    /// Agentic turns at the most. The agent's limit where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000))]
    pub max_turns: Option<u32>,
    /// Money that the turn may cost, in US dollars. The agent's limit where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-validations" = [budget_rule()]))]
    pub max_budget_usd: Option<f64>,
    /// How hard the model thinks: low, medium, high or max.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Effort")]
    pub effort: Option<Effort>,
    /// Whether the model thinks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub thinking: Option<Thinking>,
    /// What the final answer must look like.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_format: Option<OutputFormat>,
}

/// How hard the model thinks about a turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
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

/// Whether the model thinks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline, extend("x-kubernetes-validations" = [rule(
    "self.type == 'enabled' || !has(self.budgetTokens)",
    "budgetTokens counts for the type enabled only: set type to enabled, or remove budgetTokens",
)]))]
pub struct Thinking {
    /// enabled: within budgetTokens, where given. disabled: not at all. adaptive: the model decides.
    #[serde(rename = "type")]
    pub kind: ThinkingType,
    /// Tokens that thinking may take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 2_147_483_647))]
    pub budget_tokens: Option<u32>,
}

/// The ways to think.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum ThinkingType {
    /// Within a budget.
    Enabled,
    /// Not at all.
    Disabled,
    /// The model decides.
    Adaptive,
}

/// What a final answer must look like.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[schemars(inline)]
pub struct OutputFormat {
    /// Always json_schema.
    #[serde(rename = "type")]
    pub kind: OutputFormatType,
    /// The JSON schema.
    #[schemars(schema_with = "schema::any_object")]
    pub schema: Map<String, Value>,
}

/// The kinds of output format that there are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(inline)]
pub enum OutputFormatType {
    /// An object that satisfies a JSON schema.
    JsonSchema,
}

impl From<Effort> for protocol::Effort {
    fn from(effort: Effort) -> Self {
        match effort {
            Effort::Low => Self::Low,
            Effort::Medium => Self::Medium,
            Effort::High => Self::High,
            Effort::Max => Self::Max,
        }
    }
}

impl From<&Thinking> for protocol::Thinking {
    fn from(thinking: &Thinking) -> Self {
        match thinking.kind {
            ThinkingType::Enabled => Self::Enabled { budget_tokens: thinking.budget_tokens },
            ThinkingType::Disabled => Self::Disabled {},
            ThinkingType::Adaptive => Self::Adaptive {},
        }
    }
}

impl TryFrom<&OutputFormat> for protocol::OutputFormat {
    type Error = serde_json::Error;

    fn try_from(format: &OutputFormat) -> Result<Self, Self::Error> {
        let schema = serde_json::value::to_raw_value(&format.schema)?;
        Ok(Self { kind: protocol::OutputFormatKind::JsonSchema, schema })
    }
}
