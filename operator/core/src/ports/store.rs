//! The store: agents, sessions, keys and the event log. One contract, proven by one test suite for every database.

use std::{collections::BTreeMap, time::Duration};

use ash_protocol::{Entry, Epoch, Sequence, options::SessionOptions};
use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{
    ChangeStore, CompactionStore, ConfigureStore, CredentialStore, MembershipStore, PodStore, QueueStore, SnapshotStore,
};
use crate::{
    agent::{Agent, AgentSettings, AgentVersion},
    id::{AgentId, KeyId, SandboxId, SessionId, TenantId, TurnId},
    name::AgentName,
    opening::Opening,
    session::{Session, SessionState},
    transcript::Transcript,
};

/// Everything that is kept. `Arc<dyn Store>` is what the parts hold.
pub trait Store: AgentStore + SessionStore + EventLog + KeyStore + SnapshotStore {}

impl<T: AgentStore + SessionStore + EventLog + KeyStore + SnapshotStore> Store for T {}

/// Everything that is kept, with what coordinators share.
pub trait FleetStore:
    Store + MembershipStore + PodStore + CredentialStore + ChangeStore + CompactionStore + QueueStore + ConfigureStore
{
}

impl<T> FleetStore for T where
    T: Store
        + MembershipStore
        + PodStore
        + CredentialStore
        + ChangeStore
        + CompactionStore
        + QueueStore
        + ConfigureStore
{
}

/// Why the store did not do something.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub enum StoreError {
    /// The name, slug or key is taken.
    #[error("{0}")]
    Conflict(String),
    /// What the call refers to is not there.
    #[error("{0}")]
    NotFound(String),
    /// The session's epoch or its last entry is another: somebody else writes for this session now. Never retried.
    #[error("session {session} is at epoch {epoch}, entry {last}: another owner writes its log now")]
    Overtaken {
        /// The session.
        session: SessionId,
        /// Its epoch.
        epoch: Epoch,
        /// Its last committed entry.
        last: Sequence,
    },
    /// The disk or the quota of the database is full.
    #[error("the database cannot write: its disk is full; free some space, what was acknowledged is kept")]
    Full,
    /// The database does not answer or cannot be written at the moment. Worth another try.
    #[error("the database is unavailable: {0}")]
    Unavailable(String),
    /// What is stored cannot be read.
    #[error("the database is damaged: {0}; restore it from a backup")]
    Damaged(String),
}

/// Agents, their versions and bundles.
#[async_trait]
pub trait AgentStore: Send + Sync {
    /// Adds a version to an agent, which is made where it is not there; the new version becomes the one that new sessions get.
    /// The bundle is stored once per tenant and digest. Deploying over a deleted agent's name makes a new agent.
    async fn deploy_agent(&self, deploy: DeployAgent) -> Result<Agent, StoreError>;

    /// Changes what an agent is called beside its name, without a version: its slug, its description; `None` keeps what there is.
    /// [`StoreError::Conflict`] where another agent has the slug, [`StoreError::NotFound`] where there is no such agent.
    async fn describe_agent(
        &self,
        tenant: &TenantId,
        name: &AgentName,
        slug: Option<String>,
        description: Option<String>,
    ) -> Result<Agent, StoreError>;

    /// An agent by its name or slug.
    async fn agent(&self, tenant: &TenantId, name_or_slug: &str) -> Result<Option<Agent>, StoreError>;

    /// All agents of a tenant by name.
    async fn agents(&self, tenant: &TenantId) -> Result<Vec<Agent>, StoreError>;

    /// A version of an agent, also of a deleted one while sessions have it.
    async fn agent_version(
        &self,
        tenant: &TenantId,
        agent: AgentId,
        number: u32,
    ) -> Result<Option<AgentVersion>, StoreError>;

    /// Deletes an agent: no new sessions; the ones that there are keep their version. False when there is none.
    async fn delete_agent(&self, tenant: &TenantId, name_or_slug: &str) -> Result<bool, StoreError>;

    /// The bytes of a bundle, as they were deployed.
    async fn bundle(&self, tenant: &TenantId, digest: &str) -> Result<Option<Bytes>, StoreError>;
}

/// A deployment of an agent.
#[derive(Debug, Clone)]
pub struct DeployAgent {
    /// Whose it is.
    pub tenant: TenantId,
    /// Its name.
    pub name: AgentName,
    /// Another name to find it by; `None` keeps what there is.
    pub slug: Option<String>,
    /// A sentence about it; `None` keeps what there is.
    pub description: Option<String>,
    /// The settings of this version.
    pub settings: AgentSettings,
    /// The digest of the bundle: SHA-256, lower-case hexadecimal, computed by the caller from the files.
    pub digest: String,
    /// The bundle: a tar archive, compressed with zstd. At most 100 MiB unpacked.
    pub bundle: Bytes,
}

/// Sessions.
#[async_trait]
pub trait SessionStore: Send + Sync {
    /// Adds a session, durable when this returns. With an idempotency key that was used before, gives the session that was made
    /// then and `false`.
    async fn create_session(&self, new: NewSession) -> Result<(Session, bool), StoreError>;

    /// The session of a tenant that was made with this idempotency key.
    async fn session_of_key(&self, tenant: &TenantId, key: &str) -> Result<Option<Session>, StoreError>;

    /// A session of a tenant.
    async fn session(&self, tenant: &TenantId, id: SessionId) -> Result<Option<Session>, StoreError>;

    /// Sessions of a tenant, newest first.
    async fn sessions(&self, tenant: &TenantId, filter: &SessionFilter) -> Result<SessionPage, StoreError>;

    /// Every session that a sandbox serves, of all tenants: what a server looks for when it starts.
    async fn placed_sessions(&self) -> Result<Vec<Session>, StoreError>;

