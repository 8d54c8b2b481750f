//! The store's bounds, each with what happens at it.

use std::time::Duration;

/// Writes that wait for the writer. At the bound a caller waits until there is room: the database is slower than its users.
pub const MAX_QUEUED_WRITES: usize = 1_024;

/// Writes that share one transaction. Further ones wait for the next.
pub const MAX_WRITES_PER_TRANSACTION: usize = 256;

/// Statements of appends that go to SQLite as one text: compiling it costs more than in proportion to its length. One append
/// with more has a text of its own.
pub const MAX_STATEMENTS_PER_SCRIPT: usize = 1024;

/// Bytes of entries and bundles after which a transaction takes no further write. A write that is larger than this has a
/// transaction of its own.
pub const MAX_BYTES_PER_TRANSACTION: usize = 8 << 20;

/// Connections that read. At the bound a reader waits, [`READ_TIMEOUT`] at the longest.
pub const MAX_READERS: u32 = 4;

/// How long a reader waits for a connection before it is told that the database is unavailable.
pub const READ_TIMEOUT: Duration = Duration::from_secs(10);

/// How long SQLite waits for another process (a backup, a person's shell) that holds the file's lock. After that the database
/// is unavailable.
pub const BUSY_TIMEOUT: Duration = Duration::from_secs(5);

/// Sessions kept in memory; the least recently used leave. What is not there is read from the database.
pub const MAX_CACHED_SESSIONS: usize = 10_000;

/// Agents, versions of agents and keys kept in memory, so many of each; the least recently used leave.
pub const MAX_CACHED_OTHERS: usize = 1_000;

/// Bytes of a bundle in one row, so that no write holds up the others for long.
pub const BUNDLE_CHUNK_BYTES: usize = 1 << 20;

/// Batches of the log that one call reads at the most; then the page ends and says so.
pub const MAX_BATCHES_PER_PAGE: u32 = 4_096;

/// Sessions of one page of a listing. More are not given.
pub const MAX_SESSIONS_PER_PAGE: u32 = 1_000;

/// Shorter chunks are stored as they are: compressing them costs more than it saves.
pub const MIN_COMPRESSED_BYTES: usize = 512;

/// Batches beyond this many bytes are encoded on a thread for blocking work, so that no other session waits for it.
pub const MAX_INLINE_ENCODED_BYTES: usize = 256 << 10;

/// The largest chunk that is believed when it is read: a batch holds a session's unacknowledged bytes and one line at the most.
/// A larger one is damage.
pub const MAX_CHUNK_BYTES: usize = 512 << 20;

/// Size to which the write-ahead log's file is cut back once its content is in the database.
pub const MAX_KEPT_WAL_BYTES: u64 = 64 << 20;

/// Bytes of a conversation's transcript that are read back: beyond that a session cannot be woken. Claude Code compacts its
/// context long before; 60 turns were seen to take less than 1 MiB.
pub const MAX_TRANSCRIPT_BYTES: usize = 256 << 20;

/// Rows of a transcript that are read at once, from its end back to its beginning.
pub const TRANSCRIPT_CHUNKS: i64 = 8;

/// Connections of a server to Postgres. At the bound a call waits, [`CONNECTION_WAIT`] at the longest. A few are enough: most
/// calls are one round trip, and many appends share one.
pub const MAX_CONNECTIONS: usize = 12;

/// How long a call waits for a connection to Postgres: for a free one, and for one to be made. After that the database is
/// unavailable. While Postgres is away for less, calls are late and do not fail.
pub const CONNECTION_WAIT: Duration = Duration::from_secs(5);

/// Connections to Postgres that a server makes at the same time: making one costs both sides far more than a call does. At the
/// bound a call waits for its turn, or for a connection that another call gives back, whichever is there first.
pub const MAX_CONNECTING: usize = 2;

/// How long a call that makes a connection waits for that one only. After it, the call takes one that is given back, too: a
/// connection that hangs (a name that is not resolved, a server under load) fails no call while others are in use.
pub const CONNECT_PATIENCE: Duration = Duration::from_millis(250);

/// The pause after the first failed connection to Postgres, doubled with each one up to [`MAX_RECONNECT_PAUSE`].
pub const RECONNECT_PAUSE: Duration = Duration::from_millis(20);

/// The longest pause between two tries to connect to Postgres.
pub const MAX_RECONNECT_PAUSE: Duration = Duration::from_millis(500);

/// A connection to Postgres that is older is replaced when it is next needed, so that a change of the server's address is
/// noticed and no server process lives for ever.
pub const MAX_CONNECTION_AGE: Duration = Duration::from_secs(30 * 60);

/// How long Postgres works on one statement (its `statement_timeout`) or waits for a lock in it; then it ends the statement and
/// the database is unavailable.
pub const STATEMENT_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a transaction may wait for its client before Postgres ends it: a server that is cut off holds no locks for longer.
pub const IDLE_TRANSACTION_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a call waits for Postgres' answer, all statements of a transaction together. Then the connection counts as lost: the
/// network may be cut without a word.
pub const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);

/// Tries of a transaction that meets others (SQLSTATE 40001 and 40P01). After that the database is unavailable. At least one of
/// those that meet goes through each time.
pub const COLLISION_TRIES: u32 = 40;

/// The longest pause before a transaction that met another is tried again; the first is a sixteenth of it. Each is random.
pub const MAX_COLLISION_PAUSE: Duration = Duration::from_millis(64);

/// Tries of a call whose connection was lost, where a repeat does no harm. Connections that wait for use are lost together with
/// the first, so that the second try makes a new one.
pub const LOST_TRIES: u32 = 2;

/// How long a server waits at its start for another one that brings the schema up to date.
pub const MIGRATION_WAIT: Duration = Duration::from_secs(120);

/// How long a statement of a migration may take.
pub const MIGRATION_STATEMENT_TIMEOUT: Duration = Duration::from_secs(600);

/// The age at which a bundle's bytes that no bundle names are removed: another server may be about to name younger ones.
pub const MAX_UNFINISHED_UPLOAD_AGE: Duration = Duration::from_secs(24 * 3600);

/// How long appends to Postgres wait for more, unless a turn's end or 256 KiB are among them: each costs a transaction of a
/// database that many servers share, and two to five rows.
pub const APPEND_SPACING: Duration = Duration::from_millis(250);

/// Chunks of partial messages that compaction reads at once, and rewrites in one transaction.
pub const COMPACTED_CHUNKS: i64 = 8;

/// Runners that a listing gives. Further ones are refused before that.
pub const MAX_RUNNERS: i64 = 1_024;

/// Agents whose current version a listing gives: no sandboxes are kept warm of further ones.
pub const MAX_CURRENT_VERSIONS: i64 = 10_000;

/// The silence after which a coordinator's row is removed: long after anybody looks at it.
pub const FORGOTTEN_COORDINATOR: Duration = Duration::from_secs(600);

/// Sessions of runners that are gone, read at once. The others are read when these have been taken off their sandboxes.
pub const MAX_ABANDONED: i64 = 1_000;

/// Ids in one statement. SQLite takes 32,766 parameters, Postgres 65,535; a longer list is read in parts.
pub const MAX_IDS_PER_STATEMENT: usize = 1_000;

/// Credentials of a tenant: a further one is refused.
pub const MAX_CREDENTIALS: i64 = 1_000;

/// The longest secret of a credential.
pub const MAX_SECRET_BYTES: usize = 64 << 10;

/// Tries to add a message to a session's queue while others are added at the same moment. After that the database is
/// unavailable; of those that meet, one goes through each time.
pub const ENQUEUE_TRIES: u32 = 100;
