//! Snapshots of workspaces: taken through the bridge and kept in the snapshot storage, and the way back.
//!
//! The bridge only lists, reads and writes. What is read, how it is cut, its digests and its names are decided and computed
//! here. What the session's log is for its conversation, the newest snapshot is for its files.

mod after_turns;
mod folder;
mod metrics;
mod reading;
mod restore;
mod take;

use std::{
    collections::HashSet,
    sync::{Arc, Mutex, PoisonError},
};

use ash_core::{id::SessionId, ports::StoreError};
use ash_protocol::message::Refusal;
use ash_snapshot::{ManifestError, Vault, VaultError};
use tokio::{
    sync::Semaphore,
    time::{error::Elapsed, timeout},
};

use self::metrics::SnapshotMetrics;
pub(crate) use self::{
    after_turns::turn_ended,
    folder::{belongs, mark},
    restore::restore,
    take::take,
};
use crate::{
    bridge::RequestError,
    hub::Hub,
    limits::{RESTORES_AT_ONCE, SNAPSHOT_AT_END, SNAPSHOTS_AT_ONCE},
    sandbox::Sandbox,
    shared::Shared,
};

/// The minor version of the protocol with which a bridge can list, read and restore a workspace.
const PROTOCOL: u16 = 2;

/// What all snapshots of a runner share.
pub(crate) struct Snapshots {
    vault: Option<Vault>,
    places: Semaphore,
    restores: Semaphore,
    metrics: SnapshotMetrics,
    /// Sessions of which a snapshot will be taken in a moment.
    due: Mutex<HashSet<SessionId>>,
}

/// Why a snapshot was not taken, or not restored.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SnapshotError {
    #[error("the sandbox's bridge did not do it: {0}")]
    Bridge(#[from] RequestError),
    #[error(transparent)]
    Vault(#[from] VaultError),
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the sandbox's bridge sent {0}")]
    Untrustworthy(String),
    #[error("the sandbox's bridge was silent for {} s", .0.as_secs())]
    Stalled(std::time::Duration),
    #[error("it was not done in time")]
    Late(#[from] Elapsed),
    #[error("a part of it was given up")]
    GivenUp(#[from] tokio::task::JoinError),
}

impl From<Refusal> for SnapshotError {
    fn from(refusal: Refusal) -> Self {
        Self::Bridge(RequestError::Refused(refusal))
    }
}

impl Snapshots {
    /// Snapshots in this storage; none are taken without one.
    pub(crate) fn new(vault: Option<Vault>) -> Self {
        Self {
            vault,
            places: Semaphore::new(SNAPSHOTS_AT_ONCE),
            restores: Semaphore::new(RESTORES_AT_ONCE),
            metrics: SnapshotMetrics::default(),
            due: Mutex::default(),
        }
    }

    pub(crate) fn register(&self, registry: &mut prometheus_client::registry::Registry) {
        self.metrics.register(registry);
    }

    /// Says that a snapshot of a session will be taken: false where that is said already.
    fn announce(&self, session: SessionId) -> bool {
        self.due.lock().unwrap_or_else(PoisonError::into_inner).insert(session)
    }

    fn begin(&self, session: SessionId) {
        self.due.lock().unwrap_or_else(PoisonError::into_inner).remove(&session);
    }

    fn vault_for(&self, sandbox: &Sandbox) -> Option<&Vault> {
        self.vault.as_ref().filter(|_| sandbox.speaks(PROTOCOL))
    }
}

/// Takes a snapshot of a session that is leaving its sandbox, within a bound. Where that does not succeed, its files are those of
/// the snapshot before, or of its folder where that is still there.
pub(crate) async fn take_at_end(shared: &Arc<Shared>, sandbox: &Arc<Sandbox>, hub: &Arc<Hub>) {
    if shared.snapshots.vault_for(sandbox).is_none() {
        return;
    }
    let taking = timeout(SNAPSHOT_AT_END, take(shared, sandbox, hub));
    let taken = tokio::select! {
        taken = taking => taken.map_err(SnapshotError::from).and_then(|taken| taken),
        () = sandbox.end.cancelled() => Err(RequestError::Gone.into()),
    };
    if let Err(error) = taken {
        shared.snapshots.metrics.failed.inc();
        tracing::warn!(session = %hub.session, %error, "a session leaves its sandbox without a snapshot");
    }
}
