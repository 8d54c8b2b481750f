//! Serves the connections of a sandbox's bridge, one after the other: a bridge dials again when one breaks. One whose session went
//! on without it is told so, and heard no more.

use std::sync::Arc;

use ash_core::{
    Sequence,
    id::{SessionId, TurnId},
    session::{PausedReason, SessionState},
};
use ash_protocol::{
    fleet::Hidden,
    message::{Progress, Request},
};
use tokio::time::{Duration, sleep, timeout};

use super::{bind::send_bind, rest::rest};
use crate::{
    bridge::{ConnectionError, Greeted, Incoming, Reading, greet},
    enclosure::{Dialled, Enclosure},
    freezer,
    hub::{Hub, NotTaken, Place, Turn},
    limits::{BRIDGE_AWAY, BRIDGE_START, COMMIT_RETRY, CONNECTION_SPACING, SANDBOX_END, TICKET_RENEWAL},
    sandbox::{EndReason, Sandbox},
    shared::Shared,
};

/// Returns when the bridge stayed away for too long or broke the protocol.
pub(super) async fn serve_connections(shared: &Arc<Shared>, sandbox: &Arc<Sandbox>, dialled: &mut Dialled) {
    let mut waiting = None;
    loop {
        let arrived = match waiting.take() {
            Some(arrived) => arrived,
            None => match dialled.next(BRIDGE_AWAY, sandbox.enclosure.directory()).await {
                Some(Ok(arrived)) => arrived,
                Some(Err(error)) => {
                    tracing::warn!(sandbox = %sandbox.id, %error, "a bridge's connection could not be taken");
                    sleep(COMMIT_RETRY).await;
                    continue;
                }
                None => return,
            },
        };
        let greeted = match timeout(BRIDGE_START, greet(arrived)).await {
            Ok(Ok(greeted)) => greeted,
            Ok(Err(error)) if error.is_violation() => {
                shared.metrics.bridge_violations.inc();
                tracing::warn!(sandbox = %sandbox.id, %error, "a bridge was refused");
                return;
            }
            Ok(Err(_)) | Err(_) => {
                sleep(CONNECTION_SPACING).await;
                continue;
            }
        };
        let newer = async {
            tokio::select! {
                newer = dialled.newer() => waiting = Some(newer),
                () = renew_tickets(shared, sandbox) => {}
            }
        };
        let error = serve_connection(shared, sandbox, greeted, newer).await;
        tracing::debug!(sandbox = %sandbox.id, %error, "a bridge's connection ended");
        if matches!(error, ConnectionError::Overtaken) {
            // A bridge ends its sandbox now. Whoever goes on all the same is heard no more.
            sleep(SANDBOX_END).await;
            return;
        }
        if error.is_violation() {
            shared.metrics.bridge_violations.inc();
            tracing::warn!(sandbox = %sandbox.id, %error, "a bridge was cut off");
            return;
        }
        // A bridge that was asked to end does not come back; a process is seen to end.
        if sandbox.end_reason().is_some() && sandbox.enclosure.directory().is_none() {
            return;
        }
        sleep(CONNECTION_SPACING).await;
    }
}

/// Gives the bridge of a pod a ticket for its next connection, again and again. Never ends.
async fn renew_tickets(shared: &Arc<Shared>, sandbox: &Arc<Sandbox>) {
    let (Some(pods), Enclosure::Pod(pod)) = (shared.backend.pods(), &sandbox.enclosure) else {
        return std::future::pending().await;
    };
    loop {
        sleep(TICKET_RENEWAL).await;
        if let Some(ticket) = pod.identity().and_then(|pod| pods.ticket(sandbox, &pod)) {
            drop(sandbox.bridge.send(&Request::Ticket { ticket: Hidden(ticket) }).await);
        }
    }
}

async fn serve_connection(
    shared: &Arc<Shared>,
    sandbox: &Arc<Sandbox>,
    mut greeted: Greeted,
    newer: impl Future<Output = ()>,
) -> ConnectionError {
    if let (Some(listener), Some(port)) = (greeted.listener.take(), greeted.hello.gateway_port) {
        match shared.gateway.attach(ash_gateway::SandboxId(sandbox.id.0), listener) {
            Ok(attachment) => sandbox.attach(attachment, port),
            Err(error) => return ConnectionError::Greeting(error.to_string()),
        }
    }
    let CaughtUp { acknowledged, overtaken, rests } = catch_up(shared, sandbox, &greeted.hello.progress).await;
    sandbox.set_progress(greeted.hello.progress.clone());
    sandbox.set_protocol(greeted.hello.protocol);
    sandbox.connections.send_modify(|count| *count += 1);
    shared.metrics.bridge_connections.inc();
    freezer::connected(shared, sandbox);
    let stalls = &shared.metrics.bridges_stalled;
    let mut stalled = false;
    let incoming = |incoming: Incoming| {
        match incoming {
            Incoming::Entries(entries) => {
                let Some(hub) = sandbox.hub() else { return Ok(Duration::ZERO) };
                let taken = hub.take(entries).inspect_err(|error| {
                    if let NotTaken::Full(full) = error {
                        shared.metrics.logs_full.inc();
                        sandbox.end_with(EndReason::Failed(full.to_string()));
                    }
                })?;
                shared.queue.push(&hub, taken.urgency);
                if taken.turn_ended {
                    sandbox.touch();
                    shared.metrics.turns.inc();
                    crate::pool::turn_ended(shared);
                    crate::snapshots::turn_ended(shared, sandbox, &hub);
                }
                if !taken.pause.is_zero() {
                    shared.metrics.bridges_paused.inc();
                }
                return Ok(taken.pause);
            }
            Incoming::Beside { frames, bytes } => {
                return Ok(sandbox.hub().map_or(Duration::ZERO, |hub| hub.pace(frames, bytes)));
            }
            Incoming::Synced => {
                if let Some(hub) = sandbox.hub()
                    && matches!(hub.place(), Place::Recovering(_))
                {
                    recovered(shared, sandbox, &hub, rests);
                }
            }
            Incoming::Status(status) => {
                if status.stalled && !stalled {
                    stalls.inc();
                    tracing::warn!(sandbox = %sandbox.id, "a bridge stalls at the bound of unacknowledged bytes");
                }
                stalled = status.stalled;
                for (bound, times) in status.bounds {
                    shared.metrics.bound_met(bound, times);
                }
            }
        }
        Ok(Duration::ZERO)
    };
    let uncommitted_bytes = || sandbox.hub().map_or(0, |hub| hub.uncommitted_bytes());
    let bounds = Reading { budget: &shared.budget, uncommitted_bytes: &uncommitted_bytes };
    sandbox.bridge.serve(greeted, acknowledged, overtaken, newer, bounds, incoming).await
}

