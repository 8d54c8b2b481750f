//! Admits a pod that proved itself: asks a coordinator which sandbox it is, and begins to look after it.

use std::sync::Arc;

use ash_core::{
    fleet::{Admitted, Placed},
    ports::{PodIdentity, PodState, RunnerError, StoreError},
};
use ash_protocol::message::Claimed;

use super::decide::{Known, Next, next};
use crate::{
    backend::Pods,
    enclosure::{Dialled, Enclosure, Pod},
    hub::{Hub, Place},
    lifecycle::{For, Holds, StartError, bring, connected, prepare_workspace, spawn_supervisor, warm},
    recovery,
    sandbox::{EndReason, Sandbox},
    shared::Shared,
    turns::{self, NoSandbox},
};

/// Why a pod is not admitted.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotAdmitted {
    #[error("no sandbox is in this pod, or it is over")]
    Unknown,
    #[error("this runner has as many sandboxes as it may: raise --max-sandboxes, or add nodes to the pool")]
    Full,
    #[error("the sandbox is on its way already, or its session is leaving it: dial again")]
    Busy,
    #[error("no coordinator can be asked which sandbox this is: {0}")]
    Store(#[from] StoreError),
    #[error("the sandbox cannot be taken over: {0}")]
    Recovery(#[from] RunnerError),
    #[error("the gateway refuses the sandbox: {0}")]
    Gateway(#[from] ash_gateway::BindError),
}

/// Admits a pod. Its sandbox is looked after from here on; the connection that proved it is still to be delivered.
pub(super) async fn admit(
    shared: &Arc<Shared>,
    pods: &Arc<Pods>,
    identity: &PodIdentity,
) -> Result<Arc<Sandbox>, NotAdmitted> {
    let Admitted { pod, agent, placed } = pods.calls.admit(identity).await?.ok_or(NotAdmitted::Unknown)?;
    let _admitting = pods.admitting(pod.id).ok_or(NotAdmitted::Busy)?;
    // One that the store had with a session is waited for already.
    if let Some(sandbox) = shared.sandbox(pod.id) {
        return Ok(sandbox);
    }
    if let Some(Placed { session, model_key }) = &placed {
        shared.config.model_keys.set(session.id, model_key.as_ref());
    }
    let (enclosure, connections) = Pod::new(pod.id, Arc::clone(&pods.calls), Some(identity.clone()));
    let (enclosure, dialled) = (Enclosure::Pod(enclosure), Dialled::Pod(connections));
    if let Some(Placed { session: row, .. }) = placed.as_ref().filter(|placed| placed.session.sandbox == Some(pod.id)) {
        // The session's runner was another one of this node, or gave it up: its bridge is here, so it goes on.
        let hub = shared.hub_of(row);
        hub.refresh(row.clone());
        if !matches!(hub.place(), Place::None) {
            return Err(NotAdmitted::Busy);
        }
        recovery::take_over(shared, row, &hub, enclosure, dialled).await?;
        return shared.sandbox(pod.id).ok_or(NotAdmitted::Full);
    }
    let place = Arc::clone(&shared.places).try_acquire_owned().map_err(|_| NotAdmitted::Full)?;
    let sandbox = Arc::new(Sandbox::new(pod.id, agent, enclosure, place, None, &shared.metrics));
    shared.gateway.register_unclaimed(ash_gateway::SandboxId(pod.id.0))?;
    if let Some(there) = shared.add_sandbox_once(&sandbox) {
        return Ok(there);
    }
    spawn_supervisor(shared, &sandbox, dialled);
    let known = Known { was_warm: matches!(pod.state, PodState::Warm), awaited: placed.is_some() };
    tokio::spawn(begin(Arc::clone(shared), Arc::clone(pods), Arc::clone(&sandbox), known, placed));
    Ok(sandbox)
}

/// Brings a sandbox that was met to its use. One that has none is ended.
async fn begin(shared: Arc<Shared>, pods: Arc<Pods>, sandbox: Arc<Sandbox>, known: Known, placed: Option<Placed>) {
    let begun = async {
        connected(&sandbox).await?;
        let progress = sandbox.progress().ok_or(StartError::Ended)?;
        let step = next(&progress, known);
        tracing::debug!(sandbox = %sandbox.id, ?step, "a pod came");
        match (step, placed) {
            (Next::Over(reason), _) => Err(StartError::Unusable(reason)),
            (Next::Offer { tell: false }, _) => {
                offer(&shared, &sandbox);
                Ok(())
            }
            (Next::Offer { tell: true }, _) => tell(&shared, &pods, &sandbox).await,
            (Next::WarmForSession, Some(placed)) => Box::pin(give(&shared, &sandbox, placed, true)).await,
            (Next::Give, Some(placed)) => Box::pin(give(&shared, &sandbox, placed, false)).await,
            (Next::WarmForPool | Next::WarmForSession | Next::Give, _) => {
                Box::pin(warm_in_turn(&shared, &sandbox, &For::Pool)).await?;
                tell(&shared, &pods, &sandbox).await
            }
        }
    };
    if let Err(error) = begun.await {
        shared.metrics.sandbox_failures.inc();
        tracing::warn!(sandbox = %sandbox.id, %error, "a pod's sandbox is of no use");
        sandbox.end_with(EndReason::Failed(error.to_string()));
    }
}

/// Starts Claude Code in a pod when it is its turn: a hundred pods that come to a node at once would take its processors from each
/// other until every one has taken too long.
async fn warm_in_turn(shared: &Arc<Shared>, sandbox: &Arc<Sandbox>, wanted: &For) -> Result<(), StartError> {
    let started = tokio::select! {
        started = shared.starts.in_turn(warm(shared, sandbox, wanted, Holds::Nothing)) => started,
        () = sandbox.end.cancelled() => None,
    };
    started.ok_or(StartError::Ended)??;
    shared.metrics.sandbox_starts.inc();
    Ok(())
}

fn offer(shared: &Arc<Shared>, sandbox: &Arc<Sandbox>) {
    sandbox.set_warm();
    shared.warmed.notify_waiters();
}

/// Lets the sandbox be claimed: here first, so that whoever hears of it finds it.
async fn tell(shared: &Arc<Shared>, pods: &Arc<Pods>, sandbox: &Arc<Sandbox>) -> Result<(), StartError> {
    offer(shared, sandbox);
    // False: it is over, or somebody has claimed it, who says so next. The operator ends what is over.
    pods.calls.warm(sandbox.id).await?;
    Ok(())
}

/// Gives a sandbox to the session that it was made for.
async fn give(shared: &Arc<Shared>, sandbox: &Arc<Sandbox>, placed: Placed, to_warm: bool) -> Result<(), StartError> {
    let row = placed.session;
    let hub = shared.hub(&row).await?;
    hub.refresh(row);
    // A session that is leaving another sandbox gets this one after that; a claim that comes meanwhile gives it this one too.
    loop {
        let place = tokio::select! {
            place = hub.wait_settled() => place,
            () = sandbox.end.cancelled() => return Err(StartError::Ended),
        };
        match place {
            Place::None if hub.begin_starting() => break,
            Place::Live(on) | Place::Resting(on) if on.id == sandbox.id => return Ok(()),
            Place::Live(_) | Place::Resting(_) => return Err(StartError::Unusable("its session has another sandbox")),
            _ => {}
        }
    }
    let given = give_started(shared, sandbox, &hub, to_warm).await;
    if let Err(error) = given {
        sandbox.end_with(EndReason::Failed(error.to_string()));
        sandbox.gone.cancelled().await;
        turns::give_up(shared, &hub, NoSandbox::Failed(error)).await;
    }
    Ok(())
}

async fn give_started(
    shared: &Arc<Shared>,
    sandbox: &Arc<Sandbox>,
    hub: &Arc<Hub>,
    to_warm: bool,
) -> Result<(), StartError> {
    if to_warm {
        warm_in_turn(shared, sandbox, &For::Session(Arc::clone(hub))).await?;
    } else {
        // The life of the runner before this one may not have got so far, where it was claimed from the pool.
        let source = prepare_workspace(shared, sandbox, hub).await?;
        bring(shared, sandbox, hub, source).await?;
    }
    sandbox.set_warm();
    if !sandbox.claim(hub, true) {
        return Err(StartError::Ended);
    }
    let how = if to_warm { Claimed::Cold } else { Claimed::Live };
    turns::bind_or_end(shared, sandbox, hub, how).await
}
