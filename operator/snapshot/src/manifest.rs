//! Which tree a snapshot is, and where its content lies.

use std::io::Read as _;

use ash_protocol::tree::{Entry, EntryKind, Note};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    digest::Digest,
    limits::{MAX_ENTRIES, MAX_MANIFEST_BYTES, MAX_NOTES},
};

/// The form that this release writes. One of another number is not read.
const FORM: u32 = 1;
/// How hard a manifest is compressed: it is mostly paths.
const COMPRESSION: i32 = 3;

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    form: u32,
    /// The last turn whose changes are in it; none before the first.
    pub turn: Option<Uuid>,
    /// When the workspace was listed.
    pub taken_at: Timestamp,
    /// Everything in it, ordered by path: a folder comes before what is in it.
    pub entries: Vec<Entry>,
    /// Where the content of each regular file lies, in the order of the files in `entries`.
    pub contents: Vec<Content>,
    /// What the contents lie in.
    pub segments: Vec<Segment>,
    /// What is not as it was in the workspace.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<Note>,
    /// Notes beyond [`MAX_NOTES`].
    #[serde(default, skip_serializing_if = "is_zero")]
    pub further_notes: u64,
}

/// Bytes that are stored under their digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Segment {
    /// Of the bytes as they are in the workspace.
    pub digest: Digest,
    /// How many.
    pub size: u64,
}

/// Where the content of a file lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Content {
    /// In one segment, beside others.
    Shared {
        /// The segment's place in [`Manifest::segments`].
        segment: u32,
        /// Where in it.
        offset: u64,
        /// How many bytes.
        size: u64,
    },
    /// In segments of its own, one after another.
    Own(Span),
}

/// Segments that follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Span {
    /// The first one's place in [`Manifest::segments`].
    pub first: u32,
    /// How many; none for an empty file.
    pub count: u32,
}

/// Why bytes are no manifest, or a manifest cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum ManifestError {
    /// The bytes are damaged.
    #[error("the manifest is damaged: {0}")]
    Damaged(String),
    /// It was written by another release.
    #[error("the manifest has form {0}, and this release reads form {FORM}: use a release that knows it")]
    Form(u32),
    /// It is too large.
    #[error("the workspace has too many entries for a snapshot: over {MAX_ENTRIES}, or {} MiB of names", MAX_MANIFEST_BYTES >> 20)]
    TooLarge,
}

impl Manifest {
    /// A manifest of what was found.
    ///
    /// # Errors
    /// [`ManifestError::TooLarge`] beyond [`MAX_ENTRIES`]; [`ManifestError::Damaged`] where its parts do not fit together.
    pub fn new(
        turn: Option<Uuid>,
        taken_at: Timestamp,
        entries: Vec<Entry>,
        contents: Vec<Content>,
        segments: Vec<Segment>,
        mut notes: Vec<Note>,
    ) -> Result<Self, ManifestError> {
        let further_notes = notes.len().saturating_sub(MAX_NOTES) as u64;
        notes.truncate(MAX_NOTES);
        let manifest = Self { form: FORM, turn, taken_at, entries, contents, segments, notes, further_notes };
        manifest.check()?;
        Ok(manifest)
    }

    /// The files with where their contents lie.
    pub fn files(&self) -> impl Iterator<Item = (&Entry, &Content)> {
        self.entries.iter().filter(|entry| matches!(entry.kind, EntryKind::File { .. })).zip(&self.contents)
    }

    /// Bytes of all files.
    pub fn size(&self) -> u64 {
        self.contents.iter().map(|content| self.size_of(content)).sum()
    }

    /// Bytes of a content.
    pub fn size_of(&self, content: &Content) -> u64 {
        match content {
            Content::Shared { size, .. } => *size,
            Content::Own(span) => self.span(*span).iter().map(|segment| segment.size).sum(),
        }
    }

    /// The segments of a span.
    pub fn span(&self, span: Span) -> &[Segment] {
        let first = span.first as usize;
        self.segments.get(first..first + span.count as usize).unwrap_or_default()
    }