/// A session whose host was started anew has its bridge back.
fn recovered(shared: &Arc<Shared>, sandbox: &Arc<Sandbox>, hub: &Arc<Hub>, rests: bool) {
    if !rests {
        return hub.set_place(Place::Live(Arc::clone(sandbox)));
    }
    if hub.session().state != SessionState::Active {
        return hub.set_place(Place::Resting(Arc::clone(sandbox)));
    }
    // The host before this one died between the bridge's rest and the epoch that says so.
    if hub.begin_leaving(sandbox) {
        let (shared, sandbox, hub) = (Arc::clone(shared), Arc::clone(sandbox), Arc::clone(hub));
        tokio::spawn(async move { rest(&shared, &sandbox, &hub, EndReason::Asleep(PausedReason::Idle)).await });
    }
}

/// What is known when a bridge connects.
struct CaughtUp {
    /// How far its log is committed.
    acknowledged: Sequence,
    /// Its session went on without it.
    overtaken: bool,
    /// Its session rests, and is not to be woken yet.
    rests: bool,
}

/// What a bridge is told when it connects. One that missed what it was told last is told again.
async fn catch_up(shared: &Arc<Shared>, sandbox: &Arc<Sandbox>, progress: &Progress) -> CaughtUp {
    let said = |acknowledged, overtaken| CaughtUp { acknowledged, overtaken, rests: false };
    let Some(hub) = sandbox.hub() else {
        // One that serves a session that nobody gave it, or that went on elsewhere.
        let serves = matches!(progress, Progress::Bound { .. } | Progress::Resting { .. });
        return said(Sequence::START, serves);
    };
    let place = hub.place();
    if matches!(place, Place::Recovering(_)) {
        // A host that ends beside this one commits until its bridges have left it. What it acknowledged a bridge does not have
        // any more, and it did that before the bridge came here.
        let known = hub.session();
        match shared.store.session(&known.tenant, known.id).await {
            Ok(Some(latest)) => drop(hub.refresh(latest)),
            Ok(None) => {}
            Err(error) => tracing::warn!(session = %known.id, %error, "a session is taken over as it was read first"),
        }
    }
    let row = hub.session();
    let recovers = matches!(place, Place::Recovering(_));
    // The session's epoch is open, and its bridge was to be told.
    let was_told = recovers || matches!(place, Place::Live(_));
    match progress {
        // In the epoch of a session that rests no bridge has served it.
        Progress::Bound { session, epoch, turn, permissions, .. }
            if SessionId(*session) == row.id && *epoch == row.epoch && row.state == SessionState::Active =>
        {
            // A connection that broke while this host lives changes nothing that the hub does not know.
            if recovers {
                let turn = turn
                    .as_ref()
                    .map(|turn| Turn { id: TurnId(turn.id), after: Sequence(turn.first.0.saturating_sub(1)) });
                hub.restore_turn(turn, permissions.clone());
            }
            said(row.last, false)
        }
        // The server died between the claim's commit and telling the bridge, or the connection broke in between.
        Progress::Warm if was_told => {
            if recovers {
                // The server before put the conversation back; a binding that did not name it would begin another one.
                match shared.store.transcript(row.id).await {
                    Ok(Some(transcript)) => {
                        sandbox.set_restored(transcript.conversation, transcript.bytes.len() as u64);
                    }
                    Ok(None) => {}
                    Err(error) => {
                        tracing::warn!(session = %row.id, %error, "a session's conversation cannot be read: its sandbox is given up");
                        return said(row.last, true);
                    }
                }
            }
            drop(send_bind(sandbox, &row).await);
            said(row.last, false)
        }
        // A bridge that lost what it had has lost its session.
        Progress::New if recovers => said(row.last, true),
        // A warm bridge whose claim is on its way.
        Progress::New | Progress::Warm => said(row.last, false),
        Progress::Resting { session, epoch, last } if SessionId(*session) == row.id && *epoch <= row.epoch => {
            // Woken, and not told.
            let woken = *epoch < row.epoch && row.state == SessionState::Active && was_told;
            if woken {
                drop(send_bind(sandbox, &row).await);
            }
            // All of an epoch is committed before there is a newer one.
            let acknowledged = if *epoch < row.epoch { *last } else { row.last };
            CaughtUp { acknowledged, overtaken: false, rests: !woken }
        }
        Progress::Bound { .. } | Progress::Resting { .. } => said(row.last, true),
    }
}
