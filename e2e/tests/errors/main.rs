//! What gets a clear error, and loses nothing: each on the real programs. A test sees the status and the sentence, and that the
//! server, or the session, goes on.

mod capacity;
mod claude;
mod command_line;
mod disk;
mod model;
mod requests;
mod starting;
mod stopping;
mod support;
mod terminal;
