//! Takes a snapshot: lists the workspace, reads what changed since the one before, keeps it, and names it in the store.

use std::{
    mem::take as take_out,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use ash_core::{id::SessionId, ports::SnapshotRow, session::Session};
use ash_snapshot::{Cutter, Digest, Hole, Manifest, Plan, Planned, Vault, plan};
use bytes::{Bytes, BytesMut};
use jiff::Timestamp;
use tokio::{
    task::spawn_blocking,
    time::{Instant, timeout},
};

use super::{
    SnapshotError, Snapshots,
    allowance::time_for,
    assemble::Assembly,
    packing::Packing,
    places::Large,
    reading::{self, Listing, Part, Reader},
    source::manifest,
};
use crate::{
    bridge::Bridge,
    hub::Hub,
    limits::{FLUSH_WAIT, LISTED_AGAIN, SNAPSHOT_BASE, SNAPSHOT_LONGEST, SNAPSHOT_READ_PER_SECOND},
    sandbox::Sandbox,
    shared::Shared,
};

/// When a snapshot is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum When {
    /// The session goes on on its sandbox.
    Between,
    /// It leaves it.
    Leaving,
}

/// Counts what is written for a session, also of what is given up.
struct Spending<'a> {
    snapshots: &'a Snapshots,
    session: SessionId,
    written: Arc<AtomicU64>,
}

impl Drop for Spending<'_> {
    fn drop(&mut self) {
        let written = self.written.load(Ordering::Relaxed);
        self.snapshots.metrics.bytes_written.inc_by(written);
        self.snapshots.allowances().spend(self.session, written, Instant::now());
    }
}

/// Takes a snapshot of a session's workspace, in a place that the caller has for it. Where nothing changed since the one before,
/// that one is of now.
pub(super) async fn take(
    shared: &Arc<Shared>,
    sandbox: &Arc<Sandbox>,
    hub: &Arc<Hub>,
    vault: &Vault,
    when: When,
) -> Result<(), SnapshotError> {
    let snapshots = &shared.snapshots;
    let row = hub.session();
    if !snapshots.allowances().may_write(row.id, when == When::Leaving, Instant::now()) {
        snapshots.metrics.deferred.inc();
        return Err(SnapshotError::Spent);
    }
    let spending = Spending { snapshots, session: row.id, written: Arc::default() };
    let mut large = Large { places: &snapshots.large, tenant: &row.tenant, place: None };
    let mut before = newest(shared, vault, &row, &mut large).await?;
    let mut tries = 0;
    let (sequence, turn, taken_at, taken) = loop {
        tries += 1;
        let sequence = hub.last();
        let turn = match hub.last_ended_turn() {
            Some(turn) => Some(turn),
            None => shared.store.last_turn(row.id).await?,
        };
        let taken_at = Timestamp::now();
        let listing = reading::list(&sandbox.bridge, snapshots.most, &mut large).await?;
        let work = Work { snapshots, vault, bridge: &sandbox.bridge, row: &row, written: &spending.written };
        let may_repeat = tries < LISTED_AGAIN;
        match work.of(listing, before, turn.map(|turn| turn.0), taken_at, may_repeat).await? {
            // It is in the workspace, under a name that the list did not have as a file: the next list does.
            Taken::LosesLinks(known) => before = known,
            Taken::Done(done) => break (sequence, turn, taken_at, done),
        }
    };
    let (digest, size) = match taken {
        Done::Unchanged { digest, size } => {
            snapshots.metrics.unchanged.inc();
            (digest, size)
        }
        Done::New(manifest) => {
            let size = manifest.size();
            snapshots.metrics.notes.inc_by(manifest.notes.len() as u64);
            let digest = vault.put_manifest(&row.tenant.0, row.id.0, *manifest).await?.to_string();
            snapshots.metrics.taken.inc();
            (digest, size)
        }
    };
    // What it is of has to be in the log before anybody goes on from it.
    if timeout(FLUSH_WAIT, hub.wait_committed_to(sequence)).await != Ok(true) {
        return Err(SnapshotError::Uncommitted);
    }
    let snapshot = SnapshotRow { session: row.id, digest, sequence, turn, size, taken_at };
    shared.store.add_snapshot(row.epoch, snapshot).await?;
    tracing::debug!(session = %row.id, size, "a snapshot was taken");
    Ok(())
}

