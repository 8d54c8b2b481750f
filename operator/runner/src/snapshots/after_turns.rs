//! Takes snapshots in the background after turns: one for those that end close together, and in the way of none.

use std::sync::Arc;

use tokio::time::{sleep, timeout};

use super::{SnapshotError, take_between};
use crate::{
    hub::{Hub, Place},
    limits::{SNAPSHOT_AFTER, SNAPSHOT_IDLE},
    sandbox::Sandbox,
    shared::Shared,
};

/// A turn ended: a snapshot is taken in a while.
pub(crate) fn turn_ended(shared: &Arc<Shared>, sandbox: &Arc<Sandbox>, hub: &Arc<Hub>) {
    if shared.snapshots.vault_for(sandbox).is_none() || !shared.snapshots.announce(sandbox.id) {
        return;
    }
    let (shared, sandbox, hub) = (Arc::clone(shared), Arc::clone(sandbox), Arc::clone(hub));
    tokio::spawn(async move {
        sleep(SNAPSHOT_AFTER).await;
        // Between turns files do not change under the reader's hands. A turn that takes long does not keep it waiting.
        let _ = timeout(SNAPSHOT_IDLE, hub.wait_idle()).await;
        let is_here = matches!(hub.place(), Place::Live(here) if Arc::ptr_eq(&here, &sandbox));
        if !is_here {
            // Whoever takes the session off its sandbox takes one.
            return shared.snapshots.begin(sandbox.id);
        }
        let taken = tokio::select! {
            taken = take_between(&shared, &sandbox, &hub) => taken,
            // So does whoever takes it off now: what this one has written that one finds.
            () = hub.wait_moving() => return shared.snapshots.begin(sandbox.id),
            () = sandbox.end.cancelled() => return shared.snapshots.begin(sandbox.id),
        };
        match taken {
            Ok(()) => {}
            Err(error @ SnapshotError::Spent) => {
                tracing::info!(session = %hub.session, %error, "a snapshot is put off");
            }
            Err(error) => {
                shared.snapshots.metrics.failed.inc();
                tracing::warn!(session = %hub.session, %error, "a snapshot could not be taken: the next one after the next turn");
            }
        }
    });
}
