//! The resources of a cluster, as the API asks for them. Standalone there are none.

use std::collections::BTreeMap;

use ash_protocol::{Epoch, options::SessionOptions};
use async_trait::async_trait;

use crate::{
    agent::AgentSettings,
    id::{SessionId, TenantId},
    name::AgentName,
};

/// Why the cluster did not do something.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResourceError {
    /// The API server does not answer. HTTP 503 with `Retry-After`.
    #[error("the Kubernetes API server does not answer: {0}; running sessions go on, try again in a moment")]
    Unavailable(String),
    /// Another field manager owns the object, or it is another's. HTTP 409.
    #[error("{0}")]
    Conflict(String),
    /// The API server refused it: validation, admission, quota. HTTP 400 or 403, with its words.
    #[error("{0}")]
    Refused(String),
    /// There is no such object. HTTP 404.
    #[error("{0}")]
    NotFound(String),
}

/// A session that a REST call asks for.
#[derive(Debug, Clone)]
pub struct SessionRequest {
    /// Whose it is: its namespace.
    pub tenant: TenantId,
    /// Its agent's name.
    pub agent: AgentName,
    /// The agent's version.
    pub version: u32,
    /// Its options, as asked.
    pub options: SessionOptions,
    /// What its maker keeps with it.
    pub metadata: BTreeMap<String, String>,
    /// A stored credential for the model.
    pub credential: Option<uuid::Uuid>,
    /// What names the request, so that a repeat finds the same resource (its name is made from it).
    pub idempotency_key: Option<String>,
}

/// An agent that a REST call deploys.
#[derive(Debug, Clone)]
pub struct AgentRequest {
    /// Whose it is: its namespace.
    pub tenant: TenantId,
    /// Its name: has to be one that Kubernetes takes, too.
    pub name: AgentName,
    /// Another name to find it by.
    pub slug: Option<String>,
    /// A sentence about it.
    pub description: Option<String>,
    /// Its settings.
    pub settings: AgentSettings,
    /// The digest of the bundle, which the store has already.
    pub digest: String,
}

/// Intent, as resources keep it.
#[async_trait]
pub trait Resources: Send + Sync {
    /// Makes a `Session`; its `metadata.uid` is the session's id.
    async fn create_session(&self, request: SessionRequest) -> Result<SessionId, ResourceError>;

    /// Sets `spec.suspend`; `stop` notes that the session is stopped rather than paused.
    async fn suspend_session(
        &self,
        tenant: &TenantId,
        id: SessionId,
        suspend: bool,
        stop: bool,
    ) -> Result<(), ResourceError>;

    /// Sets what of a session's options may change in its life: model, tools, betas, sub-agents, initial agent. `before` is what
    /// they are now: what it has and `options` has not is taken away.
    async fn configure_session(
        &self,
        tenant: &TenantId,
        id: SessionId,
        before: &SessionOptions,
        options: &SessionOptions,
    ) -> Result<(), ResourceError>;

    /// Sets the one-way `spec.end`.
    async fn end_session(&self, tenant: &TenantId, id: SessionId) -> Result<(), ResourceError>;

    /// Asks for a sandbox for a session that has none in this epoch of its log: the operator makes one, unless another epoch has
    /// begun.
    async fn wake_session(&self, tenant: &TenantId, id: SessionId, epoch: Epoch) -> Result<(), ResourceError>;

    /// Whether [`Resources::apply_agent`] would be refused, before anything is stored for it. Gives the settings of the version
    /// that it would make: those of the request with what others have set on the same agent.
    async fn check_agent(&self, request: &AgentRequest) -> Result<AgentSettings, ResourceError>;

    /// Makes or changes an `Agent` whose source is an uploaded bundle, by server-side apply; a conflict where another field
    /// manager owns it.
    async fn apply_agent(&self, request: AgentRequest) -> Result<(), ResourceError>;

    /// Deletes an `Agent`; false when there is none.
    async fn delete_agent(&self, tenant: &TenantId, name: &AgentName) -> Result<bool, ResourceError>;
}
