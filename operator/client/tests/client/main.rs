//! The client against a small server of its own.

#![allow(clippy::unwrap_used)]

mod requests;
mod resuming;
mod server;
