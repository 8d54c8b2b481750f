//! Turns: from a message that was taken to the bridge that admits it, with a sandbox found on the way where there is none.

use std::sync::{Arc, atomic::Ordering};

use ash_core::{
    agent::AgentVersion,
    opening::{Opening, OpeningReason},
    ports::{NewMessage, RunnerError},
    session::{SessionEvent, SessionState},
};
use ash_protocol::{
    message::{Admit, Claimed, RefusalCategory, Request},
    options::TurnOptions,
};
use serde::de::IgnoredAny;

use crate::{
    bridge::{Answer, RequestError},
    hub::{Hub, Place, Reservation},
    lifecycle::{CLAIMED, For, StartError, bind_claimed, open_without_sandbox, start, wake},
    limits::BRIDGE_ANSWER,
    pool::{self, Room},
    sandbox::{EndReason, Sandbox},
    shared::Shared,
};

fn request(shared: &Shared, message: &NewMessage) -> Request {
    Request::Admit(Box::new(Admit {
        turn: message.turn.0,
        content: message.content.clone(),
        options: message.options.clone(),
        permission_timeout_ms: u64::try_from(shared.config.permission_timeout.as_millis()).unwrap_or(u64::MAX),
    }))
}

/// Brings a reserved turn to the session's sandbox. Returns as soon as nothing can refuse the message any more: it is on its way
/// to a live bridge, or a place for the session's sandbox is reserved.
pub(crate) async fn begin(
    shared: &Arc<Shared>,
    agent: AgentVersion,
    message: NewMessage,
    reservation: Reservation,
) -> Result<(), RunnerError> {
    let hub = reservation.hub();
    let place = match hub.live() {
        Some(sandbox) => Place::Live(sandbox),
        // A pod that comes to nothing is not replaced here: whoever sent the message has to hear of it.
        None if shared.backend.pods().is_some() => hub.wait_settled().await,
        None => hub.wait_settled_or_starting().await,
    };
    // A person may have put it aside while it left its sandbox: then no other one is looked for.
    hub.session().state.after(SessionEvent::Message).map_err(|impossible| RunnerError::State(impossible.0))?;
    let room = match place {
        Place::Live(sandbox) => {
            // Whoever sent the message may go away while it is on its way to the bridge, which takes it all the same.
            let sending = tokio::spawn(send_to(Arc::clone(shared), agent, message, sandbox, reservation));
            return sending.await.map_err(|error| RunnerError::Internal(error.to_string()))?;
        }
        Place::None if shared.backend.pods().is_some() => return Err(not_here()),
        Place::None => Some(pool::acquire(shared, hub, &agent).await?),
        _ => None,
    };
    tokio::spawn(drive(Arc::clone(shared), reservation.keep(), agent, message, room));
    Ok(())
}

/// Sends a turn to a live bridge, which from then on may have admitted it: only its refusal takes the reservation back.
async fn send_to(
    shared: Arc<Shared>,
    agent: AgentVersion,
    message: NewMessage,
    sandbox: Arc<Sandbox>,
    reservation: Reservation,
) -> Result<(), RunnerError> {
    let mut answer = sandbox.bridge.send_within(&request(&shared, &message), BRIDGE_ANSWER).await;
    // An option may be refused; one that is the session's own was taken before, so a message without any is not held up.
    if message.options != TurnOptions::default() {
        answer = match answer.read_within::<IgnoredAny>(BRIDGE_ANSWER).await {
            Ok(_) => {
                reservation.keep();
                return Ok(());
            }
            Err(RequestError::Refused(refusal)) if refusal.category == RefusalCategory::OptionRefused => {
                return Err(RunnerError::OptionRefused(refusal.message));
            }
            Err(error) => Answer::known(error),
        };
    }
    tokio::spawn(follow(shared, reservation.keep(), agent, message, sandbox, answer));
    Ok(())
}

/// A session whose pod is not here: whoever sent the message looks for it again.
fn not_here() -> RunnerError {
    RunnerError::Unreachable("the session has no sandbox on this runner: try again".to_owned())
}

/// A session whose pod went while its turn was on its way there.
fn lost_before_it_began() -> RunnerError {
    RunnerError::Unreachable("the session's sandbox was lost before the turn began; send the message again".to_owned())
}

