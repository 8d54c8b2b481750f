//! Restores a workspace from the newest snapshot that is whole; where none is, what is left of the newest.

use std::{collections::HashSet, sync::Arc};

use ash_core::{opening::Recovered, ports::SnapshotRow, session::Session};
use ash_protocol::{
    message::{Request, TreeRestored},
    tree::{EntryKind, EntryPath, Extent},
};
use ash_snapshot::{Content, Digest, Manifest, Segment, Vault, VaultError};
use bytes::{BufMut as _, Bytes, BytesMut};
use futures::{Stream, StreamExt as _, stream};
use serde::Serialize;
use tokio::time::timeout;

use super::{
    SnapshotError,
    allowance::time_for,
    places::Large,
    source::{Source, manifest},
};
use crate::{
    bridge::{RequestError, Upload},
    hub::Hub,
    limits::{FETCHED_AT_ONCE, NAMED_LOSSES, RESTORE_BASE, RESTORED_PER_SECOND, SNAPSHOT_STALL},
    sandbox::Sandbox,
    shared::Shared,
};

/// Bytes that are sent to a bridge at once.
const SENT_BYTES: usize = 64 << 10;

/// What a workspace was made from.
#[derive(Debug, Clone)]
pub(crate) struct Restored {
    /// Whether it was made: otherwise there is no snapshot, or nothing is left of any.
    pub(crate) is_made: bool,
    /// What the session's log says of it.
    pub(crate) recovered: Recovered,
}

/// Restores the workspace of a session from what was found for it.
///
/// # Errors
/// Where that cannot be done now; the sandbox is of no use then. A snapshot that is damaged is passed over, and is none.
pub(crate) async fn restore(
    shared: &Arc<Shared>,
    sandbox: &Arc<Sandbox>,
    hub: &Arc<Hub>,
    source: Source,
) -> Result<Restored, SnapshotError> {
    let row = hub.session();
    let Source { rows, mut newest, vault, mut recovered, large, .. } = source;
    let mut large = Large { places: &shared.snapshots.large, tenant: &row.tenant, place: large };
    let to = To { vault: &vault, sandbox, row: &row };
    // The newest one of which something may be left, and whether the storage has a manifest at all.
    let mut left = None;
    let mut has_any = false;
    for known in &rows {
        let found = match newest.take() {
            Some(manifest) => Ok(manifest),
            None => manifest(&vault, &row, known, &mut large).await,
        };
        has_any |= !matches!(found, Err(VaultError::Missing(_)));
        let error = match found {
            Ok(manifest) => match to.send_in_time(&manifest).await {
                Ok(made) => {
                    shared.snapshots.metrics.restored.inc();
                    tracing::debug!(session = %row.id, entries = made.entries, bytes = made.bytes, "a workspace was restored");
                    say(&mut recovered, known, &manifest, &[]);
                    return Ok(Restored { is_made: true, recovered });
                }
                Err(SnapshotError::Vault(error)) if error.is_loss() => {
                    left.get_or_insert(known);
                    error
                }
                Err(error) => return Err(error),
            },
            Err(error) if error.is_loss() => error,
            Err(error) => return Err(error.into()),
        };
        shared.snapshots.metrics.damaged.inc();
        recovered.damaged += 1;
        tracing::error!(session = %row.id, taken_at = %known.taken_at, %error, "a snapshot is damaged: the one before it is used");
        // It stays named while there are whole ones after it: what is damaged now may be whole again.
        if let Err(error) = shared.store.snapshot_damaged(row.id, &known.digest).await {
            tracing::warn!(session = %row.id, %error, "a damaged snapshot may be forgotten when there are newer ones");
        }
    }
    if !rows.is_empty() && !has_any {
        return Err(SnapshotError::NothingThere(rows.len()));
    }
    let Some(known) = left else { return Ok(Restored { is_made: false, recovered }) };
    let whole = manifest(&vault, &row, known, &mut large).await?;
    let lost = to.lost(&whole).await?;
    let (rest, names) = whole.without(&lost);
    to.send_in_time(&rest).await?;
    tracing::error!(session = %row.id, taken_at = %known.taken_at, files = names.len(), "no snapshot is whole: these files are lost");
    shared.snapshots.metrics.restored.inc();
    say(&mut recovered, known, &rest, &names);
    Ok(Restored { is_made: true, recovered })
}

/// Notes what a workspace was made from, and what is not in it as it was.
fn say(recovered: &mut Recovered, known: &SnapshotRow, manifest: &Manifest, lost: &[EntryPath]) {
    recovered.workspace = known.turn.map(|turn| turn.0);
    recovered.taken_at = Some(known.taken_at);
    let noted = manifest.notes.iter().map(|note| &note.path);
    recovered.incomplete = (lost.len() as u64 + manifest.notes.len() as u64).saturating_add(manifest.further_notes);
    recovered.paths = lost.iter().chain(noted).take(NAMED_LOSSES).map(ToString::to_string).collect();
}

/// Where a workspace is made.
struct To<'a> {
    vault: &'a Vault,
    sandbox: &'a Sandbox,
    row: &'a Session,
}

