//! Which tree a snapshot is, and where its content lies.

mod bounded;
mod check;

use std::{
    collections::HashSet,
    io::{BufReader, BufWriter, Read as _, Write as _},
};

use ash_protocol::tree::{Entry, EntryKind, EntryPath, Note};
use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use uuid::Uuid;

use self::bounded::Bounded;
use crate::{
    digest::Digest,
    limits::{MAX_ENTRIES, MAX_MANIFEST_BYTES, MAX_NAMES_BYTES, MAX_NOTES},
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
    /// How many bytes it takes in the storage, where this release packed it: an object of another size was cut short.
    pub packed: u64,
}

/// Where the content of a file lies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
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
    /// The same, with holes between them.
    Sparse {
        /// The segments.
        span: Span,
        /// The holes, in order.
        holes: Vec<Hole>,
    },
}

/// Zeros of a file that take no room.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hole {
    /// The place in the file's span of the segment behind it; the span's length for a hole at the end.
    pub before: u32,
    /// How many bytes.
    pub size: u64,
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
    #[error("the workspace has too many entries for a snapshot: over {MAX_ENTRIES}, or {} MiB of names; leave some out with .ashignore", MAX_NAMES_BYTES >> 20)]
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
        further_notes: u64,
    ) -> Result<Self, ManifestError> {
        let further_notes = further_notes.saturating_add(notes.len().saturating_sub(MAX_NOTES) as u64);
        notes.truncate(MAX_NOTES);
        let manifest = Self { form: FORM, turn, taken_at, entries, contents, segments, notes, further_notes };
        manifest.check()?;
        Ok(manifest)
    }

    /// The files with where their contents lie.
    pub fn files(&self) -> impl Iterator<Item = (&Entry, &Content)> {
        self.entries.iter().filter(|entry| matches!(entry.kind, EntryKind::File { .. })).zip(&self.contents)
    }

    /// Bytes of all files, holes aside.
    pub fn size(&self) -> u64 {
        self.contents.iter().map(|content| self.data_of(content)).fold(0, u64::saturating_add)
    }

    /// Bytes of a content, holes aside.
    fn data_of(&self, content: &Content) -> u64 {
        match content {
            Content::Shared { size, .. } => *size,
            Content::Own(span) | Content::Sparse { span, .. } => {
                self.span(*span).iter().map(|segment| segment.size).fold(0, u64::saturating_add)
            }
        }
    }

    /// Bytes of a content.
    fn size_of(&self, content: &Content) -> u64 {
        let holes: &[Hole] = if let Content::Sparse { holes, .. } = content { holes } else { &[] };
        holes.iter().map(|hole| hole.size).fold(self.data_of(content), u64::saturating_add)
    }

    /// What is left of it without these segments, and which files and links are not: a part of them is lost, so they are.
    pub fn without(mut self, lost: &HashSet<Digest>) -> (Self, Vec<EntryPath>) {
        let is_lost = |segment: &Segment| lost.contains(&segment.digest);
        let whole: Vec<bool> = self
            .contents
            .iter()
            .map(|content| match content {
                Content::Shared { segment, .. } => !self.segments.get(*segment as usize).is_some_and(is_lost),
                Content::Own(span) | Content::Sparse { span, .. } => !self.span(*span).iter().any(is_lost),
            })
            .collect();
        let mut of_file = whole.iter();
        let mut gone: HashSet<EntryPath> = HashSet::new();
        let mut names = Vec::new();
        self.entries.retain(|entry| {
            let stays = match &entry.kind {
                EntryKind::File { .. } => *of_file.next().unwrap_or(&false),
                // Other names of files are looked at when all of these are known.
                _ => true,
            };
            if !stays {
                gone.insert(entry.path.clone());
                names.push(entry.path.clone());
            }
            stays
        });
        self.entries.retain(|entry| match &entry.kind {
            EntryKind::HardLink { to } if gone.contains(to) => {
                names.push(entry.path.clone());
                false
            }
            _ => true,
        });
        let mut of_content = whole.iter();
        self.contents.retain(|_| *of_content.next().unwrap_or(&false));
        (self, names)
    }

    /// The segments of a span.
    pub fn span(&self, span: Span) -> &[Segment] {
        let first = span.first as usize;
        self.segments.get(first..first + span.count as usize).unwrap_or_default()
    }

    /// What is stored: compressed JSON, and the digest of these bytes. No more than the bound is made of it.
    ///
    /// # Errors
    /// [`ManifestError::TooLarge`].
    pub fn encode(&self) -> Result<(Digest, Vec<u8>), ManifestError> {
        let failed = |error: std::io::Error| ManifestError::Damaged(error.to_string());
        let packing = zstd::stream::write::Encoder::new(Vec::new(), COMPRESSION).map_err(failed)?;
        let mut json = Bounded::new(BufWriter::new(packing), MAX_MANIFEST_BYTES);
        if let Err(error) = serde_json::to_writer(&mut json, self) {
            return Err(if json.is_full() {
                ManifestError::TooLarge
            } else {
                ManifestError::Damaged(error.to_string())
            });
        }
        let mut packing = json.into_inner();
        packing.flush().map_err(failed)?;
        let packing = packing.into_inner().map_err(|error| failed(error.into_error()))?;
        let bytes = packing.finish().map_err(failed)?;
        Ok((Digest::of(&bytes), bytes))
    }

    /// Reads what was stored under this digest.
    ///
    /// # Errors
    /// Where the bytes have another digest, or are no manifest, or one of more than `most` bytes: [`ManifestError::TooLarge`].
    pub fn decode(digest: Digest, bytes: &[u8], most: usize) -> Result<Self, ManifestError> {
        let manifest: Self = read(digest, bytes, most)?;
        manifest.check()?;
        Ok(manifest)
    }

    /// The segments of what was stored under this digest, and nothing else of it: what has to be kept.
    ///
    /// # Errors
    /// Where the bytes have another digest, or are no manifest.
    pub fn decode_segments(digest: Digest, bytes: &[u8], most: usize) -> Result<Vec<Segment>, ManifestError> {
        Ok(read::<Needed>(digest, bytes, most)?.segments)
    }
}

