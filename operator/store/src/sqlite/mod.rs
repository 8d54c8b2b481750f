//! The store in one SQLite file.

mod create;
mod log_write;
mod open;
mod script;
mod writer;

use ash_core::{
    fleet::RunnerName,
    ports::{Append, NewSession, OpenEpoch, StoreError},
    session::Session,
};
use sqlx::{Row, SqliteConnection, SqlitePool, sqlite::SqliteRow};

pub use self::open::{Settings, Synchronous};
use self::writer::{Alike, Writer};
use crate::{
    fault::Fault,
    sql::{Columns, Sql, Statement},
    store::{Engine, SqlStore, Statistics, Write},
};

/// The store in one SQLite file, which this process alone writes: one task writes, many writes in one transaction; a few
/// connections read.
///
/// Dropping the store lets queued writes end, as long as the runtime lives; [`crate::Database::close`] waits for them, moves the
/// write-ahead log into the database and gives the data directory's lock back.
pub type SqliteStore = SqlStore<Sqlite>;

/// SQLite, as the engine of a store.
pub struct Sqlite {
    writer: Writer,
    readers: SqlitePool,
}

impl Sqlite {
    /// Appends as one write. Where the disk is too full for all, each by itself: a large one does not fail those beside it.
    async fn append_together(&self, batches: log_write::Batches) -> Vec<Result<(), StoreError>> {
        match self.writer.write(batches.clone()).await {
            Ok(outcomes) => outcomes.into_iter().map(|outcome| outcome.map(|_| ())).collect(),
            Err(StoreError::Full) if batches.len() > 1 => {
                let mut outcomes = Vec::with_capacity(batches.len());
                for one in batches.each() {
                    let done = self.writer.write(one).await.unwrap_or_else(|error| vec![Err(error)]);
                    outcomes.extend(done.into_iter().map(|outcome| outcome.map(|_| ())));
                }
                outcomes
            }
            Err(error) => vec![Err(error); batches.len()],
        }
    }
}

impl Engine for Sqlite {
    const IS_SHARED: bool = false;
    const NOW: &'static str = "CAST(UNIXEPOCH('subsec') * 1000 AS INTEGER)";
    // One writes at a time.
    const SKIP_LOCKED: &'static str = "";

    fn reader(&self) -> impl Sql {
        Readers(&self.readers)
    }

    async fn write<W: Write>(&self, write: W) -> Result<W::Output, StoreError> {
        self.writer.write(Alike(write)).await
    }

    async fn create_session(&self, new: NewSession) -> Result<(Session, bool), StoreError> {
        self.writer.write(create::Create(new)).await
    }

    async fn open_epoch(&self, open: OpenEpoch, runner: Option<RunnerName>) -> Result<Session, StoreError> {
        self.writer.write(log_write::Open { open, runner }).await
    }

    async fn append(&self, appends: Vec<Append>) -> Vec<Result<(), StoreError>> {
        let mut outcomes = Vec::with_capacity(appends.len());
        for batches in log_write::Batches::prepare(appends).await {
            outcomes.extend(self.append_together(batches).await);
        }
        outcomes
    }

    fn statistics(&self) -> Statistics {
        let readers = usize::try_from(self.readers.size()).unwrap_or(usize::MAX);
        Statistics { busy_readers: readers.saturating_sub(self.readers.num_idle()), ..self.writer.statistics() }
    }

    async fn close(&self) {
        self.readers.close().await;
        self.writer.close().await;
    }
}

/// Connections that only read.
struct Readers<'p>(&'p SqlitePool);

impl Sql for Readers<'_> {
    type Row = SqliteRow;

    async fn execute(&mut self, statement: Statement) -> Result<u64, Fault> {
        Ok(statement.query()?.execute(self.0).await?.rows_affected())
    }

    async fn rows(&mut self, statement: Statement) -> Result<Vec<SqliteRow>, Fault> {
        Ok(statement.query()?.fetch_all(self.0).await?)
    }
}

impl Sql for SqliteConnection {
    type Row = SqliteRow;

    async fn execute(&mut self, statement: Statement) -> Result<u64, Fault> {
        Ok(statement.query()?.execute(self).await?.rows_affected())
    }

    async fn rows(&mut self, statement: Statement) -> Result<Vec<SqliteRow>, Fault> {
        Ok(statement.query()?.fetch_all(self).await?)
    }
}

impl Columns for SqliteRow {
    fn text(&self, column: &str) -> Result<Option<String>, Fault> {
        Ok(self.try_get(column)?)
    }

    fn integer(&self, column: &str) -> Result<Option<i64>, Fault> {
        Ok(self.try_get(column)?)
    }

    fn bytes(&self, column: &str) -> Result<Vec<u8>, Fault> {
        Ok(self.try_get(column)?)
    }
}
