//! The sandboxes of a cluster, as the store has them: a row is there before its pod is, and a claim is one compare-and-set.

use std::time::Duration;

use async_trait::async_trait;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::StoreError;
use crate::{
    fleet::RunnerId,
    id::{AgentId, SandboxId, SessionId, TenantId},
};

/// How far a pod's sandbox is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum PodState {
    /// Its pod is made, or starts; its bridge has not said that Claude is ready.
    Starting,
    /// Claude is ready; no session has it.
    Warm,
    /// A session has it.
    Claimed,
    /// Its pod goes away; nobody can claim it any more.
    Deleting,
}

/// A sandbox pod.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodSandbox {
    /// Its id.
    pub id: SandboxId,
    /// Whose it is: the namespace.
    pub tenant: TenantId,
    /// Its pod's name.
    pub pod: String,
    /// Its pod's uid, once its bridge was admitted: no other pod of that name is.
    pub pod_uid: Option<String>,
    /// The agent.
    pub agent: AgentId,
    /// The agent's version.
    pub agent_version: u32,
    /// The node pool.
    pub pool: String,
    /// The session that has it, or that it is made for.
    pub session: Option<SessionId>,
    /// How far it is.
    pub state: PodState,
    /// The runner that its bridge dialled, once it was admitted.
    pub runner: Option<RunnerId>,
    /// The node that it is on, once it was admitted.
    pub node: Option<String>,
    /// When its row was made.
    pub created_at: Timestamp,
    /// When its state last changed.
    pub changed_at: Timestamp,
}

/// A bridge that proved which pod it is in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct PodIdentity {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The pod's uid.
    pub pod_uid: String,
    /// The node that it is on.
    pub node: String,
}

/// The rows of sandbox pods.
#[async_trait]
pub trait PodStore: Send + Sync {
    /// Adds a row in [`PodState::Starting`]. Refused as a conflict where the session has another sandbox that is not deleting.
    async fn add_pod(&self, pod: PodSandbox) -> Result<(), StoreError>;

    /// Admits a bridge: notes pod uid, node and runner by compare-and-set (a row keeps the first pod uid for good; a later runner
    /// of the same node takes over from an earlier incarnation). `None` where there is no such row, it is deleting, or the pod is
    /// another: that stays so. [`StoreError::Unavailable`] where this life of the runner is not registered.
    async fn admit_pod(&self, pod: &PodIdentity, runner: &RunnerId) -> Result<Option<PodSandbox>, StoreError>;

    /// Starting → warm. False where the row is gone, deleting, or made for a session.
    async fn pod_is_warm(&self, id: SandboxId) -> Result<bool, StoreError>;

    /// Gives a session a warm sandbox of this version, in one statement (`FOR UPDATE SKIP LOCKED`, or compare-and-set): of those on
    /// runners that are not cordoned and not silent, one on the runner with the fewest claims. A session that has one already gets
    /// that again. `None` where there is none.
    async fn claim_warm(
        &self,
        tenant: &TenantId,
        agent: AgentId,
        version: u32,
        session: SessionId,
    ) -> Result<Option<PodSandbox>, StoreError>;

    /// Warm → deleting, or starting → deleting where no session has it: false where it was claimed meanwhile.
    async fn delete_unclaimed_pod(&self, id: SandboxId) -> Result<bool, StoreError>;

    /// Any state → deleting: its session is over, or its pod is gone.
    async fn delete_pod(&self, id: SandboxId) -> Result<bool, StoreError>;

    /// Removes a row whose pod is gone.
    async fn remove_pod(&self, id: SandboxId) -> Result<(), StoreError>;

    /// The sandbox of a session that is not deleting.
    async fn pod_of(&self, session: SessionId) -> Result<Option<PodSandbox>, StoreError>;

    /// Keeps how long sessions of an agent may be without a turn before they sleep, in whole seconds: for sandboxes that are
    /// admitted from now on. Nothing is written where it is so already.
    async fn set_idle_timeout(&self, tenant: &TenantId, agent: AgentId, timeout: Duration) -> Result<(), StoreError>;

    /// What [`PodStore::set_idle_timeout`] kept; `None` where it never was.
    async fn idle_timeout(&self, tenant: &TenantId, agent: AgentId) -> Result<Option<Duration>, StoreError>;

    /// Every row of a tenant, or of all.
    async fn pods(&self, tenant: Option<&TenantId>) -> Result<Vec<PodSandbox>, StoreError>;
}
