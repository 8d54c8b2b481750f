//! The harness of the journeys: a real server with real sandboxes, the scripted model behind it, and what tests say about them.

mod app;
mod burst;
mod fleet;
mod log;
mod process;
mod storage;
mod survival;
mod turn;
mod until;

pub use app::{MODEL_KEY, TestApp, TestAppBuilder, real_claude};
pub use burst::{burst, counted};
pub use fleet::{FleetOptions, TestFleet};
pub use log::{check_order, compare_with_log, position, without_superseded, without_withdrawn};
pub(crate) use process::record_pid;
pub use process::{let_go_on, pid_of, program, signal, stands_still};
pub use storage::{KEYS as STORAGE_KEYS, ObjectStorage};
pub use survival::outlives_its_server;
pub use turn::Turn;
pub use until::{DEADLINE, eventually};
