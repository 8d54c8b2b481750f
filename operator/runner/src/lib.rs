//! The runner without its server: sandboxes and their bridges, the live side of sessions, epochs and routing.
//!
//! Standalone runs it in process, behind the port that a remote one is reached through too.

mod backend;
mod bridge;
mod budget;
mod commit;
mod coordinators;
mod enclosure;
mod freezer;
mod hub;
mod kernel;
mod lifecycle;
mod limits;
mod local;
mod metering;
mod metrics;
mod model_keys;
mod occupancy;
mod options;
mod peer;
mod pods;
mod pool;
mod reader;
mod recovery;
mod remote_store;
mod sandbox;
mod server;
mod shared;
mod snapshots;
mod standing;
mod starts;
mod turns;

pub use backend::{Backend, Pods, PodsConfig};
pub use budget::MIN_LOG_MEMORY_BYTES;
pub use coordinators::Coordinators;
pub use limits::{CAPACITY_WAIT, CLOSING};
pub use local::LocalRunner;
pub use model_keys::ModelKeys;
pub use remote_store::RemoteStore;
pub use server::{Membership, MembershipConfig, RunnerService, Told, leftovers};
pub use shared::RunnerConfig;
