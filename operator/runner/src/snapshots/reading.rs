//! Lists and reads a workspace through its bridge, which is an untrusted client: nothing is longer than it may be, and what does
//! not fit together is refused.

use ash_protocol::{
    message::{Request, TreeListed, TreeRead},
    tree::{Entry, ListedFile, MAX_LINE_BYTES, Note, NoteKind},
};
use ash_snapshot::MAX_ENTRIES;
use bytes::{Bytes, BytesMut};
use tokio::time::timeout;

use super::SnapshotError;
use crate::{
    bridge::{Bridge, Download, Piece},
    limits::SNAPSHOT_STALL,
};

/// What is in a workspace.
pub(super) struct Listing {
    /// Ordered by path.
    pub(super) entries: Vec<Entry>,
    /// What is left out.
    pub(super) notes: Vec<Note>,
}

fn untrustworthy(what: &str) -> SnapshotError {
    SnapshotError::Untrustworthy(what.to_owned())
}

async fn within<T>(work: impl Future<Output = T>) -> Result<T, SnapshotError> {
    timeout(SNAPSHOT_STALL, work).await.map_err(|_| SnapshotError::Stalled(SNAPSHOT_STALL))
}

/// Lists everything.
pub(super) async fn list(bridge: &Bridge) -> Result<Listing, SnapshotError> {
    let request = Request::ListTree { limit: MAX_ENTRIES as u64 };
    let mut download = within(bridge.download(&request)).await?;
    let mut lines = Lines::default();
    let mut entries = Vec::new();
    while let Some(piece) = within(download.next()).await? {
        lines.add(&piece.bytes);
        while let Some(entry) = lines.next()? {
            if entries.len() >= MAX_ENTRIES {
                return Err(untrustworthy("more entries than it may"));
            }
            entries.push(entry);
        }
    }
    let listed: TreeListed = within(download.finish()).await??;
    if listed.entries != entries.len() as u64 || !lines.buffer.is_empty() {
        return Err(untrustworthy("a list that is not whole"));
    }
    entries.sort_by(|one: &Entry, other: &Entry| one.path.cmp(&other.path));
    Ok(Listing { entries, notes: listed.notes.notes })
}

/// Lines of JSON, as they come.
#[derive(Default)]
struct Lines {
    buffer: BytesMut,
}

impl Lines {
    fn add(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    fn next(&mut self) -> Result<Option<Entry>, SnapshotError> {
        let Some(end) = self.buffer.iter().position(|byte| *byte == b'\n') else {
            return if self.buffer.len() > MAX_LINE_BYTES {
                Err(untrustworthy("a line that is too long"))
            } else {
                Ok(None)
            };
        };
        let line = self.buffer.split_to(end + 1);
        let entry = serde_json::from_slice(&line[..end]).map_err(|error| untrustworthy(&error.to_string()))?;
        Ok(Some(entry))
    }
}

/// The bytes of files, one after the other.
pub(super) struct Reader<'a> {
    download: Download<'a>,
    files: Vec<ListedFile>,
    /// Bytes so far of the file that is being read, and those of the files before it.
    lengths: Vec<u64>,
    length: u64,
}

/// What was read of a file.
#[derive(Debug, Clone, Copy)]
pub(super) struct ReadFile {
    /// How many bytes.
    pub(super) length: u64,
    /// What happened to it, where it is not as it was listed.
    pub(super) outcome: Option<NoteKind>,
}

impl<'a> Reader<'a> {
    /// Asks for these files.
    pub(super) async fn new(bridge: &'a Bridge, files: Vec<ListedFile>) -> Result<Self, SnapshotError> {
        let request = Request::ReadTree { files };
        let download = within(bridge.download(&request)).await?;
        let Request::ReadTree { files } = request else { return Err(untrustworthy("nothing")) };
        Ok(Self { download, files, lengths: Vec::new(), length: 0 })
    }

    /// What comes next of the files: their bytes as if they were one.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, SnapshotError> {
        let Some(Piece { bytes, ends_file }) = within(self.download.next()).await? else { return Ok(None) };
        let file = self.files.get(self.lengths.len()).ok_or_else(|| untrustworthy("bytes of no file"))?;
        self.length += bytes.len() as u64;
        if self.length > file.size {
            return Err(untrustworthy("more of a file than there is"));
        }
        if ends_file {
            self.lengths.push(std::mem::take(&mut self.length));
        }
        Ok(Some(bytes))
    }

    /// What was read of each file, once there is no more.
    pub(super) async fn finish(self) -> Result<Vec<ReadFile>, SnapshotError> {
        let read: TreeRead = within(self.download.finish()).await??;
        if self.lengths.len() != self.files.len() || self.length > 0 {
            return Err(untrustworthy("fewer files than were asked for"));
        }
        let short = |(length, file): (u64, &ListedFile)| ReadFile {
            length,
            // What it does not say is seen.
            outcome: (length < file.size).then_some(NoteKind::Changed),
        };
        let mut found: Vec<ReadFile> = self.lengths.into_iter().zip(&self.files).map(short).collect();
        for (place, outcome) in read.outcomes {
            let place = usize::try_from(place).unwrap_or(usize::MAX);
            found.get_mut(place).ok_or_else(|| untrustworthy("an outcome of no file"))?.outcome = Some(outcome);
        }
        Ok(found)
    }
}
