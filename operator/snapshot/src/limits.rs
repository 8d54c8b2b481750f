//! Bounds of snapshots. `docs/limits.md` has them with what happens at each.

use std::time::Duration;

/// What was written is not removed for so long, needed or not: longer than a snapshot or a backup takes.
pub const GRACE: Duration = Duration::from_hours(48);
/// A manifest has to be found damaged for so long before its segments count as needed by nobody: what is garbage for a while is
/// the storage.
pub const DAMAGE_CONFIRMED: Duration = Duration::from_hours(1);
/// A file that was not finished for so long never is.
pub const UNFINISHED: Duration = Duration::from_hours(1);
/// Manifests and segments that are remembered as damaged.
pub const REMEMBERED_DAMAGE: usize = 10_000;
/// How long a bucket that does not answer is asked again, by one call.
pub const STORAGE_RETRY: Duration = Duration::from_secs(30);
/// How often.
pub const STORAGE_RETRIES: usize = 5;
/// Objects that a collection removes, or that are looked at, at the same time.
pub const COLLECT_AT_ONCE: usize = 16;
/// A folder's file system keeps so much free, or a twentieth where that is less: the database may be on it.
pub const MIN_FREE_BYTES: u64 = 2 << 30;
/// A file of at least this size has segments of its own; smaller ones share segments.
pub const LARGE_FILE_BYTES: u64 = 1 << 20;
/// A run of small files ends once it has this many bytes.
pub const RUN_BYTES: u64 = 2 << 20;
/// A run of small files ends once it has this many.
pub const RUN_FILES: usize = 1024;
/// A run ends after one in this many paths, wherever that path is: so runs are the same again after a change.
pub const RUN_CHANCE: u64 = 32;
/// The smallest piece of a large file, but for its last and for those before a hole.
pub const MIN_PIECE_BYTES: u32 = 512 << 10;
/// The size of pieces that is aimed at.
pub const PIECE_BYTES: u32 = 1 << 20;
/// The largest piece.
pub const MAX_PIECE_BYTES: u32 = 4 << 20;
/// Entries that a workspace may have. With more, it is refused.
pub const MAX_ENTRIES: usize = 300_000;
/// Bytes of all paths and link targets of a workspace. With more, it is refused. With [`MAX_ENTRIES`] some 150 MiB of memory
/// while a snapshot is taken.
pub const MAX_NAMES_BYTES: usize = 64 << 20;
/// Segments that a snapshot may have, and holes.
pub const MAX_SEGMENTS: usize = 200_000;
/// Bytes of a manifest before it is compressed: what the bounds above come to. A larger one is refused, written and read.
pub const MAX_MANIFEST_BYTES: usize = 160 << 20;
/// Notes that a manifest keeps; further ones are counted.
pub const MAX_NOTES: usize = 1_000;
