//! Finding the sandboxes of the server before this one: they survive it and their bridges dial again.

use std::{collections::HashSet, future::ready, str::FromStr, sync::Arc};

use ash_core::{
    Sequence,
    id::SessionId,
    opening::{Opening, OpeningReason},
    ports::RunnerError,
    session::{PausedReason, Session, SessionEvent},
};
use ash_sandbox::{ProcessBackend, ProcessSandbox};
use futures::{StreamExt as _, TryStreamExt as _, future::try_join_all, stream};
use tokio::time::timeout;

use crate::{
    backend::{Backend, Pods},
    enclosure::{Dialled, Enclosure, Pod},
    hub::{Hub, Place, Turn},
    lifecycle::{HOME, open_without_sandbox, remove_folder, spawn_supervisor},
    limits::{BRIDGE_AWAY, RECOVERIES, RECOVERY_PERIODS},
    sandbox::{EndReason, Sandbox, listen},
    shared::Shared,
};

/// Takes over what the server before this one left: sessions keep a sandbox that is alive, others are put to sleep as lost,
/// and what no session has is ended and removed.
pub(crate) async fn recover(shared: &Arc<Shared>) -> Result<(), RunnerError> {
    match &shared.backend {
        Backend::Processes(backend) => recover_processes(shared, backend).await,
        Backend::Pods(pods) => recover_pods(shared, pods).await,
    }
}

/// The pods of the runner before this one dial this one: those of sessions are waited for, the others are met as they come.
async fn recover_pods(shared: &Arc<Shared>, pods: &Arc<Pods>) -> Result<(), RunnerError> {
    let rows = shared.store.placed_sessions().await?;
    shared.metrics.recoveries_waited.inc_by(rows.len().saturating_sub(RECOVERIES) as u64);
    let looks = stream::iter(rows.into_iter().map(|row| async move {
        let hub = shared.hub_of(&row);
        let taken_over = match row.sandbox {
            Some(id) => {
                let (pod, connections) = Pod::new(id, Arc::clone(&pods.calls), None);
                let dialled = Dialled::Pod(connections);
                take_over(shared, &row, &hub, Enclosure::Pod(pod), dialled).await?
            }
            None => false,
        };
        Ok::<_, RunnerError>((!taken_over).then_some((row, hub)))
    }))
    .buffer_unordered(RECOVERIES);
    let lost_ones: Vec<_> = looks.try_filter_map(|lost| ready(Ok(lost))).try_collect().await?;
    try_join_all(lost_ones.iter().map(|(row, hub)| lost(shared, row, hub))).await?;
    Ok(())
}

async fn recover_processes(shared: &Arc<Shared>, backend: &ProcessBackend) -> Result<(), RunnerError> {
    let internal =
        |error: std::io::Error| RunnerError::Internal(format!("the sandboxes' folder cannot be read: {error}"));
    tokio::fs::create_dir_all(shared.folders.root()).await.map_err(internal)?;
    let mut kept = HashSet::new();
    let rows = shared.store.placed_sessions().await?;
    for row in &rows {
        kept.insert(row.id);
        kept.extend(row.sandbox.map(|sandbox| SessionId(sandbox.0)));
    }
    shared.metrics.recoveries_waited.inc_by(rows.len().saturating_sub(RECOVERIES) as u64);
    let looks = stream::iter(rows.into_iter().map(|row| look_for(shared, backend, row))).buffer_unordered(RECOVERIES);
    let lost_ones: Vec<_> = looks.try_filter_map(|lost| ready(Ok(lost))).try_collect().await?;
    // All side by side: where the database cannot be written, they wait for it together and not one after the other.
    try_join_all(lost_ones.iter().map(|(row, hub)| lost(shared, row, hub))).await?;
    let mut folders = tokio::fs::read_dir(shared.folders.root()).await.map_err(internal)?;
    while let Some(folder) = folders.next_entry().await.map_err(internal)? {
        let id = folder.file_name().to_str().and_then(|name| SessionId::from_str(name).ok());
        let Some(id) = id.filter(|id| !kept.contains(id)) else { continue };
        if let Ok(Some(process)) = backend.adopt(&folder.path()).await {
            end(shared, &process).await;
        }
        // A folder that no session has was a warm sandbox's. Sessions that sleep keep theirs.
        if shared.store.session_exists(id).await? {
            continue;
        }
        remove_folder(folder.path()).await;
    }
    let alive = shared.sandboxes().iter().map(|sandbox| sandbox.id.to_string()).collect();
    if let Err(error) = backend.remove_orphans(alive).await {
        tracing::warn!(%error, "control groups of earlier sandboxes could not be removed");
    }
    Ok(())
}

/// Takes over the sandbox of a session. Gives the session back where it has lost it.
async fn look_for(
    shared: &Arc<Shared>,
    backend: &ProcessBackend,
    row: Session,
) -> Result<Option<(Session, Arc<Hub>)>, RunnerError> {
    let hub = shared.hub_of(&row);
    let taken_over = match adopt(shared, backend, &row).await {
        Some(process) => match listen(&process.directory()) {
            Ok(listener) => {
                let dialled = Dialled::at(listener, &process.directory());
                take_over(shared, &row, &hub, Enclosure::Process(process), dialled).await?
            }
            Err(error) => {
                tracing::warn!(session = %row.id, %error, "a sandbox's socket cannot be made: the sandbox is given up");
                end(shared, &process).await;
                false
            }
        },
        None => false,
    };
    Ok((!taken_over).then_some((row, hub)))
}

