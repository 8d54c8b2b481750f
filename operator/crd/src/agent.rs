//! The kind `Agent`.
#![allow(clippy::duplicated_attributes, reason = "every column of a table has a name and a type")]

use k8s_openapi::{
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
    apimachinery::pkg::apis::meta::v1::Condition,
};
use kube::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    duration::Duration,
    limits::TurnLimits,
    reference::SecretKeyReference,
    sandbox::Sandbox,
    schema::{self, duration_rule, one_line_rule, rule},
    source::Source,
};

/// Sessions sleep after so long without a turn where nothing is said: 15 minutes.
const DEFAULT_IDLE_TIMEOUT_MINUTES: u64 = 15;

/// Warm sandboxes where nothing is said.
const DEFAULT_WARM_MIN: u32 = 1;

/// To how many warm sandboxes demand may let a pool grow where nothing is said.
pub(crate) const DEFAULT_WARM_MAX: u32 = 10;

/// Minutes for which a session counts in the demand for warm sandboxes where nothing is said.
const DEFAULT_DEMAND_WINDOW_MINUTES: u64 = 2;

/// What an agent is and how its sessions run. A change makes a new version of the agent, which new sessions get; sessions keep
/// the version that they started with. A change of description, slug, warm or idleTimeout makes none.
#[derive(CustomResource, Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "ash.dev",
    version = "v1alpha1",
    kind = "Agent",
    namespaced,
    shortname = "ag",
    category = "ash",
    status = "AgentStatus",
    derive = "PartialEq",
    doc = "An Agent is a folder of files for Claude Code (CLAUDE.md, .claude/, .mcp.json) with settings. Sessions are \
           conversations with it, each in a sandbox of its own.",
    scale(
        spec_replicas_path = ".spec.warm.min",
        status_replicas_path = ".status.warm",
        label_selector_path = ".status.selector"
    ),
    printcolumn(
        name = "Version",
        type_ = "integer",
        json_path = ".status.version",
        description = "The version that new sessions get"
    ),
    printcolumn(
        name = "Ready",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].status"#,
        description = "Whether sessions can start"
    ),
    printcolumn(
        name = "Reason",
        type_ = "string",
        json_path = r#".status.conditions[?(@.type=="Ready")].reason"#,
        description = "Why; docs/conditions.md says what to do"
    ),
    printcolumn(
        name = "Warm",
        type_ = "integer",
        json_path = ".status.warm",
        description = "Sandboxes that wait for a session"
    ),
    printcolumn(
        name = "Active",
        type_ = "integer",
        json_path = ".status.active",
        description = "Sessions with a sandbox"
    ),
    printcolumn(
        name = "Asleep",
        type_ = "integer",
        json_path = ".status.asleep",
        description = "Sessions that their next message wakes"
    ),
    printcolumn(
        name = "Model",
        type_ = "string",
        json_path = ".spec.model",
        priority = 1,
        description = "The model of sessions that name none"
    ),
    printcolumn(
        name = "Node Pool",
        type_ = "string",
        json_path = ".spec.sandbox.nodePool",
        priority = 1,
        description = "Where sandboxes run"
    ),
    printcolumn(
        name = "Digest",
        type_ = "string",
        json_path = ".status.digest",
        priority = 1,
        description = "The digest of the agent's files"
    ),
    printcolumn(name = "Age", type_ = "date", json_path = ".metadata.creationTimestamp"),
    selectable = ".spec.model",
    selectable = ".spec.slug",
    selectable = ".spec.sandbox.nodePool",
    selectable = ".status.digest"
)]
#[serde(rename_all = "camelCase")]
pub struct AgentSpec {
    /// Where the agent's files come from.
    pub source: Source,
    /// A sentence about the agent, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 4096))]
    pub description: Option<String>,
    /// Another name that REST finds the agent by.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(
        length(max = 63),
        extend("x-kubernetes-validations" = [rule(
            "self.matches('^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$')",
            "this is no slug: use letters, digits, '-', '_' and '.', beginning and ending with a letter or digit",
        )])
    )]
    pub slug: Option<String>,
    /// The model of sessions that name none. Claude Code's default where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 256), extend("x-kubernetes-validations" = [one_line_rule()]))]
    pub model: Option<String>,
    /// Takes the place of CLAUDE.md in new sessions.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 1_048_576))]
    pub system_prompt: Option<String>,
    /// The key for the model. The installation's own where absent. No sandbox ever has it: Ash's gateway puts it into the
    /// requests.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_credential: Option<ModelCredential>,
    /// Bounds of every turn that does not bring its own.
    #[serde(default)]
    pub limits: TurnLimits,
    /// The sandboxes of the agent's sessions.
    #[serde(default)]
    pub sandbox: Sandbox,
    /// Sandboxes with a started Claude Code that wait for a session, so that it begins at once. `kubectl scale` and a
    /// HorizontalPodAutoscaler set min.
    #[serde(default)]
    pub warm: WarmPool,
    /// A session without a turn for so long gives its sandbox back and sleeps; its next message wakes it. From 10s to 720h. A
    /// change holds for sandboxes that start after it.
    #[serde(default = "default_idle_timeout")]
    #[schemars(extend("x-kubernetes-validations" = [duration_rule("10s", "720h")]))]
    pub idle_timeout: Duration,
    /// Anything that you want to keep with the agent, as JSON. REST shows it; Ash does not read it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(schema_with = "schema::any_object")]
    pub config: Option<Map<String, Value>>,
}

