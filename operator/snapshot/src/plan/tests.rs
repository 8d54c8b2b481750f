#![allow(clippy::unwrap_used, clippy::cast_possible_truncation)]

use std::collections::BTreeMap;

use jiff::Timestamp;
use proptest::prelude::*;

use super::{Plan, Planned, plan};
use crate::{
    Content, Cutter, Digest, Entry, EntryKind, EntryPath, LARGE_FILE_BYTES, MAX_MANIFEST_BYTES, Manifest, Segment,
    Span, Stamp,
};

/// A workspace of files whose bytes are their content's number, repeated.
#[derive(Debug, Clone, Default)]
struct Workspace {
    files: BTreeMap<String, (u64, u64, i64)>,
}

/// Seconds.
const TAKEN: i64 = 1_000_000;

fn bytes(content: u64, size: u64) -> Vec<u8> {
    content.to_le_bytes().iter().copied().cycle().take(size as usize).collect()
}

fn segment(bytes: &[u8]) -> Segment {
    Segment { digest: Digest::of(bytes), size: bytes.len() as u64, packed: 0 }
}

impl Workspace {
    fn entries(&self) -> Vec<Entry> {
        let file = |(path, (_, size, changed)): (&String, &(u64, u64, i64))| Entry {
            path: EntryPath::new(path.as_bytes()).unwrap(),
            mode: 0o644,
            modified_ns: 0,
            kind: EntryKind::File { size: *size, stamp: Stamp { inode: 1, changed_ns: *changed }, sparse: false },
        };
        self.files.iter().map(file).collect()
    }

    /// Takes a snapshot as a host does; how many bytes it read.
    fn snapshot(&self, before: Option<&Manifest>, taken_seconds: i64) -> (Manifest, u64) {
        let entries = self.entries();
        let Plan { parts } = plan(&entries, before);
        let files: Vec<_> = self.files.values().collect();
        let (mut contents, mut segments, mut read, mut next) = (Vec::new(), Vec::<Segment>::new(), 0, 0);
        for part in parts {
            let first = segments.len() as u32;
            match part {
                Planned::Kept { files: range, segments: kept, .. } => {
                    assert_eq!(range.start, next);
                    next = range.end;
                    segments.extend(&kept);
                    if range.len() == 1 && files[range.start].1 >= LARGE_FILE_BYTES {
                        contents.push(Content::Own(Span { first, count: kept.len() as u32 }));
                    } else {
                        let mut offset = 0;
                        for (_, size, _) in &files[range] {
                            contents.push(Content::Shared { segment: first, offset, size: *size });
                            offset += size;
                        }
                    }
                }
                Planned::Run { files: range } => {
                    assert_eq!(range.start, next);
                    next = range.end;
                    let mut all = Vec::new();
                    for (content, size, _) in &files[range] {
                        contents.push(Content::Shared { segment: first, offset: all.len() as u64, size: *size });
                        all.extend(bytes(*content, *size));
                    }
                    read += all.len() as u64;
                    segments.push(segment(&all));
                }
                Planned::Large { file } => {
                    assert_eq!(file, next);
                    next += 1;
                    let (content, size, _) = files[file];
                    let mut cutter = Cutter::default();
                    let mut add = |piece: bytes::Bytes| {
                        segments.push(segment(&piece));
                    };
                    cutter.push(&bytes(*content, *size), &mut add);
                    cutter.finish(&mut add);
                    read += size;
                    contents.push(Content::Own(Span { first, count: segments.len() as u32 - first }));
                }
            }
        }
        assert_eq!(next, files.len(), "every file has its part");
        let taken = Timestamp::from_second(taken_seconds).unwrap();
        (Manifest::new(None, taken, entries, contents, segments, Vec::new(), 0).unwrap(), read)
    }
}

