//! Claude Code: its process, its lines, what is written to it and what it leaves on disk.

pub mod control;
pub mod lines;
pub mod partials;
pub mod process;
pub mod transcript;
