//! Looks after a sandbox for its whole life: serves its bridge until something ends it, then clears up.

use std::sync::Arc;

use tracing::Instrument;

use super::{
    close::{HOME, remove_folder},
    connections::serve_connections,
    leave::leave,
};
use crate::{
    enclosure::Dialled,
    kernel,
    sandbox::{EndReason, Sandbox},
    shared::Shared,
};

/// Looks after a sandbox for its whole life, in a span of its own.
pub(crate) fn spawn_supervisor(shared: &Arc<Shared>, sandbox: &Arc<Sandbox>, dialled: Dialled) {
    let span = tracing::info_span!("sandbox", sandbox = %sandbox.id, agent = %sandbox.agent.agent);
    tokio::spawn(supervise(Arc::clone(shared), Arc::clone(sandbox), dialled).instrument(span));
}

/// Serves a sandbox's connections until it ends, then takes its session off it and clears up.
async fn supervise(shared: Arc<Shared>, sandbox: Arc<Sandbox>, mut dialled: Dialled) {
    let ended_by_itself = tokio::select! {
        () = serve_connections(&shared, &sandbox, &mut dialled) => true,
        is_known = sandbox.enclosure.exited() => {
            shared.metrics.exits_unknown.inc_by(u64::from(!is_known));
            true
        }
        () = sandbox.end.cancelled() => false,
        // The next life of the runner serves it: here is nothing to clear up.
        () = handed_over(&shared, &sandbox) => {
            sandbox.bridge.fail_pending();
            return;
        }
    };
    if ended_by_itself && sandbox.end_reason().is_none() {
        shared.metrics.sandboxes_lost.inc();
        tracing::warn!(sandbox = %sandbox.id, session = ?sandbox.session(), "a sandbox was lost");
    }
    sandbox.end_with(EndReason::Lost);
    if let Some(hub) = sandbox.hub() {
        // Before the kill, which takes a moment: a message that comes meanwhile waits for the next sandbox.
        hub.begin_leaving(&sandbox);
    }
    kernel::count(&shared, &sandbox).await;
    kernel::forget(&shared, &sandbox);
    // No connection of a bridge is served from here on, nor one that waits.
    drop(dialled);
    if let Err(error) = sandbox.enclosure.kill().await {
        shared.metrics.kills_failed.inc();
        tracing::error!(sandbox = %sandbox.id, %error, "a sandbox could not be killed");
    }
    shared.gateway.remove(ash_gateway::SandboxId(sandbox.id.0));
    sandbox.end_attachment();
    sandbox.bridge.fail_pending();
    clear_folder(&shared, &sandbox).await;
    if let Some(hub) = sandbox.hub() {
        leave(&shared, &sandbox, &hub).await;
    }
    sandbox.enclosure.over(sandbox.end_reason().and_then(EndReason::sentence)).await;
    shared.remove_sandbox(sandbox.id);
    sandbox.release_place();
    sandbox.gone.cancel();
    crate::pool::freed(&shared);
}

/// Completes when this life of the runner has given everything to the next one that its pods dial.
async fn handed_over(shared: &Shared, sandbox: &Sandbox) {
    match sandbox.enclosure.directory() {
        None => shared.silent.cancelled().await,
        Some(_) => std::future::pending().await,
    }
}

/// Takes away what is of no use without the sandbox: its home, for the conversation is in the log. The workspace is its session's
/// and stays, unless the folder never became a session's.
async fn clear_folder(shared: &Shared, sandbox: &Sandbox) {
    let _folder = sandbox.folder.lock().await;
    let Some(folder) = sandbox.enclosure.directory() else { return };
    let never_a_sessions = folder == shared.folders.of_sandbox(sandbox.id);
    remove_folder(if never_a_sessions { folder } else { folder.join(HOME) }).await;
}
