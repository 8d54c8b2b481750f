//! Opens the file: lock, settings, migrations.

use std::{path::Path, sync::Arc};

use ash_core::ports::StoreError;
use sqlx::{
    ConnectOptions, Connection, SqliteConnection,
    migrate::MigrateError,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous},
};
use uuid::Uuid;

use super::{
    Sqlite, SqliteStore,
    writer::{self, Writer},
};
use crate::{
    MIGRATIONS, bundles,
    cache::Caches,
    directory::{DirectoryLock, OpenError, open_private},
    fault::{Fault, primary_code},
    limits::{BUSY_TIMEOUT, MAX_KEPT_WAL_BYTES, MAX_READERS, READ_TIMEOUT},
};

/// SQLite's PERM, READONLY and CANTOPEN (<https://www.sqlite.org/rescode.html>).
const NOT_WRITABLE: [i32; 3] = [3, 8, 14];
/// SQLite's default, which nothing here changes.
const PAGE_BYTES: u64 = 4_096;

/// When a commit counts as done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Synchronous {
    /// When the disk says that it has it: it survives a power failure. The default.
    #[default]
    Full,
    /// When the operating system has it: it survives the death of the process, and not always a power failure.
    Normal,
}

/// How the file is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Settings {
    /// When a commit counts as done.
    pub synchronous: Synchronous,
    /// The database's size in bytes at the most, rounded up to pages of 4 KiB, without its write-ahead log; beyond it writes
    /// fail with [`StoreError::Full`]. `None`: as large as the disk.
    pub max_bytes: Option<u64>,
}

impl SqliteStore {
    /// Opens a database file (`<data directory>/ash.db`), makes it and its directory where they are not there, and brings its
    /// schema up to date. The data directory is locked until the store is closed or dropped.
    pub async fn open(path: &Path) -> Result<Self, OpenError> {
        Self::open_with(path, Settings::default()).await
    }

    /// As [`SqliteStore::open`], with settings.
    pub async fn open_with(path: &Path, settings: Settings) -> Result<Self, OpenError> {
        let owned = path.to_owned();
        let lock =
            tokio::task::spawn_blocking(move || prepare(&owned)).await.map_err(|error| unavailable(path, error))??;

        let options = writer_options(path, settings);
        let explain = |error: sqlx::Error| explain(path, error);
        let max_pages = max_pages(settings.max_bytes);
        let mut connection = writer::connect(&options, max_pages).await.map_err(explain)?;
        migrate(path, &mut connection).await?;
        // Nobody else has the file: whatever has no name by now gets none.
        bundles::remove_unfinished(&mut connection, Uuid::max())
            .await
            .map_err(|fault| unavailable(path, fault.error))?;

        let readers = SqlitePoolOptions::new()
            .max_connections(MAX_READERS)
            .acquire_timeout(READ_TIMEOUT)
            .idle_timeout(None)
            .max_lifetime(None)
            // A connection to a file does not go stale.
            .test_before_acquire(false)
            .connect_with(reader_options(path))
            .await
            .map_err(explain)?;
        let caches = Arc::new(Caches::new());
        let writer = Writer::start(connection, options, max_pages, lock, Arc::clone(&caches));
        Ok(Self::new(Sqlite { writer, readers }, caches))
    }

    /// Changes [`Settings::max_bytes`] of an open store.
    pub async fn set_max_bytes(&self, max_bytes: Option<u64>) -> Result<(), StoreError> {
        self.engine.writer.set_max_pages(max_pages(max_bytes)).await
    }
}

/// Makes directory and file and takes the lock.
fn prepare(path: &Path) -> Result<DirectoryLock, OpenError> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let lock = DirectoryLock::take(directory)?;
    // SQLite gives its write-ahead log the mode that the database has.
    open_private(path)?;
    Ok(lock)
}

