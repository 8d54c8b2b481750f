//! Which snapshots of its workspace a session has. What is in them is in the snapshot storage; here is only their names.

use ash_protocol::{Epoch, Sequence};
use async_trait::async_trait;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use super::StoreError;
use crate::id::{SessionId, TenantId, TurnId};

/// Snapshots that a session keeps: the newest, and those that are used where it turns out to be damaged.
pub const KEPT_SNAPSHOTS: u32 = 4;

/// Snapshots of a session that were found damaged and are kept beside those: what is damaged now may be whole again.
pub const KEPT_DAMAGED_SNAPSHOTS: u32 = 4;

/// A snapshot of a session's workspace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SnapshotRow {
    /// Whose workspace it is.
    pub session: SessionId,
    /// The digest of its manifest, by which the snapshot storage has it.
    pub digest: String,
    /// The last entry of the session's log when the workspace was listed.
    pub sequence: Sequence,
    /// The last turn that had ended then.
    pub turn: Option<TurnId>,
    /// Bytes of its files.
    pub size: u64,
    /// When the workspace was listed.
    pub taken_at: Timestamp,
}

/// Snapshots of sessions.
#[async_trait]
pub trait SnapshotStore: Send + Sync {
    /// The last turn of a session that has ended, as far as that is committed: what a snapshot of now is of.
    async fn last_turn(&self, session: SessionId) -> Result<Option<TurnId>, StoreError>;

    /// Adds a snapshot of a session that is in this epoch; one of the same digest is taken to be of the later entry now. Only the
    /// newest [`KEPT_SNAPSHOTS`] are kept, and [`KEPT_DAMAGED_SNAPSHOTS`] that were found damaged. [`StoreError::Overtaken`] where the session is in another epoch.
    async fn add_snapshot(&self, epoch: Epoch, snapshot: SnapshotRow) -> Result<(), StoreError>;

    /// The snapshots of a session, newest first.
    async fn snapshots(&self, session: SessionId) -> Result<Vec<SnapshotRow>, StoreError>;

    /// Says that a snapshot of a session was found damaged: newer ones do not push it out.
    async fn snapshot_damaged(&self, session: SessionId, digest: &str) -> Result<(), StoreError>;

    /// The tenants that have a session: what is kept of their workspaces is looked at, named or not.
    async fn tenants_with_sessions(&self) -> Result<Vec<TenantId>, StoreError>;

    /// Which installation this store is of: made when it is asked for first.
    async fn installation(&self) -> Result<Uuid, StoreError>;

    /// The session and the digest of every snapshot of a tenant: what the snapshot storage has to keep.
    async fn snapshots_of(&self, tenant: &TenantId) -> Result<Vec<(SessionId, String)>, StoreError>;
}
