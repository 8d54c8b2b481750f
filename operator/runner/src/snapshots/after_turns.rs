//! Takes snapshots in the background after turns: one for those that end close together, and in the way of none.

use std::sync::Arc;

use tokio::time::{sleep, timeout};

use super::take;
use crate::{
    hub::{Hub, Place},
    limits::{SNAPSHOT_AFTER, SNAPSHOT_IDLE},
    sandbox::Sandbox,
    shared::Shared,
};

/// A turn ended: a snapshot is taken in a while.
pub(crate) fn turn_ended(shared: &Arc<Shared>, sandbox: &Arc<Sandbox>, hub: &Arc<Hub>) {
    if shared.snapshots.vault_for(sandbox).is_none() || !shared.snapshots.announce(hub.session) {
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
            return shared.snapshots.begin(hub.session);
        }
        let taken = tokio::select! {
            taken = take(&shared, &sandbox, &hub) => taken,
            () = sandbox.end.cancelled() => return shared.snapshots.begin(hub.session),
        };
        if let Err(error) = taken {
            shared.snapshots.begin(hub.session);
            shared.snapshots.metrics.failed.inc();
            tracing::warn!(session = %hub.session, %error, "a snapshot could not be taken: the next one after the next turn");
        }
    });
}
