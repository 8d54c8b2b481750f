//! What keeps a sandbox apart from everything else: a process of this machine, or a pod. Here is all in which the two differ.
//!
//! The runner starts processes, kills them and has their folders. It makes no pods and cannot end any: their bridges dial it, and
//! what becomes of them is the operator's, who is told through a coordinator.

mod dialled;
mod pod;

use std::path::PathBuf;

use ash_sandbox::{BoundsMet, ProcessSandbox, SandboxError};

pub(crate) use self::{
    dialled::{Arrived, Dialled},
    pod::{Pod, Proven},
};

/// Where a sandbox lives.
pub(crate) enum Enclosure {
    /// In a process of this machine.
    Process(ProcessSandbox),
    /// In a pod of this node.
    Pod(Pod),
}

impl Enclosure {
    /// Its folder on this machine, where it has one.
    pub(crate) fn directory(&self) -> Option<PathBuf> {
        match self {
            Self::Process(process) => Some(process.directory()),
            Self::Pod(_) => None,
        }
    }

    /// Returns when it has ended by itself: whether it is known how. A pod's end shows in its bridge's staying away.
    pub(crate) async fn exited(&self) -> bool {
        match self {
            Self::Process(process) => process.exited().await.status.is_some(),
            Self::Pod(_) => std::future::pending().await,
        }
    }

    /// Ends what is left of it here.
    pub(crate) async fn kill(&self) -> Result<(), SandboxError> {
        match self {
            Self::Process(process) => process.kill().await,
            // Its bridge's connection is closed by now, and no other one is taken.
            Self::Pod(_) => Ok(()),
        }
    }

    /// Tells whoever made it that it is over and why, where that is somebody else. Its session has left it.
    pub(crate) async fn over(&self, reason: Option<String>) {
        if let Self::Pod(pod) = self {
            pod.over(reason).await;
        }
    }

    /// The last lines of its log, for an error's end; nothing where they are read elsewhere.
    pub(crate) async fn log_tail(&self, lines: usize) -> String {
        match self {
            Self::Process(process) => match process.log_tail(lines).await {
                Ok(lines) if !lines.is_empty() => format!("; the last lines of its log: {}", lines.join(" | ")),
                _ => String::new(),
            },
            Self::Pod(pod) => pod.log_hint(),
        }
    }

    /// The bounds of the kernel that it met so far; the kubelet counts those of pods.
    pub(crate) async fn bounds_met(&self, open_files: u32) -> Result<BoundsMet, SandboxError> {
        match self {
            Self::Process(process) => process.bounds_met(open_files).await,
            Self::Pod(_) => Ok(BoundsMet::default()),
        }
    }
}