fn workspace() -> impl Strategy<Value = Workspace> {
    let size = prop_oneof![8 => 0u64..3_000, 1 => 0u64..900_000, 1 => LARGE_FILE_BYTES..LARGE_FILE_BYTES + 400_000];
    let file = (any::<u64>(), size, 0i64..1_000).prop_map(|(content, size, changed)| (content, size, changed));
    prop::collection::btree_map("[a-d][a-z0-9]{0,6}", file, 0..120).prop_map(|files| Workspace { files })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn what_did_not_change_is_not_read(workspace in workspace()) {
        let (first, all) = workspace.snapshot(None, TAKEN);
        prop_assert_eq!(all, first.size());
        let (second, read) = workspace.snapshot(Some(&first), TAKEN + 10);
        prop_assert_eq!(read, 0);
        prop_assert_eq!(&second.segments, &first.segments);
        let (digest, stored) = second.encode().unwrap();
        prop_assert_eq!(Manifest::decode(digest, &stored, MAX_MANIFEST_BYTES).unwrap(), second);
    }

    #[test]
    fn after_changes_a_snapshot_is_what_a_first_one_would_be(
        workspace in workspace(),
        changed in prop::collection::vec((any::<prop::sample::Index>(), any::<u64>(), 0u64..5_000), 0..6),
        removed in prop::collection::vec(any::<prop::sample::Index>(), 0..4),
        added in prop::collection::vec(("[a-d][a-z0-9]{0,6}", any::<u64>(), 0u64..5_000), 0..4),
    ) {
        let (before, _) = workspace.snapshot(None, TAKEN);
        let mut after = workspace.clone();
        let names: Vec<String> = workspace.files.keys().cloned().collect();
        let later = (TAKEN + 5) * 1_000_000_000;
        for (index, content, size) in changed.iter().filter(|_| !names.is_empty()) {
            after.files.insert(index.get(&names).clone(), (*content, *size, later));
        }
        for index in removed.iter().filter(|_| !names.is_empty()) {
            after.files.remove(index.get(&names));
        }
        for (name, content, size) in added {
            after.files.insert(name, (content, size, later));
        }
        let (next, _) = after.snapshot(Some(&before), TAKEN + 10);
        let (anew, _) = after.snapshot(None, TAKEN + 10);
        prop_assert_eq!(next, anew);
    }
}

#[test]
fn one_change_among_many_reads_little() {
    let file = |n: u64| (format!("folder{}/file{n}", n % 100), (n, 50 << 10, 1));
    let mut workspace = Workspace { files: (0..2_000).map(file).collect() };
    // Its folders.
    let (before, all) = {
        let files = std::mem::take(&mut workspace.files);
        workspace.files = files.into_iter().map(|(path, file)| (path.replace('/', "-"), file)).collect();
        workspace.snapshot(None, TAKEN)
    };
    let name = workspace.files.keys().nth(777).unwrap().clone();
    workspace.files.insert(name, (7, 60 << 10, (TAKEN + 5) * 1_000_000_000));
    let (_, read) = workspace.snapshot(Some(&before), TAKEN + 10);
    assert!(read <= 5 << 20, "{read} of {all} bytes");
}

#[test]
fn a_file_that_changed_in_the_last_moment_is_read_again() {
    let mut workspace = Workspace::default();
    workspace.files.insert("a".to_owned(), (1, 100, TAKEN * 1_000_000_000 - 1_000_000));
    let (first, _) = workspace.snapshot(None, TAKEN);
    // The same size, the same time: only its content tells.
    workspace.files.insert("a".to_owned(), (2, 100, TAKEN * 1_000_000_000 - 1_000_000));
    let (second, read) = workspace.snapshot(Some(&first), TAKEN + 10);
    assert_eq!(read, 100);
    assert_ne!(second.segments, first.segments);
}

#[test]
fn what_is_not_there_any_more_is_read_again_and_nothing_else() {
    let file = |n: u64| (format!("file{n}"), (n, if n.is_multiple_of(50) { LARGE_FILE_BYTES } else { 40 << 10 }, 1));
    let workspace = Workspace { files: (0..200).map(file).collect() };
    let (before, _) = workspace.snapshot(None, TAKEN);
    let entries = workspace.entries();
    for lost in [before.segments[0], *before.segments.last().unwrap()] {
        let mut planned = plan(&entries, Some(&before));
        let is_kept = |part: &Planned| matches!(part, Planned::Kept { .. });
        assert!(planned.parts.iter().all(is_kept));
        planned.read_again(&entries, &[lost.digest].into());
        let fresh = plan(&entries, None);
        let again: Vec<_> = planned.parts.iter().zip(&fresh.parts).filter(|(part, _)| !is_kept(part)).collect();
        assert!(!again.is_empty() && again.len() < planned.parts.len());
        assert!(again.iter().all(|(part, fresh)| part == fresh));
    }
}
