//! Labels, annotations, finalizers and field managers: every name that Ash writes onto an object of the cluster.

/// Who manages an object; its value is [`MANAGER`].
pub const MANAGED_BY: &str = "app.kubernetes.io/managed-by";
/// The value of [`MANAGED_BY`].
pub const MANAGER: &str = "ash";
/// What an object is for; [`SANDBOX`] on sandbox pods.
pub const COMPONENT: &str = "app.kubernetes.io/component";
/// The value of [`COMPONENT`] of sandbox pods.
pub const SANDBOX: &str = "sandbox";
/// The value of [`COMPONENT`] of pods that clone a Git repository.
pub const GIT_CLONE: &str = "git-clone";

/// The value of [`COMPONENT`] of the pods of runners.
pub const RUNNER: &str = "runner";

/// On pods and sessions: the name of their agent.
pub const AGENT: &str = "ash.dev/agent";
/// On pods: the number of the agent's version.
pub const AGENT_VERSION: &str = "ash.dev/agent-version";
/// On pods: the id of the sandbox.
pub const SANDBOX_ID: &str = "ash.dev/sandbox-id";
/// On pods: the name of the session that claimed them.
pub const SESSION: &str = "ash.dev/session";
/// On sessions and on the pods that they claimed: the uid of the session. REST finds a session by it.
pub const SESSION_UID: &str = "ash.dev/session-uid";
/// On pods: `true` while they wait for a session.
pub const WARM: &str = "ash.dev/warm";
/// On nodes, pods and runners: the node pool.
pub const NODE_POOL: &str = "ash.dev/node-pool";
/// On sessions and agents: [`ORIGIN_REST`] where a REST call made them.
pub const ORIGIN: &str = "ash.dev/origin";
/// The value of [`ORIGIN`] for what a REST call made.
pub const ORIGIN_REST: &str = "rest";

/// Annotation of sessions: the epoch of its log in which the API asked for a sandbox. It is made while that is the epoch.
pub const WAKE_REQUESTED: &str = "ash.dev/wake-requested";
/// Annotation of sessions: when the API asked for a sandbox, in RFC 3339. For an operator of the release before, and from an API
/// process of it.
pub const WAKE_REQUESTED_AT: &str = "ash.dev/wake-requested-at";
/// Annotation of sessions that a REST call made with variables: the stored credential that has them.
pub const ENVIRONMENT: &str = "ash.dev/environment-credential";
/// Annotation of sessions that REST stopped rather than paused: both set `spec.suspend`.
pub const STOPPED: &str = "ash.dev/stopped";

/// On sessions and agents: the operator clears up before the object goes.
pub const FINALIZER: &str = "ash.dev/cleanup";

/// Field manager of the operator for the objects that it owns.
pub const FIELD_MANAGER_OPERATOR: &str = "ash-operator";
/// Field manager of the operator for status.
pub const FIELD_MANAGER_STATUS: &str = "ash-operator-status";
/// Field manager of the API for resources that REST calls make and change.
pub const FIELD_MANAGER_API: &str = "ash-api";

/// The stored credential with the variables that a REST call brought for a session, by the resource's name.
pub fn variables_of_session(name: &str) -> String {
    format!("session/{name}")
}

/// The labels of an agent's warm pods, as a selector.
pub fn warm_selector(agent: &str) -> String {
    format!("{AGENT}={agent},{WARM}=true")
}
