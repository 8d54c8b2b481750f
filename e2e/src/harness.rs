//! The harness of the journeys: a real server with real sandboxes, the scripted model behind it, and what tests say about them.

mod app;
mod fleet;
mod log;
mod process;
mod turn;
mod until;

pub use app::{MODEL_KEY, TestApp, TestAppBuilder, real_claude};
pub(crate) use fleet::free_port;
pub use fleet::{FleetOptions, TestFleet, TestRunner};
pub use log::{check_order, compare_with_log, position, without_superseded, without_withdrawn};
pub use process::{pid_of, program, signal};
pub use turn::Turn;
pub use until::{DEADLINE, eventually};
