//! Gives a session the pod that a coordinator claimed for it.

use std::sync::{Arc, atomic::Ordering};

use ash_core::{
    id::SandboxId,
    ports::{RunnerError, StoreError},
    sandbox::SandboxState,
    session::Session,
};
use ash_protocol::message::Claimed;
use tokio::time::timeout;

use crate::{
    hub::{Hub, Place},
    lifecycle::{StartError, bring, prepare_workspace},
    limits::CLAIM_WAIT,
    pool::is_new,
    sandbox::{EndReason, Sandbox},
    shared::Shared,
    snapshots::SnapshotError,
    turns::bind_or_end,
};

fn not_here(sandbox: SandboxId) -> RunnerError {
    RunnerError::Unreachable(format!("sandbox {sandbox} is not on this runner, or over: claim another one"))
}

/// Gives a session a warm sandbox of this runner, which the store has for it. Repeating it does nothing more.
///
/// # Errors
/// [`RunnerError::Unreachable`] where the sandbox is not here or cannot be had: whoever claimed it looks again.
pub(crate) async fn claim(shared: &Arc<Shared>, session: Session, id: SandboxId) -> Result<Session, RunnerError> {
    let hub = shared.hub(&session).await?;
    if !matches!(hub.place(), Place::None) {
        return settled(shared, &hub, id).await;
    }
    // After a restart of the runner its bridge may be on its way.
    let sandbox = timeout(CLAIM_WAIT, warm_one(shared, id)).await.map_err(|_| not_here(id))?;
    let sandbox = sandbox.ok_or_else(|| not_here(id))?;
    if !hub.begin_starting() {
        return settled(shared, &hub, id).await;
    }
    if !sandbox.claim(&hub, false) {
        hub.set_place(Place::None);
        return Err(not_here(id));
    }
    shared.pre_warm_hits.fetch_add(1, Ordering::Relaxed);
    // A session that lost its pod goes on with its conversation, and its files as they were when they were last kept. Nothing is
    // done to the pod before it is known that they are at hand.
    let is_new = is_new(&hub);
    let source = if is_new { Ok(None) } else { prepare_workspace(shared, &sandbox, &hub).await };
    let brought = match source {
        Ok(_) if is_new => Ok(()),
        Ok(source) => bring(shared, &sandbox, &hub, source).await,
        Err(StartError::Workspace(error)) if !matches!(error, SnapshotError::OldBridge) => {
            tracing::warn!(session = %hub.session, %error, "a session waits for its files: the pod stays as it was");
            sandbox.give_back();
            hub.set_place(Place::None);
            let why = StartError::Workspace(error).to_string();
            return Err(RunnerError::Store(StoreError::Unavailable(why)));
        }
        Err(error) => Err(error),
    };
    let given = match brought {
        Ok(()) => bind_or_end(shared, &sandbox, &hub, Claimed::Live).await,
        Err(error) => {
            sandbox.end_with(EndReason::Failed(error.to_string()));
            sandbox.gone.cancelled().await;
            Err(error)
        }
    };
    if let Err(error) = given {
        tracing::warn!(session = %hub.session, %error, "a warm pod could not be given to a session");
        hub.set_place(Place::None);
        return Err(RunnerError::Unreachable(error.to_string()));
    }
    Ok(hub.session())
}

/// The session as it is once somebody else has given it its sandbox.
async fn settled(shared: &Shared, hub: &Hub, id: SandboxId) -> Result<Session, RunnerError> {
    match timeout(shared.config.capacity_wait, hub.wait_settled()).await {
        Ok(Place::Live(_) | Place::Resting(_)) => Ok(hub.session()),
        _ => Err(not_here(id)),
    }
}

/// The sandbox once it is warm; `None` where it is something else.
async fn warm_one(shared: &Shared, id: SandboxId) -> Option<Arc<Sandbox>> {
    loop {
        let warmed = shared.warmed.notified();
        tokio::pin!(warmed);
        warmed.as_mut().enable();
        if let Some(sandbox) = shared.sandbox(id) {
            match sandbox.state() {
                SandboxState::Warm => return Some(sandbox),
                SandboxState::Warming => {}
                _ => return None,
            }
        }
        warmed.await;
    }
}
