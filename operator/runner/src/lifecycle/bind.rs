//! Gives a sandbox to a session: the next epoch, the folder's name, the gateway, the bridge.

use std::sync::Arc;

use ash_core::{
    Sequence,
    agent::NetworkPolicy,
    opening::{Opening, OpeningReason},
    ports::{OpenEpoch, StoreError},
    session::{Session, SessionEvent},
};
use ash_gateway::{Binding, EgressPolicy};
use ash_protocol::message::{Bind, Bound, Claimed, Request};

use super::{leave::leave, start::StartError};
use crate::{
    bridge::{Answer, RequestError},
    enclosure::Enclosure,
    hub::{Hub, Place},
    limits::BRIDGE_ANSWER,
    options::effective,
    sandbox::{EndReason, Sandbox},
    shared::Shared,
    snapshots::{intend, mark},
};

/// Why a session gets a sandbox.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Cause {
    event: SessionEvent,
    reason: OpeningReason,
}

/// A message came, or the session is new.
pub(crate) const CLAIMED: Cause = Cause { event: SessionEvent::Message, reason: OpeningReason::Claimed };

/// A person resumed it.
pub(crate) const WAKE_RESUMED: Cause = Cause { event: SessionEvent::Resume, reason: OpeningReason::Resumed };

/// Gives a sandbox that was claimed for it to a session. On an error the caller ends the sandbox and waits until it is gone; the
/// session is still on its way to a place.
pub(crate) async fn bind_claimed(
    shared: &Arc<Shared>,
    sandbox: &Arc<Sandbox>,
    hub: &Arc<Hub>,
    how: Claimed,
    cause: Cause,
) -> Result<Session, StartError> {
    if let Enclosure::Process(process) = &sandbox.enclosure {
        let _folder = sandbox.folder.lock().await;
        intend(&process.directory(), hub.epoch(), sandbox.id).await?;
    }
    let row = open_claimed(shared, sandbox, hub, cause).await?;
    if let Enclosure::Process(process) = &sandbox.enclosure {
        let folder = shared.folders.of_session(row.id);
        // A sandbox that ends meanwhile removes its folder before it has the session's name, or leaves it to the session.
        let _folder = sandbox.folder.lock().await;
        if let Err(error) = mark(&process.directory(), row.epoch).await {
            // What was intended says it as well, and takes longer to read.
            tracing::warn!(session = %row.id, %error, "a session's folder does not say in which epoch it got it");
        }
        if process.directory() != folder {
            tokio::fs::rename(process.directory(), &folder).await?;
            process.relocate(&folder)?;
        }
    }
    let (gateways, bound_to) = (ash_gateway::SandboxId(sandbox.id.0), binding(shared, sandbox, &row));
    // A session that rested here is bound already; a sandbox that never had one must not be another's.
    if how == Claimed::Restarted {
        shared.gateway.rebind(gateways, bound_to)?;
    } else {
        shared.gateway.bind(gateways, bound_to)?;
    }
    let answer = send_bind(sandbox, &row).await;
    hub.set_place(Place::Live(Arc::clone(sandbox)));
    let (shared, sandbox, hub) = (Arc::clone(shared), Arc::clone(sandbox), Arc::clone(hub));
    tokio::spawn(async move {
        tokio::select! {
            answer = answer.read_within::<Bound>(BRIDGE_ANSWER) => match answer {
                Ok(bound) => {
                    let how = if how == Claimed::Cold { how } else { bound.how };
                    shared.metrics.claimed(how);
                    tracing::debug!(sandbox = %sandbox.id, session = %hub.session, ?how, "bound");
                }
                Err(RequestError::Gone) => {}
                Err(error) => {
                    if matches!(error, RequestError::Silent(_)) {
                        shared.metrics.bridges_silent.inc();
                    }
                    sandbox.end_with(EndReason::Failed(error.to_string()));
                }
            },
            () = sandbox.gone.cancelled() => {}
        }
        // One that ended while it was being bound had no session to leave it then.
        if sandbox.end.is_cancelled() {
            sandbox.gone.cancelled().await;
            leave(&shared, &sandbox, &hub).await;
        }
    });
    Ok(row)
}

/// Opens the epoch of a claim.
async fn open_claimed(shared: &Shared, sandbox: &Sandbox, hub: &Hub, cause: Cause) -> Result<Session, StartError> {
    loop {
        let before = hub.session();
        let state = before.state.after(cause.event).map_err(|_| StartError::Ended)?;
        // A new session never had a turn; asking for it would cost a look into the store on the way of every creation.
        let interrupted =
            if before.last == Sequence::START { None } else { shared.store.unfinished_turn(before.id).await? };
        let opening = Opening {
            reason: cause.reason,
            last_committed: before.last,
            interrupted: interrupted.map(|turn| turn.0),
            message: None,
            recovered: sandbox.recovered(),
            sandbox: Some(sandbox.id.0),
        };
        let open = OpenEpoch {
            session: before.id,
            expected: before.epoch,
            state,
            error: None,
            sandbox: Some(sandbox.id),
            opening: opening.clone(),
        };
        match shared.store.open_epoch(open).await {
            Ok(row) => {
                hub.open_epoch(row.clone(), &opening, Place::Starting);
                return Ok(row);
            }
            // Ends: a hub is refreshed by a newer row only.
            Err(StoreError::Overtaken { .. }) if shared.refresh(hub).await? => {}
            Err(error) => {
                shared.metrics.epochs_refused.inc_by(u64::from(matches!(error, StoreError::Conflict(_))));
                return Err(error.into());
            }
        }
    }
}

/// Tells a bridge which session it serves.
pub(super) async fn send_bind(sandbox: &Sandbox, row: &Session) -> Answer {
    let restored = sandbox.restored();
    let request = Request::Bind(Box::new(Bind {
        tenant: row.tenant.0.clone(),
        session: row.id.0,
        epoch: row.epoch,
        options: effective(&sandbox.agent.settings, &row.options),
        resume: restored.map(|(conversation, _)| conversation),
        transcript_offset: restored.map_or(0, |(_, length)| length),
    }));
    sandbox.bridge.send_within(&request, BRIDGE_ANSWER).await
}

/// What the gateway binds a session's sandbox to.
pub(crate) fn binding(shared: &Shared, sandbox: &Sandbox, row: &Session) -> Binding {
    Binding {
        tenant: ash_gateway::TenantId(row.tenant.0.as_str().into()),
        session: ash_gateway::SessionId(row.id.0),
        epoch: ash_gateway::Epoch(row.epoch.0),
        egress: egress(&sandbox.agent.settings.network),
        upstream: shared.config.model_keys.of(row.id),
    }
}

/// What the gateway makes of an agent's network policy. A host that it cannot read stays closed, and is said.
fn egress(policy: &NetworkPolicy) -> EgressPolicy {
    match policy {
        NetworkPolicy::Model => EgressPolicy::Model,
        NetworkPolicy::Allowlist { hosts } => {
            let read = |host: &String| match host.parse() {
                Ok(rule) => Some(rule),
                Err(error) => {
                    tracing::warn!(host, %error, "a host of an agent's allowlist stays closed");
                    None
                }
            };
            EgressPolicy::Allowlist(hosts.iter().filter_map(read).collect())
        }
        NetworkPolicy::Public => EgressPolicy::Public,
    }
}
