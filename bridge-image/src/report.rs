//! The bridge's own log: one line per event on its standard error, which the host keeps beside its own.

use std::io::Write;

/// Writes a line: a stable event name and a sentence. Never holds message text, file contents or values of variables.
pub fn report(event: &str, message: &str) {
    // Nobody may read standard error; the bridge goes on without its log.
    let _ = writeln!(std::io::stderr(), "ash-bridge {event}: {}", message.replace('\n', " | "));
}