impl To<'_> {
    /// Makes it, in the time that so many bytes may take.
    async fn send_in_time(&self, manifest: &Manifest) -> Result<TreeRestored, SnapshotError> {
        let within = time_for(RESTORE_BASE, manifest.size(), RESTORED_PER_SECOND);
        timeout(within, self.send(manifest)).await?
    }

    async fn send(&self, manifest: &Manifest) -> Result<TreeRestored, SnapshotError> {
        let space = self.row.tenant.0.as_str();
        let mut fetched = std::pin::pin!(fetch(self.vault, space, manifest));
        let mut upload = self.sandbox.bridge.upload(&Request::RestoreTree {}).await;
        let mut contents = manifest.contents.iter();
        let mut current: Option<(u32, Bytes)> = None;
        let mut buffer = BytesMut::new();
        'entries: for entry in &manifest.entries {
            put_line(&mut buffer, entry);
            if let EntryKind::File { sparse, size: in_all, .. } = entry.kind {
                match contents.next() {
                    Some(Content::Shared { segment, offset, size }) => {
                        if current.as_ref().is_none_or(|(at, _)| at != segment) {
                            current = Some((*segment, next(&mut fetched).await?));
                        }
                        put_data(&mut buffer, sparse, *size);
                        if let Some((_, bytes)) = &current {
                            // A manifest that was decoded fits together.
                            let start = usize::try_from(*offset).unwrap_or(usize::MAX);
                            let end = usize::try_from(offset + size).unwrap_or(usize::MAX);
                            buffer.extend_from_slice(bytes.get(start..end).unwrap_or_default());
                        }
                    }
                    Some(Content::Own(span)) => {
                        current = None;
                        put_data(&mut buffer, sparse, in_all);
                        for _ in 0..span.count {
                            let bytes = next(&mut fetched).await?;
                            if !send(&mut upload, buffer.split().freeze()).await? || !send(&mut upload, bytes).await? {
                                break 'entries;
                            }
                        }
                    }
                    Some(Content::Sparse { span, holes }) => {
                        current = None;
                        let mut holes = holes.iter().peekable();
                        for place in 0..=span.count {
                            if let Some(hole) = holes.next_if(|hole| hole.before == place) {
                                put_line(&mut buffer, &Extent::Hole(hole.size));
                            }
                            if place == span.count {
                                break;
                            }
                            let bytes = next(&mut fetched).await?;
                            put_data(&mut buffer, true, bytes.len() as u64);
                            if !send(&mut upload, buffer.split().freeze()).await? || !send(&mut upload, bytes).await? {
                                break 'entries;
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

    /// The segments of a snapshot that cannot be had whole.
    async fn lost(&self, manifest: &Manifest) -> Result<HashSet<Digest>, SnapshotError> {
        let space = self.row.tenant.0.as_str();
        let distinct: HashSet<Segment> = manifest.segments.iter().copied().collect();
        let look = |segment: Segment| async move {
            match self.vault.get(space, &segment).await {
                Ok(_) => Ok(None),
                Err(error) if error.is_loss() => Ok(Some(segment.digest)),
                Err(error) => Err(SnapshotError::from(error)),
            }
        };
        let mut looks = stream::iter(distinct).map(look).buffer_unordered(FETCHED_AT_ONCE);
        let mut lost = HashSet::new();
        while let Some(looked) = looks.next().await {
            lost.extend(looked?);
        }
        Ok(lost)
    }
}

fn put_line(buffer: &mut BytesMut, line: &impl Serialize) {
    // Our own types with string keys become JSON, and memory takes it.
    let _ = serde_json::to_writer(buffer.writer(), line);
    buffer.put_u8(b'\n');
}

/// Says that so many bytes of a file with holes follow. Those of others follow unsaid.
fn put_data(buffer: &mut BytesMut, sparse: bool, size: u64) {
    if sparse && size > 0 {
        put_line(buffer, &Extent::Data(size));
    }
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
) -> impl Stream<Item = Result<Bytes, VaultError>> + 'a {
    let mut last = None;
    let needed: Vec<Segment> = manifest
        .contents
        .iter()
        .flat_map(move |content| match content {
            Content::Own(span) | Content::Sparse { span, .. } => {
                last = None;
                manifest.span(*span).to_vec()
            }
            Content::Shared { segment, .. } if last == Some(*segment) => Vec::new(),
            Content::Shared { segment, .. } => {
                last = Some(*segment);
                manifest.segments.get(*segment as usize).copied().into_iter().collect()
            }
        })
        .collect();
    stream::iter(needed).map(move |segment| async move { vault.get(space, &segment).await }).buffered(FETCHED_AT_ONCE)
}

/// The next segment.
async fn next(fetched: &mut (impl Stream<Item = Result<Bytes, VaultError>> + Unpin)) -> Result<Bytes, SnapshotError> {
    match fetched.next().await {
        Some(bytes) => Ok(bytes?),
        None => Err(RequestError::Gone.into()),
    }
}
