//! Whether a manifest's parts fit together: nobody who has one has to look again.

use ash_protocol::tree::{Entry, EntryKind};

use super::{Content, Manifest, ManifestError, Span};
use crate::limits::{MAX_ENTRIES, MAX_SEGMENTS};

fn damaged<T>(reason: &str) -> Result<T, ManifestError> {
    Err(ManifestError::Damaged(reason.to_owned()))
}

fn is_file(entry: &Entry) -> bool {
    matches!(entry.kind, EntryKind::File { .. })
}

impl Manifest {
    /// Checks all of it.
    pub(super) fn check(&self) -> Result<(), ManifestError> {
        let holes = |content: &Content| if let Content::Sparse { holes, .. } = content { holes.len() } else { 0 };
        let parts = self.contents.iter().map(holes).sum::<usize>() + self.segments.len();
        if self.entries.len() > MAX_ENTRIES || parts > MAX_SEGMENTS {
            return Err(ManifestError::TooLarge);
        }
        self.check_tree()?;
        if self.entries.iter().filter(|entry| is_file(entry)).count() != self.contents.len() {
            return damaged("files and contents differ in number");
        }
        for (entry, content) in self.files() {
            let EntryKind::File { size, sparse, .. } = entry.kind else { continue };
            self.check_place(content)?;
            if matches!(content, Content::Sparse { .. }) && !sparse {
                return damaged("a file without holes has some");
            }
            if self.size_of(content) != size {
                return damaged("a file and its content differ in size");
            }
        }
        Ok(())
    }

    fn check_tree(&self) -> Result<(), ManifestError> {
        if !self.entries.is_sorted_by(|one, next| one.path < next.path) {
            return damaged("its entries are not ordered by path");
        }
        if self.entries.iter().any(|entry| entry.mode > 0o7777) {
            return damaged("an entry has more than permission bits");
        }
        let find = |path: &[u8]| {
            let found = self.entries.binary_search_by(|entry| entry.path.as_bytes().cmp(path));
            found.ok().map(|at| &self.entries[at])
        };
        // Most have the folder of the one before.
        let mut known: &[u8] = &[];
        for entry in &self.entries {
            if let Some(parent) = entry.path.parent().filter(|parent| *parent != known) {
                if !find(parent).is_some_and(|found| found.kind == EntryKind::Directory) {
                    return damaged("an entry lies in no folder");
                }
                known = parent;
            }
            if let EntryKind::HardLink { to } = &entry.kind
                && !find(to.as_bytes()).is_some_and(is_file)
            {
                return damaged("a hard link is to no file");
            }
        }
        Ok(())
    }

    fn check_place(&self, content: &Content) -> Result<(), ManifestError> {
        match content {
            Content::Shared { segment, offset, size } => {
                let Some(segment) = self.segments.get(*segment as usize) else {
                    return damaged("a content lies in no segment");
                };
                if offset.checked_add(*size).is_none_or(|end| end > segment.size) {
                    return damaged("a content lies beyond its segment");
                }
            }
            Content::Own(span) => self.check_span(*span)?,
            Content::Sparse { span, holes } => {
                self.check_span(*span)?;
                let is_ordered = holes.is_sorted_by(|one, next| one.before < next.before);
                if !is_ordered || holes.iter().any(|hole| hole.before > span.count || hole.size == 0) {
                    return damaged("a hole lies nowhere");
                }
            }
        }
        Ok(())
    }

    fn check_span(&self, Span { first, count }: Span) -> Result<(), ManifestError> {
        let end = first.checked_add(count);
        if end.is_none_or(|end| end as usize > self.segments.len()) {
            return damaged("a content lies in no segment");
        }
        Ok(())
    }
}
