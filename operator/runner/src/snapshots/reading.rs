//! Lists and reads a workspace through its bridge, which is an untrusted client: nothing is longer than it may be, and what does
//! not fit together is refused.

use ash_protocol::{
    message::{Request, TreeListed, TreeRead},
    tree::{Entry, EntryKind, ListedFile, MAX_LINE_BYTES, MIN_HOLE_BYTES, Note, NoteKind},
};
use ash_snapshot::{MAX_ENTRIES, MAX_NAMES_BYTES, ManifestError};
use bytes::{Bytes, BytesMut};
use tokio::time::{Instant, timeout, timeout_at};

use super::{SnapshotError, places::Large};
use crate::{
    bridge::{Bridge, Download, Piece},
    limits::{LISTING, SMALL_TREE_BYTES, SNAPSHOT_STALL},
};

/// What is in a workspace.
#[derive(Debug)]
pub(super) struct Listing {
    /// In the order of the bridge.
    pub(super) entries: Vec<Entry>,
    /// What is left out.
    pub(super) notes: Vec<Note>,
    /// How many notes there are beyond these.
    pub(super) further_notes: u64,
}

fn untrustworthy(what: &str) -> SnapshotError {
    SnapshotError::Untrustworthy(what.to_owned())
}

async fn within<T>(work: impl Future<Output = T>) -> Result<T, SnapshotError> {
    timeout(SNAPSHOT_STALL, work).await.map_err(|_| SnapshotError::Stalled(SNAPSHOT_STALL))
}

/// Lists everything, where its files have no more than so many bytes in all. A large list waits for its turn.
pub(super) async fn list(bridge: &Bridge, most: u64, large: &mut Large<'_>) -> Result<Listing, SnapshotError> {
    let request = Request::ListTree { limit: MAX_ENTRIES as u64 };
    let mut until = Instant::now() + LISTING;
    let mut download = within(bridge.download(&request)).await?;
    let mut lines = Lines::default();
    let mut gathered = Gathered { most, ..Gathered::default() };
    while let Some(piece) = timeout_at(until, within(download.next())).await?? {
        if piece.bytes.is_empty() || piece.hole.is_some() {
            return Err(untrustworthy("a list with nothing in it"));
        }
        lines.add(&piece.bytes);
        while let Some(entry) = lines.next()? {
            gathered.add(entry)?;
        }
        if gathered.is_large() {
            let begun = Instant::now();
            large.take().await;
            until += begun.elapsed();
        }
    }
    let listed: TreeListed = within(download.finish()).await??;
    let Gathered { entries, .. } = gathered;
    if listed.entries != entries.len() as u64 || !lines.buffer.is_empty() {
        return Err(untrustworthy("a list that is not whole"));
    }
    Ok(Listing { entries, notes: listed.notes.notes, further_notes: listed.notes.further_notes })
}

/// Entries, within what a workspace may have.
#[derive(Default)]
struct Gathered {
    entries: Vec<Entry>,
    /// Bytes of paths and targets.
    names: usize,
    /// Bytes of files without holes; the others are counted when they are read.
    bytes: u64,
    most: u64,
}

impl Gathered {
    /// Whether it takes more memory than all may take at once.
    fn is_large(&self) -> bool {
        self.names + self.entries.len() * size_of::<Entry>() > SMALL_TREE_BYTES
    }

    fn add(&mut self, entry: Entry) -> Result<(), SnapshotError> {
        self.names += entry.path.as_bytes().len();
        match &entry.kind {
            EntryKind::Symlink { target } => self.names += target.len(),
            EntryKind::HardLink { to } => self.names += to.as_bytes().len(),
            EntryKind::File { size, sparse: false, .. } => self.bytes = self.bytes.saturating_add(*size),
            _ => {}
        }
        if self.entries.len() >= MAX_ENTRIES || self.names > MAX_NAMES_BYTES {
            return Err(ManifestError::TooLarge.into());
        }
        if self.bytes > self.most {
            return Err(SnapshotError::Quota(self.most));
        }
        self.entries.push(entry);
        Ok(())
    }
}

/// Lines of JSON, as they come.
#[derive(Default)]
struct Lines {
    buffer: BytesMut,
    /// So much of it has no end of a line.
    looked_at: usize,
}