/// Finds the session a sandbox and admits the turn there, for as long as the turn is not over.
async fn drive(shared: Arc<Shared>, hub: Arc<Hub>, agent: AgentVersion, message: NewMessage, mut room: Option<Room>) {
    loop {
        match hub.wait_settled().await {
            Place::Live(sandbox) => {
                let answer = sandbox.bridge.send_within(&request(&shared, &message), BRIDGE_ANSWER).await;
                return follow(shared, hub, agent, message, sandbox, answer).await;
            }
            _ if !is_current(&hub, &message) => return,
            Place::Resting(sandbox) => {
                if hub.begin_waking(&sandbox)
                    && let Err(error) = wake(&shared, &sandbox, &hub, CLAIMED).await
                {
                    return give_up(&shared, &hub, NoSandbox::Failed(error)).await;
                }
                continue;
            }
            _ => {}
        }
        if !hub.begin_starting() {
            continue;
        }
        if shared.backend.pods().is_some() {
            return give_up(&shared, &hub, NoSandbox::NoRoom(lost_before_it_began())).await;
        }
        let room = match room.take() {
            Some(room) => Ok(room),
            None => pool::acquire(&shared, &hub, &agent).await,
        };
        let started = match room {
            Ok(room) => start_for(&shared, &hub, &agent, room).await.map_err(NoSandbox::Failed),
            Err(error) => Err(NoSandbox::NoRoom(error)),
        };
        if let Err(why) = started {
            return give_up(&shared, &hub, why).await;
        }
    }
}

fn is_current(hub: &Hub, message: &NewMessage) -> bool {
    hub.turn().is_some_and(|turn| turn.id == message.turn)
}

/// Sees to it that a turn that was sent to a bridge is admitted.
async fn follow(
    shared: Arc<Shared>,
    hub: Arc<Hub>,
    agent: AgentVersion,
    message: NewMessage,
    sandbox: Arc<Sandbox>,
    mut answer: Answer,
) {
    loop {
        // The connections so far are counted before the answer: one that is lost after it is seen.
        let mut connections = sandbox.connections.subscribe();
        connections.mark_unchanged();
        let answered = tokio::select! {
            answered = answer.read_within::<IgnoredAny>(BRIDGE_ANSWER) => answered,
            // A request that was sent after the last connection ended is never answered.
            () = sandbox.gone.cancelled() => Err(RequestError::Gone),
        };
        match answered {
            Ok(_) => return,
            Err(RequestError::Gone) => {}
            Err(error) => {
                if matches!(error, RequestError::Silent(_)) {
                    shared.metrics.bridges_silent.inc();
                }
                tracing::error!(session = %hub.session, %error, "a bridge did not admit a turn");
                return sandbox.end_with(EndReason::Failed(error.to_string()));
            }
        }
        tokio::select! {
            _ = connections.changed() => {}
            () = sandbox.gone.cancelled() => {}
        }
        if !is_current(&hub, &message) {
            return;
        }
        if sandbox.gone.is_cancelled() {
            return Box::pin(drive(shared, hub, agent, message, None)).await;
        }
        answer = sandbox.bridge.send_within(&request(&shared, &message), BRIDGE_ANSWER).await;
    }
}

/// Gives a session a sandbox of its own: a warm one where it is new, else one that is started.
pub(crate) async fn start_for(
    shared: &Arc<Shared>,
    hub: &Arc<Hub>,
    agent: &AgentVersion,
    room: Room,
) -> Result<(), StartError> {
    let is_new = pool::is_new(hub);
    let place = match room {
        Room::Place(place) => place,
        Room::Warm(claim) => {
            let sandbox = claim.keep().ok_or(StartError::Ended)?;
            shared.pre_warm_hits.fetch_add(1, Ordering::Relaxed);
            return bind_or_end(shared, &sandbox, hub, Claimed::Live).await;
        }
    };
    if is_new && let Some(sandbox) = pool::claim_warm(shared, agent, hub) {
        shared.pre_warm_hits.fetch_add(1, Ordering::Relaxed);
        match bind_or_end(shared, &sandbox, hub, Claimed::Live).await {
            Ok(()) => return Ok(()),
            Err(error) => {
                tracing::warn!(session = %hub.session, %error, "a warm sandbox could not be given to a session: it gets a new one");
            }
        }
    }
    if !is_new {
        shared.resume_cold_hits.fetch_add(1, Ordering::Relaxed);
    }
    let start = start(shared, agent, place, For::Session(Arc::clone(hub)));
    let sandbox = shared.starts.in_turn(start).await.ok_or(StartError::Ended)??;
    if !sandbox.claim(hub, true) {
        sandbox.end_with(EndReason::Lost);
        sandbox.gone.cancelled().await;
        return Err(StartError::Ended);
    }
    bind_or_end(shared, &sandbox, hub, Claimed::Cold).await
}

