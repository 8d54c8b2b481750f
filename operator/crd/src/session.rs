//! The kind `Session`.
#![allow(clippy::duplicated_attributes, reason = "every column of a table has a name and a type")]

use ash_core::{session as core, spent::Spent};
use k8s_openapi::{
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use crate::{
    duration::Duration,
    message::FirstMessage,
    options::SessionOptions,
    schema::{self, duration_rule, object_name_rule, rule},
};

/// One conversation with an agent.
#[derive(CustomResource, Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "ash.dev",
    version = "v1alpha1",
    kind = "Session",
    namespaced,
    shortname = "ses",
    category = "ash",
    status = "SessionStatus",
    derive = "PartialEq",
    doc = "A Session is one durable conversation with an Agent, in a sandbox of its own while it is in use. Its metadata.uid is \
           its id over REST. Deleting it ends the conversation at once; its history stays.",
    printcolumn(name = "Agent", type_ = "string", json_path = ".spec.agent", description = "The agent"),
    printcolumn(
        name = "State",
        type_ = "string",
        json_path = ".status.state",
        description = "starting, active, paused, stopped, ended or error"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].status"#,
        description = "Whether it is as its spec asks"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].reason"#,
        description = "Why; docs/conditions.md says what to do"
    ),
    printcolumn(name = "Turns", type_ = "integer", json_path = ".status.turns", description = "Turns that have ended"),
    printcolumn(name = "Cost", type_ = "number", json_path = ".status.costUsd", description = "US dollars"),
    printcolumn(name = "Node", type_ = "string", json_path = ".status.node", description = "Where its sandbox runs"),
    printcolumn(
        name = "Runner",
        type_ = "string",
        json_path = ".status.runner",
        priority = 1,
        description = "The runner that serves it"
    ),
    printcolumn(name = "Pod", type_ = "string", json_path = ".status.pod", priority = 1, description = "Its sandbox"),
    printcolumn(
        name = "Version",
        type_ = "integer",
        json_path = ".status.agentVersion",
        priority = 1,
        description = "The agent's version"
    ),
    printcolumn(
        name = "URL",
        type_ = "string",
        json_path = ".status.url",
        priority = 1,
        description = "Its address over REST"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    selectable = ".spec.agent",
    selectable = ".spec.suspend",
    selectable = ".spec.end",
    selectable = ".status.state",
    selectable = ".status.pausedReason",
    selectable = ".status.node",
    selectable = ".status.runner"
)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("x-kubernetes-validations" = [
    rule(
        "has(self.version) == has(oldSelf.version) && (!has(self.version) || self.version == oldSelf.version)",
        "spec.version cannot change: a session keeps the version that it started with; create another Session for another version",
    ),
    rule(
        "has(self.message) == has(oldSelf.message)",
        "spec.message cannot change: the first message is sent once; send further ones over REST or with `ash chat`",
    ),
    rule(
        "has(self.credentialId) == has(oldSelf.credentialId) && (!has(self.credentialId) || self.credentialId == \
         oldSelf.credentialId)",
        "spec.credentialId cannot change: create another Session for another credential",
    ),
]))]
pub struct SessionSpec {
    /// The name of the Agent, in this namespace. It may be created after the session, which waits for it. Never changes.
    #[schemars(
        length(max = 63),
        extend("x-kubernetes-validations" = [
            object_name_rule(),
            rule(
                "self == oldSelf",
                "spec.agent cannot change: a session is a conversation with one agent; create another Session for another agent",
            ),
        ])
    )]
    pub agent: String,
    /// The version of the agent. The newest at the session's start where absent. Never changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 2_147_483_647))]
    pub version: Option<u32>,
    /// A first message that is sent as soon as the session is there, once, whatever is restarted. Never changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-validations" = [rule(
        "self == oldSelf",
        "spec.message cannot change: the first message is sent once; send further ones over REST or with `ash chat`",
    )]))]
    pub message: Option<FirstMessage>,
    /// true: the sandbox is given back and messages are refused until this is false again. The conversation stays. REST's pause
    /// and resume set this field.
    #[serde(default)]
    pub suspend: bool,
    /// true: the session ends for good, and this resource stays as its record. Never becomes false again. REST's DELETE sets
    /// this field.
    #[serde(default)]
    #[schemars(extend("x-kubernetes-validations" = [rule(
        "self || !oldSelf",
        "spec.end cannot become false again: an ended session is final; create another Session",
    )]))]
    pub end: bool,
    /// How the session runs.
    #[serde(default)]
    pub options: SessionOptions,
    /// A credential that was stored over REST (POST /api/credentials), by its id: one for the model in place of the agent's, or a
    /// custom one, whose variables go over the agent's and under `options.env`. Never changes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(max = 36),
        extend("x-kubernetes-validations" = [rule(
            "self.matches('^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$')",
            "this is no id of a credential: use the id that POST /api/credentials answered with",
        )])
    )]
    pub credential_id: Option<String>,
    /// Texts that you want to keep with the session. REST shows them, and its listings filter by them.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(schema_with = "metadata")]
    pub metadata: BTreeMap<String, String>,
    /// How long this resource stays after the session has ended. Then it is removed, and its history stays. From 0s to 8760h. For
    /// good where absent, but for sessions that were made over REST, which get the installation's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(extend("x-kubernetes-validations" = [duration_rule("0s", "8760h")]))]
    pub ttl_after_end: Option<Duration>,
}

