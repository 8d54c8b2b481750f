//! Agents and sessions as the API shows them.

use std::collections::BTreeMap;

use ash_core::{
    agent::{Agent, AgentVersion, NetworkPolicy},
    environment::masked,
    id::{AgentId, SessionId},
    session::{PausedReason, Session},
};
use ash_protocol::options::PermissionMode;
use jiff::Timestamp;
use serde::{Serialize, Serializer};

/// The back end of every agent.
pub(crate) const BACKEND: &str = "claude-code";

/// A time as RFC 3339 in UTC with milliseconds.
#[derive(Clone, Copy)]
pub(crate) struct Time(pub(crate) Timestamp);

impl Serialize for Time {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{:.3}", self.0))
    }
}

/// An agent. Values of variables never come back; the system prompt only where one agent is asked for.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct AgentView<'a> {
    id: AgentId,
    tenant_id: &'a str,
    name: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    slug: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<&'a str>,
    version: u32,
    path: String,
    backend: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    system_prompt: Option<&'a str>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    env: BTreeMap<&'a str, &'static str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    config: Option<&'a serde_json::Map<String, serde_json::Value>>,
    network: &'a NetworkPolicy,
    created_at: Time,
    updated_at: Time,
}

impl<'a> AgentView<'a> {
    /// As it stands in a listing.
    pub(crate) fn listed(agent: &'a Agent) -> Self {
        let settings = &agent.version.settings;
        Self {
            id: agent.id,
            tenant_id: &agent.tenant.0,
            name: agent.name.as_str(),
            slug: agent.slug.as_deref(),
            description: agent.description.as_deref(),
            version: agent.version.number,
            path: format!("bundle:{}", agent.version.digest),
            backend: BACKEND,
            model: settings.model.as_deref(),
            system_prompt: None,
            env: masked(settings.env.keys()),
            config: settings.config.as_ref(),
            network: &settings.network,
            created_at: Time(agent.created_at),
            updated_at: Time(agent.updated_at),
        }
    }

    /// As it stands by itself.
    pub(crate) fn single(agent: &'a Agent) -> Self {
        Self { system_prompt: agent.version.settings.system_prompt.as_deref(), ..Self::listed(agent) }
    }
}

/// A session.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub(crate) struct SessionView<'a> {
    id: SessionId,
    tenant_id: &'a str,
    agent_name: &'a str,
    agent_version: u32,
    /// Empty while no sandbox serves it: published clients want a text.
    sandbox_id: String,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    paused_reason: Option<PausedReason>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
    runner_id: Option<&'a str>,
    parent_session_id: Option<SessionId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<&'a str>,
    permission_mode: PermissionMode,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    extra_env: BTreeMap<&'a str, &'static str>,
    metadata: &'a BTreeMap<String, String>,
    created_at: Time,
    last_active_at: Time,
}

impl<'a> SessionView<'a> {
    /// As it stands in a listing.
    pub(crate) fn listed(session: &'a Session) -> Self {
        Self {
            id: session.id,
            tenant_id: &session.tenant.0,
            agent_name: session.agent_name.as_str(),
            agent_version: session.agent_version,
            sandbox_id: session.sandbox.map(|sandbox| sandbox.to_string()).unwrap_or_default(),
            status: session.state.name(),
            paused_reason: session.state.paused_reason(),
            error: session.error.as_deref(),
            runner_id: None,
            parent_session_id: None,
            model: session.options.model.as_deref(),
            permission_mode: session.options.permission_mode,
            extra_env: BTreeMap::new(),
            metadata: &session.metadata,
            created_at: Time(session.created_at),
            last_active_at: Time(session.last_active_at),
        }
    }

    /// As it stands by itself: with the names of the variables that it does not have from its agent.
    pub(crate) fn single(session: &'a Session, version: &AgentVersion) -> Self {
        let own = session.options.environment.iter();
        let extra = own.filter(|(name, value)| version.settings.env.get(*name) != Some(*value));
        Self { extra_env: masked(extra.map(|(name, _)| name)), ..Self::listed(session) }
    }
}
