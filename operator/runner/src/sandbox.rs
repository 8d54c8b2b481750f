//! One sandbox as the runner has it: what encloses it, its bridge, and the session that it serves.

use std::{
    io,
    os::fd::AsRawFd,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use ash_core::{
    agent::AgentVersion,
    id::{SandboxId, SessionId},
    opening::Recovered,
    sandbox::SandboxState,
};
use ash_gateway::Attachment;
use ash_protocol::{message::Progress, version::ProtocolVersion};
use ash_sandbox::BoundsMet;
use tokio::{
    net::UnixListener,
    sync::{OwnedSemaphorePermit, watch},
};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::{
    bridge::Bridge,
    enclosure::Enclosure,
    hub::Hub,
    metrics::Metrics,
    occupancy::{Occupancy, Phase},
};

/// The socket of a sandbox's `run` folder that its bridge dials.
const SOCKET_NAME: &str = "bridge.sock";

/// A sandbox.
pub(crate) struct Sandbox {
    pub(crate) id: SandboxId,
    pub(crate) agent: AgentVersion,
    pub(crate) bridge: Bridge,
    pub(crate) enclosure: Enclosure,
    /// Says that a connection is up, with the number of connections so far.
    pub(crate) connections: watch::Sender<u64>,
    /// Ends the sandbox: whoever supervises it kills what is left and takes its session off it.
    pub(crate) end: CancellationToken,
    /// Set when everything is over.
    pub(crate) gone: CancellationToken,
    /// Held by who gives the folder another name, or removes it.
    pub(crate) folder: tokio::sync::Mutex<()>,
    /// Held by who takes a snapshot of its workspace.
    pub(crate) snapshot: tokio::sync::Mutex<()>,
    /// Whether it was stopped because the runner is frozen; held by who stops it or has it go on.
    pub(crate) stopped: tokio::sync::Mutex<bool>,
    /// Bounds that it met, as far as they were counted.
    pub(crate) met: Mutex<BoundsMet>,
    inner: Mutex<Inner>,
}

struct Inner {
    occupancy: Occupancy<Arc<Hub>>,
    /// Its place in the pool's capacity, until it is over.
    place: Option<OwnedSemaphorePermit>,
    last_used: Instant,
    attachment: Option<Attachment>,
    gateway_port: Option<u16>,
    /// How far the bridge was when it connected last.
    progress: Option<Progress>,
    /// The version that its bridge speaks.
    protocol: Option<ProtocolVersion>,
    /// The conversation that was put back into the sandbox, and its length in bytes.
    restored: Option<(Uuid, u64)>,
    /// What its session goes on with, where its workspace was not at hand.
    recovered: Option<Recovered>,
    /// Whether the session was taken off, or somebody is at it.
    left: bool,
}

/// Why a sandbox ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum EndReason {
    /// By itself: it died, or misbehaved.
    Lost,
    /// Its place is needed, or nobody used it for a while, or the server stops.
    Asleep(ash_core::session::PausedReason),
    /// A person paused, stopped or ended its session.
    Closed(ash_core::session::Closing),
    /// It did something that it may not; the sentence is for the session's reader.
    Failed(String),
}

impl EndReason {
    /// Why, for whoever made the sandbox: nothing to say of an end that somebody wanted.
    pub(crate) fn sentence(self) -> Option<String> {
        match self {
            Self::Lost => Some("its bridge died or did not come back".to_owned()),
            Self::Failed(message) => Some(message),
            Self::Asleep(_) | Self::Closed(_) => None,
        }
    }
}

impl std::fmt::Debug for Sandbox {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Sandbox").field("id", &self.id).field("state", &self.state()).finish_non_exhaustive()
    }
}

