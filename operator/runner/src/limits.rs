//! The runner's bounds, in one place. `docs/limits.md` lists them with what happens at each.

use std::time::Duration;

use ash_core::meter::LogBounds;
use ash_protocol::entry::MAX_LINE_BYTES;

/// How long a message waits for a place in the pool before it is refused with 503, where nothing else is configured.
pub const CAPACITY_WAIT: Duration = Duration::from_secs(30);
/// How long a bridge may take from its sandbox's start to its first message.
pub(crate) const BRIDGE_START: Duration = Duration::from_secs(15);
/// How long a bridge whose connection broke may stay away while its sandbox lives; then the sandbox is lost.
pub(crate) const BRIDGE_AWAY: Duration = Duration::from_secs(15);
/// How long a bridge may leave a request without an answer: longer than it may take to start Claude Code again (123 s in all),
/// behind which a request waits. Then its sandbox is ended.
pub(crate) const BRIDGE_ANSWER: Duration = Duration::from_secs(150);
/// How long Claude Code may take to start, initialise and rehearse.
pub(crate) const WARM_UP: Duration = Duration::from_secs(90);
/// How long the bridge of a pod may take to stop what is in it, or to have it go on. Then it does as it likes, and gains nothing.
pub(crate) const FREEZE_ANSWER: Duration = Duration::from_secs(5);
/// How long a sandbox may take to end by itself before it is killed.
pub(crate) const SANDBOX_END: Duration = Duration::from_secs(5);
/// How long sandboxes may take at the stop of a server, once no turn may go on: the end of the turns, the snapshots, their end.
pub const CLOSING: Duration = Duration::from_secs(
    INTERRUPTED.as_secs()
        + LEAVING_WAIT.as_secs()
        + SNAPSHOT_AT_END.as_secs()
        + SANDBOX_END.as_secs()
        + FLUSH_WAIT.as_secs(),
);
/// How long the log may take to be committed before a session leaves its sandbox without its last entries.
pub(crate) const FLUSH_WAIT: Duration = Duration::from_secs(10);
/// How long entries wait for more before they are committed, when none of them is a complete message.
pub(crate) const COMMIT_DELAY: Duration = Duration::from_millis(50);
/// ... where the database is one that many servers share. Before a turn's next complete message nobody needs them there: readers
/// have them from memory, and the bridge keeps what is not committed.
pub(crate) const SHARED_COMMIT_DELAY: Duration = Duration::from_secs(2);
/// How long complete messages wait for more before they are committed; the end of a turn does not wait.
pub(crate) const COMMIT_SPACING: Duration = Duration::from_millis(25);
/// Entries of a session in one append.
pub(crate) const COMMIT_ENTRIES: usize = 16_384;
/// Beginnings and ends of turns in one append; at least 1.
pub(crate) const COMMIT_TURN_CHANGES: usize = 256;
/// How long a bridge has to wait between two connections, so that dialling costs its host next to nothing.
pub(crate) const CONNECTION_SPACING: Duration = Duration::from_millis(50);
/// How often a bridge that found its host again may take [`BRIDGE_AWAY`] to send something of its tail.
pub(crate) const RECOVERY_PERIODS: u32 = 8;
/// Starts per core that took longer than their turn and go on.
pub(crate) const SLOW_STARTS_PER_CORE: usize = 16;
/// Uncommitted bytes of a session at which it is committed without waiting.
pub(crate) const COMMIT_BYTES: usize = 256 << 10;
/// Bytes of one session in one transaction.
pub(crate) const COMMIT_SESSION_BYTES: usize = 8 << 20;
/// How long a batch that is being committed keeps the next one waiting; then that one begins beside it.
pub(crate) const COMMIT_TURN: Duration = Duration::from_secs(1);
/// Batches that are being committed at the same time, of which the store takes longer than [`COMMIT_TURN`]; more entries wait for
/// one of them to end.
pub(crate) const COMMIT_BATCHES: usize = 4;
/// Appends at the same time that are tried again. Sessions beyond that share one with others that could not be written either.
pub(crate) const COMMIT_LANES: usize = 8;
/// Tries to commit what a session wrote while the database is full or unavailable, before the session fails.
pub(crate) const COMMIT_TRIES: u32 = 20;
/// The pause between two tries.
pub(crate) const COMMIT_RETRY: Duration = Duration::from_millis(500);
/// Committed bytes that a session keeps in memory during a turn for readers that are a little behind; others read the log.
pub(crate) const COMMITTED_TAIL_BYTES: usize = 1 << 20;
/// Entries that a reader is given at once.
pub(crate) const BATCH_ENTRIES: usize = 1024;
/// Bytes that a reader is given at once, beyond its first entry.
pub(crate) const BATCH_BYTES: usize = 1 << 20;
/// What an entry costs in memory beside its body, counted with it: empty entries are not free.
pub(crate) const ENTRY_COST_BYTES: usize = ash_core::intake::ENTRY_COST_BYTES;
/// Turns that ended and are remembered per session, for repeats of their messages.
pub(crate) const ENDED_TURNS: usize = 16;
/// Permission requests that are remembered per turn; a bridge has no more than 64 open.
pub(crate) const MAX_PERMISSIONS: usize = 1024;
/// What a session may write to its log. The burst holds two of the longest lines, or some 350,000 partial messages: 10 s of the
/// fastest burst that was seen. At the rate a session reaches its quota in 2 minutes.
pub(crate) const LOG_BOUNDS: LogBounds =
    LogBounds { burst_bytes: 2 * MAX_LINE_BYTES as u64, bytes_per_second: 8 << 20, quota_bytes: 1 << 30 };
