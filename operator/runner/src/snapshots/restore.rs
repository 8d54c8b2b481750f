//! Restores a workspace from the newest snapshot that is whole.

use std::sync::Arc;

use ash_core::{opening::Recovered, session::Session};
use ash_protocol::{
    message::{Request, TreeRestored},
    tree::{Entry, EntryKind},
};
use ash_snapshot::{Content, Manifest, Segment, Vault, VaultError};
use bytes::{BufMut as _, Bytes, BytesMut};
use futures::{Stream, StreamExt as _, stream};
use tokio::time::timeout;

use super::SnapshotError;
use crate::{
    bridge::{RequestError, Upload},
    hub::Hub,
    limits::{FETCHED_AT_ONCE, SNAPSHOT_STALL},
    sandbox::Sandbox,
    shared::Shared,
};

/// Bytes that are sent to a bridge at once.
const SENT_BYTES: usize = 64 << 10;

/// What a workspace was made from.
#[derive(Debug, Clone)]
pub(crate) struct Restored {
    /// Whether it was made: otherwise there is no snapshot, or none that is whole.
    pub(crate) is_made: bool,
    /// What the session's log says of it.
    pub(crate) recovered: Recovered,
}

/// Restores the workspace of a session that had one. `None` where the session is new, or no snapshots are taken.
///
/// A storage that does not answer is an error: the session would lose its files if it went on without them.
pub(crate) async fn restore(
    shared: &Arc<Shared>,
    sandbox: &Arc<Sandbox>,
    hub: &Arc<Hub>,
) -> Result<Option<Restored>, SnapshotError> {
    let row = hub.session();
    if crate::pool::is_new(hub) {
        return Ok(None);
    }
    let Some(vault) = shared.snapshots.vault_for(sandbox) else { return Ok(None) };
    let conversation = shared.store.last_turn(row.id).await?.map(|turn| turn.0);
    let mut recovered = Recovered { conversation, workspace: None, taken_at: None, damaged: 0 };
    let rows = shared.store.snapshots(row.id).await?;
    // One whose sandbox never came to be has nothing to lose.
    if rows.is_empty() && conversation.is_none() {
        return Ok(None);
    }
    if shared.snapshots.restores.available_permits() == 0 {
        shared.snapshots.metrics.waited.inc();
    }
    let _place = shared.snapshots.restores.acquire().await;
    for known in rows {
        match from(vault, sandbox, &row, &known.digest).await {
            Ok(made) => {
                shared.snapshots.metrics.restored.inc();
                tracing::debug!(session = %row.id, entries = made.entries, bytes = made.bytes, "a workspace was restored");
                recovered.workspace = known.turn.map(|turn| turn.0);
                recovered.taken_at = Some(known.taken_at);
                return Ok(Some(Restored { is_made: true, recovered }));
            }
            Err(SnapshotError::Vault(error @ VaultError::Unavailable(_))) => return Err(error.into()),
            Err(SnapshotError::Vault(error)) => {
                shared.snapshots.metrics.damaged.inc();
                recovered.damaged += 1;
                tracing::error!(session = %row.id, taken_at = %known.taken_at, %error, "a snapshot is damaged: the one before it is used");
            }
            Err(error) => return Err(error),
        }
    }
    Ok(Some(Restored { is_made: false, recovered }))
}

async fn from(vault: &Vault, sandbox: &Sandbox, row: &Session, digest: &str) -> Result<TreeRestored, SnapshotError> {
    let space = row.tenant.0.as_str();
    let digest = digest.parse().map_err(|_| VaultError::Missing(digest.to_owned()))?;
    let manifest = vault.manifest(space, row.id.0, digest).await?;
    let mut fetched = std::pin::pin!(fetch(vault, space, &manifest));
    let mut upload = sandbox.bridge.upload(&Request::RestoreTree {}).await;
    let mut contents = manifest.contents.iter();
    let mut current: Option<(u32, Bytes)> = None;
    let mut buffer = BytesMut::new();
    for entry in &manifest.entries {
        put_line(&mut buffer, entry);
        if matches!(entry.kind, EntryKind::File { .. }) {
            match contents.next() {
                Some(Content::Shared { segment, offset, size }) => {
                    if current.as_ref().is_none_or(|(at, _)| at != segment) {
                        current = Some((*segment, next(&mut fetched, vault, space).await?));
                    }
                    if let Some((_, bytes)) = &current {
                        // A manifest that was decoded fits together.
                        let start = usize::try_from(*offset).unwrap_or(usize::MAX);
                        let end = usize::try_from(offset + size).unwrap_or(usize::MAX);
                        buffer.extend_from_slice(bytes.get(start..end).unwrap_or_default());
                    }
                }
                Some(Content::Own(span)) => {
                    for _ in 0..span.count {
                        let bytes = next(&mut fetched, vault, space).await?;
                        if !send(&mut upload, buffer.split().freeze()).await? || !send(&mut upload, bytes).await? {
                            break;
                        }
                    }
                }
                None => {}
            }
        }
        if buffer.len() >= SENT_BYTES && !send(&mut upload, buffer.split().freeze()).await? {
            break;
        }
    }
    send(&mut upload, buffer.freeze()).await?;
    let finished = timeout(SNAPSHOT_STALL, upload.finish()).await;
    Ok(finished.map_err(|_| SnapshotError::Stalled(SNAPSHOT_STALL))??)
}

fn put_line(buffer: &mut BytesMut, entry: &Entry) {
    // Our own types with string keys become JSON, and memory takes it.
    let _ = serde_json::to_writer(buffer.writer(), entry);
    buffer.put_u8(b'\n');
}

/// Sends bytes; false where the bridge has answered already.
async fn send(upload: &mut Upload<'_>, bytes: Bytes) -> Result<bool, SnapshotError> {
    timeout(SNAPSHOT_STALL, upload.send(bytes)).await.map_err(|_| SnapshotError::Stalled(SNAPSHOT_STALL))
}

/// The segments of a manifest, each when the first content needs it that does, a few ahead.
fn fetch<'a>(
    vault: &'a Vault,
    space: &'a str,
    manifest: &'a Manifest,
) -> impl Stream<Item = Result<Bytes, (VaultError, Segment)>> + 'a {
    let mut last = None;
    let needed: Vec<Segment> = manifest
        .contents
        .iter()
        .flat_map(move |content| match *content {
            Content::Own(span) => {
                last = None;
                manifest.span(span).to_vec()
            }
            Content::Shared { segment, .. } if last == Some(segment) => Vec::new(),
            Content::Shared { segment, .. } => {
                last = Some(segment);
                manifest.segments.get(segment as usize).copied().into_iter().collect()
            }
        })
        .collect();
    stream::iter(needed)
        .map(move |segment| async move { vault.get(space, &segment).await.map_err(|error| (error, segment)) })
        .buffered(FETCHED_AT_ONCE)
}

/// The next segment. A damaged one is let go of, so that the next snapshot writes it again.
async fn next(
    fetched: &mut (impl Stream<Item = Result<Bytes, (VaultError, Segment)>> + Unpin),
    vault: &Vault,
    space: &str,
) -> Result<Bytes, SnapshotError> {
    match fetched.next().await {
        Some(Ok(bytes)) => Ok(bytes),
        Some(Err((error, segment))) => {
            if matches!(error, VaultError::Damaged(_)) {
                vault.forget(space, &segment).await?;
            }
            Err(error.into())
        }
        None => Err(RequestError::Gone.into()),
    }
}