async fn migrate(path: &Path, connection: &mut SqliteConnection) -> Result<(), OpenError> {
    let known = MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or_default();
    let has_schema = sqlx::query("SELECT name FROM sqlite_master WHERE type = 'table' AND name = '_sqlx_migrations'")
        .fetch_optional(&mut *connection)
        .await
        .map_err(|error| explain(path, error))?
        .is_some();
    if has_schema {
        let found: Option<i64> = sqlx::query_scalar("SELECT MAX(version) FROM _sqlx_migrations")
            .fetch_one(&mut *connection)
            .await
            .map_err(|error| explain(path, error))?;
        let found = found.unwrap_or_default();
        if found > known {
            return Err(OpenError::SchemaNewer { path: path.to_owned(), found, known });
        }
    }
    MIGRATIONS.run(connection).await.map_err(|error| match error {
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => explain(path, error),
        MigrateError::VersionMissing(version) | MigrateError::VersionMismatch(version) => OpenError::Damaged {
            path: path.to_owned(),
            reason: format!("migration {version} in it is not the one of this release"),
        },
        other => unavailable(path, other),
    })
}

fn unavailable(path: &Path, error: impl std::fmt::Display) -> OpenError {
    OpenError::Unavailable { path: path.to_owned(), reason: error.to_string() }
}

fn explain(path: &Path, error: sqlx::Error) -> OpenError {
    let path = path.to_owned();
    if primary_code(&error).is_some_and(|code| NOT_WRITABLE.contains(&code)) {
        return OpenError::NotWritable { path, reason: error.to_string() };
    }
    match Fault::from(error).error {
        StoreError::Full => OpenError::Full { path },
        StoreError::Damaged(reason) => OpenError::Damaged { path, reason },
        other => OpenError::Unavailable { path, reason: other.to_string() },
    }
}

fn writer_options(path: &Path, settings: Settings) -> SqliteConnectOptions {
    let synchronous = match settings.synchronous {
        Synchronous::Full => SqliteSynchronous::Full,
        Synchronous::Normal => SqliteSynchronous::Normal,
    };
    SqliteConnectOptions::new()
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(synchronous)
        .foreign_keys(true)
        .busy_timeout(BUSY_TIMEOUT)
        .pragma("journal_size_limit", MAX_KEPT_WAL_BYTES.to_string())
        .disable_statement_logging()
}

fn reader_options(path: &Path) -> SqliteConnectOptions {
    SqliteConnectOptions::new().filename(path).read_only(true).busy_timeout(BUSY_TIMEOUT).disable_statement_logging()
}

fn max_pages(max_bytes: Option<u64>) -> u32 {
    // SQLite's own maximum: https://www.sqlite.org/limits.html
    const MAX_PAGES: u32 = u32::MAX - 1;
    max_bytes
        .map_or(MAX_PAGES, |bytes| u32::try_from(bytes.div_ceil(PAGE_BYTES)).unwrap_or(MAX_PAGES).clamp(1, MAX_PAGES))
}

/// Closes the writer's connection, which moves the write-ahead log into the database.
pub(super) async fn close(connection: SqliteConnection) {
    if let Err(error) = connection.close().await {
        tracing::warn!(%error, "the database was not closed cleanly; nothing is lost, the next start puts it right");
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::{Settings, max_pages, writer, writer_options};

    #[tokio::test]
    async fn what_was_asked_for_is_in_force() {
        let directory = tempfile::tempdir().unwrap();
        let options = writer_options(&directory.path().join("ash.db"), Settings::default());
        let mut connection = writer::connect(&options, max_pages(Some(1 << 20))).await.unwrap();
        // 2 is FULL: https://www.sqlite.org/pragma.html#pragma_synchronous
        for (pragma, value) in
            [("PRAGMA synchronous", 2i64), ("PRAGMA foreign_keys", 1), ("PRAGMA max_page_count", 256)]
        {
            let found: i64 = sqlx::query_scalar(pragma).fetch_one(&mut connection).await.unwrap();
            assert_eq!(found, value, "{pragma}");
        }
        let mode: String = sqlx::query_scalar("PRAGMA journal_mode").fetch_one(&mut connection).await.unwrap();
        assert_eq!(mode, "wal");
    }
}
