//! What is looked up often, in memory: written through by the writer, so that it is never older than the database where nobody
//! else writes. Where others do, what is here counts only after its version was compared with the database's.

use std::{
    hash::Hash,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use ash_core::{
    Sequence,
    agent::{Agent, AgentVersion},
    id::{AgentId, SessionId, TenantId},
    ports::Key,
    session::Session,
};
use hashlink::LruCache;
use jiff::Timestamp;

use crate::limits::{MAX_CACHED_OTHERS, MAX_CACHED_SESSIONS};

/// How often a cache had what was asked for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CacheStatistics {
    /// Entries that it holds.
    pub entries: usize,
    /// Look-ups that it answered.
    pub hits: u64,
    /// Look-ups that went to the database.
    pub misses: u64,
}

/// A bounded map of the least recently used.
///
/// Readers fill it with what they read from the database, which may be overtaken by a write meanwhile. So a reader takes a
/// [`Ticket`] before it reads, and what it read is kept only if since then nothing was written that the cache did not hold and
/// nothing left the cache.
pub(crate) struct Cache<K, V> {
    inner: Mutex<Inner<K, V>>,
    hits: AtomicU64,
    misses: AtomicU64,
}

struct Inner<K, V> {
    map: LruCache<K, Arc<V>>,
    changes: u64,
}

/// When a reader began to read.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ticket(u64);

