//! What a runner needs of the store: the log of the sessions that it has, and what it starts their sandboxes from.
//!
//! Standalone it is the store itself; a remote runner reaches it through a coordinator.

use std::{sync::Arc, time::Duration};

use ash_protocol::{Epoch, Sequence};
use async_trait::async_trait;
use bytes::Bytes;

use super::{Append, OpenEpoch, Page, SnapshotRow, Store, StoreError, TurnRecord};
use crate::{
    agent::AgentVersion,
    id::{AgentId, SessionId, TenantId, TurnId},
    session::Session,
    transcript::Transcript,
};

/// The part of the store that a runner reads and writes. Every method does what the one of the same name of the store's other
/// ports does; where a runner shares the store with others, only for the sessions that are its own.
#[async_trait]
pub trait RunnerStore: Send + Sync {
    /// A session of a tenant.
    async fn session(&self, tenant: &TenantId, id: SessionId) -> Result<Option<Session>, StoreError>;

    /// Every session that a sandbox of this runner serves: what it looks for when it starts.
    async fn placed_sessions(&self) -> Result<Vec<Session>, StoreError>;

    /// Whether there is a session with this id, of any tenant: whose folder a runner may not remove.
    async fn session_exists(&self, id: SessionId) -> Result<bool, StoreError>;

    /// A version of an agent.
    async fn agent_version(
        &self,
        tenant: &TenantId,
        agent: AgentId,
        number: u32,
    ) -> Result<Option<AgentVersion>, StoreError>;

    /// The bytes of a bundle.
    async fn bundle(&self, tenant: &TenantId, digest: &str) -> Result<Option<Bytes>, StoreError>;

    /// Opens the next epoch of a session by compare-and-set.
    async fn open_epoch(&self, open: OpenEpoch) -> Result<Session, StoreError>;

    /// Appends to the logs of many sessions.
    async fn append(&self, appends: Vec<Append>) -> Vec<Result<(), StoreError>>;

    /// How long appends wait for more, where nobody waits for them. Zero: the caller's own measure is right.
    fn append_spacing(&self) -> Duration {
        Duration::ZERO
    }

    /// Entries after a position.
    async fn read(&self, session: SessionId, after: Sequence, max_bytes: usize) -> Result<Page, StoreError>;

    /// The conversation as far as it is committed.
    async fn transcript(&self, session: SessionId) -> Result<Option<Transcript>, StoreError>;

    /// The turn that began and has not ended.
    async fn unfinished_turn(&self, session: SessionId) -> Result<Option<TurnId>, StoreError>;

    /// A turn by its id.
    async fn turn(&self, session: SessionId, turn: TurnId) -> Result<Option<TurnRecord>, StoreError>;

    /// The last turn of a session that has ended, as far as that is committed.
    async fn last_turn(&self, session: SessionId) -> Result<Option<TurnId>, StoreError>;

    /// Adds a snapshot of a session that is in this epoch.
    async fn add_snapshot(&self, epoch: Epoch, snapshot: SnapshotRow) -> Result<(), StoreError>;

    /// The snapshots of a session, newest first.
    async fn snapshots(&self, session: SessionId) -> Result<Vec<SnapshotRow>, StoreError>;

    /// Says that a snapshot of a session was found damaged: newer ones do not push it out.
    async fn snapshot_damaged(&self, session: SessionId, digest: &str) -> Result<(), StoreError>;
}

/// The store of this process as its runner's: all sessions are its own.
pub struct WholeStore(pub Arc<dyn Store>);

#[async_trait]
impl RunnerStore for WholeStore {
    async fn session(&self, tenant: &TenantId, id: SessionId) -> Result<Option<Session>, StoreError> {
        self.0.session(tenant, id).await
    }

    async fn placed_sessions(&self) -> Result<Vec<Session>, StoreError> {
        self.0.placed_sessions().await
    }

    async fn session_exists(&self, id: SessionId) -> Result<bool, StoreError> {
        self.0.session_exists(id).await
    }

    async fn agent_version(
        &self,
        tenant: &TenantId,
        agent: AgentId,
        number: u32,
    ) -> Result<Option<AgentVersion>, StoreError> {
        self.0.agent_version(tenant, agent, number).await
    }

    async fn bundle(&self, tenant: &TenantId, digest: &str) -> Result<Option<Bytes>, StoreError> {
        self.0.bundle(tenant, digest).await
    }

    async fn open_epoch(&self, open: OpenEpoch) -> Result<Session, StoreError> {
        self.0.open_epoch(open).await
    }

    async fn append(&self, appends: Vec<Append>) -> Vec<Result<(), StoreError>> {
        self.0.append(appends).await
    }

    fn append_spacing(&self) -> Duration {
        self.0.append_spacing()
    }

    async fn read(&self, session: SessionId, after: Sequence, max_bytes: usize) -> Result<Page, StoreError> {
        self.0.read(session, after, max_bytes).await
    }

    async fn transcript(&self, session: SessionId) -> Result<Option<Transcript>, StoreError> {
        self.0.transcript(session).await
    }

    async fn unfinished_turn(&self, session: SessionId) -> Result<Option<TurnId>, StoreError> {
        self.0.unfinished_turn(session).await
    }

    async fn turn(&self, session: SessionId, turn: TurnId) -> Result<Option<TurnRecord>, StoreError> {
        self.0.turn(session, turn).await
    }

    async fn last_turn(&self, session: SessionId) -> Result<Option<TurnId>, StoreError> {
        self.0.last_turn(session).await
    }

    async fn add_snapshot(&self, epoch: Epoch, snapshot: SnapshotRow) -> Result<(), StoreError> {
        self.0.add_snapshot(epoch, snapshot).await
    }

    async fn snapshots(&self, session: SessionId) -> Result<Vec<SnapshotRow>, StoreError> {
        self.0.snapshots(session).await
    }

    async fn snapshot_damaged(&self, session: SessionId, digest: &str) -> Result<(), StoreError> {
        self.0.snapshot_damaged(session, digest).await
    }
}