impl Lines {
    fn add(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    fn next(&mut self) -> Result<Option<Entry>, SnapshotError> {
        let found = self.buffer[self.looked_at..].iter().position(|byte| *byte == b'\n');
        let length = found.map_or(self.buffer.len(), |at| self.looked_at + at);
        if length > MAX_LINE_BYTES {
            return Err(untrustworthy("a line that is too long"));
        }
        if found.is_none() {
            self.looked_at = length;
            return Ok(None);
        }
        self.looked_at = 0;
        let line = self.buffer.split_to(length + 1);
        let entry = serde_json::from_slice(&line[..length]).map_err(|error| untrustworthy(&error.to_string()))?;
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

/// What comes next of the files.
pub(super) enum Part {
    /// Bytes.
    Bytes(Bytes),
    /// So many zeros, which take no room.
    Hole(u64),
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

    /// What comes next of the files: as if they were one.
    pub(super) async fn next(&mut self) -> Result<Option<Part>, SnapshotError> {
        let Some(Piece { bytes, hole, ends_file }) = within(self.download.next()).await? else { return Ok(None) };
        let file = self.files.get(self.lengths.len()).ok_or_else(|| untrustworthy("bytes of no file"))?;
        if hole.is_some_and(|hole| hole < MIN_HOLE_BYTES) {
            return Err(untrustworthy("a hole that is too short"));
        }
        self.length = self.length.saturating_add(hole.unwrap_or(bytes.len() as u64));
        if self.length > file.size {
            return Err(untrustworthy("more of a file than there is"));
        }
        if ends_file {
            self.lengths.push(std::mem::take(&mut self.length));
        }
        Ok(Some(hole.map_or(Part::Bytes(bytes), Part::Hole)))
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use ash_protocol::tree::{Entry, EntryKind, EntryPath, MAX_LINE_BYTES, Stamp};
    use ash_snapshot::{MAX_ENTRIES, MAX_NAMES_BYTES, ManifestError};

    use super::{Gathered, Lines, SnapshotError};

    fn entry(path: &str, kind: EntryKind) -> Entry {
        Entry { path: EntryPath::new(path.as_bytes()).unwrap(), mode: 0o600, modified_ns: 0, kind }
    }

    #[test]
    fn lines_come_in_any_pieces_and_none_is_too_long() {
        let line = |entry: &Entry| [serde_json::to_vec(entry).unwrap(), b"\n".to_vec()].concat();
        let wanted: Vec<Entry> = (0..50).map(|n| entry(&format!("file{n}"), EntryKind::Directory)).collect();
        let bytes: Vec<u8> = wanted.iter().flat_map(line).collect();
        for step in [1, 7, 1000, bytes.len()] {
            let (mut lines, mut found) = (Lines::default(), Vec::new());
            for piece in bytes.chunks(step) {
                lines.add(piece);
                while let Some(entry) = lines.next().unwrap() {
                    found.push(entry);
                }
            }
            assert_eq!(found, wanted);
        }
        // With its end in the same piece, and without one.
        for end in [&b"\n"[..], b""] {
            let mut lines = Lines::default();
            lines.add(&vec![b' '; MAX_LINE_BYTES + 1]);
            lines.add(end);
            assert!(matches!(lines.next(), Err(SnapshotError::Untrustworthy(_))));
        }
    }

    #[test]
    fn a_workspace_with_too_much_of_anything_is_refused_as_it_comes() {
        let add_all = |most: u64, make: &dyn Fn(usize) -> Entry| {
            let mut gathered = Gathered { most, ..Gathered::default() };
            let refused = (0..=MAX_ENTRIES).find_map(|n| gathered.add(make(n)).err()).unwrap();
            (refused, gathered)
        };
        let too_large = |refused: &SnapshotError| matches!(refused, SnapshotError::Manifest(ManifestError::TooLarge));
        let (refused, gathered) = add_all(0, &|n| entry(&n.to_string(), EntryKind::Directory));
        assert!(too_large(&refused) && gathered.entries.len() == MAX_ENTRIES);
        let deep = vec!["d".repeat(250); 15].join("/");
        for kind in [
            EntryKind::Symlink { target: vec![b't'; 4096] },
            EntryKind::HardLink { to: EntryPath::new(deep.as_bytes()).unwrap() },
            EntryKind::Directory,
        ] {
            let (refused, gathered) = add_all(0, &|n| entry(&format!("{deep}/{n}"), kind.clone()));
            assert!(too_large(&refused) && gathered.names < MAX_NAMES_BYTES + 10_000, "{refused}");
        }
        let file = |size, sparse| EntryKind::File { size, stamp: Stamp { inode: 1, changed_ns: 1 }, sparse };
        let (refused, gathered) = add_all(10 << 30, &|n| entry(&n.to_string(), file(1 << 30, false)));
        assert!(matches!(refused, SnapshotError::Quota(_)) && gathered.entries.len() == 10);
        let (refused, _) = add_all(1 << 40, &|n| entry(&n.to_string(), file(u64::MAX / 2, n % 2 == 0)));
        assert!(matches!(refused, SnapshotError::Quota(_)));
        let (refused, _) = add_all(0, &|n| entry(&n.to_string(), file(u64::MAX, true)));
        assert!(too_large(&refused), "holes are free");
    }
}
