//! Turns: from a message that was taken to the bridge that admits it, with a sandbox found on the way where there is none.

use std::sync::{Arc, atomic::Ordering};

use ash_core::{
    agent::AgentVersion,
    opening::{Opening, OpeningReason},
    ports::{NewMessage, RunnerError},
    session::SessionEvent,
};
use ash_protocol::{
    Sequence,
    message::{Admit, Claimed, RefusalCategory, Request},
    options::TurnOptions,
};
use serde::de::IgnoredAny;
use tokio::sync::OwnedSemaphorePermit;

use crate::{
    bridge::{Answer, RequestError},
    hub::{Hub, Place},
    lifecycle::{For, StartError, bind, open_without_sandbox, start},
    pool,
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
    hub: &Arc<Hub>,
    agent: AgentVersion,
    message: NewMessage,
) -> Result<(), RunnerError> {
    if let Some(sandbox) = hub.live() {
        let mut answer = sandbox.bridge.send(&request(shared, &message)).await;
        // An option may be refused; one that is the session's own was taken before, so a message without any is not held up.
        if message.options != TurnOptions::default() {
            answer = match answer.read::<IgnoredAny>().await {
                Ok(_) => return Ok(()),
                Err(RequestError::Refused(refusal)) if refusal.category == RefusalCategory::OptionRefused => {
                    return Err(RunnerError::OptionRefused(refusal.message));
                }
                Err(error) => Answer::known(error),
            };
        }
        tokio::spawn(follow(Arc::clone(shared), Arc::clone(hub), agent, message, sandbox, answer));
        return Ok(());
    }
    let place = match hub.wait_settled_or_starting().await {
        Place::None => Some(pool::acquire(shared).await?),
        _ => None,
    };
    tokio::spawn(drive(Arc::clone(shared), Arc::clone(hub), agent, message, place));
    Ok(())
}

/// Finds the session a sandbox and admits the turn there, for as long as the turn is not over.
async fn drive(
    shared: Arc<Shared>,
    hub: Arc<Hub>,
    agent: AgentVersion,
    message: NewMessage,
    mut place: Option<OwnedSemaphorePermit>,
) {
    loop {
        match hub.wait_settled().await {
            Place::Live(sandbox) => {
                let answer = sandbox.bridge.send(&request(&shared, &message)).await;
                return follow(shared, hub, agent, message, sandbox, answer).await;
            }
            _ if !is_current(&hub, &message) => return,
            _ => {}
        }
        if !hub.begin_starting() {
            continue;
        }
        let place = match place.take() {
            Some(place) => Ok(place),
            None => pool::acquire(&shared).await,
        };
        let started = match place {
            Ok(place) => start_for(&shared, &hub, &agent, place).await.map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        };
        if let Err(error) = started {
            return fail(&shared, &hub, error).await;
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
            answered = answer.read::<IgnoredAny>() => answered,
            // A request that was sent after the last connection ended is never answered.
            () = sandbox.gone.cancelled() => Err(RequestError::Gone),
        };
        match answered {
            Ok(_) => return,
            Err(RequestError::Gone) => {}
            Err(error) => {
                tracing::error!(session = %hub.session, %error, "a bridge refused a turn");
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
        answer = sandbox.bridge.send(&request(&shared, &message)).await;
    }
}

/// Gives a session a sandbox of its own: a warm one where its folder is not needed, else a new one.
pub(crate) async fn start_for(
    shared: &Arc<Shared>,
    hub: &Arc<Hub>,
    agent: &AgentVersion,
    place: OwnedSemaphorePermit,
) -> Result<(), StartError> {
    let row = hub.session();
    let is_new = row.last == Sequence::START;
    if is_new && let Some(sandbox) = pool::claim_warm(shared, agent, hub) {
        shared.pre_warm_hits.fetch_add(1, Ordering::Relaxed);
        return bind_or_end(shared, &sandbox, hub, Claimed::Live).await;
    }
    if !is_new {
        shared.resume_cold_hits.fetch_add(1, Ordering::Relaxed);
    }
    let sandbox = {
        let Ok(_turn) = shared.starts.acquire().await else { return Err(StartError::Ended) };
        start(shared, agent, place, For::Session(Arc::clone(hub))).await?
    };
    if !sandbox.claim(hub, true) {
        return Err(StartError::Ended);
    }
    bind_or_end(shared, &sandbox, hub, Claimed::Cold).await
}

/// Binds a claimed sandbox; ends it where that fails. Then the pool is filled up again.
pub(crate) async fn bind_or_end(
    shared: &Arc<Shared>,
    sandbox: &Arc<Sandbox>,
    hub: &Arc<Hub>,
    how: Claimed,
) -> Result<(), StartError> {
    let bound = bind(shared, sandbox, hub, how).await;
    pool::refill(shared, &sandbox.agent);
    if let Err(error) = &bound {
        sandbox.end_with(EndReason::Failed(error.to_string()));
    }
    bound.map(|_| ())
}

/// Puts a session whose sandbox could not be started into `error`, and ends its turn with the reason.
pub(crate) async fn fail(shared: &Arc<Shared>, hub: &Arc<Hub>, message: String) {
    tracing::warn!(session = %hub.session, error = message, "a session's sandbox could not be started");
    let row = hub.session();
    let opening = Opening {
        reason: OpeningReason::Failed,
        last_committed: row.last,
        interrupted: hub.turn().map(|turn| turn.id.0),
        message: Some(message.clone()),
    };
    let state = row.state.after(SessionEvent::Fail).unwrap_or(row.state);
    open_without_sandbox(shared, hub, state, Some(message), opening).await;
}