/// Bytes that a session wrote at which it is remembered also while nobody has its hub; less is counted anew when it wakes.
pub(crate) const REMEMBERED_LOG_BYTES: u64 = 1 << 20;
/// Sandboxes of the server before that are looked at at once.
pub(crate) const RECOVERIES: usize = 16;
/// The longest id of a permission request; Claude Code's are UUIDs.
pub(crate) const MAX_PERMISSION_ID_BYTES: usize = 256;
/// How long an eviction that does not get on keeps others from being begun for the same message.
pub(crate) const EVICTION: Duration = Duration::from_secs(5);
/// How often a message that waits for a place looks for a sandbox that may make room.
pub(crate) const ROOM_RETRY: Duration = Duration::from_millis(250);
/// Requests to one bridge that wait to be written.
pub(crate) const BRIDGE_QUEUE: usize = 64;
/// Bytes of data that are taken from a bridge before it is granted as many more.
pub(crate) const DOWNLOAD_GRANT: usize = 256 << 10;
/// Pieces of data of one request that wait to be taken: more than a bridge has a reason to send at the credit that it has, with an
/// end for each of the files that one request may name. One more is a violation of the protocol.
pub(crate) const DOWNLOAD_PIECES: usize = 4096;
/// Snapshots that are taken at the same time of sessions that go on; all but one of them of one tenant's.
pub(crate) const SNAPSHOTS_AT_ONCE: usize = 3;
/// ... of sessions that leave their sandbox.
pub(crate) const LEAVING_AT_ONCE: usize = 4;
/// Workspaces that are restored at the same time; all but one of them of one tenant's sessions.
pub(crate) const RESTORES_AT_ONCE: usize = 4;
/// Segments of one snapshot that are packed and written at the same time.
pub(crate) const PACKED_AT_ONCE: usize = 4;
/// Segments of one snapshot that are fetched ahead when it is restored.
pub(crate) const FETCHED_AT_ONCE: usize = 4;
/// How long a bridge may leave a listing, a reading or a restoring without a sign before it is given up.
pub(crate) const SNAPSHOT_STALL: Duration = Duration::from_secs(60);
/// Memory of a list or a manifest, about, up to which there is room for as many as there are places.
pub(crate) const SMALL_TREE_BYTES: usize = 16 << 20;
/// Lists and manifests that are larger, at the same time; one of them of one tenant's sessions.
pub(crate) const LARGE_AT_ONCE: usize = 2;
/// How long a list of a workspace may take. Of the most that it may have an honest bridge takes 5 s.
pub(crate) const LISTING: Duration = Duration::from_secs(60);
/// How long reading a workspace for a snapshot may take, with what it takes at the rate below.
pub(crate) const SNAPSHOT_BASE: Duration = Duration::from_secs(60);
/// ... at least so many bytes in a second.
pub(crate) const SNAPSHOT_READ_PER_SECOND: u64 = 32 << 20;
/// ... and no longer than this, however large it is. What was written until then the next one finds.
pub(crate) const SNAPSHOT_LONGEST: Duration = Duration::from_secs(600);
/// Lists for one snapshot, where files are renamed in between.
pub(crate) const LISTED_AGAIN: u32 = 2;
/// What a session may write to the snapshot storage at this rate, beyond a burst of as much as a workspace may have. 21 GiB in a day.
pub(crate) const SNAPSHOT_BYTES_PER_SECOND: u64 = 256 << 10;
/// How often it is looked whether the segments of a session that did not change are still in a bucket.
pub(crate) const SNAPSHOT_CHECK: Duration = Duration::from_hours(24);
/// How long a restoration may take, with what it takes at the rate below.
pub(crate) const RESTORE_BASE: Duration = Duration::from_secs(60);
/// ... at least so many bytes in a second.
pub(crate) const RESTORED_PER_SECOND: u64 = 4 << 20;
/// How long a session waits until it is its workspace's turn to be restored.
pub(crate) const RESTORE_WAIT: Duration = Duration::from_secs(60);
/// Paths that a recovery names of what is not as it was.
pub(crate) const NAMED_LOSSES: usize = 5;
/// How long after a turn its snapshot is taken; turns that end meanwhile share it.
pub(crate) const SNAPSHOT_AFTER: Duration = Duration::from_secs(2);
/// How long a snapshot after a turn waits for the next turn to end; then it is taken in the middle of that.
pub(crate) const SNAPSHOT_IDLE: Duration = Duration::from_secs(30);
/// How long a session that leaves its sandbox waits until it is the turn of its snapshot; then it leaves without.
pub(crate) const LEAVING_WAIT: Duration = Duration::from_secs(120);
/// How long that snapshot may take.
pub(crate) const SNAPSHOT_AT_END: Duration = Duration::from_secs(60);
/// Bytes read from a bridge at once.
pub(crate) const BRIDGE_READ_BYTES: usize = 256 << 10;
/// Uncommitted bytes that every session may have whatever the others have; beyond them the budget of all is drawn from.
pub(crate) const OWN_BYTES: usize = COMMIT_BYTES;
/// Entries that are shorter are copied out of what was read, which they would keep in memory otherwise with all that came beside
/// them: 3/4 MiB at the most, so that no entry takes twice its length.
pub(crate) const COPIED_BYTES: usize = 4 * BRIDGE_READ_BYTES;
/// How long a line that is longer than one read may take from being let in to its end. An honest bridge takes a second.
pub(crate) const LONG_LINE: Duration = Duration::from_secs(60);
/// So many such lines may not come in the life of a sandbox: with the last its bridge is not trusted any more.
pub(crate) const LATE_LINES: u64 = 3;
/// Sandboxes that start at the same time, per core.
pub(crate) const STARTS_PER_CORE: usize = 2;
/// How long a start that is not done keeps others from starting; it goes on without its turn. Most take 1 to 3 s.
pub(crate) const START_TURN: Duration = Duration::from_secs(5);
/// Tries to warm a sandbox of a version, before it is left to the next claim or deployment.
pub(crate) const WARM_TRIES: u32 = 3;
/// The pause after a sandbox could not be warmed, times the number of the try.
pub(crate) const WARM_RETRY: Duration = Duration::from_secs(2);
/// How often idle sandboxes and the workspaces' sizes are looked at.
pub(crate) const SWEEP_INTERVAL: Duration = Duration::from_secs(10);
/// Growth of the disk's use since it was last looked at (half of a smaller quota) at which sandboxes without a turn are measured.
pub(crate) const MEASURED_GROWTH_BYTES: u64 = 64 << 20;
/// How long what dials the port of bridges may take to send its first line.
pub(crate) const PREAMBLE: Duration = Duration::from_secs(10);
/// How long it may take to take the answer.
pub(crate) const PREAMBLE_ANSWER: Duration = Duration::from_secs(5);
/// Connections to the port of bridges that have not sent their first line; at one more the one that has been silent for longest is
/// cut off.
pub(crate) const SILENT_BRIDGES: usize = 128;
/// ... for which somebody is being asked who they are: half of the places are for tokens, half for tickets. At the bound one more is
/// closed at once.
pub(crate) const UNPROVEN_BRIDGES: usize = 256;
/// ... and of either from one address: one more is closed at once.
pub(crate) const UNPROVEN_BRIDGES_OF_ADDRESS: usize = 8;
/// Questions to the API server and to coordinators for which one address may be the cause at once; a bridge that comes asks one.
pub(crate) const QUESTIONS_AT_ONCE: u32 = 8;
/// How often it may be after that.
pub(crate) const QUESTION_INTERVAL: Duration = Duration::from_millis(500);
/// Addresses of which it is known that they asked lately; a further one may not ask. A node has some hundred pods at the most.
pub(crate) const QUESTIONERS: usize = 1024;
/// How long nobody is asked again about a token that the API server refused.
pub(crate) const REFUSED_TOKEN: Duration = Duration::from_secs(5);
/// So many such tokens are remembered.
pub(crate) const REFUSED_TOKENS: usize = 1024;
/// How long after its own end a token is asked about still: the API server's clock decides, and may be another.
pub(crate) const EXPIRED_TOKEN_SECONDS: u64 = 60;
/// How long an API server that does not say whose a token is is waited for, before its bridge has to dial again. Less than the
/// 30 s that a bridge waits for an answer.
pub(crate) const REVIEW_WAIT: Duration = Duration::from_secs(15);
/// The pause before it is asked again.
pub(crate) const REVIEW_RETRY: Duration = Duration::from_millis(500);
/// How long a ticket of a bridge is worth something.
pub(crate) const TICKET_SECONDS: u64 = 3600;
/// How often a bridge that is connected gets another one.
pub(crate) const TICKET_RENEWAL: Duration = Duration::from_secs(1200);
/// A connection of a bridge in which nothing moves is looked at after this time, and then as often, this many times.
pub(crate) const TCP_KEEP_ALIVE: (Duration, Duration, u32) = (Duration::from_secs(10), Duration::from_secs(5), 3);
/// Milliseconds that sent bytes may stay without a sign of the bridge.
pub(crate) const TCP_UNANSWERED_MS: u32 = 25_000;
/// How long a claim of a pod that has not come back to this life of the runner waits for it.
pub(crate) const CLAIM_WAIT: Duration = Duration::from_secs(5);
/// How long a turn may take to end that is interrupted because its session is to rest; the bridge kills Claude Code after 10 s.
pub(crate) const INTERRUPTED: Duration = Duration::from_secs(15);
