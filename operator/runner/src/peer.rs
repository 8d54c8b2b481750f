//! The process at the other end of a bridge's connection: whether it is dead decides whether it is waited for.
//!
//! A sandbox does not end with its bridge at once: what the bridge started may go on for a while.

use std::{fs, path::Path};

use ash_sandbox::{ProcessIdentity, WatchedProcess};
use tokio::net::UnixStream;

/// Where a server notes the bridge's process for the one after it. Outside of what the sandbox sees.
const FILE: &str = "bridge.pid";

/// The process that made this connection, as far as it can be known.
pub(crate) fn of(stream: &UnixStream) -> Option<WatchedProcess> {
    WatchedProcess::of(stream.peer_cred().ok()?.pid()?).ok().flatten()
}

/// Notes the process in a sandbox's folder. Without the note the next server waits longer; nothing else depends on it.
pub(crate) fn remember(peer: &WatchedProcess, folder: &Path) {
    let ProcessIdentity { pid, start_time } = peer.identity();
    if let Err(error) = fs::write(folder.join(FILE), format!("{pid} {start_time}")) {
        tracing::debug!(%error, "a bridge's process could not be noted");
    }
}

/// The process that the server before this one noted, if it is alive.
///
/// One that is dead by now is `None` too: then the sandbox is waited for as if nothing was known, unless [`was_dead`].
pub(crate) fn recall(folder: &Path) -> Option<WatchedProcess> {
    WatchedProcess::open(note(folder)?).ok().flatten()
}

/// Whether the server before this one noted a bridge that is dead by now.
pub(crate) fn was_dead(folder: &Path) -> bool {
    note(folder).is_some_and(|noted| matches!(WatchedProcess::open(noted), Ok(None)))
}

/// Returns when the bridge is dead; never where that cannot be known.
pub(crate) async fn dead(peer: Option<&WatchedProcess>) {
    match peer {
        Some(peer) => peer.ended().await,
        None => std::future::pending().await,
    }
}

fn note(folder: &Path) -> Option<ProcessIdentity> {
    let text = fs::read_to_string(folder.join(FILE)).ok()?;
    let (pid, start_time) = text.split_once(' ')?;
    Some(ProcessIdentity { pid: pid.parse().ok()?, start_time: start_time.trim().parse().ok()? })
}
