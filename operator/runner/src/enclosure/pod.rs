//! A pod as its node's runner has it: the connections that its bridge proved, and whom to tell that it is over.

use std::sync::{Arc, Mutex, PoisonError};

use ash_core::{
    id::SandboxId,
    ports::{PodIdentity, RunnerPods},
};
use bytes::BytesMut;
use tokio::{net::TcpStream, sync::mpsc};

/// A connection whose preamble was proven and answered, with what came behind it.
#[derive(Debug)]
pub(crate) struct Proven {
    pub(crate) stream: TcpStream,
    pub(crate) received: BytesMut,
}

/// One pod.
pub(crate) struct Pod {
    sandbox: SandboxId,
    calls: Arc<dyn RunnerPods>,
    connections: mpsc::Sender<Proven>,
    /// Which pod it is, as soon as its bridge has proven it to this life of the runner.
    identity: Mutex<Option<PodIdentity>>,
}

impl Pod {
    /// A pod, and its connections as they come.
    pub(crate) fn new(
        sandbox: SandboxId,
        calls: Arc<dyn RunnerPods>,
        identity: Option<PodIdentity>,
    ) -> (Self, mpsc::Receiver<Proven>) {
        // One waits; a bridge that dials faster than it is served is cut off, and dials again.
        let (connections, received) = mpsc::channel(1);
        (Self { sandbox, calls, connections, identity: Mutex::new(identity) }, received)
    }

    /// Which pod it is; `None` where it is only known from the store so far.
    pub(crate) fn identity(&self) -> Option<PodIdentity> {
        self.identity.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Notes which pod it is. The first one stays.
    pub(crate) fn is(&self, identity: &PodIdentity) {
        let mut known = self.identity.lock().unwrap_or_else(PoisonError::into_inner);
        known.get_or_insert_with(|| identity.clone());
    }

    /// Hands a proven connection to whoever serves the sandbox; false where that is over, or one waits already.
    pub(crate) fn deliver(&self, proven: Proven) -> bool {
        self.connections.try_send(proven).is_ok()
    }

    pub(super) async fn over(&self, reason: Option<String>) {
        match self.calls.over(self.sandbox, reason).await {
            Ok(_) => {}
            // The operator's sweep finds a sandbox whose session left it.
            Err(error) => {
                tracing::warn!(sandbox = %self.sandbox, %error, "nobody could be told that a pod's sandbox is over");
            }
        }
    }

    pub(super) fn log_hint(&self) -> String {
        self.identity().map_or_else(String::new, |identity| {
            format!("; its log: kubectl -n {} logs {}", identity.namespace, identity.pod)
        })
    }
}
