//! Which sessions have changed: for whoever keeps a summary of them elsewhere.

use async_trait::async_trait;
use jiff::Timestamp;

use super::StoreError;
use crate::{
    id::{SessionId, TenantId},
    spent::Spent,
};

/// A session that changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ChangedSession {
    /// The session.
    pub id: SessionId,
    /// Whose it is.
    pub tenant: TenantId,
    /// When: its `last_active_at`, by the clock of whoever changed it.
    pub at: Timestamp,
}

/// A cheap look at what has changed.
#[async_trait]
pub trait ChangeStore: Send + Sync {
    /// Sessions whose state changed, or a turn of which began or ended, at this time or later: the oldest changes first, at most
    /// `limit`. Clocks differ: ask for a little more than is new.
    async fn changed_sessions(&self, since: Timestamp, limit: u32) -> Result<Vec<ChangedSession>, StoreError>;

    /// What a session has spent, as far as that is committed. None where there is no such session.
    async fn spent(&self, session: SessionId) -> Result<Option<Spent>, StoreError>;
}
