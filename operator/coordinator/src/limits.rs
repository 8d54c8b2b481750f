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
/// How long a reader waits for another one that begins the stream of the same session, to take part in it.
pub(crate) const OPENING_WAIT: Duration = Duration::from_secs(1);
/// How long a stream of entries may say nothing; a runner says how things are every 2 s.
pub(crate) const STREAM_SILENCE: Duration = Duration::from_secs(8);
/// The pause before a runner that did not answer is asked again.
pub(crate) const RETRY: Duration = Duration::from_millis(200);
/// Bytes that a reader takes from the log at once, beyond the first entry.
pub(crate) const BATCH_BYTES: usize = 1 << 20;
/// What the readers of one session at this coordinator have not all taken, beyond the last batch. Who is further behind reads the log.
pub(crate) const FEED_BYTES: usize = 1 << 20;
/// What is kept of it during a turn although all have taken it, so that a reader that comes from the log finds what is not there yet.
pub(crate) const FEED_KEPT_BYTES: usize = 64 << 10;
/// The pause before a message that found no place looks again, where no runner came in between.
pub(crate) const PLACE_RETRY: Duration = Duration::from_millis(500);
/// How old what is known of runners, of the sessions that are read, and of agents may be.
pub(crate) const REFRESH: Duration = Duration::from_secs(1);
/// How often it is looked whether a runner is lost.
pub(crate) const SWEEP: Duration = Duration::from_secs(1);
/// How long the coordinator's own row may take to write. Then it counts as one that cannot write.
pub(crate) const OWN_WRITE: Duration = Duration::from_secs(3);
/// How long it may take to write that a runner was heard: the runner waits for the answer, 4 s at the longest.
pub(crate) const HEARD_WRITE: Duration = Duration::from_secs(2);
/// Tries to end a session that others write at the same time.
pub(crate) const LOST_TRIES: u32 = 60;
/// Sessions whose runner is remembered. At the bound all are forgotten, and asked for again.
pub(crate) const MAX_ROUTES: usize = 200_000;
/// Places that are reserved on one runner by one statement.
pub(crate) const PLACES_AT_ONCE: usize = 500;
/// Decisions about a place where other coordinators are faster each time. Then there is none, and a message tries again.
pub(crate) const PLACING_ROUNDS: usize = 20;
/// How long a revealed credential is kept: so long a changed one may still be used.
pub(crate) const KEY_AGE: Duration = Duration::from_secs(5);
/// Revealed credentials that are kept. At the bound all are forgotten, and revealed again.
pub(crate) const MAX_KEYS: usize = 1_000;
/// The entries of one append: a session's unacknowledged bytes and one line, twice.
pub(crate) const MAX_APPEND_BYTES: usize = 256 << 20;
/// Runners at the most: a further one is refused.
pub(crate) const MAX_RUNNERS: usize = 1_000;
