//! Makes a manifest of what was listed, read and kept. Pure.

use std::{
    collections::{HashMap, HashSet},
    ops::Range,
};

use ash_protocol::tree::{Entry, EntryKind, EntryPath, ListedFile, Note, NoteKind};
use ash_snapshot::{Content, Hole, LARGE_FILE_BYTES, Manifest, ManifestError, Planned, Segment, Span};
use jiff::Timestamp;
use uuid::Uuid;

use super::reading::ReadFile;

/// A workspace as it was listed, and what was read of it.
#[derive(Debug)]
pub(super) struct Assembly {
    entries: Vec<Entry>,
    notes: Vec<Note>,
    further_notes: u64,
    /// Which of the entries are files.
    files: Vec<usize>,
    /// What was read of each file; none of one that is as it was.
    read: Vec<Option<ReadFile>>,
    /// Holes of large files that were read, by their part of the plan.
    holes: HashMap<usize, Vec<Hole>>,
}

impl Assembly {
    /// Of these entries, which are ordered by path.
    pub(super) fn new(entries: Vec<Entry>, notes: Vec<Note>, further_notes: u64) -> Self {
        let is_file = |entry: &Entry| matches!(entry.kind, EntryKind::File { .. });
        let files: Vec<usize> = (0..entries.len()).filter(|at| is_file(&entries[*at])).collect();
        let read = vec![None; files.len()];
        Self { entries, notes, further_notes, files, read, holes: HashMap::new() }
    }

    /// Some of the files, as they are asked for.
    pub(super) fn listed(&self, files: Range<usize>) -> Vec<ListedFile> {
        let listed = |at: &usize| match &self.entries[*at] {
            Entry { path, kind: EntryKind::File { size, stamp, .. }, .. } => {
                Some(ListedFile { path: path.clone(), size: *size, stamp: *stamp })
            }
            _ => None,
        };
        self.files[files].iter().filter_map(listed).collect()
    }

    /// Bytes that reading a part takes, holes included.
    pub(super) fn size_of(&self, part: &Planned) -> u64 {
        match part {
            Planned::Kept { .. } => 0,
            Planned::Run { files } => files.clone().map(|file| self.listed_size(file)).fold(0, u64::saturating_add),
            Planned::Large { file } => self.listed_size(*file),
        }
    }

    /// Notes what was read of some files.
    pub(super) fn set_read(&mut self, files: Range<usize>, found: Vec<ReadFile>) {
        for (file, found) in files.zip(found) {
            self.read[file] = Some(found);
        }
    }

    /// Notes the holes of the large file of a part.
    pub(super) fn set_holes(&mut self, part: usize, holes: Vec<Hole>) {
        if !holes.is_empty() {
            self.holes.insert(part, holes);
        }
    }

    /// Whether a file went away under the name by which it was to be read, and has another one: its content would be lost,
    /// although it is in the workspace.
    pub(super) fn loses_links(&self) -> bool {
        let gone: HashSet<&EntryPath> = (0..self.files.len())
            .filter(|file| self.length(*file).is_none())
            .map(|file| &self.entries[self.files[file]].path)
            .collect();
        !gone.is_empty()
            && self.entries.iter().any(|entry| matches!(&entry.kind, EntryKind::HardLink { to } if gone.contains(to)))
    }

    /// The manifest, of the segments of each part of the plan.
    pub(super) fn manifest(
        mut self,
        plan: Vec<Planned>,
        segments_of_parts: Vec<Vec<Segment>>,
        turn: Option<Uuid>,
        taken_at: Timestamp,
    ) -> Result<Manifest, ManifestError> {
        let (mut contents, mut segments) = (Vec::with_capacity(self.files.len()), Vec::new());
        for (part, (planned, read)) in plan.into_iter().zip(segments_of_parts).enumerate() {
            let (files, own, holes) = match planned {
                Planned::Kept { files, segments, holes } => (files, segments, holes),
                Planned::Run { files } => (files, read, Vec::new()),
                Planned::Large { file } => (file..file + 1, read, self.holes.remove(&part).unwrap_or_default()),
            };
            let first = number(segments.len())?;
            let lengths: Vec<Option<u64>> = files.clone().map(|file| self.length(file)).collect();
            if lengths.iter().all(Option::is_none) {
                continue;
            }
            if files.len() == 1 && self.listed_size(files.start) >= LARGE_FILE_BYTES {
                let span = Span { first, count: number(own.len())? };
                contents.push(if holes.is_empty() {
                    Content::Own(span)
                } else {
                    self.set_sparse(files.start);
                    Content::Sparse { span, holes }
                });
            } else {
                let mut offset = 0;
                for size in lengths.into_iter().flatten() {
                    contents.push(Content::Shared { segment: first, offset, size });
                    offset += size;
                }
            }
            segments.extend(own);
        }
        let further_notes = self.further_notes;
        let (entries, notes) = self.found();
        Manifest::new(turn, taken_at, entries, contents, segments, notes, further_notes)
    }

    fn listed_size(&self, file: usize) -> u64 {
        match self.entries[self.files[file]].kind {
            EntryKind::File { size, .. } => size,
            _ => 0,
        }
    }