impl Sandbox {
    pub(crate) fn new(
        id: SandboxId,
        agent: AgentVersion,
        enclosure: Enclosure,
        place: OwnedSemaphorePermit,
        hub: Option<Arc<Hub>>,
        metrics: &Arc<Metrics>,
    ) -> Self {
        Self {
            id,
            agent,
            bridge: Bridge::new(Arc::clone(metrics)),
            enclosure,
            connections: watch::Sender::new(0),
            end: CancellationToken::new(),
            gone: CancellationToken::new(),
            folder: tokio::sync::Mutex::new(()),
            snapshot: tokio::sync::Mutex::new(()),
            stopped: tokio::sync::Mutex::new(false),
            met: Mutex::default(),
            inner: Mutex::new(Inner {
                occupancy: Occupancy::new(hub),
                last_used: Instant::now(),
                place: Some(place),
                attachment: None,
                gateway_port: None,
                progress: None,
                protocol: None,
                restored: None,
                recovered: None,
                left: false,
            }),
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn state(&self) -> SandboxState {
        match self.lock().occupancy.phase() {
            None => SandboxState::Deleting,
            Some(Phase::Warming) => SandboxState::Warming,
            Some(Phase::Warm) => SandboxState::Warm,
            Some(Phase::Bound(hub)) if hub.turn().is_some() => SandboxState::Running,
            Some(Phase::Bound(hub)) if hub.rests() => SandboxState::Cold,
            Some(Phase::Bound(_)) => SandboxState::Waiting,
        }
    }

    pub(crate) fn hub(&self) -> Option<Arc<Hub>> {
        self.lock().occupancy.session().cloned()
    }

    pub(crate) fn session(&self) -> Option<SessionId> {
        self.hub().map(|hub| hub.session)
    }

    /// Opens the sandbox for claims.
    pub(crate) fn set_warm(&self) {
        let mut inner = self.lock();
        inner.occupancy.set_warm();
        inner.last_used = Instant::now();
    }

    /// Gives the sandbox to a session: true for one claimant. One that still warms can be claimed only by who starts it.
    pub(crate) fn claim(&self, hub: &Arc<Hub>, warming: bool) -> bool {
        let mut inner = self.lock();
        let claimed = inner.occupancy.claim(Arc::clone(hub), warming);
        if claimed {
            inner.last_used = Instant::now();
        }
        claimed
    }

    /// Takes a claim back of which neither the session nor the bridge was told.
    pub(crate) fn give_back(&self) {
        self.lock().occupancy.give_back();
    }

    /// Says that the sandbox was used just now.
    pub(crate) fn touch(&self) {
        self.lock().last_used = Instant::now();
    }

    pub(crate) fn last_used(&self) -> Instant {
        self.lock().last_used
    }

    /// Takes the duty to take the session off the sandbox: true once.
    pub(crate) fn take_leave(&self) -> bool {
        !std::mem::replace(&mut self.lock().left, true)
    }

    /// Keeps the gateway's side of the sandbox's listener; the one before it is dropped.
    pub(crate) fn attach(&self, attachment: Attachment, port: u16) {
        let mut inner = self.lock();
        inner.attachment = Some(attachment);
        inner.gateway_port = Some(port);
    }

    /// Gives the place back: the sandbox is over, whoever still knows it.
    pub(crate) fn release_place(&self) {
        drop(self.lock().place.take());
    }

    /// Ends the gateway's side: the sandbox is over.
    pub(crate) fn end_attachment(&self) {
        let attachment = self.lock().attachment.take();
        if let Some(attachment) = attachment {
            attachment.end();
        }
    }

    /// The gateway's port inside the sandbox, once its bridge has said it.
    pub(crate) fn gateway_port(&self) -> Option<u16> {
        self.lock().gateway_port
    }

    /// Keeps how far the bridge was when it connected.
    pub(crate) fn set_progress(&self, progress: Progress) {
        self.lock().progress = Some(progress);
    }

    /// How far the bridge was when it connected last.
    pub(crate) fn progress(&self) -> Option<Progress> {
        self.lock().progress.clone()
    }

    /// Notes what its session goes on with: its log says so.
    pub(crate) fn set_recovered(&self, recovered: Recovered) {
        self.lock().recovered = Some(recovered);
    }

    pub(crate) fn recovered(&self) -> Option<Recovered> {
        self.lock().recovered.clone()
    }

    /// Notes the version that its bridge speaks.
    pub(crate) fn set_protocol(&self, protocol: ProtocolVersion) {
        self.lock().protocol = Some(protocol);
    }

    /// Whether its bridge knows what came with this minor version of the protocol.
    pub(crate) fn speaks(&self, minor: u16) -> bool {
        self.lock().protocol.is_some_and(|protocol| protocol.knows(minor))
    }

    pub(crate) fn set_restored(&self, conversation: Uuid, length: u64) {
        self.lock().restored = Some((conversation, length));
    }

    pub(crate) fn restored(&self) -> Option<(Uuid, u64)> {
        self.lock().restored
    }

    /// Says why the sandbox will end, before it is asked to; the first reason counts.
    pub(crate) fn announce_end(&self, reason: EndReason) {
        self.lock().occupancy.announce_end(reason);
    }

    /// Says why the sandbox will end, unless a session has it: true where that is said, and no session can claim it any more.
    pub(crate) fn announce_end_if_unclaimed(&self, reason: EndReason) -> bool {
        self.lock().occupancy.announce_end_if_unclaimed(reason)
    }

    /// Ends the sandbox for a reason; the first reason counts.
    pub(crate) fn end_with(&self, reason: EndReason) {
        self.announce_end(reason);
        self.end.cancel();
    }

    /// Why the sandbox ends, as far as somebody wanted it to.
    pub(crate) fn end_reason(&self) -> Option<EndReason> {
        self.lock().occupancy.end().cloned()
    }

    /// Ends the sandbox because nothing it writes can be kept.
    pub(crate) fn abandon(&self) {
        self.end_with(EndReason::Lost);
    }
}

/// The folders of sandboxes under the data directory.
#[derive(Debug, Clone)]
pub(crate) struct Folders {
    root: PathBuf,
}

impl Folders {
    pub(crate) fn new(data: &Path) -> Self {
        Self { root: data.join("sandboxes") }
    }

    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Before a session has it, a sandbox's folder bears its own id.
    pub(crate) fn of_sandbox(&self, id: SandboxId) -> PathBuf {
        self.root.join(id.to_string())
    }

    /// From the claim on it bears the session's.
    pub(crate) fn of_session(&self, id: SessionId) -> PathBuf {
        self.root.join(id.to_string())
    }
}

/// Listens in a sandbox's `run` folder for its bridge.
///
/// The path may be longer than a socket's address can be (108 bytes), so it goes through a descriptor of the folder.
pub(crate) fn listen(directory: &Path) -> io::Result<UnixListener> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};

    let run = directory.join("run");
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&run)?;
    let socket = run.join(SOCKET_NAME);
    match std::fs::remove_file(&socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let folder = std::fs::File::open(&run)?;
    let listener = UnixListener::bind(format!("/proc/self/fd/{}/{SOCKET_NAME}", folder.as_raw_fd()))?;
    // The folder is the sandbox's own; its user there is not the server's.
    std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o666))?;
    Ok(listener)
}
