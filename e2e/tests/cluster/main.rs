//! Journeys on a real Kubernetes cluster of two nodes. Where none can run they say that they are skipped; in CI they
//! fail.

#![allow(clippy::unwrap_used)]

mod agents;
mod attacks;
mod definitions;
mod errors;
mod git;
mod images;
mod load;
mod network;
mod nodes;
mod pods;
mod queue;
mod sandbox_image;
mod secrets;
mod sessions;
mod spending;
mod tenant;
mod undisturbed;
