//! Ash's store behind the ports of `ash-core`: agents, sessions, keys and the event log.
//!
//! [`SqliteStore`] keeps them in one file, for one server; [`PostgresStore`] in a database that servers share. What a method returned is durable, also when the power fails.

#![allow(clippy::doc_markdown, reason = "SQLite is a name, not code")]
#![allow(
    private_bounds,
    reason = "what the stores have in common is bounded by a trait that is nobody else's business"
)]

mod agents;
mod batch;
mod bundles;
mod cache;
mod changes;
mod codec;
mod compaction;
mod configure;
mod credentials;
mod directory;
mod fault;
mod keys;
pub mod limits;
mod log;
mod membership;
mod one;
mod places;
mod pods;
mod postgres;
mod queue;
mod rows;
mod seal;
mod sessions;
mod snapshots;
mod sql;
mod sqlite;
mod store;
mod variables;

pub use cache::CacheStatistics;
pub use directory::{DirectoryLock, OpenError};
pub use postgres::{InvalidAddress, PostgresError, PostgresStore};
pub use seal::{InvalidKeys, Keyring};
pub use sqlite::{Settings, SqliteStore, Synchronous};
pub use store::{Database, Statistics};

/// The schema, for every database: one set of files.
static MIGRATIONS: sqlx::migrate::Migrator = sqlx::migrate!("./migrations");
