//! Isolated places that run one program: the process back end.
//!
//! [`ProcessBackend`] starts a program (the bridge, but nothing here knows its protocol) with bubblewrap in namespaces
//! of its own, under a seccomp filter and resource limits, and gives back a [`ProcessSandbox`] that observes, freezes
//! and kills it. A sandbox outlives the server that started it: [`ProcessBackend::adopt`] finds it again from the
//! record in its directory.
//!
//! # Directory of a sandbox
//!
//! | entry | owner | inside the sandbox |
//! |---|---|---|
//! | `workspace/` | sandbox user | `/workspace`, writable, the working directory |
//! | `home/` | sandbox user | `/home/agent`, writable |
//! | `run/` | sandbox user | `/run/ash`, read-only; the host puts its Unix socket here |
//! | `sandbox.json` | server | not visible; which processes and control groups belong to the sandbox |
//! | `program.log` | server | not visible; what the program wrote to its standard output and error |
//! | `status.json` | server | not visible; bubblewrap writes the exit status of the program here |
//!
//! # What the sandbox user may reach
//!
//! As root, bubblewrap itself already runs as an unprivileged user ([`config::DEFAULT_USER`]), in a mount namespace in
//! which only what the sandbox is given has been bound, so that even an escape from the inner namespaces meets
//! root's files as a stranger. As an ordinary user, an escape would be that user.

#![cfg_attr(test, allow(clippy::unwrap_used))]

mod arguments;
mod backend;
mod bounds_met;
pub mod config;
mod control_group;
mod disk;
mod error;
mod filter;
mod hierarchy;
mod launch;
mod log_file;
mod memory_limit;
mod preparation;
mod probe;
mod process;
mod protections;
mod record;
mod sandbox;
mod spec;
mod watched;

pub use backend::ProcessBackend;
pub use bounds_met::BoundsMet;
pub use config::{Limits, Policy, ProcessConfig, SandboxUser};
pub use disk::{DiskUse, measure_disk};
pub use error::SandboxError;
pub use memory_limit::memory_limit;
pub use process::Identity as ProcessIdentity;
pub use protections::{Protection, Protections};
pub use record::recorded_id;
pub use sandbox::{Exit, ProcessSandbox, Usage};
pub use spec::{ReadOnlyBind, SandboxSpec};
pub use watched::WatchedProcess;