impl<K: Eq + Hash, V> Cache<K, V> {
    fn new(capacity: usize) -> Self {
        Self {
            inner: Mutex::new(Inner { map: LruCache::new(capacity), changes: 0 }),
            hits: AtomicU64::new(0),
            misses: AtomicU64::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner<K, V>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is there, or the ticket to read it with.
    pub(crate) fn get(&self, key: &K) -> Result<Arc<V>, Ticket> {
        let mut inner = self.lock();
        if let Some(value) = inner.map.get(key) {
            self.hits.fetch_add(1, Ordering::Relaxed);
            return Ok(Arc::clone(value));
        }
        self.misses.fetch_add(1, Ordering::Relaxed);
        Err(Ticket(inner.changes))
    }

    /// Keeps what was read with a ticket, if it is sure to be the newest.
    pub(crate) fn fill(&self, ticket: Ticket, key: K, value: Arc<V>) {
        let mut inner = self.lock();
        if inner.changes == ticket.0 && !inner.map.contains_key(&key) {
            inner.insert(key, value);
        }
    }

    /// Keeps what was written.
    fn put(&self, key: K, value: V) {
        let mut inner = self.lock();
        if !inner.map.contains_key(&key) {
            inner.changes += 1;
        }
        inner.insert(key, Arc::new(value));
    }

    /// Forgets what another process has changed; gives the ticket to read it anew.
    pub(crate) fn forget(&self, key: &K) -> Ticket {
        let mut inner = self.lock();
        inner.map.remove(key);
        inner.changes += 1;
        Ticket(inner.changes)
    }

    /// Forgets everything.
    fn clear(&self) {
        let mut inner = self.lock();
        inner.changes += 1;
        inner.map.clear();
    }

    fn statistics(&self) -> CacheStatistics {
        CacheStatistics {
            entries: self.lock().map.len(),
            hits: self.hits.load(Ordering::Relaxed),
            misses: self.misses.load(Ordering::Relaxed),
        }
    }
}

impl<K: Eq + Hash, V> Inner<K, V> {
    fn insert(&mut self, key: K, value: Arc<V>) {
        if self.map.len() >= self.map.capacity() && !self.map.contains_key(&key) {
            self.changes += 1;
        }
        self.map.insert(key, value);
    }
}

impl<K: Eq + Hash, V: Clone> Cache<K, V> {
    /// Changes what is there as the database was changed.
    fn update(&self, key: &K, change: impl FnOnce(&mut V)) {
        let mut inner = self.lock();
        match inner.map.peek_mut(key) {
            Some(value) => change(Arc::make_mut(value)),
            None => inner.changes += 1,
        }
    }
}

/// The caches of a store.
pub(crate) struct Caches {
    pub(crate) sessions: Cache<SessionId, Session>,
    /// By name and by slug.
    pub(crate) agents: Cache<(TenantId, String), Agent>,
    pub(crate) agent_versions: Cache<(TenantId, AgentId, u32), AgentVersion>,
    pub(crate) keys: Cache<[u8; 32], Key>,
}

impl Caches {
    pub(crate) fn new() -> Self {
        Self {
            sessions: Cache::new(MAX_CACHED_SESSIONS),
            agents: Cache::new(MAX_CACHED_OTHERS),
            agent_versions: Cache::new(MAX_CACHED_OTHERS),
            keys: Cache::new(MAX_CACHED_OTHERS),
        }
    }

    /// A session was made or has changed.
    pub(crate) fn session_written(&self, session: &Session) {
        self.sessions.put(session.id, session.clone());
    }

    /// A session's log has grown.
    pub(crate) fn session_appended(
        &self,
        session: SessionId,
        last: Sequence,
        active_at: Option<Timestamp>,
        refused: Option<bool>,
    ) {
        self.sessions.update(&session, |session| {
            session.last = last;
            session.last_active_at = active_at.unwrap_or(session.last_active_at);
            session.model_refused = refused.unwrap_or(session.model_refused);
        });
    }

    /// Any agent was deployed or deleted. Rare, so all are forgotten.
    pub(crate) fn agents_written(&self) {
        self.agents.clear();
    }

    /// A key was added.
    pub(crate) fn key_written(&self, hash: [u8; 32], key: &Key) {
        self.keys.put(hash, key.clone());
    }

    /// It is unknown what the database holds.
    pub(crate) fn clear(&self) {
        self.sessions.clear();
        self.agents.clear();
        self.agent_versions.clear();
        self.keys.clear();
    }

    /// Of all caches but that of sessions.
    pub(crate) fn other_statistics(&self) -> CacheStatistics {
        let others = [self.agents.statistics(), self.agent_versions.statistics(), self.keys.statistics()];
        others.iter().fold(CacheStatistics::default(), |sum, one| CacheStatistics {
            entries: sum.entries + one.entries,
            hits: sum.hits + one.hits,
            misses: sum.misses + one.misses,
        })
    }

    pub(crate) fn session_statistics(&self) -> CacheStatistics {
        self.sessions.statistics()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Arc;

    use super::Cache;

    #[test]
    fn what_was_read_before_a_write_is_not_kept() {
        let cache: Cache<u8, u8> = Cache::new(2);
        let ticket = cache.get(&1).unwrap_err();
        cache.update(&1, |_| unreachable!("it is not there"));
        cache.fill(ticket, 1, Arc::new(10));
        assert!(cache.get(&1).is_err());
        let ticket = cache.get(&1).unwrap_err();
        cache.fill(ticket, 1, Arc::new(11));
        assert_eq!(*cache.get(&1).unwrap(), 11);
    }

    #[test]
    fn what_left_the_cache_is_not_replaced_by_older_reads() {
        let cache: Cache<u8, u8> = Cache::new(1);
        let ticket = cache.get(&1).unwrap_err();
        cache.put(1, 20);
        cache.put(2, 20);
        cache.fill(ticket, 1, Arc::new(10));
        assert!(cache.get(&1).is_err());
    }

    #[test]
    fn writes_are_seen_and_the_bound_holds() {
        let cache: Cache<u8, u8> = Cache::new(3);
        for key in 0..10 {
            cache.put(key, key);
        }
        cache.update(&9, |value| *value = 90);
        assert_eq!(*cache.get(&9).unwrap(), 90);
        assert_eq!(cache.statistics().entries, 3);
        cache.clear();
        assert!(cache.get(&9).is_err());
    }
}
