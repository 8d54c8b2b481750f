//! What a snapshot has to read: pure. What did not change since the one before is kept by its digests.

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
};

use ash_protocol::tree::{Entry, EntryKind, Stamp};
use jiff::Timestamp;

use crate::{
    digest::Digest,
    limits::{LARGE_FILE_BYTES, RUN_BYTES, RUN_CHANCE, RUN_FILES},
    manifest::{Content, Hole, Manifest, Segment},
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
        /// The holes of a large file.
        holes: Vec<Hole>,
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
        let kept = known.part(&files[group.clone()]);
        let is_large = files[group.start].size >= LARGE_FILE_BYTES;
        parts.push(match kept {
            Some((segments, holes)) => {
                Planned::Kept { files: group, segments: segments.to_vec(), holes: holes.to_vec() }
            }
            None => Planned::to_read(group, is_large),
        });
    }
    Plan { parts }
}

impl Planned {
    fn to_read(files: Range<usize>, is_large: bool) -> Self {
        if is_large { Self::Large { file: files.start } } else { Self::Run { files } }
    }
}

impl Plan {
    /// Has everything read of which a segment is not there any more. `entries` are those that it was made for.
    pub fn read_again(&mut self, entries: &[Entry], lost: &HashSet<Digest>) {
        if lost.is_empty() {
            return;
        }
        let sizes: Vec<u64> = files(entries).map(|file| file.size).collect();
        for part in &mut self.parts {
            if let Planned::Kept { files, segments, .. } = part
                && segments.iter().any(|segment| lost.contains(&segment.digest))
            {
                let is_large = sizes.get(files.start).is_some_and(|size| *size >= LARGE_FILE_BYTES);
                *part = Planned::to_read(files.clone(), is_large);
            }
        }
    }
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
        bytes = file.size.saturating_add(bytes);
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
    holes: &'a [Hole],
}

impl<'a> Known<'a> {
    fn of(manifest: &'a Manifest) -> Self {
        let mut parts: HashMap<&[u8], Part<'_>> = HashMap::new();
        let mut last: Option<(u32, &[u8])> = None;
        let changed = manifest.notes.iter().map(|note| note.path.as_bytes()).collect::<HashSet<_>>();
        for (file, (_, content)) in files(&manifest.entries).zip(manifest.files()) {
            let path = file.path;
            // What was written down of it is not what was read.
            let file = if changed.contains(path) { File { size: u64::MAX, ..file } } else { file };
            match content {
                Content::Own(span) => {
                    parts.insert(path, Part { files: vec![file], segments: manifest.span(*span), holes: &[] });
                    last = None;
                }
                Content::Sparse { span, holes } => {
                    parts.insert(path, Part { files: vec![file], segments: manifest.span(*span), holes });
                    last = None;
                }
                &Content::Shared { segment, .. } => match last {
                    Some((same, first)) if same == segment => {
                        if let Some(part) = parts.get_mut(first) {
                            part.files.push(file);
                        }
                    }
                    _ => {
                        let at = segment as usize;
                        let segments = manifest.segments.get(at..=at).unwrap_or_default();
                        parts.insert(path, Part { files: vec![file], segments, holes: &[] });
                        last = Some((segment, path));
                    }
                },
            }
        }
        Self { parts, taken_at: manifest.taken_at }
    }

    /// The segments of these files and the holes between them, where they are exactly as they were.
    fn part(&self, files: &[File<'_>]) -> Option<(&'a [Segment], &'a [Hole])> {
        let part = self.parts.get(files.first()?.path)?;
        let taken_ns = i64::try_from(self.taken_at.as_nanosecond()).unwrap_or(i64::MIN);
        let same = |(now, then): (&File<'_>, &File<'_>)| {
            let settled = then.stamp.changed_ns < taken_ns.saturating_sub(FRESH_NS);
            now.path == then.path && now.size == then.size && now.stamp == then.stamp && settled
        };
        let all_same = part.files.len() == files.len() && files.iter().zip(&part.files).all(same);
        all_same.then_some((part.segments, part.holes))
    }
}

#[cfg(test)]
mod tests;
