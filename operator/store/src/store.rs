//! The store over any database: what every database does alike is done here and in the modules beside it; what one does in its
//! own way is behind [`Engine`].

use std::sync::{Arc, OnceLock, atomic::AtomicBool};

use ash_core::{
    fleet::RunnerName,
    id::SessionId,
    ports::{Append, ChangeStore, FleetStore, NewSession, OpenEpoch, SessionListener, StoreError},
    session::Session,
};
use async_trait::async_trait;

use crate::{
    cache::{CacheStatistics, Caches},
    fault::Fault,
    seal::Keyring,
    sql::Sql,
};

/// Agents, sessions, keys and the event log in a database.
///
/// A call whose future is dropped may still have been carried out.
pub struct SqlStore<E> {
    pub(crate) engine: E,
    pub(crate) caches: Arc<Caches>,
    /// Set once a key was seen: keys are never taken away.
    pub(crate) has_keys: AtomicBool,
    /// What credentials are encrypted with, where keys were given.
    pub(crate) keyring: Keyring,
    /// Who is told of sessions that changed.
    pub(crate) listener: OnceLock<SessionListener>,
}

impl<E> SqlStore<E> {
    pub(crate) fn new(engine: E, caches: Arc<Caches>) -> Self {
        let (has_keys, keyring) = (AtomicBool::new(false), Keyring::default());
        Self { engine, caches, has_keys, keyring, listener: OnceLock::new() }
    }

    /// Tells of a session that changed.
    pub(crate) fn tell(&self, session: SessionId) {
        if let Some(listener) = self.listener.get() {
            listener(session);
        }
    }

    /// With keys for credentials. Before they are given, credentials are neither taken nor revealed.
    #[must_use]
    pub fn with_credential_keys(self, keyring: Keyring) -> Self {
        Self { keyring, ..self }
    }
}

/// A store that a process owns: what its parts use, and what the process does with it beside.
#[async_trait]
pub trait Database: FleetStore + ChangeStore {
    /// What the store has done so far.
    fn statistics(&self) -> Statistics;

    /// Carries out what is queued and gives back what the store holds. Later calls fail with [`StoreError::Unavailable`].
    async fn close(&self);
}

/// What the store does, for metrics.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Statistics {
    /// Who waits: writes for SQLite's one writer, at most [`crate::limits::MAX_QUEUED_WRITES`]; calls for a connection to
    /// Postgres.
    pub waiting: usize,
    /// Writes carried out.
    pub writes: u64,
    /// Transactions committed for them.
    pub transactions: u64,
    /// Transactions that failed: full disk, damage, an unavailable database.
    pub failed_transactions: u64,
    /// Transactions that were tried again: they met another one, or the connection was lost. Of Postgres only.
    pub retries: u64,
    /// Times that a database was asked and answered. Of Postgres only.
    pub round_trips: u64,
    /// Connections that are open, at most [`crate::limits::MAX_CONNECTIONS`]. Of Postgres only.
    pub connections: usize,
    /// Times that what was queued did not go into one transaction. Of SQLite only.
    pub transactions_at_bound: u64,
    /// Connections that read now, at most [`crate::limits::MAX_READERS`]. Of SQLite only.
    pub busy_readers: usize,
    /// The caches of agents, versions and keys together, at most [`crate::limits::MAX_CACHED_OTHERS`] each.
    pub others: CacheStatistics,
    /// The cache of sessions, at most [`crate::limits::MAX_CACHED_SESSIONS`].
    pub sessions: CacheStatistics,
}

#[async_trait]
impl<E: Engine> Database for SqlStore<E> {
    fn statistics(&self) -> Statistics {
        Statistics {
            sessions: self.caches.session_statistics(),
            others: self.caches.other_statistics(),
            ..self.engine.statistics()
        }
    }

    async fn close(&self) {
        self.engine.close().await;
    }
}

/// A database, with what it does in its own way.
pub(crate) trait Engine: Send + Sync + 'static {
    /// Whether other processes write to it: what is cached is then an answer only after its version was compared.
    const IS_SHARED: bool;

    /// Its time now: milliseconds since 1970, as SQL.
    const NOW: &'static str;

    /// What makes a claim pass over the rows that others are claiming, as SQL behind a `SELECT` from what is called `free` there.
    const SKIP_LOCKED: &'static str;

    /// Whoever runs statements that only read, each by itself.
    fn reader(&self) -> impl Sql;

    /// Carries a write out as a transaction; durable when this returns.
    fn write<W: Write>(&self, write: W) -> impl Future<Output = Result<W::Output, StoreError>> + Send;

    /// As [`ash_core::ports::SessionStore::create_session`].
    fn create_session(&self, new: NewSession) -> impl Future<Output = Result<(Session, bool), StoreError>> + Send;

    /// As [`ash_core::ports::EventLog::open_epoch`]; for a runner as [`ash_core::ports::MembershipStore::open_epoch_on`].
    fn open_epoch(
        &self,
        open: OpenEpoch,
        runner: Option<RunnerName>,
    ) -> impl Future<Output = Result<Session, StoreError>> + Send;

    /// As [`ash_core::ports::EventLog::append`]. There is something to append.
    fn append(&self, appends: Vec<Append>) -> impl Future<Output = Vec<Result<(), StoreError>>> + Send;

    /// What it has done so far.
    fn statistics(&self) -> Statistics;

    /// As [`Database::close`].
    fn close(&self) -> impl Future<Output = ()> + Send;
}

/// Something to be written that every database writes alike.
pub(crate) trait Write: Send + Sync + 'static {
    /// What the caller gets.
    type Output: Send + Sync + 'static;

    /// Whether it is one statement, which needs no transaction around it.
    const IS_ONE_STATEMENT: bool = false;
    /// Whether it does no harm to write it again where it is unknown whether it was written.
    const MAY_REPEAT: bool = false;

    /// Bytes that it writes, about.
    fn bytes(&self) -> usize {
        0
    }

    /// Writes, within a transaction. May be called again where the transaction failed.
    fn run<S: Sql>(&self, sql: &mut S) -> impl Future<Output = Result<Self::Output, Fault>> + Send;

    /// What else follows from it once it is committed: the caches.
    fn committed(&self, _output: &Self::Output, _caches: &Caches) {}
}