/// Ends a sandbox that nobody takes over, and takes its home away.
async fn end(shared: &Shared, process: &ProcessSandbox) {
    if let Err(error) = process.kill().await {
        shared.metrics.kills_failed.inc();
        tracing::error!(sandbox = process.id(), %error, "a sandbox of the server before could not be killed");
    }
    remove_folder(process.directory().join(HOME)).await;
}

/// The sandbox of a session, if it is alive. Where the server died between the claim and giving the folder its new name, it
/// gets it now.
async fn adopt(shared: &Arc<Shared>, backend: &ProcessBackend, row: &Session) -> Option<ProcessSandbox> {
    let folder = shared.folders.of_session(row.id);
    if let Some(sandbox) = row.sandbox {
        let before = shared.folders.of_sandbox(sandbox);
        if !folder.exists() && before.exists() && std::fs::rename(&before, &folder).is_err() {
            return None;
        }
    }
    let process = backend.adopt(&folder).await.ok().flatten()?;
    let is_its = row.sandbox.is_some_and(|sandbox| sandbox.to_string() == process.id());
    if is_its && !crate::peer::was_dead(&folder) {
        // The runner before this one may have died while it was frozen.
        match process.thaw().await {
            Ok(()) => return Some(process),
            Err(error) => tracing::warn!(session = %row.id, %error, "a sandbox that was stopped cannot go on"),
        }
    }
    end(shared, &process).await;
    None
}

/// Waits for the bridge of a session's sandbox. False where the sandbox had to be given up.
pub(crate) async fn take_over(
    shared: &Arc<Shared>,
    row: &Session,
    hub: &Arc<Hub>,
    enclosure: Enclosure,
    dialled: Dialled,
) -> Result<bool, RunnerError> {
    let agent = shared.store.agent_version(&row.tenant, row.agent, row.agent_version).await?;
    let place = Arc::clone(&shared.places).try_acquire_owned();
    let (Some(agent), Ok(place), Some(id)) = (agent, place, row.sandbox) else {
        match &enclosure {
            Enclosure::Process(process) => end(shared, process).await,
            Enclosure::Pod(_) => enclosure.over(None).await,
        }
        return Ok(false);
    };
    let sandbox = Arc::new(Sandbox::new(id, agent, enclosure, place, Some(Arc::clone(hub)), &shared.metrics));
    let binding = crate::lifecycle::binding(shared, &sandbox, row);
    if let Err(error) = shared.gateway.rebind(ash_gateway::SandboxId(id.0), binding) {
        tracing::warn!(sandbox = %id, %error, "the gateway refused a sandbox");
    }
    if let Some(id) = shared.store.unfinished_turn(row.id).await?
        && let Some(turn) = shared.store.turn(row.id, id).await?
    {
        hub.restore_turn(Some(Turn { id, after: Sequence(turn.first.0.saturating_sub(1)) }), Vec::new());
    }
    hub.set_place(Place::Recovering(Arc::clone(&sandbox)));
    shared.add_sandbox(Arc::clone(&sandbox));
    spawn_supervisor(shared, &sandbox, dialled);
    tracing::info!(session = %row.id, sandbox = %id, "a sandbox of the server before is alive: waiting for its bridge");
    let hub = Arc::clone(hub);
    tokio::spawn(async move {
        // One that is connected may still be sending what was not acknowledged. To its host a bridge is an untrusted client: one
        // that sends nothing, or does not come to an end, has lost its session. One that is not read for want of memory is no such.
        let progress = || (hub.last(), sandbox.bridge.holds());
        let mut last = progress();
        for _ in 0..RECOVERY_PERIODS {
            if timeout(BRIDGE_AWAY, hub.wait_settled()).await.is_ok() {
                return;
            }
            let now = progress();
            let is_held_back = now.1 % 2 == 1;
            if now == last && !is_held_back {
                break;
            }
            last = now;
        }
        sandbox.end_with(EndReason::Lost);
    });
    Ok(true)
}

async fn lost(shared: &Arc<Shared>, row: &Session, hub: &Arc<Hub>) -> Result<(), RunnerError> {
    shared.metrics.sandboxes_lost.inc();
    // One whose processes died with the server before left it behind.
    remove_folder(shared.folders.of_session(row.id).join(HOME)).await;
    let interrupted = shared.store.unfinished_turn(row.id).await?.map(|turn| turn.0);
    let message = "The server and the sandbox were lost in the middle of the turn; send the message again.";
    let opening = Opening {
        reason: OpeningReason::Lost,
        last_committed: row.last,
        interrupted,
        message: interrupted.map(|_| message.to_owned()),
        recovered: None,
        sandbox: None,
    };
    let state = row.state.after(SessionEvent::Pause(PausedReason::Lost)).unwrap_or(row.state);
    open_without_sandbox(shared, hub, state, None, opening).await;
    Ok(())
}
