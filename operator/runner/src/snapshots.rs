//! Snapshots of workspaces: taken through the bridge and kept in the snapshot storage, and the way back.
//!
//! The bridge only lists, reads and writes. What is read, how it is cut, its digests and its names are decided and computed
//! here. What the session's log is for its conversation, the newest snapshot is for its files.

mod after_turns;
mod allowance;
mod aside;
mod assemble;
mod folder;
mod metrics;
mod packing;
mod places;
mod reading;
mod restore;
mod source;
mod take;

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ash_core::{
    id::{SandboxId, SessionId},
    ports::StoreError,
};
use ash_protocol::message::Refusal;
use ash_snapshot::{ManifestError, Vault, VaultError};
use tokio::time::{Instant, error::Elapsed, timeout};

pub(crate) use self::{
    after_turns::turn_ended,
    aside::{Aside, find as find_aside},
    folder::{belongs, intend, mark},
    restore::restore,
    source::{Source, prepare},
};
use self::{
    allowance::Allowances,
    metrics::SnapshotMetrics,
    places::Places,
    take::{When, take},
};
use crate::{
    bridge::RequestError,
    hub::Hub,
    limits::{
        LARGE_AT_ONCE, LEAVING_AT_ONCE, LEAVING_WAIT, RESTORES_AT_ONCE, SNAPSHOT_AT_END, SNAPSHOT_CHECK,
        SNAPSHOTS_AT_ONCE,
    },
    sandbox::Sandbox,
    shared::Shared,
};

/// The minor version of the protocol with which a bridge can list, read and restore a workspace.
const PROTOCOL: u16 = 2;

/// What all snapshots of a runner share.
pub(crate) struct Snapshots {
    vault: Option<Vault>,
    /// Bytes that the files of a workspace may have.
    most: u64,
    places: Places,
    /// For sessions that leave: they wait for nobody who goes on.
    leaving: Places,
    restores: Places,
    /// For workspaces with so much in them that their lists take memory.
    large: Places,
    metrics: SnapshotMetrics,
    /// Sandboxes of whose session a snapshot will be taken in a moment.
    due: Mutex<HashSet<SandboxId>>,
    allowances: Mutex<Allowances>,
    /// When it was last looked whether the segments of a session are there.
    checked: Mutex<HashMap<SessionId, Instant>>,
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
    Stalled(Duration),
    #[error("it was not done in time")]
    Late(#[from] Elapsed),
    #[error("a part of it was given up")]
    GivenUp(#[from] tokio::task::JoinError),
    #[error("the workspace has more than {} MiB: leave some out with .ashignore, or raise --snapshot-quota", .0 >> 20)]
    Quota(u64),
    #[error("the session wrote more to the snapshot storage than it may for now")]
    Spent,
    #[error("what it is of could not be written to the log")]
    Uncommitted,
    #[error(
        "its files are in a snapshot storage, and this runner has none: give it the --object-store of the other runners"
    )]
    NoStorage,
    #[error("the sandbox's bridge is of a release that cannot restore a workspace")]
    OldBridge,
    #[error("none of its {0} snapshots is in the snapshot storage: is --object-store that of the other runners?")]
    NothingThere(usize),
    #[error(
        "none of its snapshots is whole: it goes on with what it left on this machine earlier; send the message again"
    )]
    NothingWhole,
}

