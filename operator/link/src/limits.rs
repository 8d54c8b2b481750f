//! The link's bounds. `docs/limits.md` lists them with what happens at each.

use std::time::Duration;

/// What a stream may have on the way that its reader has not taken: 256 KiB. At the bound its sender waits, and nobody else.
pub const STREAM_WINDOW_BYTES: u32 = 256 << 10;
/// Streams of one connection at a time. The next one gets another connection.
pub const STREAMS_PER_CONNECTION: u32 = 128;
/// What all streams of a connection may have on the way: every one of them may be full without holding up another.
pub const CONNECTION_WINDOW_BYTES: u32 = STREAM_WINDOW_BYTES * STREAMS_PER_CONNECTION;
/// Connections to one peer: 16,384 streams, as many as the API has connections. At the bound a request waits for one to end.
pub const CONNECTIONS_PER_PEER: usize = 128;
/// Connections that a server has at once. At the bound further ones wait in the kernel's queue.
pub const MAX_CONNECTIONS: usize = 1024;
/// How long a connection, or a handshake, may take to be made.
pub const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a connection that a server took may be without a handshake: then it is closed.
pub const HANDSHAKE_WAIT: Duration = Duration::from_secs(10);
/// A connection on which nothing came for so long is asked whether it lives.
pub const PING_INTERVAL: Duration = Duration::from_secs(5);
/// And closed where it does not answer within this.
pub const PING_TIMEOUT: Duration = Duration::from_secs(5);
/// Bytes that a server has ready for one stream before its producer waits.
pub const SEND_BUFFER_BYTES: usize = 256 << 10;
/// Headers of a request or an answer.
pub const HEADER_LIST_BYTES: u32 = 16 << 10;
/// A body of JSON: a message of 50 MB and what surrounds it.
pub const MAX_JSON_BYTES: usize = 64 << 20;
/// A refusal's sentence.
pub const MAX_REFUSAL_BYTES: usize = 16 << 10;
/// Pieces of a body that its sender has ready before it waits.
pub const PIECES: usize = 4;
/// How often a secret's file is looked at, at the most.
pub const SECRET_CHECK: Duration = Duration::from_secs(1);
/// The shortest secret: 32 characters.
pub const MIN_SECRET_BYTES: usize = 32;
/// Secrets of one file: the one in use and those that come or go.
pub const MAX_SECRETS: usize = 4;
/// The longest secret file.
pub const MAX_SECRET_FILE_BYTES: u64 = 4 << 10;
/// How long requests may take to end once a server stops.
pub const STOP_WAIT: Duration = Duration::from_secs(5);
