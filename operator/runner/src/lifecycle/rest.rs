//! Lets a session rest on its sandbox, and wakes it there: Claude is stopped, the workspace and the conversation stay.
//!
//! Resting is an epoch of its own, as leaving is: it begins when everything that was said before is committed, and nothing is
//! written in it but its opening. Waking is the next one. So a bridge that missed either is overtaken, and no number is used twice.

use std::sync::Arc;

use ash_core::{
    opening::Opening,
    ports::{OpenEpoch, StoreError},
};
use ash_protocol::message::{Claimed, Request, Rested};
use serde::de::IgnoredAny;
use tokio::time::timeout;

use super::{
    bind::{Cause, bind_claimed},
    close::close,
    leave::{Departure, departure, leave},
    start::StartError,
};
use crate::{
    bridge::RequestError,
    hub::{Hub, Place, Urgency},
    limits::{BRIDGE_ANSWER, FLUSH_WAIT, INTERRUPTED},
    sandbox::{EndReason, Sandbox},
    shared::Shared,
    snapshots::take_at_end,
};

/// Why a session does not rest.
#[derive(Debug, thiserror::Error)]
enum NotResting {
    #[error(transparent)]
    Bridge(#[from] RequestError),
    #[error("its last entries could not be written within {} s", FLUSH_WAIT.as_secs())]
    Unwritten,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Lets a session rest that has begun to leave its sandbox. Where that does not succeed, it leaves it.
pub(crate) async fn rest(shared: &Arc<Shared>, sandbox: &Arc<Sandbox>, hub: &Arc<Hub>, reason: EndReason) {
    match try_rest(shared, sandbox, hub, &reason).await {
        Ok(()) => {
            shared.metrics.sessions_rested.inc();
            tracing::debug!(sandbox = %sandbox.id, session = %hub.session, "rests");
        }
        Err(error) => {
            shared.metrics.rests_failed.inc();
            tracing::warn!(sandbox = %sandbox.id, session = %hub.session, %error, "a session does not rest: it leaves its sandbox");
            close(&shared.metrics, sandbox, reason).await;
            return;
        }
    }
    // One that ended meanwhile had no session to leave it then.
    if sandbox.end.is_cancelled() {
        sandbox.gone.cancelled().await;
        leave(shared, sandbox, hub).await;
    }
}

async fn try_rest(
    shared: &Arc<Shared>,
    sandbox: &Arc<Sandbox>,
    hub: &Arc<Hub>,
    reason: &EndReason,
) -> Result<(), NotResting> {
    if let Some(turn) = hub.leaving_turn() {
        // A turn that does not end after that is killed by the bridge.
        let interrupt = Request::Interrupt { turn: Some(turn.0) };
        sandbox.bridge.call_within::<IgnoredAny>(&interrupt, BRIDGE_ANSWER).await?;
        let _ = timeout(INTERRUPTED, hub.wait_idle()).await;
    }
    take_at_end(shared, sandbox, hub).await;
    let rested = ask(sandbox).await?;
    // The answer may overtake the last entries.
    let written = async {
        hub.wait_taken(rested.last).await;
        shared.queue.push(hub, Urgency::Now);
        hub.wait_committed().await
    };
    if timeout(FLUSH_WAIT, written).await != Ok(true) {
        return Err(NotResting::Unwritten);
    }
    let row = hub.session();
    let Departure { event, reason, message } = departure(reason);
    let turn = hub.leaving_turn().map(|turn| turn.0);
    let opening = Opening {
        reason,
        last_committed: row.last,
        interrupted: turn,
        message: message.filter(|_| turn.is_some()),
        recovered: None,
        sandbox: None,
    };
    let open = OpenEpoch {
        session: row.id,
        expected: row.epoch,
        state: row.state.after(event).unwrap_or(row.state),
        error: None,
        sandbox: Some(sandbox.id),
        opening: opening.clone(),
    };
    let row = shared.store.open_epoch(open).await?;
    hub.open_epoch(row, &opening, Place::Resting(Arc::clone(sandbox)));
    Ok(())
}

/// Asks the bridge; again where its connection broke, for as long as the sandbox is there.
async fn ask(sandbox: &Arc<Sandbox>) -> Result<Rested, RequestError> {
    loop {
        let mut connections = sandbox.connections.subscribe();
        connections.mark_unchanged();
        let asked = sandbox.bridge.call_within::<Rested>(&Request::Rest {}, BRIDGE_ANSWER);
        let answer = tokio::select! {
            answer = asked => answer,
            () = sandbox.end.cancelled() => return Err(RequestError::Gone),
        };
        match answer {
            Err(RequestError::Gone) => {}
            answer => return answer,
        }
        tokio::select! {
            _ = connections.changed() => {}
            () = sandbox.end.cancelled() => return Err(RequestError::Gone),
        }
    }
}

/// Wakes a session that rests on a sandbox, and whose waking was begun. On an error the sandbox is ended and gone.
pub(crate) async fn wake(
    shared: &Arc<Shared>,
    sandbox: &Arc<Sandbox>,
    hub: &Arc<Hub>,
    cause: Cause,
) -> Result<(), StartError> {
    let woken = bind_claimed(shared, sandbox, hub, Claimed::Restarted, cause).await;
    match woken {
        Ok(_) => {
            sandbox.touch();
            shared.metrics.sessions_woken.inc();
            Ok(())
        }
        Err(error) => {
            sandbox.end_with(EndReason::Failed(error.to_string()));
            sandbox.gone.cancelled().await;
            Err(error)
        }
    }
}
