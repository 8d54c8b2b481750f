//! The life of a sandbox: started, warmed, given to a session, supervised until its end.

use std::{path::PathBuf, sync::Arc, time::Duration};

use ash_core::{
    agent::{AgentVersion, NetworkPolicy},
    id::{SandboxId, SessionId},
    opening::{Opening, OpeningReason},
    ports::{OpenEpoch, StoreError},
    session::{PausedReason, Session, SessionEvent, SessionState},
};
use ash_gateway::{Binding, EgressPolicy};
use ash_protocol::{
    Sequence,
    message::{Bind, Bound, Claimed, Progress, Request, Warm, Warmed},
    options::SessionOptions,
};
use ash_sandbox::{ReadOnlyBind, SandboxSpec};
use bytes::Bytes;
use secrecy::ExposeSecret;
use tokio::{
    net::UnixListener,
    sync::OwnedSemaphorePermit,
    time::{sleep, timeout},
};
use tracing::Instrument;

use crate::{
    bridge::{ConnectionError, Greeted, Incoming, RequestError, greet},
    commit::unwritten,
    hub::{Hub, Place, Turn},
    limits::{BRIDGE_AWAY, BRIDGE_START, COMMIT_RETRY, COMMIT_TRIES, FLUSH_WAIT, SANDBOX_END, WARM_UP},
    options::{effective, environment},
    peer::Peer,
    sandbox::{EndReason, Sandbox, listen},
    shared::Shared,
};

/// Where things are inside a sandbox.
const CLAUDE_INSIDE: &str = "/opt/ash/claude";
const SOCKET_INSIDE: &str = "/run/ash/bridge.sock";
const WORKSPACE_INSIDE: &str = "/workspace";
/// Says that a folder's workspace was unpacked, so that a session that wakes does not unpack its bundle over its files.
const UNPACKED_MARK: &str = "unpacked";
/// Bytes that an unpacked bundle may take.
const MAX_BUNDLE_BYTES: u64 = 100 << 20;
/// Lines of a sandbox's log that an error repeats.
const LOG_LINES: usize = 10;

