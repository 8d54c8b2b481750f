//! The gateway over real sockets, with a real HTTP server as the model.
#![allow(clippy::unwrap_used)]

mod egress;
mod lease;
mod model;
mod network;
mod support;
