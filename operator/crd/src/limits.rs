//! Bounds of every turn.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::schema::budget_rule;

/// Bounds that every turn has which does not bring its own.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct TurnLimits {
    /// Agentic turns (calls of the model) within one turn at the most. At the bound the turn ends and says so. Not bounded
    /// where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100_000))]
    pub max_turns: Option<u32>,
    /// Money that one turn may cost, in US dollars, at least 0.01. At the bound the turn is cut in its middle and says so. Not
    /// bounded where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-validations" = [budget_rule()]))]
    pub max_budget_usd: Option<f64>,
}