fn metadata(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
    schema::texts(64, 1024)
}

/// What became of the session.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct SessionStatus {
    /// The metadata.generation that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// starting: declared and not admitted yet. active: takes messages. paused: without a sandbox, for the reason in
    /// pausedReason. stopped: by a person, over REST. ended: final. error: its sandbox could not start; a message tries again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "SessionState")]
    pub state: Option<SessionState>,
    /// Why it is paused. person: spec.suspend. idle, evicted, drained, lost: it sleeps, and its next message wakes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "PausedReason")]
    pub paused_reason: Option<PausedReason>,
    /// The agent's version that the session runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agent_version: Option<u32>,
    /// The node of its sandbox. Absent while it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub node: Option<String>,
    /// The runner that serves it. Absent while none does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub runner: Option<String>,
    /// The pod that is its sandbox. Absent while it has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 253))]
    pub pod: Option<String>,
    /// Turns that had ended when the state last changed.
    #[serde(default)]
    pub turns: u32,
    /// Tokens that had been used when the state last changed.
    #[serde(default)]
    pub tokens: TokenUsage,
    /// What those tokens cost, in US dollars, as Claude Code reckons.
    #[serde(default)]
    pub cost_usd: f64,
    /// The session's address over REST.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 2048))]
    pub url: Option<String>,
    /// When it was admitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::time")]
    pub started_at: Option<Time>,
    /// When it ended. spec.ttlAfterEnd counts from here.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::time")]
    pub ended_at: Option<Time>,
    /// The state in a form that kubectl wait, Argo CD and Flux understand: Ready, Reconciling, Stalled; MessageTaken for
    /// spec.message.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
}

/// Tokens by kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", default)]
#[schemars(inline)]
pub struct TokenUsage {
    /// Tokens that the model read, without those of the cache.
    pub input: u64,
    /// Tokens that the model wrote.
    pub output: u64,
    /// Tokens that the model read from its cache.
    pub cache_read: u64,
    /// Tokens that were put into the model's cache.
    pub cache_creation: u64,
}

/// The state of a session, as its status names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum SessionState {
    /// Declared, not admitted yet.
    Starting,
    /// Takes messages.
    Active,
    /// Put aside, with its reason.
    Paused,
    /// Stopped by a person.
    Stopped,
    /// Final.
    Ended,
    /// Its sandbox could not start.
    Error,
}

/// Why a session is paused, as its status names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "lowercase")]
#[schemars(inline)]
pub enum PausedReason {
    /// `spec.suspend` says so.
    Person,
    /// Nobody used it for a while.
    Idle,
    /// Its sandbox was needed for another session.
    Evicted,
    /// Its node was taken out of service.
    Drained,
    /// Its sandbox was lost.
    Lost,
}

impl SessionStatus {
    /// Writes what a session has spent into this summary.
    pub fn set_spent(&mut self, spent: &Spent) {
        let tokens = |tokens: i64| u64::try_from(tokens).unwrap_or(0);
        self.turns = u32::try_from(spent.turns).unwrap_or(u32::MAX);
        self.tokens = TokenUsage {
            input: tokens(spent.tokens.input),
            output: tokens(spent.tokens.output),
            cache_read: tokens(spent.tokens.cache_read),
            cache_creation: tokens(spent.tokens.cache_creation),
        };
        // Exact to the millionth below nine billion dollars.
        #[allow(clippy::cast_precision_loss, reason = "bounded")]
        let dollars = spent.cost_micros as f64 / 1e6;
        self.cost_usd = dollars;
    }

    /// Writes a state of the core into this summary.
    pub fn set_state(&mut self, state: core::SessionState) {
        self.state = Some(state.into());
        self.paused_reason = state.paused_reason().map(Into::into);
    }
}

impl From<core::SessionState> for SessionState {
    fn from(state: core::SessionState) -> Self {
        match state {
            core::SessionState::Starting => Self::Starting,
            core::SessionState::Active => Self::Active,
            core::SessionState::Paused(_) => Self::Paused,
            core::SessionState::Stopped => Self::Stopped,
            core::SessionState::Ended => Self::Ended,
            core::SessionState::Error => Self::Error,
        }
    }
}

impl From<core::PausedReason> for PausedReason {
    fn from(reason: core::PausedReason) -> Self {
        match reason {
            core::PausedReason::Person => Self::Person,
            core::PausedReason::Idle => Self::Idle,
            core::PausedReason::Evicted => Self::Evicted,
            core::PausedReason::Drained => Self::Drained,
            core::PausedReason::Lost => Self::Lost,
        }
    }
}

/// The definition as the API server gets it.
pub(crate) fn finish(definition: CustomResourceDefinition) -> CustomResourceDefinition {
    let rules = [(
        "self.metadata.name.size() <= 63",
        "a Session's name has at most 63 characters, since it becomes a label: choose a shorter one",
    )];
    schema::finish(definition, &rules)
}
