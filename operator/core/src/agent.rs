//! Agents: named, versioned bundles of files with settings.

use std::{collections::BTreeMap, fmt};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::{
    environment::masked,
    id::{AgentId, TenantId},
    name::AgentName,
};

/// An agent with its newest version.
#[derive(Debug, Clone, PartialEq)]
pub struct Agent {
    /// Its id, the same for all versions.
    pub id: AgentId,
    /// Whose it is.
    pub tenant: TenantId,
    /// Its name, one of a kind within the tenant.
    pub name: AgentName,
    /// Another name to find it by.
    pub slug: Option<String>,
    /// A sentence about it.
    pub description: Option<String>,
    /// The version that new sessions get.
    pub version: AgentVersion,
    /// When it was first deployed.
    pub created_at: Timestamp,
    /// When it was last deployed or changed.
    pub updated_at: Timestamp,
}

/// One version of an agent. Never changed once it is there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct AgentVersion {
    /// The agent.
    pub agent: AgentId,
    /// Whose it is.
    pub tenant: TenantId,
    /// Its number, from 1.
    pub number: u32,
    /// The digest of its bundle: SHA-256, lower-case hexadecimal.
    pub digest: String,
    /// Its settings.
    pub settings: AgentSettings,
}

/// Settings of a version beside its files.
#[derive(Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct AgentSettings {
    /// Replaces the bundle's system prompt in new sessions.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub system_prompt: Option<String>,
    /// The model for sessions that name none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<String>,
    /// Environment variables for every session. Values may be secrets: they come back masked.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Where the sandbox may connect to beside the model.
    pub network: NetworkPolicy,
    /// The stored credential of the model for sessions that have none of their own, by name (`secret/NAME/KEY` for one that the
    /// operator copied from a Secret); the installation's own key where absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credential: Option<String>,
    /// The stored credential of the kind `custom` whose variables go over `env`, by name: those that are secrets.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub secret_environment: Option<String>,
    /// The `spec.sandbox` that this version's pods are made from, without its variables; in a cluster only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sandbox: Option<serde_json::Map<String, serde_json::Value>>,
    /// Bounds of every turn that does not bring its own.
    #[serde(skip_serializing_if = "TurnLimits::is_empty")]
    pub limits: TurnLimits,
    /// Seconds that a session may be without a turn before it sleeps; as its runner has it where absent. Never stored with a
    /// version, because a change makes none: a coordinator adds it for runners.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idle_seconds: Option<u64>,
    /// The bundle brings hooks of its own, so it is not rehearsed. Computed at deployment.
    pub has_hooks: bool,
    /// Anything else that the deployer wants to keep with the version.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub config: Option<serde_json::Map<String, serde_json::Value>>,
}

impl fmt::Debug for AgentSettings {
    /// Without the values of variables, which may be secrets.
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            system_prompt,
            model,
            env,
            network,
            credential,
            secret_environment,
            sandbox,
            limits,
            idle_seconds,
            has_hooks,
            config,
        } = self;
        formatter
            .debug_struct("AgentSettings")
            .field("system_prompt", system_prompt)
            .field("model", model)
            .field("env", &masked(env.keys()))
            .field("network", network)
            .field("credential", credential)
            .field("secret_environment", secret_environment)
            .field("sandbox", sandbox)
            .field("limits", limits)
            .field("idle_seconds", idle_seconds)
            .field("has_hooks", has_hooks)
            .field("config", config)
            .finish()
    }
}

/// Bounds of a turn.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct TurnLimits {
    /// Calls of the model at the most.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_turns: Option<u32>,
    /// Money at the most, in US dollars.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub max_budget_usd: Option<f64>,
}

impl TurnLimits {
    /// Whether nothing is bounded.
    pub fn is_empty(&self) -> bool {
        *self == Self::default()
    }
}

/// Where a sandbox may connect to beside the model API.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "mode", rename_all = "camelCase")]
pub enum NetworkPolicy {
    /// Nowhere.
    Model,
    /// To these hosts: `name`, `*.name`, each with an optional `:port` (443 where absent).
    Allowlist {
        /// The hosts.
        hosts: Vec<String>,
    },
    /// To any public address.
    #[default]
    Public,
}

#[cfg(test)]
mod tests {
    use super::AgentSettings;

    #[test]
    fn the_values_of_variables_are_not_printed() {
        let env = [("TOKEN".to_owned(), "sesame".to_owned())].into();
        let printed = format!("{:?}", AgentSettings { env, ..AgentSettings::default() });
        assert!(printed.contains("TOKEN") && !printed.contains("sesame"), "{printed}");
    }
}
