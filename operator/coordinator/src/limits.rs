//! The coordinator's bounds. `docs/limits.md` lists them with what happens at each.

use std::time::Duration;

/// How long a message waits for a runner to be there, or to come back.
pub(crate) const RUNNER_WAIT: Duration = Duration::from_secs(30);
/// How long a runner may take to take a message: its wait for a sandbox's place, and an answer of the bridge.
pub(crate) const SEND: Duration = Duration::from_secs(200);
/// How long a runner may take for any other call; the longest is the answer of a bridge.
pub(crate) const CALL: Duration = Duration::from_secs(160);
/// How long a runner may take to begin a stream of entries.
pub(crate) const STREAM_BEGIN: Duration = Duration::from_secs(5);
/// How long a stream of entries may say nothing; a runner says how things are every 2 s.
pub(crate) const STREAM_SILENCE: Duration = Duration::from_secs(8);
/// The pause before a runner that did not answer is asked again.
pub(crate) const RETRY: Duration = Duration::from_millis(200);
/// Bytes that a reader takes from the log at once, beyond the first entry.
pub(crate) const BATCH_BYTES: usize = 1 << 20;
/// How often the heartbeats are looked at.
pub(crate) const LOOK: Duration = Duration::from_secs(1);
/// Tries to write that a session lost its sandbox, while the database does not take it.
pub(crate) const LOST_TRIES: u32 = 60;
/// The pause between two of them.
pub(crate) const LOST_RETRY: Duration = Duration::from_millis(500);
/// The entries of one append: a session's unacknowledged bytes and one line, twice.
pub(crate) const MAX_APPEND_BYTES: usize = 256 << 20;
/// Runners at the most: a further one is refused.
pub(crate) const MAX_RUNNERS: usize = 1_000;
