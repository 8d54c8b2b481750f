//! End-to-end journeys over the whole of Ash, and what they stand on.

#![cfg_attr(test, allow(clippy::unwrap_used))]

pub mod bench;
pub mod cluster;
pub mod fleet;
pub mod harness;
pub mod http;
pub mod model;