    /// Whether there is a session with this id, of any tenant: whose folder a server may not remove.
    async fn session_exists(&self, id: SessionId) -> Result<bool, StoreError>;

    /// How many sessions are active, of all tenants.
    async fn count_active_sessions(&self) -> Result<u64, StoreError>;
}

/// A session to be made.
#[derive(Debug, Clone)]
pub struct NewSession {
    /// Its id.
    pub id: SessionId,
    /// Whose it is.
    pub tenant: TenantId,
    /// Its agent.
    pub agent: AgentId,
    /// The agent's name.
    pub agent_name: AgentName,
    /// The agent's version.
    pub agent_version: u32,
    /// Its options, complete.
    pub options: SessionOptions,
    /// What its maker keeps with it.
    pub metadata: BTreeMap<String, String>,
    /// A stored credential for the model, in place of the agent's or the server's own.
    pub credential: Option<uuid::Uuid>,
    /// What names the request that makes it, so that a repeat finds the same session. Kept for the session's life.
    pub idempotency_key: Option<String>,
}

/// Which sessions to list.
#[derive(Debug, Clone, Default)]
pub struct SessionFilter {
    /// Only those of the agent of this name.
    pub agent: Option<String>,
    /// Only those in the state of this name.
    pub state: Option<String>,
    /// Only those with all of these.
    pub metadata: BTreeMap<String, String>,
    /// At most so many, from 1 to 1,000.
    pub limit: u32,
    /// Without the first so many.
    pub offset: u32,
}

/// A page of a listing.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SessionPage {
    /// The sessions.
    pub sessions: Vec<Session>,
    /// How many there are without limit and offset.
    pub total: u64,
}

/// The event log of sessions, and what changes together with it.
#[async_trait]
pub trait EventLog: Send + Sync {
    /// Opens the next epoch of a session by compare-and-set: state, sandbox and the opening event in one transaction.
    /// [`StoreError::Overtaken`] when epoch or last entry are not the expected ones. Gives the session as it is now.
    async fn open_epoch(&self, open: OpenEpoch) -> Result<Session, StoreError>;

    /// Appends to the logs of many sessions in one transaction. Each append succeeds or fails by itself where it was overtaken;
    /// when the transaction fails, all fail. An append that is already there (its outcome was unknown) succeeds.
    async fn append(&self, appends: Vec<Append>) -> Vec<Result<(), StoreError>>;

    /// How long appends wait for more, where nobody waits for them: what a database that many servers share is spared, at the
    /// price of what is lost when bridge and host die together. Zero: the caller's own measure is right.
    fn append_spacing(&self) -> Duration {
        Duration::ZERO
    }

    /// Entries after a position, in order: at least one batch where there is one, about `max_bytes` at the most beyond that.
    /// Internal entries (transcripts) are left out.
    async fn read(&self, session: SessionId, after: Sequence, max_bytes: usize) -> Result<Page, StoreError>;

    /// The conversation as far as it is committed.
    async fn transcript(&self, session: SessionId) -> Result<Option<Transcript>, StoreError>;

    /// The turn that began and has not ended, as far as that is committed: the one that an opening has to call interrupted
    /// when neither its bridge nor its host is there any more.
    async fn unfinished_turn(&self, session: SessionId) -> Result<Option<TurnId>, StoreError>;

    /// A turn by its id, as far as it is committed.
    async fn turn(&self, session: SessionId, turn: TurnId) -> Result<Option<TurnRecord>, StoreError>;
}

/// The next epoch of a session.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OpenEpoch {
    /// The session.
    pub session: SessionId,
    /// The epoch that it must be in.
    pub expected: Epoch,
    /// Its state from now on.
    pub state: SessionState,
    /// Why it is in `error`, where it is.
    pub error: Option<String>,
    /// The sandbox that serves it from now on.
    pub sandbox: Option<SandboxId>,
    /// What the opening event says. Its `last_committed` must be the session's last entry.
    pub opening: Opening,
}

/// Entries to append to one session's log.
#[derive(Debug, Clone)]
pub struct Append {
    /// The session.
    pub session: SessionId,
    /// The entry that they follow.
    pub after: Sequence,
    /// The entries, in order, without gaps, of one epoch. Not empty.
    pub entries: Vec<Entry>,
}

/// Entries read from the log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page {
    /// In order. Sequences may have gaps where internal entries or dropped partials were.
    pub entries: Vec<Entry>,
    /// How far the log was read: nothing that was committed up to here is missing. The start of the next page.
    pub through: Sequence,
    /// Whether there was nothing more when it was read.
    pub end: bool,
}

/// A turn in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TurnRecord {
    /// The entry of its user message.
    pub first: Sequence,
    /// The entry that ended it, once it ended.
    pub last: Option<Sequence>,
}

/// API keys.
#[async_trait]
pub trait KeyStore: Send + Sync {
    /// The key with this hash (SHA-256 of the whole key).
    async fn key(&self, hash: &[u8; 32]) -> Result<Option<Key>, StoreError>;

    /// Whether there is any key.
    async fn has_keys(&self) -> Result<bool, StoreError>;

    /// Adds a key.
    async fn add_key(&self, key: NewKey) -> Result<Key, StoreError>;
}

/// An API key, without the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    /// Its id.
    pub id: KeyId,
    /// Whose it is.
    pub tenant: TenantId,
    /// What people call it.
    pub name: String,
    /// When it was made.
    pub created_at: Timestamp,
}

/// An API key to be added.
#[derive(Debug, Clone)]
pub struct NewKey {
    /// Whose it is.
    pub tenant: TenantId,
    /// What people call it.
    pub name: String,
    /// SHA-256 of the whole key.
    pub hash: [u8; 32],
}
