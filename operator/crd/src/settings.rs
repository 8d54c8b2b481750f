//! What a resource means in Ash's own words: pure functions from a spec to the settings and options of core and protocol.

use std::{collections::BTreeMap, ops::RangeInclusive};

use ash_core::{
    agent::{AgentSettings, NetworkPolicy, TurnLimits},
    environment,
    id::{SessionId, TurnId},
};
use ash_protocol::options as protocol;

use crate::{
    agent::{AgentSpec, DEFAULT_WARM_MAX, WarmPool, default_idle_timeout},
    environment::EnvironmentVariable,
    message::FirstMessage,
    network::{Network, NetworkMode},
    reason::Reason,
    reference::SecretKeyReference,
    session::SessionSpec,
};

/// What the uuid of a session's first message is made from, beside the session's id. An `Idempotency-Key` of REST shares the
/// namespace, hence the prefix.
const FIRST_MESSAGE_KEY: &str = "ash.dev/v1alpha1/spec.message";

/// Why a spec cannot be used as it is.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Unusable {
    /// A Secret or a key of it is not there.
    #[error(
        "the Secret {name:?} with the key {key:?}, which the variable {variable} is read from, is not in this namespace, or \
         the installation does not let Ash read it: create it, or have it added to the installation's values"
    )]
    SecretMissing {
        /// The variable.
        variable: String,
        /// The Secret.
        name: String,
        /// The key.
        key: String,
    },
    /// A variable has neither value nor reference, as no API server with the right definition lets pass.
    #[error("the variable {0} has no value: give it value or valueFrom")]
    NoValue(String),
    /// The environment breaks a rule that only its values show.
    #[error(transparent)]
    Environment(#[from] environment::Refused),
    /// A JSON schema that cannot be written.
    #[error("outputFormat.schema cannot be written as JSON: {0}")]
    Schema(String),
}

impl Unusable {
    /// The reason for the condition.
    pub fn reason(&self) -> Reason {
        match self {
            Self::SecretMissing { .. } => Reason::SecretNotFound,
            Self::NoValue(_) | Self::Environment(_) => Reason::EnvironmentRefused,
            Self::Schema(_) => Reason::OptionRefused,
        }
    }
}

/// Resolves variables. `read` answers with the value behind a reference, or `None` where it is not there.
pub fn resolve(
    variables: &[EnvironmentVariable],
    read: impl Fn(&SecretKeyReference) -> Option<String>,
) -> Result<BTreeMap<String, String>, Unusable> {
    let mut resolved = BTreeMap::new();
    for variable in variables {
        let value = match (&variable.value, &variable.value_from) {
            (Some(value), _) => value.clone(),
            (None, Some(source)) => read(&source.secret_key_ref).ok_or_else(|| Unusable::SecretMissing {
                variable: variable.name.clone(),
                name: source.secret_key_ref.name.clone(),
                key: source.secret_key_ref.key.clone(),
            })?,
            (None, None) => return Err(Unusable::NoValue(variable.name.clone())),
        };
        resolved.insert(variable.name.clone(), value);
    }
    environment::check(&resolved)?;
    Ok(resolved)
}

fn secret_keys(variables: &[EnvironmentVariable]) -> impl Iterator<Item = &SecretKeyReference> {
    variables.iter().filter_map(|variable| variable.value_from.as_ref()).map(|source| &source.secret_key_ref)
}

impl AgentSpec {
    /// The settings of a version of the agent of this name, with the names that its secrets are stored under, not the secrets
    /// themselves. Whether the bundle has hooks, and which model it names, is known when its files are: the caller sets that.
    pub fn settings(&self, agent: &str) -> AgentSettings {
        let variables = &self.sandbox.env;
        let plain = variables.iter().filter_map(|variable| Some((variable.name.clone(), variable.value.clone()?)));
        let is_any_hidden = variables.iter().any(EnvironmentVariable::is_hidden);
        AgentSettings {
            system_prompt: self.system_prompt.clone(),
            model: self.model.clone(),
            env: plain.collect(),
            network: (&self.sandbox.network).into(),
            sandbox: self.sandbox.of_version(),
            limits: TurnLimits { max_turns: self.limits.max_turns, max_budget_usd: self.limits.max_budget_usd },
            config: self.config.clone(),
            credential: self.model_credential.as_ref().map(|credential| credential.secret_key_ref.stored_name()),
            secret_environment: is_any_hidden.then(|| format!("environment/{agent}")),
            ..AgentSettings::default()
        }
    }

