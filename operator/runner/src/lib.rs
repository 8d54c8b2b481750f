//! The runner without its server: sandboxes and their bridges, the live side of sessions, epochs and routing.
//!
//! Standalone runs it in process, behind the port that a remote one is reached through too.

mod bridge;
mod commit;
mod hub;
mod kernel;
mod lifecycle;
mod limits;
mod local;
mod metering;
mod metrics;
mod occupancy;
mod options;
mod peer;
mod pool;
mod reader;
mod recovery;
mod sandbox;
mod shared;
mod starts;
mod turns;

pub use limits::{CAPACITY_WAIT, CLOSING};
pub use local::LocalRunner;
pub use shared::RunnerConfig;
