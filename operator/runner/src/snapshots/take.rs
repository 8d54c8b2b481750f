//! Takes a snapshot: lists the workspace, reads what changed since the one before, keeps it, and names it in the store.

use std::{collections::HashSet, ops::Range, sync::Arc};

use ash_core::{ports::SnapshotRow, session::Session};
use ash_protocol::tree::{Entry, EntryKind, EntryPath, ListedFile, Note, NoteKind};
use ash_snapshot::{
    Content, Cutter, LARGE_FILE_BYTES, Manifest, ManifestError, Plan, Planned, Presence, Segment, Span, Vault,
    VaultError, pack, plan,
};
use bytes::{Bytes, BytesMut};
use jiff::Timestamp;
use tokio::task::{JoinSet, spawn_blocking};

use super::{
    SnapshotError,
    reading::{self, Listing, ReadFile, Reader},
};
use crate::{bridge::Bridge, hub::Hub, limits::PACKED_AT_ONCE, sandbox::Sandbox, shared::Shared};

/// Takes a snapshot of a session's workspace. Where nothing changed since the one before, that one is of now.
pub(crate) async fn take(shared: &Arc<Shared>, sandbox: &Arc<Sandbox>, hub: &Arc<Hub>) -> Result<(), SnapshotError> {
    let snapshots = &shared.snapshots;
    let Some(vault) = snapshots.vault_for(sandbox) else { return Ok(()) };
    // One at a time of a session, and few at a time of all.
    let _own = sandbox.snapshot.lock().await;
    if snapshots.places.available_permits() == 0 {
        snapshots.metrics.waited.inc();
    }
    let _place = snapshots.places.acquire().await;
    snapshots.begin(hub.session);
    let row = hub.session();
    let before = newest(shared, vault, &row).await?;
    let sequence = hub.last();
    let turn = match hub.last_ended_turn() {
        Some(turn) => Some(turn),
        None => shared.store.last_turn(row.id).await?,
    };
    let taken_at = Timestamp::now();
    let Listing { entries, notes } = reading::list(&sandbox.bridge).await?;
    let (entries, before, plan) = spawn_blocking(move || {
        let plan = plan(&entries, before.as_ref().map(|(_, manifest)| manifest));
        (entries, before, plan)
    })
    .await?;
    let all_kept = plan.parts.iter().all(|part| matches!(part, Planned::Kept { .. }));
    let unchanged = before.filter(|(_, manifest)| all_kept && manifest.entries == entries && manifest.notes == notes);
    let (digest, size) = if let Some((digest, manifest)) = unchanged {
        snapshots.metrics.unchanged.inc();
        (digest, manifest.size())
    } else {
        let mut taking = Taking::new(vault, &row, entries, notes);
        taking.read(&sandbox.bridge, plan).await?;
        snapshots.metrics.bytes_read.inc_by(taking.bytes_read);
        snapshots.metrics.bytes_written.inc_by(taking.packing.bytes_written);
        let manifest = taking.manifest(turn.map(|turn| turn.0), taken_at)?;
        let size = manifest.size();
        snapshots.metrics.notes.inc_by(manifest.notes.len() as u64);
        let digest = vault.put_manifest(&row.tenant.0, row.id.0, manifest).await?.to_string();
        snapshots.metrics.taken.inc();
        (digest, size)
    };
    let snapshot = SnapshotRow { session: row.id, digest, sequence, turn, size, taken_at };
    shared.store.add_snapshot(row.epoch, snapshot).await?;
    tracing::debug!(session = %row.id, size, "a snapshot was taken");
    Ok(())
}

/// The newest snapshot that can be read: what did not change since is not read again.
async fn newest(shared: &Shared, vault: &Vault, row: &Session) -> Result<Option<(String, Manifest)>, SnapshotError> {
    for known in shared.store.snapshots(row.id).await? {
        let Ok(digest) = known.digest.parse() else { continue };
        match vault.manifest(&row.tenant.0, row.id.0, digest).await {
            Ok(manifest) => return Ok(Some((known.digest, manifest))),
            Err(error @ VaultError::Unavailable(_)) => return Err(error.into()),
            Err(error) => tracing::warn!(session = %row.id, %error, "a snapshot is of no use"),
        }
    }
    Ok(None)
}

/// A snapshot on its way.
struct Taking {
    entries: Vec<Entry>,
    notes: Vec<Note>,
    /// Which of the entries are files.
    files: Vec<usize>,
    /// What was read of each file; none of one that is as it was.
    read: Vec<Option<ReadFile>>,
    parts: Vec<Planned>,
    packing: Packing,
    bytes_read: u64,
}

impl Taking {
    fn new(vault: &Vault, row: &Session, entries: Vec<Entry>, notes: Vec<Note>) -> Self {
        let is_file = |entry: &Entry| matches!(entry.kind, EntryKind::File { .. });
        let files: Vec<usize> = (0..entries.len()).filter(|at| is_file(&entries[*at])).collect();
        let read = vec![None; files.len()];
        let packing = Packing {
            vault: vault.clone(),
            space: row.tenant.0.as_str().into(),
            running: JoinSet::new(),
            segments: Vec::new(),
            bytes_written: 0,
        };
        Self { entries, notes, files, read, parts: Vec::new(), packing, bytes_read: 0 }
    }

