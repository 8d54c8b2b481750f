//! What goes wrong in the database, as the store's error.

use ash_core::{chunk::ChunkError, ports::StoreError};

// Primary result codes of SQLite: https://www.sqlite.org/rescode.html
const SQLITE_READONLY: i32 = 8;
const SQLITE_CORRUPT: i32 = 11;
const SQLITE_FULL: i32 = 13;
const SQLITE_CONSTRAINT: i32 = 19;
const SQLITE_NOTADB: i32 = 26;
/// The primary code is the lowest byte of an extended one.
const PRIMARY_CODE: i32 = 0xff;

/// A failure on its way to the caller. It exists because `?` cannot turn sqlx's error into that of another crate.
#[derive(Debug)]
pub(crate) struct Fault(pub(crate) StoreError);

impl Fault {
    /// Something stored that cannot be read.
    pub(crate) fn damaged(what: impl Into<String>) -> Self {
        Self(StoreError::Damaged(what.into()))
    }
}

/// Whether only what was asked for failed, and what else shares the transaction may go on.
pub(crate) fn is_refusal(error: &StoreError) -> bool {
    matches!(error, StoreError::Conflict(_) | StoreError::NotFound(_) | StoreError::Overtaken { .. })
}

impl From<Fault> for StoreError {
    fn from(fault: Fault) -> Self {
        fault.0
    }
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        Self(error)
    }
}

impl From<ChunkError> for Fault {
    fn from(error: ChunkError) -> Self {
        Self::damaged(error.to_string())
    }
}

impl From<sqlx::Error> for Fault {
    fn from(error: sqlx::Error) -> Self {
        Self(match &error {
            sqlx::Error::Database(database) => match primary_code(&error) {
                Some(SQLITE_FULL) => StoreError::Full,
                Some(SQLITE_CONSTRAINT) => StoreError::Conflict(format!("refused by the database: {database}")),
                Some(SQLITE_CORRUPT | SQLITE_NOTADB) => StoreError::Damaged(database.to_string()),
                Some(SQLITE_READONLY) => StoreError::Unavailable(format!("it can only be read: {database}")),
                _ => StoreError::Unavailable(database.to_string()),
            },
            sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => StoreError::Damaged(error.to_string()),
            sqlx::Error::PoolTimedOut => StoreError::Unavailable("too many readers wait for it".to_owned()),
            _ => StoreError::Unavailable(error.to_string()),
        })
    }
}

/// SQLite's primary result code of an error, where SQLite reported it.
pub(crate) fn primary_code(error: &sqlx::Error) -> Option<i32> {
    let extended: i32 = error.as_database_error()?.code()?.parse().ok()?;
    Some(extended & PRIMARY_CODE)
}