/// The key for the model.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct ModelCredential {
    /// apiKey: a key of the model API, sent as x-api-key; the default. authToken: a token, sent as Authorization: Bearer.
    #[serde(default, rename = "type")]
    pub kind: ModelCredentialType,
    /// The key of a Secret of this namespace that has it. A change of the Secret takes effect within a minute.
    pub secret_key_ref: SecretKeyReference,
}

/// How a credential is shown to the model API.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub enum ModelCredentialType {
    /// As `x-api-key`.
    #[default]
    ApiKey,
    /// As `Authorization: Bearer`.
    AuthToken,
}

/// The bounds of an agent's warm pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline, extend("x-kubernetes-validations" = [rule(
    "!has(self.max) || self.min <= self.max",
    "warm.min is greater than warm.max: lower min or raise max",
)]))]
pub struct WarmPool {
    /// Warm sandboxes at the least, also when nobody uses the agent. Each takes its memory. 0 for an agent that may start slowly.
    #[serde(default = "default_warm_min")]
    #[schemars(range(max = 1000))]
    pub min: u32,
    /// Warm sandboxes at the most, however great the demand. The greater of min and 10 where absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(max = 1000))]
    pub max: Option<u32>,
    /// For how long a session that took a sandbox counts in the demand: fully for half of this, then less and less. The longer,
    /// the later a pool shrinks after a burst. From 10s to 24h.
    #[serde(default = "default_demand_window")]
    #[schemars(extend("x-kubernetes-validations" = [duration_rule("10s", "24h")]))]
    pub demand_window: Duration,
}

impl Default for WarmPool {
    fn default() -> Self {
        Self { min: DEFAULT_WARM_MIN, max: None, demand_window: default_demand_window() }
    }
}

/// What became of the spec.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(inline)]
pub struct AgentStatus {
    /// The metadata.generation that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,
    /// The version that new sessions get, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u32>,
    /// The digest of that version's files: SHA-256, in hexadecimal.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub digest: Option<String>,
    /// The commit that spec.source.git.revision stood for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 64))]
    pub commit: Option<String>,
    /// Sandboxes that wait for a session.
    #[serde(default)]
    pub warm: u32,
    /// Sessions that have a sandbox.
    #[serde(default)]
    pub active: u32,
    /// Sessions without a sandbox that their next message wakes.
    #[serde(default)]
    pub asleep: u32,
    /// The labels of the warm pool's pods, as the scale subresource wants them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(length(max = 512))]
    pub selector: Option<String>,
    /// The state in a form that kubectl wait, Argo CD and Flux understand: Ready, Reconciling, Stalled; SourceReady and
    /// PoolReady in detail.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(schema_with = "schema::conditions")]
    pub conditions: Vec<Condition>,
}

pub(crate) fn default_idle_timeout() -> Duration {
    Duration::from_minutes(DEFAULT_IDLE_TIMEOUT_MINUTES)
}

fn default_warm_min() -> u32 {
    DEFAULT_WARM_MIN
}

fn default_demand_window() -> Duration {
    Duration::from_minutes(DEFAULT_DEMAND_WINDOW_MINUTES)
}

/// The definition as the API server gets it.
pub(crate) fn finish(definition: CustomResourceDefinition) -> CustomResourceDefinition {
    let rules = [(
        "self.metadata.name.size() <= 63",
        "an Agent's name has at most 63 characters, since it becomes a label: choose a shorter one",
    )];
    schema::finish(definition, &rules)
}
