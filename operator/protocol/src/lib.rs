//! What crosses a socket between a host (API or runner) and the bridge inside a sandbox.
//!
//! The wire is a sequence of [`frame::Frame`]s: a fixed header of 16 bytes and a body. Event bodies are raw bytes, never
//! parsed on the way; everything else is small JSON ([`message`]). To its host a bridge is an untrusted client: nothing in
//! this crate trusts a length, a number or a kind that it reads.

pub mod bound;
pub mod claude;
pub mod entry;
pub mod fleet;
pub mod frame;
pub mod message;
pub mod options;
pub mod preamble;
pub mod sequence;
pub mod tree;
pub mod version;

pub use entry::{Entry, EntryFlags, EntryKind};
pub use sequence::{Epoch, Sequence};
