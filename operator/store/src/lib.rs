//! Ash's store behind the ports of `ash-core`: agents, sessions, keys and the event log.
//!
//! [`SqliteStore`] keeps them in one file. One task writes, many writes in one transaction; a few connections read. What a
//! method returned is durable, also when the power fails.

#![allow(clippy::doc_markdown, reason = "SQLite is a name, not code")]

mod cache;
mod codec;
mod fault;
pub mod limits;
mod sqlite;

pub use cache::CacheStatistics;
pub use sqlite::{OpenError, Settings, SqliteStore, Statistics, Synchronous};
