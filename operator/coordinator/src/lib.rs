//! A coordinator's own part: it has no sandboxes, and finds out which runner has which session. What many coordinators share is
//! in the store.
//!
//! [`FleetRunner`] is the runner's port for the API: it finds a session's runner, or decides on one, and passes the call on.
//! [`CoordinatorService`] is what runners call: membership, and the store's part that they need. Both share a [`Registry`].

mod calls;
mod feed;
mod fleet_runner;
mod keys;
mod limits;
mod lost;
mod metrics;
mod placing;
mod pod_calls;
mod reader;
mod registry;
mod routes;
mod service;
mod store_calls;
mod stream;
mod warm;

pub use fleet_runner::FleetRunner;
pub use keys::ModelKeySource;
pub use lost::{follow, watch};
pub use registry::{PodsConfig, Registry, RegistryConfig};
pub use service::CoordinatorService;
