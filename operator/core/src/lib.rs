//! Ash's words and rules, without I/O: ids, state machines, the event log, frames of a stream, and the ports that adapters
//! implement.

pub mod agent;
pub mod chunk;
pub mod compaction;
pub mod environment;
pub mod exit;
pub mod fence;
pub mod fleet;
pub mod freezing;
pub mod host;
pub mod id;
pub mod intake;
pub mod loss;
pub mod meter;
pub mod name;
pub mod opening;
pub mod placement;
pub mod ports;
pub mod queue;
pub mod sandbox;
pub mod session;
pub mod spent;
pub mod sse;
pub mod transcript;

pub use ash_protocol::{Entry, EntryFlags, EntryKind, Epoch, Sequence};
