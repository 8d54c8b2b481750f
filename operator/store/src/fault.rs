//! What goes wrong in the database, as the store's error.

use ash_core::{chunk::ChunkError, ports::StoreError};
use sqlx::postgres::PgDatabaseError;

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
pub(crate) struct Fault {
    pub(crate) error: StoreError,
    /// Whether another try may help.
    pub(crate) trouble: Trouble,
}

/// What a failure says about another try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Trouble {
    /// Nothing.
    Other,
    /// It met another transaction and was rolled back: another try is as good as the first.
    Collision,
    /// The connection is of no use any more. Whether the statement was carried out is unknown.
    Lost,
}

impl Fault {
    /// Something stored that cannot be read.
    pub(crate) fn damaged(what: impl Into<String>) -> Self {
        StoreError::Damaged(what.into()).into()
    }

    /// A connection that is of no use any more.
    pub(crate) fn lost(what: impl Into<String>) -> Self {
        Self { error: StoreError::Unavailable(what.into()), trouble: Trouble::Lost }
    }
}

/// Whether only what was asked for failed, and what else shares the transaction may go on.
pub(crate) fn is_refusal(error: &StoreError) -> bool {
    matches!(error, StoreError::Conflict(_) | StoreError::NotFound(_) | StoreError::Overtaken { .. })
}

impl From<Fault> for StoreError {
    fn from(fault: Fault) -> Self {
        fault.error
    }
}

impl From<StoreError> for Fault {
    fn from(error: StoreError) -> Self {
        Self { error, trouble: Trouble::Other }
    }
}

impl From<ChunkError> for Fault {
    fn from(error: ChunkError) -> Self {
        Self::damaged(error.to_string())
    }
}

impl From<sqlx::Error> for Fault {
    fn from(error: sqlx::Error) -> Self {
        match &error {
            sqlx::Error::Database(database) => match database.try_downcast_ref::<PgDatabaseError>() {
                Some(postgres) => of_postgres(postgres),
                None => of_sqlite(&error, &database.to_string()).into(),
            },
            sqlx::Error::ColumnDecode { .. } | sqlx::Error::Decode(_) => Self::damaged(error.to_string()),
            sqlx::Error::PoolTimedOut => StoreError::Unavailable("too many readers wait for it".to_owned()).into(),
            sqlx::Error::Io(_) | sqlx::Error::Tls(_) | sqlx::Error::Protocol(_) => Self::lost(error.to_string()),
            _ => StoreError::Unavailable(error.to_string()).into(),
        }
    }
}

fn of_sqlite(error: &sqlx::Error, message: &str) -> StoreError {
    match primary_code(error) {
        Some(SQLITE_FULL) => StoreError::Full,
        Some(SQLITE_CONSTRAINT) => StoreError::Conflict(format!("refused by the database: {message}")),
        Some(SQLITE_CORRUPT | SQLITE_NOTADB) => StoreError::Damaged(message.to_owned()),
        Some(SQLITE_READONLY) => StoreError::Unavailable(format!("it can only be read: {message}")),
        _ => StoreError::Unavailable(message.to_owned()),
    }
}

/// Codes: <https://www.postgresql.org/docs/current/errcodes-appendix.html>. CockroachDB uses the same ones.
fn of_postgres(error: &PgDatabaseError) -> Fault {
    // The message names tables and columns; what was in them would be in the detail, which nobody is shown.
    let message = error.message().to_owned();
    let unavailable = |trouble| Fault { error: StoreError::Unavailable(message.clone()), trouble };
    match error.code() {
        // Serialization failure, deadlock.
        "40001" | "40P01" => unavailable(Trouble::Collision),
        // Statement completion unknown; shutdown, crash, start; a server that was written to and is a standby now.
        "40003" | "57P01" | "57P02" | "57P03" | "25006" => unavailable(Trouble::Lost),
        "53100" => StoreError::Full.into(),
        // Text with a character that the database has no place for: U+0000.
        "22021" | "22P05" => {
            StoreError::Conflict("a text has a character that cannot be stored (U+0000)".to_owned()).into()
        }
        code if code.starts_with("08") => unavailable(Trouble::Lost),
        code if code.starts_with("23") => StoreError::Conflict(format!("refused by the database: {message}")).into(),
        "XX001" | "XX002" => Fault::damaged(message),
        _ => unavailable(Trouble::Other),
    }
}

/// SQLite's primary result code of an error, where SQLite reported it.
pub(crate) fn primary_code(error: &sqlx::Error) -> Option<i32> {
    let extended: i32 = error.as_database_error()?.code()?.parse().ok()?;
    Some(extended & PRIMARY_CODE)
}
