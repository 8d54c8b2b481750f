//! The store in one SQLite file.

mod agents;
mod bundles;
mod keys;
mod log;
mod log_write;
mod open;
mod rows;
mod script;
mod sessions;
mod writer;

use std::sync::{Arc, atomic::AtomicBool};

use sqlx::SqlitePool;

pub use self::open::{OpenError, Settings, Synchronous};
use self::writer::Writer;
use crate::cache::{CacheStatistics, Caches};

/// Agents, sessions, keys and the event log in one SQLite file, which this process alone writes.
///
/// A call whose future is dropped may still have been carried out. Dropping the store lets queued writes end, as long as the
/// runtime lives; [`SqliteStore::close`] waits for them.
pub struct SqliteStore {
    writer: Writer,
    readers: SqlitePool,
    caches: Arc<Caches>,
    /// Set once a key was seen: keys are never taken away.
    has_keys: AtomicBool,
}

/// What the store does, for metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Writes that wait for the writer, at most [`crate::limits::MAX_QUEUED_WRITES`].
    pub queued_writes: usize,
    /// Writes carried out.
    pub writes: u64,
    /// Transactions committed for them.
    pub transactions: u64,
    /// Transactions that failed: full disk, damage, an unavailable file.
    pub failed_transactions: u64,
    /// Times that what was queued did not go into one transaction.
    pub transactions_at_bound: u64,
    /// Connections that read now, at most [`crate::limits::MAX_READERS`].
    pub busy_readers: usize,
    /// The caches of agents, versions and keys together, at most [`crate::limits::MAX_CACHED_OTHERS`] each.
    pub others: CacheStatistics,
    /// The cache of sessions, at most [`crate::limits::MAX_CACHED_SESSIONS`].
    pub sessions: CacheStatistics,
}

impl SqliteStore {
    /// What the store has done so far.
    pub fn statistics(&self) -> Statistics {
        let readers = usize::try_from(self.readers.size()).unwrap_or(usize::MAX);
        Statistics {
            sessions: self.caches.session_statistics(),
            others: self.caches.other_statistics(),
            busy_readers: readers.saturating_sub(self.readers.num_idle()),
            ..self.writer.statistics()
        }
    }

    /// Carries out what is queued, moves the write-ahead log into the database and gives the data directory's lock back.
    /// Later calls fail with [`ash_core::ports::StoreError::Unavailable`].
    pub async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }
}
