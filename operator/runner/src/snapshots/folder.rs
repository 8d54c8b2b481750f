//! Whether the folder that a session left on this machine holds its workspace as it was last: then nothing is restored.
//!
//! The folder says in which epoch the session had its sandbox here last. It does not fit any more once the session had one
//! elsewhere since.

use std::{io, path::Path};

use ash_core::{
    Epoch, Sequence,
    opening::{Opening, OpeningReason},
    ports::{RunnerStore, StoreError},
    session::Session,
};
use ash_protocol::EntryKind;

use crate::limits::BATCH_BYTES;

/// Says in which epoch a session got the sandbox of this folder.
const EPOCH_MARK: &str = "epoch";

/// Says that a session has the sandbox of this folder since this epoch.
pub(crate) async fn mark(folder: &Path, epoch: Epoch) -> io::Result<()> {
    let (mark, new) = (folder.join(EPOCH_MARK), folder.join("epoch.new"));
    tokio::fs::write(&new, epoch.0.to_string()).await?;
    tokio::fs::rename(new, mark).await
}

/// Whether the folder is that of the session's last sandbox, or holds the only files that there are of it. One without a mark, of
/// a release before this one, is.
pub(crate) async fn belongs(folder: &Path, store: &dyn RunnerStore, row: &Session) -> Result<bool, StoreError> {
    let Ok(text) = tokio::fs::read_to_string(folder.join(EPOCH_MARK)).await else { return Ok(true) };
    let Some(next) = text.trim().parse().ok().map(Epoch).and_then(Epoch::next) else { return Ok(true) };
    let mut after = Sequence(next.opening().0 - 1);
    loop {
        let page = store.read(row.id, after, BATCH_BYTES).await?;
        // Whatever was said in an epoch beyond that was said on another sandbox.
        let is_elsewhere = page.entries.iter().any(|entry| {
            entry.kind != EntryKind::Opening
                || Opening::read(&entry.body).is_ok_and(|opening| opening.reason == OpeningReason::Claimed)
        });
        if is_elsewhere {
            return Ok(store.snapshots(row.id).await?.is_empty());
        }
        if page.end || page.through <= after {
            return Ok(true);
        }
        after = page.through;
    }
}
