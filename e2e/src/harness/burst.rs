//! A turn in which the model counts, so that what a client sees of it can be compared with all that was said.

use std::time::Duration;

use ash_client::Message;

/// The message, with partials: the model says so many deltas, with this pause before each.
pub fn burst(deltas: usize, pace: Duration) -> Message {
    let text = format!("[[pace: {}ms]] [[burst: {deltas}]]", pace.as_millis());
    Message { include_partial_messages: true, ..Message::text(text) }
}

/// What it says then.
pub fn counted(deltas: usize) -> String {
    (0..deltas).map(|number| format!("{number} ")).collect()
}