/// A snapshot that is known, and its name.
type Known = Option<(String, Manifest)>;

/// The newest snapshot that can be read: what did not change since is not read again.
async fn newest(shared: &Shared, vault: &Vault, row: &Session, large: &mut Large<'_>) -> Result<Known, SnapshotError> {
    for known in shared.store.snapshots(row.id).await? {
        match manifest(vault, row, &known, large).await {
            Ok(manifest) => return Ok(Some((known.digest, manifest))),
            Err(error) if error.is_loss() => {
                tracing::warn!(session = %row.id, %error, "a snapshot is of no use");
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(None)
}

/// What came of a look at a workspace.
enum Taken {
    Done(Done),
    /// A file was renamed in between: it has to be listed again. Here is the snapshot before.
    LosesLinks(Known),
}

/// What the workspace is.
enum Done {
    /// As it was.
    Unchanged { digest: String, size: u64 },
    /// This.
    New(Box<Manifest>),
}

/// What a snapshot is taken with.
struct Work<'a> {
    snapshots: &'a Snapshots,
    vault: &'a Vault,
    bridge: &'a Bridge,
    row: &'a Session,
    written: &'a Arc<AtomicU64>,
}

impl Work<'_> {
    /// Reads what changed since the snapshot before, and makes a manifest.
    async fn of(
        &self,
        listing: Listing,
        before: Known,
        turn: Option<uuid::Uuid>,
        taken_at: Timestamp,
        may_repeat: bool,
    ) -> Result<Taken, SnapshotError> {
        // Comparing some hundred thousand paths is not for the threads on which everything else waits.
        let (listing, before, mut plan) = spawn_blocking(move || {
            let mut listing = listing;
            listing.entries.sort_by(|one, other| one.path.cmp(&other.path));
            let plan = plan(&listing.entries, before.as_ref().map(|(_, manifest)| manifest));
            (listing, before, plan)
        })
        .await?;
        self.check_kept(&mut plan, &listing).await?;
        let (listing, before, plan, is_same) = spawn_blocking(move || {
            let all_kept = plan.parts.iter().all(|part| matches!(part, Planned::Kept { .. }));
            let is_same = before.as_ref().is_some_and(|(_, manifest)| {
                all_kept && manifest.entries == listing.entries && manifest.notes == listing.notes
            });
            (listing, before, plan, is_same)
        })
        .await?;
        match before {
            Some((digest, manifest)) if is_same => Ok(Taken::Done(Done::Unchanged { digest, size: manifest.size() })),
            before => {
                let Listing { entries, notes, further_notes } = listing;
                let mut assembly = Assembly::new(entries, notes, further_notes);
                let bytes = plan.parts.iter().map(|part| assembly.size_of(part)).fold(0, u64::saturating_add);
                // Holes take no time, and of the rest there is no more than this.
                let bytes = bytes.min(self.snapshots.most);
                let within = time_for(SNAPSHOT_BASE, bytes, SNAPSHOT_READ_PER_SECOND).min(SNAPSHOT_LONGEST);
                let segments = timeout(within, self.read(&mut assembly, &plan)).await??;
                if may_repeat && assembly.loses_links() {
                    return Ok(Taken::LosesLinks(before));
                }
                let made = spawn_blocking(move || assembly.manifest(plan.parts, segments, turn, taken_at));
                Ok(Taken::Done(Done::New(Box::new(made.await??))))
            }
        }
    }

    /// Has everything read again of which the storage has lost a part: otherwise no later snapshot would be whole.
    async fn check_kept(&self, plan: &mut Plan, listing: &Listing) -> Result<(), SnapshotError> {
        if !self.snapshots.is_check_due(self.row.id, self.vault) {
            return Ok(());
        }
        let kept: Vec<_> = plan
            .parts
            .iter()
            .filter_map(|part| if let Planned::Kept { segments, .. } = part { Some(segments) } else { None })
            .flatten()
            .copied()
            .collect();
        let lost: std::collections::HashSet<Digest> = self.vault.lost(&self.row.tenant.0, &kept).await?;
        if !lost.is_empty() {
            self.snapshots.metrics.lost.inc_by(lost.len() as u64);
            tracing::warn!(session = %self.row.id, segments = lost.len(), "segments of earlier snapshots are lost or damaged: they are written again");
            plan.read_again(&listing.entries, &lost);
        }
        self.snapshots.checked(self.row.id);
        Ok(())
    }

    /// Reads, cuts and keeps what has to be; the segments of each part of the plan.
    async fn read(
        &self,
        assembly: &mut Assembly,
        plan: &Plan,
    ) -> Result<Vec<Vec<ash_snapshot::Segment>>, SnapshotError> {
        let mut packing = Packing::new(self.vault, &self.row.tenant.0, plan.parts.len(), self.written);
        let mut left = self.snapshots.most;
        for (part, planned) in plan.parts.iter().enumerate() {
            let (files, is_large) = match planned {
                Planned::Kept { .. } => continue,
                Planned::Run { files } => (files.clone(), false),
                Planned::Large { file } => (*file..*file + 1, true),
            };
            let mut reader = Reader::new(self.bridge, assembly.listed(files.clone())).await?;
            let mut run = BytesMut::new();
            let mut cutting = Cutting::default();
            while let Some(next) = reader.next().await? {
                match next {
                    Part::Bytes(bytes) => {
                        left = left.checked_sub(bytes.len() as u64).ok_or(SnapshotError::Quota(self.snapshots.most))?;
                        self.snapshots.metrics.bytes_read.inc_by(bytes.len() as u64);
                        if is_large {
                            cutting.push(&bytes);
                        } else {
                            run.extend_from_slice(&bytes);
                        }
                    }
                    Part::Hole(size) if is_large => {
                        cutting.end_piece();
                        cutting.keep(&mut packing, part).await?;
                        cutting.add_hole(packing.count(part), size)?;
                    }
                    Part::Hole(_) => {
                        return Err(SnapshotError::Untrustworthy("a hole that is longer than its file".to_owned()));
                    }
                }
                cutting.keep(&mut packing, part).await?;
            }
            let found = reader.finish().await?;
            if is_large {
                cutting.end_piece();
                cutting.keep(&mut packing, part).await?;
                assembly.set_holes(part, cutting.holes);
            } else {
                packing.add(part, run.freeze()).await?;
            }
            assembly.set_read(files, found);
        }
        packing.finish().await
    }
}

/// A large file that is being cut.
#[derive(Default)]
struct Cutting {
    cutter: Cutter,
    /// Pieces that are to be kept.
    cut: Vec<Bytes>,
    holes: Vec<Hole>,
}

impl Cutting {
    fn push(&mut self, bytes: &[u8]) {
        self.cutter.push(bytes, |piece| self.cut.push(piece));
    }

    /// What was read so far is a piece of its own.
    fn end_piece(&mut self) {
        take_out(&mut self.cutter).finish(|piece| self.cut.push(piece));
    }

    async fn keep(&mut self, packing: &mut Packing, part: usize) -> Result<(), SnapshotError> {
        for piece in self.cut.drain(..) {
            packing.add(part, piece).await?;
        }
        Ok(())
    }

    /// There is a hole behind so many segments.
    fn add_hole(&mut self, segments: usize, size: u64) -> Result<(), SnapshotError> {
        let before = u32::try_from(segments).map_err(|_| ash_snapshot::ManifestError::TooLarge)?;
        if let Some(last) = self.holes.last_mut().filter(|last| last.before == before) {
            last.size = last.size.saturating_add(size);
        } else if self.holes.len() < ash_snapshot::MAX_SEGMENTS {
            self.holes.push(Hole { before, size });
        } else {
            return Err(ash_snapshot::ManifestError::TooLarge.into());
        }
        Ok(())
    }
}
