//! The process at the other end of a bridge's connection: whether it is dead decides whether it is waited for.
//!
//! A sandbox does not end with its bridge at once: what the bridge started may go on for a while.

use std::{fs, io, os::fd::OwnedFd, path::Path};

use rustix::process::{Pid, PidfdFlags, pidfd_open};
use tokio::{
    io::{Interest, unix::AsyncFd},
    net::UnixStream,
};

/// Where a server notes the bridge's process for the one after it. Outside of what the sandbox sees.
const FILE: &str = "bridge.pid";

/// A process, known by a descriptor, so that another one that gets its number is not taken for it.
pub(crate) struct Peer {
    pid: i32,
    started: u64,
    descriptor: AsyncFd<OwnedFd>,
}

impl Peer {
    /// The process that made this connection.
    pub(crate) fn of(stream: &UnixStream) -> Option<Self> {
        Self::open(stream.peer_cred().ok()?.pid()?)
    }

    fn open(pid: i32) -> Option<Self> {
        let descriptor = pidfd_open(Pid::from_raw(pid)?, PidfdFlags::empty()).ok()?;
        Some(Self { pid, started: start_time(pid)?, descriptor: watch(descriptor)? })
    }

    /// Notes the process in a sandbox's folder. Without the note the next server waits longer; nothing else depends on it.
    pub(crate) fn remember(&self, folder: &Path) {
        if let Err(error) = fs::write(folder.join(FILE), format!("{} {}", self.pid, self.started)) {
            tracing::debug!(%error, "a bridge's process could not be noted");
        }
    }

    /// The process that the server before this one noted, if it is alive.
    ///
    /// One that is dead by now is `None` too: then the sandbox is waited for as if nothing was known, unless [`was_dead`].
    pub(crate) fn recall(folder: &Path) -> Option<Self> {
        let (pid, started) = note(folder)?;
        Self::open(pid).filter(|peer| peer.started == started)
    }

    /// Returns when the process has ended.
    pub(crate) async fn dead(&self) {
        // An error of the descriptor would say nothing about the process: then it is waited for, to the caller's bound.
        if self.descriptor.readable().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// Registers a pidfd with the runtime.
#[allow(unsafe_code, reason = "tokio has no safe way to watch a descriptor of a kind that it does not know")]
fn watch(descriptor: OwnedFd) -> Option<AsyncFd<OwnedFd>> {
    // SAFETY: an owned descriptor is open, and stays the same one, until the `AsyncFd` drops it.
    unsafe { AsyncFd::register_with_interest(descriptor, Interest::READABLE) }.ok()
}

/// Whether the server before this one noted a bridge that is dead by now.
pub(crate) fn was_dead(folder: &Path) -> bool {
    note(folder).is_some() && Peer::recall(folder).is_none()
}

fn note(folder: &Path) -> Option<(i32, u64)> {
    let text = fs::read_to_string(folder.join(FILE)).ok()?;
    let (pid, started) = text.split_once(' ')?;
    Some((pid.parse().ok()?, started.trim().parse().ok()?))
}

/// When a process started, in clock ticks since the machine did: field 22 of `/proc/<pid>/stat` (proc(5)).
fn start_time(pid: i32) -> Option<u64> {
    let stat: io::Result<String> = fs::read_to_string(format!("/proc/{pid}/stat"));
    stat.ok()?.rsplit_once(')')?.1.split_ascii_whitespace().nth(19)?.parse().ok()
}
