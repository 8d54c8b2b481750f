//! The bridge: the only program of Ash inside a sandbox.
//!
//! It drives one Claude Code process over stream-json, numbers what that prints and keeps it until the host has committed it,
//! and carries out the host's commands on the workspace. One thread, no timers while idle.
//!
//! [`bridge::run`] wires it; `main` only reads the command line.

pub mod args;
pub mod bridge;
pub mod claude;
pub mod descendants;
pub mod environment;
pub mod freezer;
pub mod log;
pub mod options;
pub mod phase;
pub mod report;
pub mod turn;

mod archive;
mod dial;
mod driver;
mod exec;
mod files;
mod link;
mod memory;
mod shared;
mod tree;
mod work;
mod workspace;