impl From<Refusal> for SnapshotError {
    fn from(refusal: Refusal) -> Self {
        Self::Bridge(RequestError::Refused(refusal))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Snapshots {
    /// Snapshots in this storage, of workspaces of at most so many bytes; none are taken without a storage.
    pub(crate) fn new(vault: Option<Vault>, most: u64) -> Self {
        Self {
            vault,
            most,
            places: Places::new(SNAPSHOTS_AT_ONCE),
            leaving: Places::new(LEAVING_AT_ONCE),
            restores: Places::new(RESTORES_AT_ONCE),
            large: Places::new(LARGE_AT_ONCE),
            metrics: SnapshotMetrics::default(),
            due: Mutex::default(),
            allowances: Mutex::new(Allowances::new(most)),
            checked: Mutex::default(),
        }
    }

    pub(crate) fn register(&self, registry: &mut prometheus_client::registry::Registry) {
        self.metrics.register(registry);
    }

    /// Says that a snapshot of a sandbox's session will be taken: false where that is said already.
    fn announce(&self, sandbox: SandboxId) -> bool {
        lock(&self.due).insert(sandbox)
    }

    fn begin(&self, sandbox: SandboxId) {
        lock(&self.due).remove(&sandbox);
    }

    fn allowances(&self) -> MutexGuard<'_, Allowances> {
        lock(&self.allowances)
    }

    /// Whether it is time to look whether the segments of a session are still there. In a folder a power failure may have taken
    /// them, and looking costs next to nothing.
    fn is_check_due(&self, session: SessionId, vault: &Vault) -> bool {
        let since = lock(&self.checked).get(&session).copied();
        vault.is_folder() || since.is_none_or(|since| since.elapsed() >= SNAPSHOT_CHECK)
    }

    fn checked(&self, session: SessionId) {
        let mut checked = lock(&self.checked);
        if checked.len() == checked.capacity() {
            checked.retain(|_, since| since.elapsed() < SNAPSHOT_CHECK);
        }
        checked.insert(session, Instant::now());
    }

    /// Bytes that were written so far to a folder of this machine.
    pub(crate) fn bytes_kept_here(&self) -> u64 {
        let is_here = self.vault.as_ref().is_some_and(Vault::is_folder);
        if is_here { self.metrics.bytes_written.get() } else { 0 }
    }

    /// Whether there is a storage.
    pub(crate) fn has_vault(&self) -> bool {
        self.vault.is_some()
    }

    fn vault_for(&self, sandbox: &Sandbox) -> Option<&Vault> {
        self.vault.as_ref().filter(|_| sandbox.speaks(PROTOCOL))
    }

    /// Counts what has to wait for a place.
    async fn place(&self, places: &Places, hub: &Hub) -> places::Place {
        let tenant = hub.session().tenant;
        if places.is_full(&tenant) {
            self.metrics.waited.inc();
        }
        places.acquire(&tenant).await
    }
}

/// Takes a snapshot of a session that goes on on its sandbox.
async fn take_between(shared: &Arc<Shared>, sandbox: &Arc<Sandbox>, hub: &Arc<Hub>) -> Result<(), SnapshotError> {
    let Some(vault) = shared.snapshots.vault_for(sandbox) else { return Ok(()) };
    // One at a time of a session, and few at a time of all.
    let _own = sandbox.snapshot.lock().await;
    let _place = shared.snapshots.place(&shared.snapshots.places, hub).await;
    // What ends from now on is not in it.
    shared.snapshots.begin(sandbox.id);
    take(shared, sandbox, hub, vault, When::Between).await
}

/// Takes a snapshot of a session that is leaving its sandbox, within a bound. Where that does not succeed, its files are those of
/// the snapshot before, or of its folder where that is still there.
pub(crate) async fn take_at_end(shared: &Arc<Shared>, sandbox: &Arc<Sandbox>, hub: &Arc<Hub>) {
    let Some(vault) = shared.snapshots.vault_for(sandbox) else { return };
    let taking = async {
        let waiting = async {
            let own = sandbox.snapshot.lock().await;
            (own, shared.snapshots.place(&shared.snapshots.leaving, hub).await)
        };
        let _places = timeout(LEAVING_WAIT, waiting).await?;
        timeout(SNAPSHOT_AT_END, take(shared, sandbox, hub, vault, When::Leaving)).await?
    };
    let taken = tokio::select! {
        taken = taking => taken,
        () = sandbox.end.cancelled() => Err(RequestError::Gone.into()),
    };
    if let Err(error) = taken {
        shared.snapshots.metrics.failed.inc();
        tracing::warn!(session = %hub.session, %error, "a session leaves its sandbox without a snapshot");
    }
}
