//! The store's contract, with everything that a runner reads and writes going through a coordinator over a real socket.

#![allow(clippy::unwrap_used)]

#[path = "../../store/tests/contract/mod.rs"]
mod contract;
mod support;

use std::sync::Arc;

use ash_core::{
    Epoch, Sequence,
    agent::{Agent, AgentVersion},
    id::{AgentId, SessionId, TenantId, TurnId},
    name::AgentName,
    ports::{
        AgentStore, Append, DeployAgent, EventLog, Key, KeyStore, NewKey, NewSession, OpenEpoch, Page, RunnerStore,
        SessionFilter, SessionPage, SessionStore, SnapshotRow, SnapshotStore, Store, StoreError, TurnRecord,
    },
    session::Session,
    transcript::Transcript,
};
use ash_runner::RemoteStore;
use ash_store::{Database as _, SqliteStore};
use async_trait::async_trait;
use bytes::Bytes;
use tokio_util::sync::CancellationToken;

/// What a runner does goes over the wire, everything else is done directly.
struct Through {
    direct: Arc<SqliteStore>,
    wire: RemoteStore,
}

#[async_trait]
impl AgentStore for Through {
    async fn deploy_agent(&self, deploy: DeployAgent) -> Result<Agent, StoreError> {
        self.direct.deploy_agent(deploy).await
    }

    async fn describe_agent(
        &self,
        tenant: &TenantId,
        name: &AgentName,
        slug: Option<String>,
        description: Option<String>,
    ) -> Result<Agent, StoreError> {
        self.direct.describe_agent(tenant, name, slug, description).await
    }

    async fn agent(&self, tenant: &TenantId, name_or_slug: &str) -> Result<Option<Agent>, StoreError> {
        self.direct.agent(tenant, name_or_slug).await
    }

    async fn agents(&self, tenant: &TenantId) -> Result<Vec<Agent>, StoreError> {
        self.direct.agents(tenant).await
    }

    async fn agent_version(
        &self,
        tenant: &TenantId,
        agent: AgentId,
        number: u32,
    ) -> Result<Option<AgentVersion>, StoreError> {
        self.wire.agent_version(tenant, agent, number).await
    }

    async fn delete_agent(&self, tenant: &TenantId, name_or_slug: &str) -> Result<bool, StoreError> {
        self.direct.delete_agent(tenant, name_or_slug).await
    }

    async fn bundle(&self, tenant: &TenantId, digest: &str) -> Result<Option<Bytes>, StoreError> {
        self.wire.bundle(tenant, digest).await
    }
}

#[async_trait]
impl SessionStore for Through {
    async fn create_session(&self, new: NewSession) -> Result<(Session, bool), StoreError> {
        self.direct.create_session(new).await
    }

    async fn session_of_key(&self, tenant: &TenantId, key: &str) -> Result<Option<Session>, StoreError> {
        self.direct.session_of_key(tenant, key).await
    }

    async fn session(&self, tenant: &TenantId, id: SessionId) -> Result<Option<Session>, StoreError> {
        self.wire.session(tenant, id).await
    }

    async fn sessions(&self, tenant: &TenantId, filter: &SessionFilter) -> Result<SessionPage, StoreError> {
        self.direct.sessions(tenant, filter).await
    }

    async fn placed_sessions(&self) -> Result<Vec<Session>, StoreError> {
        self.wire.placed_sessions().await
    }

    async fn session_exists(&self, id: SessionId) -> Result<bool, StoreError> {
        self.wire.session_exists(id).await
    }

    async fn count_active_sessions(&self) -> Result<u64, StoreError> {
        self.direct.count_active_sessions().await
    }
}

#[async_trait]
impl EventLog for Through {
    async fn open_epoch(&self, open: OpenEpoch) -> Result<Session, StoreError> {
        self.wire.open_epoch(open).await
    }

    async fn append(&self, appends: Vec<Append>) -> Vec<Result<(), StoreError>> {
        self.wire.append(appends).await
    }

    async fn read(&self, session: SessionId, after: Sequence, max_bytes: usize) -> Result<Page, StoreError> {
        self.wire.read(session, after, max_bytes).await
    }

    async fn transcript(&self, session: SessionId) -> Result<Option<Transcript>, StoreError> {
        self.wire.transcript(session).await
    }

    async fn unfinished_turn(&self, session: SessionId) -> Result<Option<TurnId>, StoreError> {
        self.wire.unfinished_turn(session).await
    }

    async fn turn(&self, session: SessionId, turn: TurnId) -> Result<Option<TurnRecord>, StoreError> {
        self.wire.turn(session, turn).await
    }
}

#[async_trait]
impl SnapshotStore for Through {
    async fn last_turn(&self, session: SessionId) -> Result<Option<TurnId>, StoreError> {
        self.wire.last_turn(session).await
    }

    async fn add_snapshot(&self, epoch: Epoch, snapshot: SnapshotRow) -> Result<(), StoreError> {
        self.wire.add_snapshot(epoch, snapshot).await
    }

    async fn snapshots(&self, session: SessionId) -> Result<Vec<SnapshotRow>, StoreError> {
        self.wire.snapshots(session).await
    }

    async fn snapshot_damaged(&self, session: SessionId, digest: &str) -> Result<(), StoreError> {
        self.wire.snapshot_damaged(session, digest).await
    }

    async fn tenants_with_sessions(&self) -> Result<Vec<TenantId>, StoreError> {
        self.direct.tenants_with_sessions().await
    }

    async fn installation(&self) -> Result<uuid::Uuid, StoreError> {
        self.direct.installation().await
    }

    async fn snapshots_of(&self, tenant: &TenantId) -> Result<Vec<(SessionId, String)>, StoreError> {
        self.direct.snapshots_of(tenant).await
    }
}

#[async_trait]
impl KeyStore for Through {
    async fn key(&self, hash: &[u8; 32]) -> Result<Option<Key>, StoreError> {
        self.direct.key(hash).await
    }

    async fn has_keys(&self) -> Result<bool, StoreError> {
        self.direct.has_keys().await
    }

    async fn add_key(&self, key: NewKey) -> Result<Key, StoreError> {
        self.direct.add_key(key).await
    }
}

struct Wire {
    directory: tempfile::TempDir,
    direct: Arc<SqliteStore>,
    store: Arc<Through>,
    stop: CancellationToken,
}

impl Wire {
    async fn open(directory: tempfile::TempDir) -> Self {
        let direct = Arc::new(SqliteStore::open(&directory.path().join("ash.db")).await.unwrap());
        let stop = CancellationToken::new();
        let coordinators = support::coordinator(directory.path(), Arc::clone(&direct) as _, &stop).await;
        let store =
            Arc::new(Through { direct: Arc::clone(&direct), wire: RemoteStore::new(coordinators, Arc::default()) });
        Self { directory, direct, store, stop }
    }
}

impl contract::Database for Wire {
    async fn fresh() -> Self {
        Self::open(tempfile::tempdir().unwrap()).await
    }

    fn store(&self) -> Arc<dyn Store> {
        Arc::clone(&self.store) as _
    }

    async fn reopen(&mut self) {
        self.stop.cancel();
        self.direct.close().await;
        let directory = std::mem::replace(&mut self.directory, tempfile::tempdir().unwrap());
        *self = Self::open(directory).await;
    }
}

contract::contract_tests!(crate::Wire);
