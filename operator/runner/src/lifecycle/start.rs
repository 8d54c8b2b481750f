//! Starts a sandbox and warms it: its process, its bridge's greeting, the agent's files, Claude Code.

use std::{
    net::{Ipv4Addr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use ash_core::{agent::AgentVersion, id::SandboxId, ports::StoreError};
use ash_protocol::{
    message::{Request, Warm, Warmed},
    options::SessionOptions,
};
use ash_sandbox::{ReadOnlyBind, SandboxSpec};
use bytes::Bytes;
use secrecy::ExposeSecret;
use tokio::{sync::OwnedSemaphorePermit, time::timeout};

use super::{close::remove_folder, supervise::spawn_supervisor};
use crate::{
    bridge::RequestError,
    enclosure::{Dialled, Enclosure},
    hub::Hub,
    limits::{BRIDGE_START, WARM_UP},
    options::{effective, environment},
    sandbox::{EndReason, Sandbox, listen},
    shared::Shared,
    snapshots::{self, Aside, SnapshotError, Source},
};

/// Where things are inside a sandbox.
const CLAUDE_INSIDE: &str = "/opt/ash/claude";
const SOCKET_INSIDE: &str = "/run/ash/bridge.sock";
const WORKSPACE_INSIDE: &str = "/workspace";
/// Where an init container puts bridge and Claude Code into an image that is not ours.
const PROGRAMS_IN_PODS: &str = "/ash:";
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
    #[error("sandboxes are pods here, which a runner does not make")]
    NoProcesses,
    #[error("the pod is of no use: {0}")]
    Unusable(&'static str),
    #[error("the session's workspace could not be restored: {0}; try again")]
    Workspace(#[source] SnapshotError),
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

/// What a sandbox's folder holds before it is warmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Holds {
    /// Nothing.
    Nothing,
    /// Nothing, and an older workspace of its session was put aside.
    NothingYet,
    /// A workspace.
    Workspace,
}

/// Starts a sandbox and warms it.
pub(crate) async fn start(
    shared: &Arc<Shared>,
    agent: &AgentVersion,
    place: OwnedSemaphorePermit,
    purpose: For,
) -> Result<Arc<Sandbox>, StartError> {
    let id = SandboxId::new();
    let aside = match &purpose {
        For::Session(hub) => put_aside(shared, hub).await?,
        For::Pool => None,
    };
    let holds = if aside.is_some() { Holds::NothingYet } else { Holds::Nothing };
    let started = start_process(shared, id, agent, place, &purpose, holds).await;
    let (sandbox, holds) = match started {
        Ok(started) => started,
        Err(error) => {
            shared.metrics.sandbox_failures.inc();
            // What was made of a folder that no session has is of no use; a session's stays.
            remove_folder(shared.folders.of_sandbox(id)).await;
            if let Some(aside) = aside {
                aside.put_back(None).await;
            }
            return Err(error);
        }
    };
    match warm(shared, &sandbox, &purpose, holds).await {
        Ok(()) => {
            shared.metrics.sandbox_starts.inc();
            if let Some(aside) = aside {
                tokio::spawn(aside.let_go());
            }
            Ok(sandbox)
        }
        Err(error) => {
            shared.metrics.sandbox_failures.inc();
            sandbox.end_with(EndReason::Lost);
            sandbox.gone.cancelled().await;
            if let (Some(aside), For::Session(hub)) = (aside, &purpose) {
                // Where nothing else is left, it is the session's workspace.
                let is_last = matches!(error, StartError::Workspace(SnapshotError::NothingWhole));
                aside.put_back(is_last.then(|| hub.epoch())).await;
            }
            Err(error)
        }
    }
}

/// Puts aside what a session left on this machine, where it had its sandbox elsewhere since.
async fn put_aside(shared: &Shared, hub: &Hub) -> Result<Option<Aside>, StartError> {
    let directory = shared.folders.of_session(hub.session);
    if let Some(aside) = snapshots::find_aside(&directory).await? {
        // A start before this one came to no end.
        if !tokio::fs::try_exists(directory.join(UNPACKED_MARK)).await? {
            remove_folder(directory).await;
            return Ok(Some(aside));
        }
        aside.let_go().await;
    }
    let has_vault = shared.snapshots.has_vault();
    if snapshots::belongs(&directory, shared.store.as_ref(), &hub.session(), has_vault).await? {
        return Ok(None);
    }
    tracing::info!(session = %hub.session, "the session had its sandbox elsewhere since: what it left here is put aside");
    Ok(Some(Aside::put(&directory).await?))
}

async fn start_process(
    shared: &Arc<Shared>,
    id: SandboxId,
    agent: &AgentVersion,
    place: OwnedSemaphorePermit,
    purpose: &For,
    holds: Holds,
) -> Result<(Arc<Sandbox>, Holds), StartError> {
    let directory = match purpose {
        For::Pool => shared.folders.of_sandbox(id),
        For::Session(hub) => shared.folders.of_session(hub.session),
    };
    let Some(backend) = shared.backend.processes() else { return Err(StartError::NoProcesses) };
    let is_unpacked = tokio::fs::try_exists(directory.join(UNPACKED_MARK)).await?;
    let holds = if is_unpacked { Holds::Workspace } else { holds };
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
    let process = match backend.start(spec).await {
        Ok(process) => process,
        Err(error) => {
            shared.gateway.remove(ash_gateway::SandboxId(id.0));
            return Err(error.into());
        }
    };
    let dialled = Dialled::at(listener, &process.directory());
    let enclosure = Enclosure::Process(process);
    let sandbox = Arc::new(Sandbox::new(id, agent.clone(), enclosure, place, None, &shared.metrics));
    shared.add_sandbox(Arc::clone(&sandbox));
    spawn_supervisor(shared, &sandbox, dialled);
    // A server that stops has counted its sandboxes already.
    if shared.closing.is_cancelled() {
        sandbox.end_with(EndReason::Lost);
    }
    Ok((sandbox, holds))
}

/// Waits until a sandbox's bridge is there.
pub(crate) async fn connected(sandbox: &Arc<Sandbox>) -> Result<(), StartError> {
    let mut connections = sandbox.connections.subscribe();
    let connected = timeout(BRIDGE_START, connections.wait_for(|count| *count > 0));
    let came = tokio::select! {
        came = connected => came.is_ok(),
        () = sandbox.gone.cancelled() => false,
    };
    if came {
        return Ok(());
    }
    Err(StartError::NoBridge { within: BRIDGE_START, log: sandbox.enclosure.log_tail(LOG_LINES).await })
}

/// What Claude Code finds around it.
struct Surroundings {
    /// Where the sandbox reaches the gateway.
    gateway: SocketAddr,
    /// Its program.
    program: String,
    /// What comes before its path.
    path: &'static str,
}

/// Says it.
async fn surroundings(shared: &Shared, sandbox: &Sandbox) -> Result<Surroundings, StartError> {
    if let Some(pods) = shared.backend.pods() {
        return Ok(Surroundings { gateway: pods.gateway, program: pods.claude.clone(), path: PROGRAMS_IN_PODS });
    }
    match sandbox.gateway_port() {
        Some(port) => Ok(Surroundings {
            gateway: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
            program: CLAUDE_INSIDE.to_owned(),
            path: "",
        }),
        None => Err(StartError::NoBridge { within: BRIDGE_START, log: sandbox.enclosure.log_tail(LOG_LINES).await }),
    }
}

/// Unpacks the agent's files where they are not there yet, and starts Claude Code.
pub(crate) async fn warm(
    shared: &Arc<Shared>,
    sandbox: &Arc<Sandbox>,
    purpose: &For,
    holds: Holds,
) -> Result<(), StartError> {
    connected(sandbox).await?;
    let Surroundings { gateway, program, path } = surroundings(shared, sandbox).await?;
    if holds != Holds::Workspace {
        let restored = match purpose {
            For::Session(hub) => {
                let source = prepare_workspace(shared, sandbox, hub).await?;
                restore_workspace(shared, sandbox, hub, source).await?
            }
            For::Pool => None,
        };
        match restored {
            Some(true) => {}
            Some(false) if holds == Holds::NothingYet => {
                return Err(StartError::Workspace(SnapshotError::NothingWhole));
            }
            _ => unpack_bundle(shared, sandbox).await?,
        }
    }
    if holds != Holds::Workspace
        && let Some(directory) = sandbox.enclosure.directory()
    {
        if let For::Session(hub) = purpose {
            snapshots::mark(&directory, hub.epoch()).await?;
        }
        tokio::fs::write(directory.join(UNPACKED_MARK), sandbox.agent.digest.as_bytes()).await?;
    }
    tracing::debug!(sandbox = %sandbox.id, "the agent's files are there");
    let (options, resume) = match purpose {
        For::Pool => (SessionOptions::default(), None),
        For::Session(hub) => (hub.session().options, restore(shared, sandbox, hub).await?),
    };
    let token = shared.gateway.token(ash_gateway::SandboxId(sandbox.id.0));
    let request = Request::Warm(Box::new(Warm {
        program,
        environment: environment(gateway, path, token.expose_secret()),
        options: effective(&sandbox.agent.settings, &options),
        rehearse: matches!(purpose, For::Pool) && !sandbox.agent.settings.has_hooks,
        resume: resume.map(|(conversation, _)| conversation),
        memory_bound_bytes: shared.config.memory_bound_bytes,
    }));
    let warmed: Warmed = call(sandbox, sandbox.bridge.call(&request)).await?;
    tracing::debug!(sandbox = %sandbox.id, version = warmed.version, rehearsed = warmed.rehearsed, "a sandbox is warm");
    Ok(())
}

/// Puts the agent's files into the workspace.
async fn unpack_bundle(shared: &Arc<Shared>, sandbox: &Arc<Sandbox>) -> Result<(), StartError> {
    let bundle =
        shared.store.bundle(&sandbox.agent.tenant, &sandbox.agent.digest).await?.ok_or(StartError::NoBundle)?;
    let tar = tokio::task::spawn_blocking(move || zstd::decode_all(&bundle[..]))
        .await
        .map_err(|_| StartError::NoBundle)??;
    let request = Request::Unpack { max_bytes: MAX_BUNDLE_BYTES };
    let data = Some(Bytes::from(tar));
    let unpacked = async { sandbox.bridge.send_with_data(&request, data).await.read::<serde::de::IgnoredAny>().await };
    call(sandbox, unpacked).await?;
    Ok(())
}

/// Looks for what a session's workspace is made from; the sandbox stays as it is.
pub(crate) async fn prepare_workspace(
    shared: &Arc<Shared>,
    sandbox: &Arc<Sandbox>,
    hub: &Arc<Hub>,
) -> Result<Option<Source>, StartError> {
    tokio::select! {
        source = snapshots::prepare(shared, sandbox, hub) => source.map_err(StartError::Workspace),
        () = sandbox.end.cancelled() => Err(StartError::Ended),
    }
}

/// Makes a session's workspace what its newest snapshot is. `None` where it has none and the workspace is as it was, false where
/// nothing is left of any and the workspace may be empty.
async fn restore_workspace(
    shared: &Arc<Shared>,
    sandbox: &Arc<Sandbox>,
    hub: &Arc<Hub>,
    source: Option<Source>,
) -> Result<Option<bool>, StartError> {
    let Some(source) = source else { return Ok(None) };
    let restored = tokio::select! {
        restored = snapshots::restore(shared, sandbox, hub, source) => restored.map_err(StartError::Workspace)?,
        () = sandbox.end.cancelled() => return Err(StartError::Ended),
    };
    sandbox.set_recovered(restored.recovered);
    Ok(Some(restored.is_made))
}

/// Brings a session that is not new to a warm sandbox that was claimed for it: its workspace, and its conversation.
pub(crate) async fn bring(
    shared: &Arc<Shared>,
    sandbox: &Arc<Sandbox>,
    hub: &Arc<Hub>,
    source: Option<Source>,
) -> Result<(), StartError> {
    if restore_workspace(shared, sandbox, hub, source).await? == Some(false) {
        unpack_bundle(shared, sandbox).await?;
    }
    restore(shared, sandbox, hub).await?;
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
            Ok(Err(RequestError::Gone)) => Err(StartError::Bridge(RequestError::Gone, sandbox.enclosure.log_tail(LOG_LINES).await)),
            Ok(Err(error)) => Err(StartError::Bridge(error, String::new())),
        },
        () = sandbox.end.cancelled() => Err(StartError::Ended),
    }
}
