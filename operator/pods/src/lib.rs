//! Sandbox pods: what they are made of, the policy that is in a namespace before the first of them, and who says which pod a
//! token is of; and what the API server says of people's tokens.

pub mod access;
pub mod git;
pub mod manifest;
pub mod network_policy;
pub mod token_reviews;
