//! Frames of a session's stream: which of them an entry of the log gives, and their bytes on the wire.
//!
//! The bytes of an entry are made once and shared by all readers. Source: the REST and SSE contract, "A message and its
//! stream"; the format is that of the HTML standard, section "Server-sent events".

mod position;
mod render;

pub use position::{InvalidPosition, Position};
pub use render::{INTERRUPTED, Rendered, render, render_opening, session_start, was_interrupted};
