//! A store of which a test stops the appends.

#![allow(unreachable_pub, reason = "a part of two tests")]

use ash_core::{
    Epoch, Sequence,
    agent::AgentVersion,
    id::{AgentId, SessionId, TenantId, TurnId},
    ports::{Append, OpenEpoch, Page, RunnerStore, SnapshotRow, StoreError, TurnRecord, WholeStore},
    session::Session,
    transcript::Transcript,
};
use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;

/// The store, as a runner has it.
pub struct Stoppable {
    pub store: WholeStore,
    /// Whether appends go on.
    pub goes: watch::Receiver<bool>,
}

#[async_trait]
impl RunnerStore for Stoppable {
    async fn session(&self, tenant: &TenantId, id: SessionId) -> Result<Option<Session>, StoreError> {
        self.store.session(tenant, id).await
    }

    async fn placed_sessions(&self) -> Result<Vec<Session>, StoreError> {
        self.store.placed_sessions().await
    }

    async fn session_exists(&self, id: SessionId) -> Result<bool, StoreError> {
        self.store.session_exists(id).await
    }

    async fn agent_version(
        &self,
        tenant: &TenantId,
        id: AgentId,
        number: u32,
    ) -> Result<Option<AgentVersion>, StoreError> {
        self.store.agent_version(tenant, id, number).await
    }

    async fn bundle(&self, tenant: &TenantId, digest: &str) -> Result<Option<Bytes>, StoreError> {
        self.store.bundle(tenant, digest).await
    }

    async fn open_epoch(&self, open: OpenEpoch) -> Result<Session, StoreError> {
        self.store.open_epoch(open).await
    }

    async fn append(&self, appends: Vec<Append>) -> Vec<Result<(), StoreError>> {
        // Ends with the world.
        let _ = self.goes.clone().wait_for(|goes| *goes).await;
        self.store.append(appends).await
    }

    async fn read(&self, session: SessionId, after: Sequence, max_bytes: usize) -> Result<Page, StoreError> {
        self.store.read(session, after, max_bytes).await
    }

    async fn transcript(&self, session: SessionId) -> Result<Option<Transcript>, StoreError> {
        self.store.transcript(session).await
    }

    async fn unfinished_turn(&self, session: SessionId) -> Result<Option<TurnId>, StoreError> {
        self.store.unfinished_turn(session).await
    }

    async fn turn(&self, session: SessionId, turn: TurnId) -> Result<Option<TurnRecord>, StoreError> {
        self.store.turn(session, turn).await
    }

    async fn last_turn(&self, session: SessionId) -> Result<Option<TurnId>, StoreError> {
        self.store.last_turn(session).await
    }

    async fn add_snapshot(&self, epoch: Epoch, snapshot: SnapshotRow) -> Result<(), StoreError> {
        self.store.add_snapshot(epoch, snapshot).await
    }

    async fn snapshots(&self, session: SessionId) -> Result<Vec<SnapshotRow>, StoreError> {
        self.store.snapshots(session).await
    }

    async fn snapshot_damaged(&self, session: SessionId, digest: &str) -> Result<(), StoreError> {
        self.store.snapshot_damaged(session, digest).await
    }
}
