//! Whether the folder that a session left on this machine holds its workspace as it was last: then nothing is restored.
//!
//! The folder says in which epoch the session had its sandbox here last. It does not fit any more once the session had one
//! elsewhere since. Before a claim the folder says for which sandbox it is, and after it in which epoch that was: whatever ends
//! in between, the log says whether the claim was made.

use std::{io, path::Path};

use ash_core::{
    Epoch, Sequence,
    id::SandboxId,
    opening::{Opening, OpeningReason},
    ports::{RunnerStore, StoreError},
    session::Session,
};
use ash_protocol::{Entry, EntryKind};
use uuid::Uuid;

use crate::limits::BATCH_BYTES;

/// Says in which epoch a session got the sandbox of this folder.
const EPOCH_MARK: &str = "epoch";

/// What it says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Mark {
    /// The last claim that is known to have been made.
    epoch: Epoch,
    /// The sandbox for which another one was to be made.
    intended: Option<Uuid>,
}

impl Mark {
    fn read(text: &str) -> Option<Self> {
        let mut lines = text.lines();
        let epoch = Epoch(lines.next()?.trim().parse().ok()?);
        Some(Self { epoch, intended: lines.next().and_then(|line| line.trim().parse().ok()) })
    }

    async fn of(folder: &Path) -> Option<Self> {
        Self::read(&tokio::fs::read_to_string(folder.join(EPOCH_MARK)).await.ok()?)
    }

    async fn write(self, folder: &Path) -> io::Result<()> {
        let (mark, new) = (folder.join(EPOCH_MARK), folder.join("epoch.new"));
        let intended = self.intended.map(|sandbox| format!("\n{sandbox}")).unwrap_or_default();
        tokio::fs::write(&new, format!("{}{intended}", self.epoch.0)).await?;
        tokio::fs::rename(new, mark).await
    }
}

/// Says that a session has the sandbox of this folder since this epoch.
pub(crate) async fn mark(folder: &Path, epoch: Epoch) -> io::Result<()> {
    Mark { epoch, intended: None }.write(folder).await
}

/// Says, before its session gets it, that this sandbox is in this folder, which is the session's as of this epoch. Where there is
/// no mark, nothing has to be said.
pub(crate) async fn intend(folder: &Path, epoch: Epoch, sandbox: SandboxId) -> io::Result<()> {
    match Mark::of(folder).await {
        Some(_) => Mark { epoch, intended: Some(sandbox.0) }.write(folder).await,
        None => Ok(()),
    }
}

/// What the log says of a folder, as far as it was read.
#[derive(Debug, Clone, Copy)]
struct Reading {
    intended: Option<Uuid>,
    /// Whether the claim that was intended was made.
    is_made: bool,
}

impl Reading {
    /// Whether an entry beyond the mark's epoch was written on another sandbox.
    fn is_elsewhere(&mut self, entry: &Entry) -> bool {
        if entry.kind != EntryKind::Opening {
            return !self.is_made;
        }
        let Ok(opening) = Opening::read(&entry.body) else { return false };
        if opening.reason != OpeningReason::Claimed {
            return false;
        }
        self.is_made = self.intended.is_some() && opening.sandbox == self.intended;
        !self.is_made
    }
}

/// Whether the folder is that of the session's last sandbox, or holds the only files that there are of it. One without a mark, of
/// a release before this one, is.
pub(crate) async fn belongs(
    folder: &Path,
    store: &dyn RunnerStore,
    row: &Session,
    has_vault: bool,
) -> Result<bool, StoreError> {
    let Some(mark) = Mark::of(folder).await.filter(|_| has_vault) else { return Ok(true) };
    let Some(next) = mark.epoch.next() else { return Ok(true) };
    let mut after = Sequence(next.opening().0 - 1);
    let mut reading = Reading { intended: mark.intended, is_made: false };
    loop {
        let page = store.read(row.id, after, BATCH_BYTES).await?;
        if page.entries.iter().any(|entry| reading.is_elsewhere(entry)) {
            return Ok(store.snapshots(row.id).await?.is_empty());
        }
        if page.end || page.through <= after {
            return Ok(true);
        }
        after = page.through;
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use ash_core::{
        Epoch,
        id::SandboxId,
        opening::{Opening, OpeningReason},
    };
    use ash_protocol::{Entry, EntryFlags, EntryKind};
    use bytes::Bytes;
    use uuid::Uuid;

    use super::{Mark, Reading, intend, mark};

    fn opening(reason: OpeningReason, epoch: u32, sandbox: Option<Uuid>) -> Entry {
        let last_committed = Epoch(epoch - 1).opening();
        let (interrupted, message, recovered) = (None, None, None);
        Opening { reason, last_committed, interrupted, message, recovered, sandbox }.entry(Epoch(epoch))
    }

    fn said(epoch: u32) -> Entry {
        let (kind, flags) = (EntryKind::Claude, EntryFlags::default());
        Entry { sequence: Epoch(epoch).sequence(2), kind, flags, body: Bytes::from_static(b"{}") }
    }

    #[test]
    fn only_the_claim_that_was_intended_is_this_folders() {
        let (own, other) = (Some(Uuid::new_v4()), Some(Uuid::new_v4()));
        let claimed = |epoch, sandbox| opening(OpeningReason::Claimed, epoch, sandbox);
        let asleep = |epoch| opening(OpeningReason::Asleep, epoch, None);
        for (intended, log, elsewhere) in [
            (None, vec![], false),
            (None, vec![asleep(3)], false),
            (None, vec![asleep(3), claimed(4, other)], true),
            (None, vec![claimed(3, None)], true),
            (None, vec![said(3)], true),
            // The claim was made, and nobody came to say so in the folder.
            (own, vec![claimed(3, own), said(3), asleep(4)], false),
            // It was not made, or another one after it.
            (own, vec![claimed(3, other)], true),
            (own, vec![claimed(3, own), said(3), asleep(4), claimed(5, other)], true),
            (own, vec![asleep(3)], false),
        ] {
            let mut reading = Reading { intended, is_made: false };
            assert_eq!(log.iter().any(|entry| reading.is_elsewhere(entry)), elsewhere, "{intended:?} {log:?}");
        }
    }

    #[tokio::test]
    async fn a_mark_says_what_is_known_and_what_is_intended() {
        let folder = tempfile::tempdir().unwrap();
        let folder = folder.path();
        let sandbox = SandboxId::new();
        intend(folder, Epoch(3), sandbox).await.unwrap();
        assert_eq!(Mark::of(folder).await, None, "without a mark there is nothing to say");
        mark(folder, Epoch(2)).await.unwrap();
        intend(folder, Epoch(3), sandbox).await.unwrap();
        assert_eq!(Mark::of(folder).await, Some(Mark { epoch: Epoch(3), intended: Some(sandbox.0) }));
        mark(folder, Epoch(4)).await.unwrap();
        assert_eq!(Mark::of(folder).await, Some(Mark { epoch: Epoch(4), intended: None }));
        assert_eq!(Mark::read("5"), Some(Mark { epoch: Epoch(5), intended: None }));
        assert_eq!(Mark::read("no number"), None);
    }
}