    /// What is stored: compressed JSON, and the digest of these bytes.
    ///
    /// # Errors
    /// [`ManifestError::TooLarge`].
    pub fn encode(&self) -> Result<(Digest, Vec<u8>), ManifestError> {
        let json = serde_json::to_vec(self).map_err(|error| ManifestError::Damaged(error.to_string()))?;
        if json.len() > MAX_MANIFEST_BYTES {
            return Err(ManifestError::TooLarge);
        }
        let bytes =
            zstd::bulk::compress(&json, COMPRESSION).map_err(|error| ManifestError::Damaged(error.to_string()))?;
        Ok((Digest::of(&bytes), bytes))
    }

    /// Reads what was stored under this digest.
    ///
    /// # Errors
    /// Where the bytes have another digest, or are no manifest.
    pub fn decode(digest: Digest, bytes: &[u8]) -> Result<Self, ManifestError> {
        #[derive(Deserialize)]
        struct Form {
            form: u32,
        }
        let damaged = |reason: String| ManifestError::Damaged(reason);
        if Digest::of(bytes) != digest {
            return Err(damaged("its digest is another".to_owned()));
        }
        let mut json = Vec::new();
        let decoder = zstd::stream::read::Decoder::with_buffer(bytes).map_err(|error| damaged(error.to_string()))?;
        let limit = MAX_MANIFEST_BYTES as u64 + 1;
        decoder.take(limit).read_to_end(&mut json).map_err(|error| damaged(error.to_string()))?;
        if json.len() > MAX_MANIFEST_BYTES {
            return Err(ManifestError::TooLarge);
        }
        let form: Form = serde_json::from_slice(&json).map_err(|error| damaged(error.to_string()))?;
        if form.form != FORM {
            return Err(ManifestError::Form(form.form));
        }
        let manifest: Self = serde_json::from_slice(&json).map_err(|error| damaged(error.to_string()))?;
        manifest.check()?;
        Ok(manifest)
    }

    /// Whether its parts fit together: nobody who has one has to look again.
    fn check(&self) -> Result<(), ManifestError> {
        let damaged = |reason: &str| Err(ManifestError::Damaged(reason.to_owned()));
        if self.entries.len() > MAX_ENTRIES {
            return Err(ManifestError::TooLarge);
        }
        if !self.entries.is_sorted_by(|one, next| one.path < next.path) {
            return damaged("its entries are not ordered by path");
        }
        if self.entries.iter().any(|entry| entry.mode > 0o7777) {
            return damaged("an entry has more than permission bits");
        }
        let is_file = |entry: &&Entry| matches!(entry.kind, EntryKind::File { .. });
        if self.entries.iter().filter(is_file).count() != self.contents.len() {
            return damaged("files and contents differ in number");
        }
        let folder = |path: &[u8]| {
            let found = self.entries.binary_search_by(|entry| entry.path.as_bytes().cmp(path));
            found.is_ok_and(|at| self.entries[at].kind == EntryKind::Directory)
        };
        if self.entries.iter().any(|entry| entry.path.parent().is_some_and(|parent| !folder(parent))) {
            return damaged("an entry lies in no folder");
        }
        for entry in &self.entries {
            if let EntryKind::HardLink { to } = &entry.kind {
                let found = self.entries.binary_search_by(|other| other.path.cmp(to));
                if !found.is_ok_and(|at| is_file(&&self.entries[at])) {
                    return damaged("a hard link is to no file");
                }
            }
        }
        for (entry, content) in self.files() {
            let EntryKind::File { size: wanted, .. } = entry.kind else { continue };
            let size = match *content {
                Content::Shared { segment, offset, size } => {
                    let Some(segment) = self.segments.get(segment as usize) else {
                        return damaged("a content lies in no segment");
                    };
                    if offset.checked_add(size).is_none_or(|end| end > segment.size) {
                        return damaged("a content lies beyond its segment");
                    }
                    size
                }
                Content::Own(Span { first, count }) => {
                    let end = first.checked_add(count);
                    if end.is_none_or(|end| end as usize > self.segments.len()) {
                        return damaged("a content lies in no segment");
                    }
                    let sizes = self.span(Span { first, count }).iter().map(|segment| segment.size);
                    sizes.fold(0, u64::saturating_add)
                }
            };
            if size != wanted {
                return damaged("a file and its content differ in size");
            }
        }
        Ok(())
    }
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}