    /// The part of the spec that makes a version: two specs with the same one are the same version. How the agent is found and
    /// how many sandboxes wait for it is no part, or every `kubectl scale` would be a deployment.
    #[must_use]
    pub fn versioned(&self) -> Self {
        Self {
            description: None,
            slug: None,
            warm: WarmPool::default(),
            idle_timeout: default_idle_timeout(),
            ..self.clone()
        }
    }

    /// What holds for a turn that does not bring its own.
    pub fn turn_defaults(&self) -> protocol::TurnOptions {
        protocol::TurnOptions {
            max_turns: self.limits.max_turns,
            max_budget_usd: self.limits.max_budget_usd,
            ..protocol::TurnOptions::default()
        }
    }

    /// Every key of a Secret that the agent is made from: of its environment, then its model credential.
    pub fn secret_keys(&self) -> impl Iterator<Item = &SecretKeyReference> {
        let credential = self.model_credential.as_ref().map(|credential| &credential.secret_key_ref);
        secret_keys(&self.sandbox.env).chain(credential)
    }
}

impl SessionSpec {
    /// The options of the session, complete: `environment` is its own, resolved, which goes over the agent's.
    pub fn options(&self, agent: &AgentSettings, environment: BTreeMap<String, String>) -> protocol::SessionOptions {
        let options = &self.options;
        let mut complete = agent.env.clone();
        complete.extend(environment);
        protocol::SessionOptions {
            model: options.model.clone(),
            system_prompt: options.system_prompt.clone(),
            permission_mode: options.permission_mode.into(),
            allowed_tools: options.allowed_tools.clone(),
            disallowed_tools: options.disallowed_tools.clone(),
            betas: options.betas.clone(),
            subagents: options.subagents.clone(),
            initial_agent: options.initial_agent.clone(),
            mcp_servers: options.mcp_servers.clone(),
            environment: complete,
        }
    }

    /// The options that a session has to have where they are not these: what may change in its life as it is declared here, the
    /// rest as it is. `None` where nothing has changed.
    pub fn changed(&self, now: &protocol::SessionOptions) -> Option<protocol::SessionOptions> {
        let options = &self.options;
        let declared = protocol::SessionOptions {
            model: options.model.clone(),
            allowed_tools: options.allowed_tools.clone(),
            disallowed_tools: options.disallowed_tools.clone(),
            betas: options.betas.clone(),
            subagents: options.subagents.clone(),
            initial_agent: options.initial_agent.clone(),
            ..now.clone()
        };
        (declared != *now).then_some(declared)
    }

    /// Every key of a Secret that the session is made from.
    pub fn secret_keys(&self) -> impl Iterator<Item = &SecretKeyReference> {
        secret_keys(&self.options.env)
    }
}

impl FirstMessage {
    /// The turn that a session's first message is, whoever sends it and however often.
    pub fn turn(session: SessionId) -> TurnId {
        TurnId::from_idempotency_key(session, FIRST_MESSAGE_KEY)
    }

    /// The options of its turn, over the agent's defaults.
    pub fn options(&self, defaults: &protocol::TurnOptions) -> Result<protocol::TurnOptions, Unusable> {
        let format = self.output_format.as_ref().map(TryInto::try_into).transpose();
        Ok(protocol::TurnOptions {
            model: self.model.clone().or_else(|| defaults.model.clone()),
            max_turns: self.max_turns.or(defaults.max_turns),
            max_budget_usd: self.max_budget_usd.or(defaults.max_budget_usd),
            effort: self.effort.map(Into::into).or(defaults.effort),
            thinking: self.thinking.as_ref().map(Into::into).or(defaults.thinking),
            output_format: format
                .map_err(|error: serde_json::Error| Unusable::Schema(error.to_string()))?
                .or_else(|| defaults.output_format.clone()),
        })
    }
}

impl WarmPool {
    /// The least and the most warm sandboxes.
    pub fn bounds(&self) -> RangeInclusive<u32> {
        let max = self.max.unwrap_or(DEFAULT_WARM_MAX);
        self.min..=max.max(self.min)
    }
}

impl From<&Network> for NetworkPolicy {
    fn from(network: &Network) -> Self {
        match network.mode {
            NetworkMode::Model => Self::Model,
            NetworkMode::Allowlist => Self::Allowlist { hosts: network.hosts.clone() },
            NetworkMode::Public => Self::Public,
        }
    }
}
