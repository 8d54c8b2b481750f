//! Bounds of snapshots. `docs/limits.md` has them with what happens at each.

use std::time::Duration;

/// What was written is not removed for so long, needed or not: longer than a snapshot or a backup takes.
pub const GRACE: Duration = Duration::from_hours(48);
/// How long a bucket that does not answer is asked again, by one call.
pub const STORAGE_RETRY: Duration = Duration::from_secs(30);
/// How often.
pub const STORAGE_RETRIES: usize = 5;
/// Objects that a collection removes at the same time.
pub const COLLECT_AT_ONCE: usize = 16;
/// A file of at least this size has segments of its own; smaller ones share segments.
pub const LARGE_FILE_BYTES: u64 = 1 << 20;
/// A run of small files ends once it has this many bytes.
pub const RUN_BYTES: u64 = 2 << 20;
/// A run of small files ends once it has this many.
pub const RUN_FILES: usize = 1024;
/// A run ends after one in this many paths, wherever that path is: so runs are the same again after a change.
pub const RUN_CHANCE: u64 = 32;
/// The smallest piece of a large file, but for its last.
pub const MIN_PIECE_BYTES: u32 = 512 << 10;
/// The size of pieces that is aimed at.
pub const PIECE_BYTES: u32 = 1 << 20;
/// The largest piece.
pub const MAX_PIECE_BYTES: u32 = 4 << 20;
/// Entries that a workspace may have: some 100 MiB of memory while a snapshot is taken. With more, it is refused.
pub const MAX_ENTRIES: usize = 300_000;
/// Bytes of a manifest before it is compressed. A larger one is refused, written and read.
pub const MAX_MANIFEST_BYTES: usize = 512 << 20;
/// Notes that a manifest keeps; further ones are counted.
pub const MAX_NOTES: usize = 1_000;
