//! How a runner comes to its sandboxes: it starts processes, or pods dial it.

use std::{
    collections::HashSet,
    fmt,
    net::SocketAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use ash_core::{
    Epoch,
    id::SandboxId,
    ports::{PodIdentity, RunnerPods, TokenReviews},
};
use ash_sandbox::ProcessBackend;
use secrecy::SecretBox;

use crate::{
    pods::{Tickets, now},
    sandbox::Sandbox,
};

/// The sandboxes of a runner.
#[derive(Debug)]
pub enum Backend {
    /// Processes of this machine.
    Processes(Arc<ProcessBackend>),
    /// Pods of this node.
    Pods(Arc<Pods>),
}

/// What a runner of pods is built from.
pub struct PodsConfig {
    /// The node that it is on: pods of others are not admitted.
    pub node: String,
    /// Where pods reach its gateway.
    pub gateway: SocketAddr,
    /// Claude Code's program in the pods.
    pub claude: String,
    /// The audience of pods' tokens.
    pub audience: String,
    /// Who says which pod a token is of.
    pub reviews: Arc<dyn TokenReviews>,
    /// Who says which sandbox a pod is.
    pub calls: Arc<dyn RunnerPods>,
    /// The key of tickets: the same for every life of the runner on this node.
    pub ticket_key: SecretBox<[u8; 32]>,
}

/// The pods of a node.
pub struct Pods {
    pub(crate) node: String,
    pub(crate) gateway: SocketAddr,
    pub(crate) claude: String,
    pub(crate) audience: String,
    pub(crate) reviews: Arc<dyn TokenReviews>,
    pub(crate) calls: Arc<dyn RunnerPods>,
    pub(crate) tickets: Tickets,
    /// Sandboxes that are being admitted.
    admitting: Mutex<HashSet<SandboxId>>,
}

/// The right to admit a sandbox, until it is dropped.
pub(crate) struct Admitting<'a> {
    pods: &'a Pods,
    sandbox: SandboxId,
}

impl Pods {
    fn lock(&self) -> MutexGuard<'_, HashSet<SandboxId>> {
        self.admitting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A ticket for the next connection of a sandbox's bridge.
    pub(crate) fn ticket(&self, sandbox: &Sandbox, pod: &PodIdentity) -> Option<String> {
        let epoch = sandbox.hub().map_or(Epoch(0), |hub| hub.epoch());
        self.tickets.issue(sandbox.id, pod, epoch, now())
    }

    /// Takes the right to admit a sandbox: one caller at a time has it.
    pub(crate) fn admitting(&self, sandbox: SandboxId) -> Option<Admitting<'_>> {
        self.lock().insert(sandbox).then_some(Admitting { pods: self, sandbox })
    }
}

impl Drop for Admitting<'_> {
    fn drop(&mut self) {
        self.pods.lock().remove(&self.sandbox);
    }
}

impl fmt::Debug for Pods {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Pods").field("node", &self.node).finish_non_exhaustive()
    }
}

impl From<PodsConfig> for Backend {
    fn from(config: PodsConfig) -> Self {
        let PodsConfig { node, gateway, claude, audience, reviews, calls, ticket_key } = config;
        let tickets = Tickets::new(ticket_key, node.clone());
        let admitting = Mutex::default();
        Self::Pods(Arc::new(Pods { node, gateway, claude, audience, reviews, calls, tickets, admitting }))
    }
}

impl From<Arc<ProcessBackend>> for Backend {
    fn from(backend: Arc<ProcessBackend>) -> Self {
        Self::Processes(backend)
    }
}

impl Backend {
    /// The pods, where sandboxes are pods.
    pub(crate) fn pods(&self) -> Option<&Arc<Pods>> {
        match self {
            Self::Pods(pods) => Some(pods),
            Self::Processes(_) => None,
        }
    }

    /// The processes, where sandboxes are processes.
    pub(crate) fn processes(&self) -> Option<&Arc<ProcessBackend>> {
        match self {
            Self::Processes(backend) => Some(backend),
            Self::Pods(_) => None,
        }
    }
}
