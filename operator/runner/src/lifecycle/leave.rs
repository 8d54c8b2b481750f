//! Takes a session off its sandbox: what it said is committed, then an epoch without a sandbox says why.

use std::sync::Arc;

use ash_core::{
    opening::{Opening, OpeningReason},
    ports::{OpenEpoch, StoreError},
    session::{PausedReason, Session, SessionEvent, SessionState},
};
use tokio::time::{sleep, timeout};

use crate::{
    commit::unwritten,
    hub::{Hub, Place, Urgency},
    limits::{COMMIT_RETRY, COMMIT_TRIES, FLUSH_WAIT},
    sandbox::{EndReason, Sandbox},
    shared::Shared,
};

/// What leaving a sandbox for a reason is to a session.
pub(super) struct Departure {
    pub(super) event: SessionEvent,
    pub(super) reason: OpeningReason,
    /// For the readers of a turn that is interrupted by it.
    pub(super) message: Option<String>,
}

/// Says it.
pub(super) fn departure(reason: &EndReason) -> Departure {
    let (event, reason, message) = match reason {
        EndReason::Lost => (
            SessionEvent::Pause(PausedReason::Lost),
            OpeningReason::Lost,
            Some("The sandbox was lost in the middle of the turn; send the message again.".to_owned()),
        ),
        EndReason::Asleep(reason) => (
            SessionEvent::Pause(*reason),
            OpeningReason::Asleep,
            Some("The turn was interrupted: its server stopped or needed the sandbox.".to_owned()),
        ),
        EndReason::Closed(closing) => (closing.event(), closing.reason(), Some(closing.message().to_owned())),
        EndReason::Failed(message) => {
            (SessionEvent::Pause(PausedReason::Lost), OpeningReason::Lost, Some(message.clone()))
        }
    };
    Departure { event, reason, message }
}

/// Takes a session off a sandbox that is over: its tail is committed, then the next epoch says why.
pub(super) async fn leave(shared: &Arc<Shared>, sandbox: &Arc<Sandbox>, hub: &Arc<Hub>) {
    // A session that is only just being bound is not on its sandbox yet: whoever binds it looks again when it is.
    let on_it = hub.begin_leaving(sandbox) || hub.is_leaving(sandbox);
    if !on_it || !sandbox.take_leave() {
        return;
    }
    shared.queue.push(hub, Urgency::Now);
    if timeout(FLUSH_WAIT, hub.wait_committed()).await != Ok(true) {
        shared.metrics.tails_withdrawn.inc();
        tracing::error!(session = %hub.session, "a session's last entries could not be written; they are withdrawn");
    }
    let row = hub.session();
    let turn = hub.leaving_turn().map(|turn| turn.0);
    let Departure { event, reason, message } = departure(&sandbox.end_reason().unwrap_or(EndReason::Lost));
    let opening = Opening {
        reason,
        last_committed: row.last,
        interrupted: turn,
        message: message.filter(|_| turn.is_some()),
        recovered: None,
        sandbox: None,
    };
    let state = row.state.after(event).unwrap_or(row.state);
    open_without_sandbox(shared, hub, state, None, opening).await;
}

/// Opens an epoch in which the session has no sandbox. When the store does not let it, the hub says so to its readers; the
/// next claim opens the epoch instead.
pub(crate) async fn open_without_sandbox(
    shared: &Arc<Shared>,
    hub: &Arc<Hub>,
    state: SessionState,
    error: Option<String>,
    opening: Opening,
) -> Option<Session> {
    let mut reason = String::new();
    let mut opening = opening;
    for _ in 0..COMMIT_TRIES {
        // What was committed while the try before this one waited counts.
        opening.last_committed = hub.session().last;
        let open = OpenEpoch {
            session: hub.session,
            expected: hub.epoch(),
            state,
            error: error.clone(),
            sandbox: None,
            opening: opening.clone(),
        };
        match shared.store.open_epoch(open).await {
            Ok(row) => {
                hub.open_epoch(row.clone(), &opening, Place::None);
                return Some(row);
            }
            Err(error @ (StoreError::Full | StoreError::Unavailable(_))) => {
                reason = unwritten(&error);
                sleep(COMMIT_RETRY).await;
            }
            Err(StoreError::Overtaken { .. }) if matches!(shared.refresh(hub).await, Ok(true)) => {}
            // An append that was given up waiting for is committed after all: what it wrote counts as soon as it says so.
            Err(StoreError::Overtaken { epoch, last, .. }) if epoch == hub.epoch() && last <= hub.last() => {
                reason = unwritten(&StoreError::Unavailable("an append takes too long".to_owned()));
                let _ = timeout(COMMIT_RETRY, hub.wait_committed()).await;
            }
            // The try before this one got there, and its answer did not.
            Err(StoreError::Overtaken { epoch, .. }) if hub.epoch().next() == Some(epoch) => {
                match shared.opened(hub, &opening, state).await {
                    Some((row, logged)) => {
                        hub.open_epoch(row.clone(), &logged, Place::None);
                        return Some(row);
                    }
                    None => break,
                }
            }
            Err(error) => {
                shared.metrics.epochs_refused.inc_by(u64::from(matches!(error, StoreError::Conflict(_))));
                tracing::error!(session = %hub.session, %error, "an epoch could not be opened");
                reason = unwritten(&error);
                break;
            }
        }
    }
    hub.fail(reason);
    hub.set_place(Place::None);
    None
}
