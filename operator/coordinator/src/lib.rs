//! A coordinator's own part: it has no sandboxes, and knows which runner has which session.
//!
//! [`FleetRunner`] is the runner's port for the API: it finds a session's runner, or decides on one, and passes the call on.
//! [`CoordinatorService`] is what runners call: membership, and the store's part that they need. Both share a [`Registry`].

mod calls;
mod fleet_runner;
mod limits;
mod lost;
mod metrics;
mod reader;
mod registry;
mod service;
mod store_calls;

pub use fleet_runner::FleetRunner;
pub use lost::watch;
pub use registry::{Registry, RegistryConfig};
pub use service::CoordinatorService;
