//! What a session's workspace will be made from, found before anything is done to a sandbox.

use std::sync::Arc;

use ash_core::{opening::Recovered, ports::SnapshotRow, session::Session};
use ash_snapshot::{MAX_MANIFEST_BYTES, Manifest, ManifestError, Vault, VaultError};
use tokio::time::timeout;

use super::{
    PROTOCOL, SnapshotError,
    places::{Large, Place},
};
use crate::{
    hub::Hub,
    limits::{RESTORE_WAIT, SMALL_TREE_BYTES},
    sandbox::Sandbox,
    shared::Shared,
};

/// The snapshots of a session, and a place for making its workspace.
pub(crate) struct Source {
    /// Newest first.
    pub(super) rows: Vec<SnapshotRow>,
    /// What the first one is, where it can be read.
    pub(super) newest: Option<Manifest>,
    pub(super) vault: Vault,
    /// What the session's log will say.
    pub(super) recovered: Recovered,
    /// A place for what is large, where the newest is.
    pub(super) large: Option<Place>,
    _place: Place,
}

/// Looks for what a session's workspace is made from. `None` where the session is new, or has nothing that could be lost.
///
/// # Errors
/// Where it has snapshots, and they cannot be had now, or not here: the session would lose its files if it went on without them.
/// The sandbox is as it was.
pub(crate) async fn prepare(
    shared: &Arc<Shared>,
    sandbox: &Arc<Sandbox>,
    hub: &Arc<Hub>,
) -> Result<Option<Source>, SnapshotError> {
    if crate::pool::is_new(hub) {
        return Ok(None);
    }
    let row = hub.session();
    let snapshots = &shared.snapshots;
    let rows = shared.store.snapshots(row.id).await?;
    let vault = match (snapshots.vault_for(sandbox), &snapshots.vault) {
        (Some(vault), _) => vault,
        (None, _) if rows.is_empty() => return Ok(None),
        (None, None) => return Err(SnapshotError::NoStorage),
        (None, Some(_)) => {
            tracing::warn!(session = %row.id, minor = PROTOCOL, "a sandbox is of an older release, and the session's files cannot be put there");
            return Err(SnapshotError::OldBridge);
        }
    };
    let conversation = shared.store.last_turn(row.id).await?.map(|turn| turn.0);
    // One whose sandbox never came to be has nothing to lose.
    if rows.is_empty() && conversation.is_none() {
        return Ok(None);
    }
    let place = timeout(RESTORE_WAIT, snapshots.place(&snapshots.restores, hub)).await?;
    let mut large = Large { places: &snapshots.large, tenant: &row.tenant, place: None };
    let newest = match rows.first() {
        None => None,
        Some(first) => match manifest(vault, &row, first, &mut large).await {
            Ok(manifest) => Some(manifest),
            // Another one is looked for when it is restored.
            Err(error) if error.is_loss() => None,
            Err(error) => return Err(error.into()),
        },
    };
    let recovered = Recovered { conversation, ..Recovered::default() };
    let large = large.place;
    Ok(Some(Source { rows, newest, vault: vault.clone(), recovered, large, _place: place }))
}

/// The manifest of a snapshot. A large one is read in its turn.
pub(super) async fn manifest(
    vault: &Vault,
    session: &Session,
    row: &SnapshotRow,
    large: &mut Large<'_>,
) -> Result<Manifest, VaultError> {
    let digest = row.digest.parse().map_err(|_| VaultError::Missing(row.digest.clone()))?;
    let read = |most| vault.manifest(&session.tenant.0, session.id.0, digest, most);
    match read(SMALL_TREE_BYTES).await {
        Err(VaultError::Manifest(ManifestError::TooLarge)) => {
            large.take().await;
            read(MAX_MANIFEST_BYTES).await
        }
        read => read,
    }
}
