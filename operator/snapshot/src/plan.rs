//! What a snapshot has to read: pure. What did not change since the one before is kept by its digests.

use std::{collections::HashMap, ops::Range};

use ash_protocol::tree::{Entry, EntryKind, Stamp};
use jiff::Timestamp;

use crate::{
    limits::{LARGE_FILE_BYTES, RUN_BYTES, RUN_CHANCE, RUN_FILES},
    manifest::{Content, Manifest, Segment},
};

/// A file that changed in the last moments before it was listed may change again without another time: the kernel's clock
/// for files is coarse. It is read again by the next snapshot.
const FRESH_NS: i64 = 2_000_000_000;

/// What becomes of the regular files of a workspace, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// The parts, in the order of the files.
    pub parts: Vec<Planned>,
}

/// Files that belong together: a run of small ones, or a large one. `files` counts the regular files of the workspace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Planned {
    /// They are as they were: their segments are known.
    Kept {
        /// Which files.
        files: Range<usize>,
        /// Their segments: one of a run, all of a large file.
        segments: Vec<Segment>,
    },
    /// A run of small files that is read, and becomes one segment.
    Run {
        /// Which files.
        files: Range<usize>,
    },
    /// A large file that is read, and cut.
    Large {
        /// Which file.
        file: usize,
    },
}

/// One regular file of a workspace.
struct File<'a> {
    path: &'a [u8],
    size: u64,
    stamp: Stamp,
}

fn files(entries: &[Entry]) -> impl Iterator<Item = File<'_>> {
    entries.iter().filter_map(|entry| match entry.kind {
        EntryKind::File { size, stamp, .. } => Some(File { path: entry.path.as_bytes(), size, stamp }),
        _ => None,
    })
}

/// Plans a snapshot of these entries, which are ordered by path. `before` is the last snapshot of the same workspace.
pub fn plan(entries: &[Entry], before: Option<&Manifest>) -> Plan {
    let files: Vec<File<'_>> = files(entries).collect();
    let known = before.map(Known::of).unwrap_or_default();
    let mut parts = Vec::new();
    for group in groups(&files) {
        let kept = known.segments(&files[group.clone()]);
        parts.push(match kept {
            Some(segments) => Planned::Kept { files: group, segments },
            None if files[group.start].size >= LARGE_FILE_BYTES => Planned::Large { file: group.start },
            None => Planned::Run { files: group },
        });
    }
    Plan { parts }
}

/// Which files share a segment. It depends on paths and sizes only, and on nothing far away: a change moves the ends of the
/// runs around it.
fn groups(files: &[File<'_>]) -> Vec<Range<usize>> {
    let mut groups = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    let mut close = |start: &mut usize, end: usize, bytes: &mut u64| {
        if *start < end {
            groups.push(*start..end);
        }
        (*start, *bytes) = (end, 0);
    };
    for (at, file) in files.iter().enumerate() {
        if file.size >= LARGE_FILE_BYTES {
            close(&mut start, at, &mut bytes);
            close(&mut start, at + 1, &mut bytes);
            continue;
        }
        bytes += file.size;
        if bytes >= RUN_BYTES || at + 1 - start >= RUN_FILES || ends_run(file.path) {
            close(&mut start, at + 1, &mut bytes);
        }
    }
    close(&mut start, files.len(), &mut bytes);
    groups
}

fn ends_run(path: &[u8]) -> bool {
    let hash = blake3::hash(path);
    let first = hash.as_bytes().first_chunk().map_or(0, |bytes| u64::from_le_bytes(*bytes));
    first % RUN_CHANCE == 0
}

/// The parts of an earlier snapshot, by the path of their first file.
#[derive(Default)]
struct Known<'a> {
    parts: HashMap<&'a [u8], Part<'a>>,
    taken_at: Timestamp,
}

struct Part<'a> {
    files: Vec<File<'a>>,
    segments: &'a [Segment],
}

impl<'a> Known<'a> {
    fn of(manifest: &'a Manifest) -> Self {
        let mut parts: HashMap<&[u8], Part<'_>> = HashMap::new();
        let mut last: Option<(u32, &[u8])> = None;
        let changed = manifest.notes.iter().map(|note| note.path.as_bytes()).collect::<std::collections::HashSet<_>>();
        for (file, (_, content)) in files(&manifest.entries).zip(manifest.files()) {
            let path = file.path;
            // What was written down of it is not what was read.
            let file = if changed.contains(path) { File { size: u64::MAX, ..file } } else { file };
            match *content {
                Content::Own(span) => {
                    parts.insert(path, Part { files: vec![file], segments: manifest.span(span) });
                    last = None;
                }
                Content::Shared { segment, .. } => match last {
                    Some((same, first)) if same == segment => {
                        if let Some(part) = parts.get_mut(first) {
                            part.files.push(file);
                        }
                    }
                    _ => {
                        let at = segment as usize;
                        let segments = manifest.segments.get(at..=at).unwrap_or_default();
                        parts.insert(path, Part { files: vec![file], segments });
                        last = Some((segment, path));
                    }
                },
            }
        }
        Self { parts, taken_at: manifest.taken_at }
    }

    /// The segments of these files, where they are exactly as they were.
    fn segments(&self, files: &[File<'_>]) -> Option<Vec<Segment>> {
        let part = self.parts.get(files.first()?.path)?;
        let taken_ns = i64::try_from(self.taken_at.as_nanosecond()).unwrap_or(i64::MIN);
        let same = |(now, then): (&File<'_>, &File<'_>)| {
            let settled = then.stamp.changed_ns < taken_ns.saturating_sub(FRESH_NS);
            now.path == then.path && now.size == then.size && now.stamp == then.stamp && settled
        };
        let all_same = part.files.len() == files.len() && files.iter().zip(&part.files).all(same);
        all_same.then(|| part.segments.to_vec())
    }
}

#[cfg(test)]
mod tests;
