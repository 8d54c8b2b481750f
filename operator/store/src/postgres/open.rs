//! Opens the database: address, schema, and errors that say what to do.

use std::sync::Arc;

use ash_core::ports::StoreError;
use jiff::Timestamp;
use secrecy::SecretString;
use uuid::{NoContext, Uuid};

use super::{
    Counters, Postgres, PostgresStore, address,
    address::InvalidAddress,
    migrate::{MigrationError, migrate},
    pool::Pool,
};
use crate::{bundles, cache::Caches, fault::Fault, limits::MAX_UNFINISHED_UPLOAD_AGE};

/// Why the database cannot be used. Names no user and no password.
#[derive(Debug, thiserror::Error)]
pub enum PostgresError {
    /// The address is none.
    #[error("the database's address cannot be used: {0}")]
    Address(#[from] InvalidAddress),
    /// The server is not there, or refuses.
    #[error(
        "the database {place} cannot be used: {reason}; see that it runs, and that address, user and rights are right"
    )]
    Unavailable {
        /// Name, host and port.
        place: String,
        /// What was said.
        reason: String,
    },
    /// A migration was changed after it was run, or was cut off.
    #[error(
        "migration {version} of the database {place} is not the one of this release; restore the backup from before the update"
    )]
    Changed {
        /// Name, host and port.
        place: String,
        /// Which one.
        version: i64,
    },
}

impl PostgresStore {
    /// Connects to a database, such as `postgres://user:password@host:5432/name`, and brings its schema up to date. The database
    /// has to be there; tables are made in the user's default schema.
    pub async fn open(address: &SecretString) -> Result<Self, PostgresError> {
        let options = address::read(address)?;
        let pool = Pool::new(options.clone());
        let unavailable = |error: StoreError| {
            let reason = match error {
                StoreError::Unavailable(reason) => reason,
                other => other.to_string(),
            };
            PostgresError::Unavailable { place: address::place(&options), reason }
        };
        // Waits as long as any call does for a server that has just been started.
        pool.lease().await.map_err(|fault| unavailable(fault.error))?.give_back();
        migrate(&options).await.map_err(|error| match error {
            MigrationError::Database(error) => unavailable(Fault::from(error).error),
            MigrationError::Changed(version) => PostgresError::Changed { place: address::place(&options), version },
        })?;
        remove_unfinished(&pool).await.map_err(|fault| unavailable(fault.error))?;
        let caches = Arc::new(Caches::new());
        Ok(Self::new(Postgres { pool, caches: Arc::clone(&caches), counters: Counters::default() }, caches))
    }
}

/// Removes what uploads left behind; where that cannot be done now, a later start does it.
async fn remove_unfinished(pool: &Pool) -> Result<(), Fault> {
    let mut lease = pool.lease().await?;
    match bundles::remove_unfinished(&mut lease, oldest_upload()).await {
        Ok(()) => lease.give_back(),
        Err(fault) => tracing::warn!(error = %fault.error, "bytes of unfinished deployments stay until a later start"),
    }
    Ok(())
}

/// The id of an upload that would have begun so long ago that no server is at it any more.
fn oldest_upload() -> Uuid {
    let begun = Timestamp::now().as_second().saturating_sub(MAX_UNFINISHED_UPLOAD_AGE.as_secs().cast_signed());
    Uuid::new_v7(uuid::Timestamp::from_unix(NoContext, begun.cast_unsigned(), 0))
}
