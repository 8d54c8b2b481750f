//! The benchmarks: what Ash adds to Claude Code, each figure beside its limit, which is measured in the same run.
//!
//! Measurements of both sides take turns, so that a slow moment of the machine meets both. Nothing here is a test: figures depend
//! on the machine, and `docs/benchmarks.md` says which one they are from.

mod alone;
mod cluster;
mod connection;
mod fleet;
mod processes;
mod report;
mod rows;
mod statistics;
mod streams;

pub use report::{Row, markdown, table};
pub use rows::{GROUPS, Group, Scale, TABLES, Table};