/// Why a sandbox could not be started.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StartError {
    #[error("the sandbox could not be started: {0}")]
    Sandbox(#[from] ash_sandbox::SandboxError),
    #[error("the sandbox's folder could not be made: {0}")]
    Folder(#[from] std::io::Error),
    #[error("{0}")]
    Gateway(#[from] ash_gateway::BindError),
    #[error("the sandbox's bridge did not come within {} s{log}", .within.as_secs())]
    NoBridge { within: Duration, log: String },
    #[error("the agent's files are not in the store: deploy the agent again")]
    NoBundle,
    #[error("{0}{1}")]
    Bridge(RequestError, String),
    #[error("Claude Code was not ready within {} s", .0.as_secs())]
    WarmUp(Duration),
    #[error("the sandbox was ended while it started")]
    Ended,
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// For whom a sandbox is started.
pub(crate) enum For {
    /// The pool: any session of this version.
    Pool,
    /// One session, whose conversation goes on where there is one.
    Session(Arc<Hub>),
}

/// Starts a sandbox and warms it.
pub(crate) async fn start(
    shared: &Arc<Shared>,
    agent: &AgentVersion,
    place: OwnedSemaphorePermit,
    purpose: For,
) -> Result<Arc<Sandbox>, StartError> {
    let started = start_process(shared, agent, place, &purpose).await;
    let (sandbox, unpacked) = match started {
        Ok(started) => started,
        Err(error) => {
            shared.metrics.sandbox_failures.inc();
            return Err(error);
        }
    };
    match warm(shared, &sandbox, &purpose, unpacked).await {
        Ok(()) => {
            shared.metrics.sandbox_starts.inc();
            Ok(sandbox)
        }
        Err(error) => {
            shared.metrics.sandbox_failures.inc();
            sandbox.end_with(EndReason::Lost);
            sandbox.gone.cancelled().await;
            Err(error)
        }
    }
}

async fn start_process(
    shared: &Arc<Shared>,
    agent: &AgentVersion,
    place: OwnedSemaphorePermit,
    purpose: &For,
) -> Result<(Arc<Sandbox>, bool), StartError> {
    let id = SandboxId::new();
    let directory = match purpose {
        For::Pool => shared.folders.of_sandbox(id),
        For::Session(hub) => shared.folders.of_session(hub.session),
    };
    let unpacked = tokio::fs::try_exists(directory.join(UNPACKED_MARK)).await?;
    tokio::fs::create_dir_all(&directory).await?;
    let listener = listen(&directory)?;
    let spec = SandboxSpec {
        id: id.to_string(),
        directory,
        program: shared.config.bridge.clone(),
        arguments: ["--socket", SOCKET_INSIDE, "--sandbox", &id.to_string(), "--workspace", WORKSPACE_INSIDE]
            .map(str::to_owned)
            .to_vec(),
        read_only_binds: vec![ReadOnlyBind { host: shared.config.claude.clone(), inside: CLAUDE_INSIDE.into() }],
        environment: vec![("HOME".to_owned(), "/home/agent".to_owned())],
        limits: shared.config.limits,
    };
    shared.gateway.register_unclaimed(ash_gateway::SandboxId(id.0))?;
    let process = match shared.backend.start(spec).await {
        Ok(process) => process,
        Err(error) => {
            shared.gateway.remove(ash_gateway::SandboxId(id.0));
            return Err(error.into());
        }
    };
    let sandbox = Arc::new(Sandbox::new(id, agent.clone(), process, place, None));
    shared.add_sandbox(Arc::clone(&sandbox));
    spawn_supervisor(shared, &sandbox, listener);
    // A server that stops has counted its sandboxes already.
    if shared.closing.is_cancelled() {
        sandbox.end_with(EndReason::Lost);
    }
    Ok((sandbox, unpacked))
}

async fn warm(shared: &Arc<Shared>, sandbox: &Arc<Sandbox>, purpose: &For, unpacked: bool) -> Result<(), StartError> {
    let mut connections = sandbox.connections.subscribe();
    let connected = timeout(BRIDGE_START, connections.wait_for(|count| *count > 0));
    let came = tokio::select! {
        came = connected => came.is_ok(),
        () = sandbox.gone.cancelled() => false,
    };
    let port = sandbox.gateway_port();
    let Some(port) = port.filter(|_| came) else {
        return Err(StartError::NoBridge { within: BRIDGE_START, log: log_tail(sandbox).await });
    };
    if !unpacked {
        let bundle =
            shared.store.bundle(&sandbox.agent.tenant, &sandbox.agent.digest).await?.ok_or(StartError::NoBundle)?;
        let tar = tokio::task::spawn_blocking(move || zstd::decode_all(&bundle[..]))
            .await
            .map_err(|_| StartError::NoBundle)??;
        let request = Request::Unpack { max_bytes: MAX_BUNDLE_BYTES };
        let data = Some(Bytes::from(tar));
        let unpacked =
            async { sandbox.bridge.send_with_data(&request, data).await.read::<serde::de::IgnoredAny>().await };
        call(sandbox, unpacked).await?;
        tokio::fs::write(sandbox.process.directory().join(UNPACKED_MARK), sandbox.agent.digest.as_bytes()).await?;
    }
    let (options, resume) = match purpose {
        For::Pool => (SessionOptions::default(), None),
        For::Session(hub) => (hub.session().options, restore(shared, sandbox, hub).await?),
    };
    let token = shared.gateway.token(ash_gateway::SandboxId(sandbox.id.0));
    let request = Request::Warm(Box::new(Warm {
        program: CLAUDE_INSIDE.to_owned(),
        environment: environment(port, token.expose_secret()),
        options: effective(&sandbox.agent.settings, &options),
        rehearse: matches!(purpose, For::Pool) && !sandbox.agent.settings.has_hooks,
        resume: resume.map(|(conversation, _)| conversation),
        memory_bound_bytes: shared.config.memory_bound_bytes,
    }));
    let warmed: Warmed = call(sandbox, sandbox.bridge.call(&request)).await?;
    tracing::debug!(sandbox = %sandbox.id, version = warmed.version, rehearsed = warmed.rehearsed, "a sandbox is warm");
    Ok(())
}

/// Puts a session's conversation back: its id and length, where it has one.
async fn restore(
    shared: &Arc<Shared>,
    sandbox: &Arc<Sandbox>,
    hub: &Arc<Hub>,
) -> Result<Option<(uuid::Uuid, u64)>, StartError> {
    let Some(transcript) = shared.store.transcript(hub.session).await? else { return Ok(None) };
    let length = transcript.bytes.len() as u64;
    let request = Request::RestoreTranscript { conversation: transcript.conversation };
    let data = Some(Bytes::from(transcript.bytes));
    let restored = async { sandbox.bridge.send_with_data(&request, data).await.read::<serde::de::IgnoredAny>().await };
    call(sandbox, restored).await?;
    sandbox.set_restored(transcript.conversation, length);
    Ok(Some((transcript.conversation, length)))
}

/// Waits for an answer while the sandbox starts.
async fn call<T>(
    sandbox: &Arc<Sandbox>,
    answer: impl Future<Output = Result<T, RequestError>>,
) -> Result<T, StartError> {
    tokio::select! {
        answer = timeout(WARM_UP, answer) => match answer {
            Err(_) => Err(StartError::WarmUp(WARM_UP)),
            Ok(Ok(value)) => Ok(value),
            Ok(Err(RequestError::Gone)) => Err(StartError::Bridge(RequestError::Gone, log_tail(sandbox).await)),
            Ok(Err(error)) => Err(StartError::Bridge(error, String::new())),
        },
        () = sandbox.end.cancelled() => Err(StartError::Ended),
    }
}

async fn log_tail(sandbox: &Sandbox) -> String {
    match sandbox.process.log_tail(LOG_LINES).await {
        Ok(lines) if !lines.is_empty() => format!("; the last lines of its log: {}", lines.join(" | ")),
        _ => String::new(),
    }
}

/// Gives a sandbox that was claimed for it to a session: the next epoch, the folder's name, the gateway, the bridge.
pub(crate) async fn bind(
    shared: &Arc<Shared>,
    sandbox: &Arc<Sandbox>,
    hub: &Arc<Hub>,
    how: Claimed,
) -> Result<Session, StartError> {
    let before = hub.session();
    let state = before.state.after(SessionEvent::Message).map_err(|_| StartError::Ended)?;
    // A new session never had a turn; asking for it would cost a look into the store on the way of every creation.
    let interrupted =
        if before.last == Sequence::START { None } else { shared.store.unfinished_turn(before.id).await? };
    let opening = Opening {
        reason: OpeningReason::Claimed,
        last_committed: before.last,
        interrupted: interrupted.map(|turn| turn.0),
        message: None,
    };
    let open = OpenEpoch {
        session: before.id,
        expected: before.epoch,
        state,
        error: None,
        sandbox: Some(sandbox.id),
        opening: opening.clone(),
    };
    let row = shared.store.open_epoch(open).await?;
    hub.open_epoch(row.clone(), &opening, Place::Starting);
    let folder = shared.folders.of_session(row.id);
    if sandbox.process.directory() != folder {
        tokio::fs::rename(sandbox.process.directory(), &folder).await?;
        sandbox.process.relocate(&folder)?;
    }
    shared.gateway.bind(ash_gateway::SandboxId(sandbox.id.0), binding(sandbox, &row))?;
    let answer = send_bind(sandbox, &row).await;
    hub.set_place(Place::Live(Arc::clone(sandbox)));
    let (shared, sandbox, hub) = (Arc::clone(shared), Arc::clone(sandbox), Arc::clone(hub));
    tokio::spawn(async move {
        tokio::select! {
            answer = answer.read::<Bound>() => match answer {
                Ok(bound) => {
                    let how = if how == Claimed::Cold { how } else { bound.how };
                    shared.metrics.claimed(how);
                    tracing::debug!(sandbox = %sandbox.id, session = %hub.session, ?how, "bound");
                }
                Err(RequestError::Gone) => {}
                Err(error) => sandbox.end_with(EndReason::Failed(error.to_string())),
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

async fn send_bind(sandbox: &Sandbox, row: &Session) -> crate::bridge::Answer {
    let restored = sandbox.restored();
    let request = Request::Bind(Box::new(Bind {
        tenant: row.tenant.0.clone(),
        session: row.id.0,
        epoch: row.epoch,
        options: effective(&sandbox.agent.settings, &row.options),
        resume: restored.map(|(conversation, _)| conversation),
        transcript_offset: restored.map_or(0, |(_, length)| length),
    }));
    sandbox.bridge.send(&request).await
}

/// What the gateway binds a session's sandbox to.
pub(crate) fn binding(sandbox: &Sandbox, row: &Session) -> Binding {
    Binding {
        tenant: ash_gateway::TenantId(row.tenant.0.as_str().into()),
        session: ash_gateway::SessionId(row.id.0),
        epoch: ash_gateway::Epoch(row.epoch.0),
        egress: egress(&sandbox.agent.settings.network),
        upstream: None,
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

/// Looks after a sandbox for its whole life, in a span of its own.
pub(crate) fn spawn_supervisor(shared: &Arc<Shared>, sandbox: &Arc<Sandbox>, listener: UnixListener) {
    let span = tracing::info_span!("sandbox", sandbox = %sandbox.id, agent = %sandbox.agent.agent);
    tokio::spawn(supervise(Arc::clone(shared), Arc::clone(sandbox), listener).instrument(span));
}

/// Serves a sandbox's connections until it ends, then takes its session off it and clears up.
async fn supervise(shared: Arc<Shared>, sandbox: Arc<Sandbox>, listener: UnixListener) {
    let ended_by_itself = tokio::select! {
        () = serve_connections(&shared, &sandbox, &listener) => true,
        _ = sandbox.process.exited() => true,
        () = sandbox.end.cancelled() => false,
    };
    if ended_by_itself && sandbox.end_reason().is_none() {
        shared.metrics.sandboxes_lost.inc();
        tracing::warn!(sandbox = %sandbox.id, session = ?sandbox.session(), "a sandbox was lost");
    }
    sandbox.end_with(EndReason::Lost);
    if let Some(hub) = sandbox.hub() {
        // Before the kill, which takes a moment: a message that comes meanwhile waits for the next sandbox.
        hub.begin_leaving(&sandbox);
    }
    if let Err(error) = sandbox.process.kill().await {
        tracing::error!(sandbox = %sandbox.id, %error, "a sandbox could not be killed");
    }
    shared.gateway.remove(ash_gateway::SandboxId(sandbox.id.0));
    sandbox.end_attachment();
    sandbox.bridge.fail_pending();
    match sandbox.hub() {
        Some(hub) => {
            // Its home goes with a sandbox; the conversation is in the log, the workspace stays.
            remove_folder(sandbox.process.directory().join("home")).await;
            leave(&shared, &sandbox, &hub).await;
        }
        None if sandbox.process.directory() == shared.folders.of_sandbox(sandbox.id) => {
            remove_folder(sandbox.process.directory()).await;
        }
        // It was started for a session and never became its sandbox: the workspace is the session's all the same.
        None => remove_folder(sandbox.process.directory().join("home")).await,
    }
    shared.remove_sandbox(sandbox.id);
    sandbox.release_place();
    sandbox.gone.cancel();
    crate::pool::freed(&shared);
}

/// Returns when the bridge stayed away for too long or broke the protocol.
async fn serve_connections(shared: &Arc<Shared>, sandbox: &Arc<Sandbox>, listener: &UnixListener) {
    let folder = sandbox.process.directory();
    // Who served the host before this one; a bridge that is dead does not come back.
    let mut peer = Peer::recall(&folder);
    loop {
        let accepted = tokio::select! {
            biased;
            accepted = timeout(BRIDGE_AWAY, listener.accept()) => accepted,
            () = dead(peer.as_ref()) => return,
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
        peer = Peer::of(&stream);
        if let Some(peer) = &peer {
            peer.remember(&sandbox.process.directory());
        }
        let greeted = match timeout(BRIDGE_START, greet(stream)).await {
            Ok(Ok(greeted)) => greeted,
            Ok(Err(error)) if error.is_violation() => {
                shared.metrics.bridge_violations.inc();
                tracing::warn!(sandbox = %sandbox.id, %error, "a bridge was refused");
                return;
            }
            Ok(Err(_)) | Err(_) => continue,
        };
        let error = serve_connection(shared, sandbox, greeted).await;
        tracing::debug!(sandbox = %sandbox.id, %error, "a bridge's connection ended");
        if error.is_violation() {
            shared.metrics.bridge_violations.inc();
            tracing::warn!(sandbox = %sandbox.id, %error, "a bridge was cut off");
            return;
        }
    }
}

/// Returns when the bridge is dead; never where that cannot be known.
async fn dead(peer: Option<&Peer>) {
    match peer {
        Some(peer) => peer.dead().await,
        None => std::future::pending().await,
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
    let stalls = &shared.metrics.bridges_stalled;
    let mut stalled = false;
    let incoming = |incoming: Incoming| {
        match incoming {
            Incoming::Entries(entries) => {
                let Some(hub) = sandbox.hub() else { return Ok(()) };
                let taken = hub.take(entries)?;
                shared.queue.push(&hub, taken.urgency);
                if taken.turn_ended {
                    sandbox.touch();
                    shared.metrics.turns.inc();
                    crate::pool::turn_ended(shared);
                }
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
            }
        }
        Ok(())
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
                let turn = turn.as_ref().map(|turn| Turn {
                    id: ash_core::id::TurnId(turn.id),
                    after: Sequence(turn.first.0.saturating_sub(1)),
                });
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
        Progress::Bound { .. } => (row.last, true),
    }
}

/// Takes a session off a sandbox that is over: its tail is committed, then the next epoch says why.
async fn leave(shared: &Arc<Shared>, sandbox: &Arc<Sandbox>, hub: &Arc<Hub>) {
    // A session that is only just being bound is not on its sandbox yet: whoever binds it looks again when it is.
    let on_it = hub.begin_leaving(sandbox) || matches!(hub.place(), Place::Leaving);
    if !on_it || !sandbox.take_leave() {
        return;
    }
    shared.queue.push(hub, crate::hub::Urgency::Now);
    if timeout(FLUSH_WAIT, hub.wait_committed()).await != Ok(true) {
        tracing::error!(session = %hub.session, "a session's last entries could not be written; they are withdrawn");
    }
    let row = hub.session();
    let turn = hub.leaving_turn().map(|turn| turn.0);
    let (event, reason, message) = match sandbox.end_reason().unwrap_or(EndReason::Lost) {
        EndReason::Lost => (
            SessionEvent::Pause(PausedReason::Lost),
            OpeningReason::Lost,
            Some("The sandbox was lost in the middle of the turn; send the message again.".to_owned()),
        ),
        EndReason::Asleep(reason) => (
            SessionEvent::Pause(reason),
            OpeningReason::Asleep,
            Some("The turn was interrupted: its server stopped or needed the sandbox.".to_owned()),
        ),
        EndReason::Ended => (SessionEvent::End, OpeningReason::Ended, Some("The session was ended.".to_owned())),
        EndReason::Failed(message) => (SessionEvent::Pause(PausedReason::Lost), OpeningReason::Lost, Some(message)),
    };
    let opening =
        Opening { reason, last_committed: row.last, interrupted: turn, message: message.filter(|_| turn.is_some()) };
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
    for _ in 0..COMMIT_TRIES {
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
            Err(error) => {
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

/// Ends a sandbox gently: the bridge is asked to end it, and killed when it does not.
pub(crate) async fn close(sandbox: &Arc<Sandbox>, reason: EndReason) {
    let deadline_ms = u64::try_from(SANDBOX_END.as_millis()).unwrap_or(u64::MAX);
    sandbox.announce_end(reason.clone());
    let asked = async {
        let _ = sandbox.bridge.call::<serde::de::IgnoredAny>(&Request::Shutdown { deadline_ms }).await;
    };
    // The bridge answers before it ends: what it still has to say comes until then.
    let ended = async {
        asked.await;
        sandbox.gone.cancelled().await;
    };
    let _ = timeout(SANDBOX_END, ended).await;
    sandbox.end_with(reason);
    sandbox.gone.cancelled().await;
}

/// Removes the folder of a sandbox that no session had.
pub(crate) async fn remove_folder(folder: PathBuf) {
    match tokio::fs::remove_dir_all(&folder).await {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(folder = %folder.display(), %error, "a sandbox's folder could not be removed");
        }
        _ => {}
    }
}
