//! Brings the schema up to date, one server at a time.
//!
//! sqlx would take an advisory lock for that, which CockroachDB does not have. Here it is the lock of a row, on a connection of its
//! own: it goes with the process that has it.

use sqlx::{
    Executor, PgConnection,
    error::DatabaseError,
    migrate::{MigrateError, Migrator},
    postgres::PgConnectOptions,
};
use tokio::time::sleep;

use super::pool::connect;
use crate::{
    MIGRATIONS,
    limits::{MAX_COLLISION_PAUSE, MIGRATION_STATEMENT_TIMEOUT, MIGRATION_WAIT},
};

/// The table whose only row is locked.
const LOCK_TABLE: &str = "CREATE TABLE IF NOT EXISTS ash_migration_lock (id BIGINT NOT NULL PRIMARY KEY)";
const LOCK_ROW: &str = "INSERT INTO ash_migration_lock (id) VALUES (1) ON CONFLICT (id) DO NOTHING";
/// Tries to make the table and its row: two servers that make it at once meet in the catalogue.
const LOCK_TRIES: u32 = 20;
/// What they are told: a name that is taken in the catalogue, a table or type that is there, a collision.
const MET_ANOTHER: [&str; 5] = ["23505", "42P07", "42710", "40001", "40P01"];

/// Why the schema is not as it should be.
#[derive(Debug)]
pub(super) enum MigrationError {
    Database(sqlx::Error),
    Changed(i64),
}

/// Brings the schema up to date. One that is newer is left as it is: a migration only adds, so that the release before it goes on.
pub(super) async fn migrate(options: &PgConnectOptions) -> Result<(), MigrationError> {
    let mut holder = connect(options, MIGRATION_WAIT).await?;
    if is_up_to_date(&mut holder).await {
        return Ok(());
    }
    make_lock(&mut holder).await?;
    // The holder is silent while the migrations run on the other connection.
    holder.execute("SET idle_in_transaction_session_timeout = 0").await?;
    holder.execute("BEGIN").await?;
    holder.execute("SELECT id FROM ash_migration_lock WHERE id = 1 FOR UPDATE").await?;
    let mut connection = connect(options, MIGRATION_STATEMENT_TIMEOUT).await?;
    let mut migrations = Migrator::with_migrations(MIGRATIONS.iter().cloned().collect());
    migrations.set_locking(false).set_ignore_missing(true);
    let outcome = migrations.run_direct(None, &mut connection, false).await;
    // Closed, the connection gives the lock back; this does it sooner.
    let _ = holder.execute("ROLLBACK").await;
    outcome?;
    Ok(())
}

/// Whether every migration was run, without a lock: what most starts find. Where the table is missing, this says no.
async fn is_up_to_date(connection: &mut PgConnection) -> bool {
    let newest = MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or_default();
    let found: Result<Option<i64>, sqlx::Error> =
        sqlx::query_scalar("SELECT MAX(version) FROM _sqlx_migrations WHERE success").fetch_one(connection).await;
    let found = found.ok().flatten();
    if let Some(found) = found.filter(|found| *found > newest) {
        tracing::warn!(
            found,
            known = newest,
            "the database has a newer schema: a newer release runs, or has run, beside this one"
        );
    }
    found == Some(newest)
}

async fn make_lock(connection: &mut PgConnection) -> Result<(), sqlx::Error> {
    let mut tries = 0;
    for statement in [LOCK_TABLE, LOCK_ROW] {
        while let Err(error) = connection.execute(statement).await {
            tries += 1;
            if tries >= LOCK_TRIES || !has_met_another(&error) {
                return Err(error);
            }
            sleep(MAX_COLLISION_PAUSE.mul_f64(fastrand::f64())).await;
        }
    }
    Ok(())
}

fn has_met_another(error: &sqlx::Error) -> bool {
    let code = error.as_database_error().and_then(DatabaseError::code);
    code.is_some_and(|code| MET_ANOTHER.contains(&&*code))
}

impl From<sqlx::Error> for MigrationError {
    fn from(error: sqlx::Error) -> Self {
        Self::Database(error)
    }
}

impl From<MigrateError> for MigrationError {
    fn from(error: MigrateError) -> Self {
        match error {
            MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => Self::Database(error),
            MigrateError::VersionMissing(version)
            | MigrateError::VersionMismatch(version)
            | MigrateError::Dirty(version) => Self::Changed(version),
            other => Self::Database(sqlx::Error::Migrate(Box::new(other))),
        }
    }
}