    fn listed(&self, files: Range<usize>) -> Vec<ListedFile> {
        let listed = |at: &usize| match &self.entries[*at] {
            Entry { path, kind: EntryKind::File { size, stamp, .. }, .. } => {
                Some(ListedFile { path: path.clone(), size: *size, stamp: *stamp })
            }
            _ => None,
        };
        self.files[files].iter().filter_map(listed).collect()
    }

    /// Reads, cuts and keeps what has to be.
    async fn read(&mut self, bridge: &Bridge, plan: Plan) -> Result<(), SnapshotError> {
        self.packing.segments.resize(plan.parts.len(), Vec::new());
        for (part, planned) in plan.parts.iter().enumerate() {
            let (files, is_cut) = match planned {
                Planned::Kept { .. } => continue,
                Planned::Run { files } => (files.clone(), false),
                Planned::Large { file } => (*file..*file + 1, true),
            };
            let mut reader = Reader::new(bridge, self.listed(files.clone())).await?;
            let (mut run, mut cutter, mut cut) = (BytesMut::new(), Cutter::default(), Vec::new());
            while let Some(bytes) = reader.next().await? {
                self.bytes_read += bytes.len() as u64;
                if !is_cut {
                    run.extend_from_slice(&bytes);
                    continue;
                }
                cutter.push(&bytes, |piece| cut.push(piece));
                for piece in cut.drain(..) {
                    self.packing.add(part, piece).await?;
                }
            }
            let found = reader.finish().await?;
            if is_cut {
                cutter.finish(|piece| cut.push(piece));
                for piece in cut {
                    self.packing.add(part, piece).await?;
                }
            } else {
                self.packing.add(part, run.freeze()).await?;
            }
            for (file, found) in files.zip(found) {
                self.read[file] = Some(found);
            }
        }
        self.packing.finish().await?;
        self.parts = plan.parts;
        Ok(())
    }

    /// What was found, as a manifest.
    fn manifest(mut self, turn: Option<uuid::Uuid>, taken_at: Timestamp) -> Result<Manifest, SnapshotError> {
        let (mut contents, mut segments) = (Vec::with_capacity(self.files.len()), Vec::new());
        let mut packed = std::mem::take(&mut self.packing.segments).into_iter();
        for planned in std::mem::take(&mut self.parts) {
            let own: Vec<Segment> = packed.next().unwrap_or_default().into_iter().flatten().collect();
            let (files, own) = match planned {
                Planned::Kept { files, segments } => (files, segments),
                Planned::Run { files } => (files, own),
                Planned::Large { file } => (file..file + 1, own),
            };
            let first = number(segments.len())?;
            let lengths: Vec<Option<u64>> = files.clone().map(|file| self.length(file)).collect();
            if lengths.iter().all(Option::is_none) {
                continue;
            }
            if files.len() == 1 && self.listed_size(files.start) >= LARGE_FILE_BYTES {
                contents.push(Content::Own(Span { first, count: number(own.len())? }));
            } else {
                let mut offset = 0;
                for size in lengths.into_iter().flatten() {
                    contents.push(Content::Shared { segment: first, offset, size });
                    offset += size;
                }
            }
            segments.extend(own);
        }
        let (entries, notes) = self.found();
        Ok(Manifest::new(turn, taken_at, entries, contents, segments, notes)?)
    }

    fn listed_size(&self, file: usize) -> u64 {
        match self.entries[self.files[file]].kind {
            EntryKind::File { size, .. } => size,
            _ => 0,
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

/// Segments that are packed and kept while more is read.
struct Packing {
    vault: Vault,
    space: Arc<str>,
    running: JoinSet<Result<Packed, SnapshotError>>,
    /// Of each part of the plan, in order.
    segments: Vec<Vec<Option<Segment>>>,
    bytes_written: u64,
}

struct Packed {
    part: usize,
    place: usize,
    segment: Segment,
    written: u64,
}

impl Packing {
    /// Adds the next segment of a part; waits where too many are at it.
    async fn add(&mut self, part: usize, bytes: Bytes) -> Result<(), SnapshotError> {
        while self.running.len() >= PACKED_AT_ONCE {
            self.take_one().await?;
        }
        let place = self.segments[part].len();
        self.segments[part].push(None);
        let (vault, space) = (self.vault.clone(), Arc::clone(&self.space));
        self.running.spawn(async move {
            let (segment, packed) = spawn_blocking(move || pack(&bytes)).await?;
            let presence = vault.look(&space, &segment, Timestamp::now()).await?;
            let written = if presence == Presence::Safe { 0 } else { packed.len() as u64 };
            vault.put(&space, &segment, packed, presence).await?;
            Ok(Packed { part, place, segment, written })
        });
        Ok(())
    }

    async fn take_one(&mut self) -> Result<bool, SnapshotError> {
        let Some(done) = self.running.join_next().await else { return Ok(false) };
        let Packed { part, place, segment, written } = done??;
        self.segments[part][place] = Some(segment);
        self.bytes_written += written;
        Ok(true)
    }

    async fn finish(&mut self) -> Result<(), SnapshotError> {
        while self.take_one().await? {}
        Ok(())
    }
}
