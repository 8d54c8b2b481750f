//! The groups that need a coordinator, runners and Postgres, but no Kubernetes: all are processes of this machine.

pub(crate) mod creations;
pub(crate) mod hop;
mod reviews;
mod stand_in_bridges;

/// What is logged while it is measured.
const LOG: &str = "warn";
