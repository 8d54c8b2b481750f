//! Finished turns whose partial messages are dropped.

use std::time::Duration;

use async_trait::async_trait;

use super::StoreError;
use crate::{
    Sequence,
    id::{SessionId, TurnId},
};

/// A finished turn that still has its partial messages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CompactableTurn {
    /// Its session.
    pub session: SessionId,
    /// The turn.
    pub turn: TurnId,
    /// Its first entry.
    pub first: Sequence,
    /// Its last entry.
    pub last: Sequence,
}

/// Drops partial messages of finished turns ([`crate::compaction`]).
#[async_trait]
pub trait CompactionStore: Send + Sync {
    /// Takes turns that ended so long ago, the oldest first, at most `limit`. Nobody else is given them for `lease`, counted by the
    /// clock of whoever asks; who gives up on one leaves it to the next who asks after that.
    async fn take_compactable(
        &self,
        age: Duration,
        lease: Duration,
        limit: u32,
    ) -> Result<Vec<CompactableTurn>, StoreError>;

    /// Drops the partial messages of turns of one session as far as complete ones stand for them; gives how many bytes of the log
    /// that saved, as they were before compression. What several of them lie in is written once. May be done twice.
    async fn compact(&self, turns: &[CompactableTurn]) -> Result<u64, StoreError>;
}
