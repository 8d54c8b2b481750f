//! Sandbox pods: what they are made of, and the policy that is in a namespace before the first of them.

pub mod manifest;
pub mod network_policy;
