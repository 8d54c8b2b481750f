//! The store in a Postgres database, which other servers write to as well. Its SQL is what CockroachDB takes too.

mod address;
mod append;
mod create;
mod migrate;
mod open;
mod open_epoch;
mod pool;
mod retry;

use std::sync::{
    Arc,
    atomic::{AtomicU64, Ordering},
};

use ash_core::{
    fleet::RunnerName,
    ports::{Append, NewSession, OpenEpoch, StoreError},
    session::Session,
};
use sqlx::{Row, postgres::PgRow};

pub use self::{address::InvalidAddress, open::PostgresError};
use self::{
    pool::{Lease, Pool},
    retry::{Call, carry_out},
};
use crate::{
    cache::Caches,
    fault::{Fault, Trouble, is_refusal},
    sql::{Columns, Sql, Statement},
    store::{Engine, SqlStore, Statistics, Write},
};

/// The store in a Postgres database, which any number of servers share.
///
/// An append, an opening and a new session are one statement each, and one round trip. A call that meets another server's is
/// tried again; one that loses its connection is repeated once where that does no harm, and is
/// [`StoreError::Unavailable`] otherwise.
pub type PostgresStore = SqlStore<Postgres>;

/// Postgres, as the engine of a store.
pub struct Postgres {
    pool: Pool,
    caches: Arc<Caches>,
    counters: Counters,
}

#[derive(Default)]
struct Counters {
    writes: AtomicU64,
    transactions: AtomicU64,
    failed: AtomicU64,
    retries: AtomicU64,
}

impl Postgres {
    /// Carries out a call that writes, and counts it as so many writes.
    async fn written<C: Call>(&self, call: &C, writes: usize) -> Result<C::Output, StoreError> {
        let outcome = carry_out(&self.pool, &self.counters.retries, call).await.map_err(StoreError::from);
        match &outcome {
            Ok(_) => {
                self.counters.writes.fetch_add(writes as u64, Ordering::Relaxed);
                self.counters.transactions.fetch_add(1, Ordering::Relaxed);
            }
            Err(error) if !is_refusal(error) => {
                self.counters.failed.fetch_add(1, Ordering::Relaxed);
                tracing::error!(%error, writes, "a transaction failed");
            }
            Err(_) => {}
        }
        outcome
    }
}

impl Engine for Postgres {
    const IS_SHARED: bool = true;
    const NOW: &'static str = "CAST(EXTRACT(EPOCH FROM STATEMENT_TIMESTAMP()) * 1000 AS BIGINT)";
    const SKIP_LOCKED: &'static str = "FOR UPDATE OF free SKIP LOCKED";

    fn reader(&self) -> impl Sql {
        Reader(self)
    }

    async fn write<W: Write>(&self, write: W) -> Result<W::Output, StoreError> {
        let output = self.written(&Transaction(&write), 1).await?;
        write.committed(&output, &self.caches);
        Ok(output)
    }

    async fn create_session(&self, new: NewSession) -> Result<(Session, bool), StoreError> {
        let (session, is_new) = self.written(&create::Create::new(new), 1).await?;
        self.caches.session_written(&session);
        Ok((session, is_new))
    }

    async fn open_epoch(&self, open: OpenEpoch, runner: Option<RunnerName>) -> Result<Session, StoreError> {
        let session = self.written(&open_epoch::Open::new(open, runner)?, 1).await?;
        self.caches.session_written(&session);
        Ok(session)
    }

    async fn append(&self, appends: Vec<Append>) -> Vec<Result<(), StoreError>> {
        self.append_all(appends).await
    }

    fn statistics(&self) -> Statistics {
        Statistics {
            waiting: self.pool.waiting(),
            writes: self.counters.writes.load(Ordering::Relaxed),
            transactions: self.counters.transactions.load(Ordering::Relaxed),
            failed_transactions: self.counters.failed.load(Ordering::Relaxed),
            retries: self.counters.retries.load(Ordering::Relaxed),
            round_trips: self.pool.round_trips.load(Ordering::Relaxed),
            connections: self.pool.connections(),
            ..Statistics::default()
        }
    }

    async fn close(&self) {
        self.pool.close().await;
    }
}

/// Several statements as one transaction.
struct Transaction<'w, W>(&'w W);

impl<W: Write> Call for Transaction<'_, W> {
    type Output = W::Output;

    // What was done before is mostly not found by a repeat: a second version of an agent, for one.
    const MAY_REPEAT: bool = W::MAY_REPEAT;

    async fn run(&self, lease: &mut Lease<'_>, _in_doubt: bool) -> Result<W::Output, Fault> {
        if W::IS_ONE_STATEMENT {
            return self.0.run(lease).await;
        }
        lease.begin().await?;
        match self.0.run(lease).await {
            Ok(output) => {
                lease.commit().await?;
                Ok(output)
            }
            Err(fault) if fault.trouble == Trouble::Lost => Err(fault),
            Err(fault) => {
                // Where this fails the connection is not given back, and the server rolls back by itself.
                let _ = lease.roll_back().await;
                Err(fault)
            }
        }
    }
}

/// Statements that only read, each by itself.
struct Reader<'p>(&'p Postgres);

impl Reader<'_> {
    async fn call<C: Call>(&self, call: &C) -> Result<C::Output, Fault> {
        carry_out(&self.0.pool, &self.0.counters.retries, call).await
    }
}

impl Sql for Reader<'_> {
    type Row = PgRow;

    async fn execute(&mut self, statement: Statement) -> Result<u64, Fault> {
        Ok(self.rows(statement).await?.len() as u64)
    }

    async fn rows(&mut self, statement: Statement) -> Result<Vec<PgRow>, Fault> {
        self.call(&Read(statement)).await
    }
}

struct Read(Statement);

impl Call for Read {
    type Output = Vec<PgRow>;

    const MAY_REPEAT: bool = true;

    async fn run(&self, lease: &mut Lease<'_>, _in_doubt: bool) -> Result<Vec<PgRow>, Fault> {
        lease.rows(self.0.clone()).await
    }
}

impl Columns for PgRow {
    fn text(&self, column: &str) -> Result<Option<String>, Fault> {
        Ok(self.try_get(column)?)
    }

    fn integer(&self, column: &str) -> Result<Option<i64>, Fault> {
        // Not checked: the schema's numbers are of two widths, and all are decoded alike.
        Ok(self.try_get_unchecked(column)?)
    }

    fn bytes(&self, column: &str) -> Result<Vec<u8>, Fault> {
        Ok(self.try_get(column)?)
    }
}