    /// It has holes, whatever it had when it was listed.
    fn set_sparse(&mut self, file: usize) {
        if let EntryKind::File { sparse, .. } = &mut self.entries[self.files[file]].kind {
            *sparse = true;
        }
    }

    /// Bytes of a file in the snapshot; none where it is not there.
    fn length(&self, file: usize) -> Option<u64> {
        match self.read[file] {
            None => Some(self.listed_size(file)),
            Some(ReadFile { outcome: Some(NoteKind::Gone | NoteKind::Unreadable), .. }) => None,
            Some(ReadFile { length, .. }) => Some(length),
        }
    }

    /// The entries and the notes, after what was found when files were read.
    fn found(mut self) -> (Vec<Entry>, Vec<Note>) {
        let mut gone: HashSet<EntryPath> = HashSet::new();
        for (file, at) in self.files.iter().enumerate() {
            let length = self.length(file);
            let entry = &mut self.entries[*at];
            if let Some(note) = self.read[file].and_then(|read| read.outcome) {
                self.notes.push(Note { path: entry.path.clone(), note });
            }
            match (length, &mut entry.kind) {
                (Some(length), EntryKind::File { size, .. }) => *size = length,
                _ => drop(gone.insert(entry.path.clone())),
            }
        }
        let mut notes = self.notes;
        let mut entries = self.entries;
        entries.retain(|entry| match &entry.kind {
            EntryKind::HardLink { to } if gone.contains(to) => {
                notes.push(Note { path: entry.path.clone(), note: NoteKind::Gone });
                false
            }
            _ => !gone.contains(&entry.path),
        });
        (entries, notes)
    }
}

fn number(count: usize) -> Result<u32, ManifestError> {
    u32::try_from(count).map_err(|_| ManifestError::TooLarge)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use ash_protocol::tree::{Entry, EntryKind, EntryPath, NoteKind, Stamp};
    use ash_snapshot::{Content, Digest, Hole, LARGE_FILE_BYTES, Plan, Segment, plan};
    use jiff::Timestamp;

    use super::{Assembly, ReadFile};

    fn entry(path: &str, kind: EntryKind) -> Entry {
        Entry { path: EntryPath::new(path.as_bytes()).unwrap(), mode: 0o600, modified_ns: 0, kind }
    }

    fn file(path: &str, size: u64) -> Entry {
        entry(path, EntryKind::File { size, stamp: Stamp { inode: 1, changed_ns: 1 }, sparse: false })
    }

    fn segment(size: u64) -> Segment {
        Segment { digest: Digest::of(&size.to_le_bytes()), size, packed: size }
    }

    fn read(length: u64, outcome: Option<NoteKind>) -> ReadFile {
        ReadFile { length, outcome }
    }

    #[test]
    fn a_file_that_went_away_under_its_first_name_is_missed_under_the_second() {
        let link = entry("final", EntryKind::HardLink { to: EntryPath::new(b"a.tmp").unwrap() });
        let entries = vec![file("a.tmp", 3), link, file("other", 2)];
        let gone = Some(NoteKind::Gone);
        for (first, second, loses) in [(gone, None, true), (None, gone, false), (None, None, false)] {
            let mut assembly = Assembly::new(entries.clone(), Vec::new(), 0);
            let length = |size, outcome: Option<NoteKind>| if outcome.is_some() { 0 } else { size };
            assembly.set_read(0..2, vec![read(length(3, first), first), read(length(2, second), second)]);
            assert_eq!(assembly.loses_links(), loses);
            let Plan { parts } = plan(&entries, None);
            let size = length(3, first) + length(2, second);
            let manifest = assembly.manifest(parts, vec![vec![segment(size)]], None, Timestamp::UNIX_EPOCH).unwrap();
            // What is not there is noted, every name of it.
            let (left, notes) = match (first, second) {
                (Some(_), _) => (1, 2),
                (_, Some(_)) => (2, 1),
                _ => (3, 0),
            };
            assert_eq!((manifest.entries.len(), manifest.notes.len()), (left, notes));
        }
    }

    #[test]
    fn holes_of_a_file_that_got_them_since_are_kept() {
        let entries = vec![file("large", 3 * LARGE_FILE_BYTES)];
        let mut assembly = Assembly::new(entries.clone(), Vec::new(), 7);
        assembly.set_read(0..1, vec![read(3 * LARGE_FILE_BYTES, None)]);
        let holes = vec![Hole { before: 1, size: 2 * LARGE_FILE_BYTES }];
        assembly.set_holes(0, holes.clone());
        let Plan { parts } = plan(&entries, None);
        assert_eq!(assembly.size_of(&parts[0]), 3 * LARGE_FILE_BYTES);
        let segments = vec![vec![segment(LARGE_FILE_BYTES)]];
        let manifest = assembly.manifest(parts, segments, None, Timestamp::UNIX_EPOCH).unwrap();
        assert!(matches!(&manifest.contents[0], Content::Sparse { holes: kept, .. } if *kept == holes));
        assert!(matches!(manifest.entries[0].kind, EntryKind::File { sparse: true, .. }));
        assert_eq!((manifest.size(), manifest.further_notes), (LARGE_FILE_BYTES, 7));
    }
}
