//! Serves the connections of a sandbox's bridge, one after the other: a bridge dials again when one breaks.

use std::sync::Arc;

use ash_core::{
    Sequence,
    id::{SessionId, TurnId},
};
use ash_protocol::message::Progress;
use tokio::{
    net::UnixListener,
    time::{Duration, sleep, timeout},
};

use super::bind::send_bind;
use crate::{
    bridge::{ConnectionError, Greeted, Incoming, greet},
    hub::{NotTaken, Place, Turn},
    limits::{BRIDGE_AWAY, BRIDGE_START, COMMIT_RETRY, CONNECTION_SPACING},
    peer,
    sandbox::{EndReason, Sandbox},
    shared::Shared,
};

/// Returns when the bridge stayed away for too long or broke the protocol.
pub(super) async fn serve_connections(shared: &Arc<Shared>, sandbox: &Arc<Sandbox>, listener: &UnixListener) {
    let folder = sandbox.process.directory();
    // Who served the host before this one; a bridge that is dead does not come back.
    let mut peer = peer::recall(&folder);
    loop {
        let accepted = tokio::select! {
            biased;
            accepted = timeout(BRIDGE_AWAY, listener.accept()) => accepted,
            () = peer::dead(peer.as_ref()) => return,
        };
        let stream = match accepted {
            Ok(Ok((stream, _))) => stream,
            Ok(Err(error)) => {
                tracing::warn!(sandbox = %sandbox.id, %error, "a bridge's connection could not be taken");
                sleep(COMMIT_RETRY).await;
                continue;
            }
            Err(_) => return,
        };
        peer = peer::of(&stream);
        if let Some(peer) = &peer {
            peer::remember(peer, &sandbox.process.directory());
        }
        let greeted = match timeout(BRIDGE_START, greet(stream)).await {
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
        let error = serve_connection(shared, sandbox, greeted).await;
        tracing::debug!(sandbox = %sandbox.id, %error, "a bridge's connection ended");
        if error.is_violation() {
            shared.metrics.bridge_violations.inc();
            tracing::warn!(sandbox = %sandbox.id, %error, "a bridge was cut off");
            return;
        }
        sleep(CONNECTION_SPACING).await;
    }
}

async fn serve_connection(shared: &Arc<Shared>, sandbox: &Arc<Sandbox>, mut greeted: Greeted) -> ConnectionError {
    if let (Some(listener), Some(port)) = (greeted.listener.take(), greeted.hello.gateway_port) {
        match shared.gateway.attach(ash_gateway::SandboxId(sandbox.id.0), listener) {
            Ok(attachment) => sandbox.attach(attachment, port),
            Err(error) => return ConnectionError::Greeting(error.to_string()),
        }
    }
    let (acknowledged, overtaken) = catch_up(shared, sandbox, &greeted.hello.progress).await;
    sandbox.connections.send_modify(|count| *count += 1);
    shared.metrics.bridge_connections.inc();
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
                    hub.set_place(Place::Live(Arc::clone(sandbox)));
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
    sandbox.bridge.serve(greeted, acknowledged, overtaken, incoming).await
}

/// What a bridge is told when it connects: how far its log is committed, and whether its session went on without it.
async fn catch_up(shared: &Arc<Shared>, sandbox: &Arc<Sandbox>, progress: &Progress) -> (Sequence, bool) {
    let Some(hub) = sandbox.hub() else { return (Sequence::START, false) };
    let row = hub.session();
    match progress {
        Progress::Bound { session, epoch, turn, permissions, .. }
            if SessionId(*session) == row.id && *epoch == row.epoch =>
        {
            // A connection that broke while this host lives changes nothing that the hub does not know.
            if matches!(hub.place(), Place::Recovering(_)) {
                let turn = turn
                    .as_ref()
                    .map(|turn| Turn { id: TurnId(turn.id), after: Sequence(turn.first.0.saturating_sub(1)) });
                hub.restore_turn(turn, permissions.clone());
            }
            (row.last, false)
        }
        // The server died between the claim's commit and telling the bridge.
        Progress::Warm if matches!(hub.place(), Place::Recovering(_)) => {
            // The server before put the conversation back; a binding that did not name it would begin another one.
            match shared.store.transcript(row.id).await {
                Ok(Some(transcript)) => sandbox.set_restored(transcript.conversation, transcript.bytes.len() as u64),
                Ok(None) => {}
                Err(error) => {
                    tracing::warn!(session = %row.id, %error, "a session's conversation cannot be read: its sandbox is given up");
                    return (row.last, true);
                }
            }
            drop(send_bind(sandbox, &row).await);
            (row.last, false)
        }
        // A warm bridge whose claim is on its way.
        Progress::New | Progress::Warm => (row.last, false),
        Progress::Bound { .. } | Progress::Resting { .. } => (row.last, true),
    }
}