/// Binds a claimed sandbox. Where that fails it is ended, and gone when this returns: until then the session gets no other one,
/// which would share its folder. Then the pool is filled up again.
pub(crate) async fn bind_or_end(
    shared: &Arc<Shared>,
    sandbox: &Arc<Sandbox>,
    hub: &Arc<Hub>,
    how: Claimed,
) -> Result<(), StartError> {
    let bound = bind_claimed(shared, sandbox, hub, how, CLAIMED).await;
    pool::refill(shared, &sandbox.agent);
    if let Err(error) = &bound {
        sandbox.end_with(EndReason::Failed(error.to_string()));
        sandbox.gone.cancelled().await;
    }
    bound.map(|_| ())
}

/// Why a session got no sandbox.
#[derive(Debug)]
pub(crate) enum NoSandbox {
    /// There was no room for one, or the server stops.
    NoRoom(RunnerError),
    /// One could not be started.
    Failed(StartError),
}

/// What becomes of a session that got no sandbox.
#[derive(Debug, PartialEq, Eq)]
struct GivenUp {
    state: SessionState,
    reason: OpeningReason,
    /// Why, for the readers of its turn.
    message: String,
    /// Whether that is an error of the session's own, which it keeps.
    is_error: bool,
}

impl NoSandbox {
    /// Only a sandbox that could not be started is an error of the session. Where there is no room, or the server stops, it stays
    /// as it was, and its next message tries again.
    fn given_up(self, state: SessionState, closing: bool) -> GivenUp {
        let no_room = match self {
            Self::NoRoom(error) => error,
            Self::Failed(_) if closing => RunnerError::ShuttingDown,
            Self::Failed(error) => {
                let after = state.after(SessionEvent::Fail).unwrap_or(state);
                return GivenUp {
                    state: after,
                    reason: OpeningReason::Failed,
                    message: error.to_string(),
                    is_error: true,
                };
            }
        };
        GivenUp { state, reason: OpeningReason::Asleep, message: no_room.to_string(), is_error: false }
    }
}

/// Ends the turn of a session that got no sandbox, with the reason.
pub(crate) async fn give_up(shared: &Arc<Shared>, hub: &Arc<Hub>, why: NoSandbox) {
    let row = hub.session();
    let GivenUp { state, reason, message, is_error } = why.given_up(row.state, shared.closing.is_cancelled());
    tracing::warn!(session = %hub.session, error = message, "a session got no sandbox");
    let opening = Opening {
        reason,
        last_committed: row.last,
        interrupted: hub.turn().map(|turn| turn.id.0),
        message: Some(message.clone()),
        recovered: None,
        sandbox: None,
    };
    let error = if is_error { Some(message) } else { row.error };
    open_without_sandbox(shared, hub, state, error, opening).await;
}

#[cfg(test)]
mod tests {
    use ash_core::{
        opening::OpeningReason,
        ports::RunnerError,
        session::{PausedReason, SessionState},
    };

    use super::{NoSandbox, StartError};

    #[test]
    fn want_of_room_leaves_a_session_as_it_was() {
        for state in [SessionState::Paused(PausedReason::Evicted), SessionState::Active, SessionState::Stopped] {
            for error in [RunnerError::NoCapacity { waited_seconds: 30 }, RunnerError::ShuttingDown] {
                let given_up = NoSandbox::NoRoom(error.clone()).given_up(state, false);
                assert_eq!((given_up.state, given_up.is_error), (state, false));
                assert_eq!((given_up.reason, given_up.message), (OpeningReason::Asleep, error.to_string()));
            }
        }
    }

    #[test]
    fn only_a_failed_start_is_an_error_of_the_session_and_not_at_the_servers_end() {
        let failed = |closing| NoSandbox::Failed(StartError::NoBundle).given_up(SessionState::Active, closing);
        assert_eq!((failed(false).state, failed(false).is_error), (SessionState::Error, true));
        assert_eq!((failed(true).state, failed(true).is_error), (SessionState::Active, false));
        assert_eq!(failed(true).message, RunnerError::ShuttingDown.to_string());
    }
}
