//! The operator: makes what `Agent` and `Session` resources say come true, and tells them what became of it.
//!
//! Every part decides purely and acts separately: `decide` has no I/O and is tried with tables and properties; `act` carries one
//! step out and is tried against a real API server, each of whose calls fails once. Whatever is done can be done again: the next
//! look decides from what there is, so that the operator can be killed anywhere.
//!
//! One process of many acts: the one that holds the [`leader`] lease. [`resources`] is the API's way to the same objects.
#![allow(clippy::doc_markdown, reason = "resources are called by their plain names")]
#![allow(clippy::single_match_else, reason = "two ways that are equally likely read best side by side")]

mod agent;
mod changes;
mod config;
mod connect;
mod error;
mod event;
pub mod failure;
pub mod leader;
pub mod limits;
mod metrics;
mod namespace;
mod object;
mod operator;
mod pool;
mod reconcile;
pub mod resources;
mod runners;
mod session;
mod uninstall;

pub use config::{Clones, Fleet, Members, OperatorConfig, Ports};
pub use connect::{ConnectError, client_of, connect, connect_to};
pub use kube::Client;
pub use metrics::Metrics;
pub use operator::run;
pub use uninstall::{Released, UninstallError, uninstall};