/// What says its form.
trait Formed {
    fn form(&self) -> u32;
}

impl Formed for Manifest {
    fn form(&self) -> u32 {
        self.form
    }
}

/// What a collection needs of a manifest.
#[derive(Deserialize)]
struct Needed {
    form: u32,
    segments: Vec<Segment>,
}

impl Formed for Needed {
    fn form(&self) -> u32 {
        self.form
    }
}

/// Nothing but the form: what another one has in it is not known.
#[derive(Deserialize)]
struct Form {
    form: u32,
}

/// Reads JSON of this release's form as it is unpacked: it is never in memory as a whole.
fn read<T: DeserializeOwned + Formed>(digest: Digest, bytes: &[u8], most: usize) -> Result<T, ManifestError> {
    if Digest::of(bytes) != digest {
        return Err(ManifestError::Damaged("its digest is another".to_owned()));
    }
    let most = most.min(MAX_MANIFEST_BYTES);
    let error = match unpacked::<T>(bytes, most) {
        Ok(read) if read.form() == FORM => return Ok(read),
        Ok(read) => return Err(ManifestError::Form(read.form())),
        Err(error) => error,
    };
    match unpacked(bytes, most) {
        Ok(Form { form }) if form != FORM => Err(ManifestError::Form(form)),
        _ => Err(error),
    }
}

fn unpacked<T: DeserializeOwned>(bytes: &[u8], most: usize) -> Result<T, ManifestError> {
    let damaged = |reason: String| ManifestError::Damaged(reason);
    let decoder = zstd::stream::read::Decoder::with_buffer(bytes).map_err(|error| damaged(error.to_string()))?;
    let mut limited = decoder.take(most as u64 + 1);
    let read = serde_json::from_reader(BufReader::new(&mut limited));
    if limited.limit() == 0 {
        return Err(ManifestError::TooLarge);
    }
    read.map_err(|error| damaged(error.to_string()))
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn is_zero(count: &u64) -> bool {
    *count == 0
}

#[cfg(test)]
mod tests;
