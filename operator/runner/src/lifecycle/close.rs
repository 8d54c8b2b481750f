//! Ends sandboxes gently, and takes their folders away.

use std::{fs::Permissions, io::ErrorKind, os::unix::fs::PermissionsExt as _, path::PathBuf, sync::Arc};

use ash_core::session::Closing;
use ash_protocol::message::Request;
use tokio::time::timeout;

use crate::{
    limits::{INTERRUPTED, SANDBOX_END},
    metrics::Metrics,
    sandbox::{EndReason, Sandbox},
    shared::Shared,
    snapshots::take_at_end,
};

/// The folder of a sandbox's directory that its programs call home.
pub(crate) const HOME: &str = "home";

/// Ends a sandbox gently: a turn that still runs is interrupted, so that its end is in the log; then the bridge is asked to end
/// it, and killed when it does not.
pub(crate) async fn close(metrics: &Metrics, sandbox: &Arc<Sandbox>, reason: EndReason) {
    let deadline_ms = u64::try_from(SANDBOX_END.as_millis()).unwrap_or(u64::MAX);
    sandbox.announce_end(reason.clone());
    if sandbox.stopped.try_lock().is_ok_and(|stopped| *stopped) {
        // It hears nothing.
        sandbox.end_with(reason);
        return sandbox.gone.cancelled().await;
    }
    let asked = async {
        if let Some(turn) = sandbox.hub().and_then(|hub| hub.leaving_turn()) {
            let interrupt = Request::Interrupt { turn: Some(turn.0) };
            let _ = sandbox.bridge.call::<serde::de::IgnoredAny>(&interrupt).await;
        }
        let _ = sandbox.bridge.call::<serde::de::IgnoredAny>(&Request::Shutdown { deadline_ms }).await;
    };
    // The bridge answers before it ends: what it still has to say comes until then.
    let ended = async {
        asked.await;
        sandbox.gone.cancelled().await;
    };
    if timeout(SANDBOX_END, ended).await.is_err() {
        metrics.sandboxes_killed.inc();
    }
    sandbox.end_with(reason);
    sandbox.gone.cancelled().await;
}

/// Ends the sandbox of a session that goes on later as [`close`] does, with a snapshot of its workspace before.
pub(crate) async fn save_and_close(shared: &Arc<Shared>, sandbox: &Arc<Sandbox>, reason: EndReason) {
    if let Some(hub) = sandbox.hub()
        && reason != EndReason::Closed(Closing::End)
    {
        sandbox.announce_end(reason.clone());
        if let Some(turn) = hub.leaving_turn() {
            let interrupt = Request::Interrupt { turn: Some(turn.0) };
            let interrupted = async {
                let _ = sandbox.bridge.call::<serde::de::IgnoredAny>(&interrupt).await;
                hub.wait_idle().await;
            };
            let _ = timeout(INTERRUPTED, interrupted).await;
        }
        take_at_end(shared, sandbox, &hub).await;
    }
    close(&shared.metrics, sandbox, reason).await;
}

/// Removes a folder that nobody needs any more, where it is there. One that cannot be removed is said.
pub(crate) async fn remove_folder(folder: PathBuf) {
    let mut removed = tokio::fs::remove_dir_all(&folder).await;
    if removed.as_ref().is_err_and(|error| error.kind() == ErrorKind::PermissionDenied) {
        // Not even its owner may empty a folder that nobody may write to.
        let opened = folder.clone();
        let _ = tokio::task::spawn_blocking(move || open_up(opened)).await;
        removed = tokio::fs::remove_dir_all(&folder).await;
    }
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => {
            tracing::warn!(folder = %folder.display(), %error, "a sandbox's folder could not be removed");
        }
        _ => {}
    }
}

/// Lets the owner of a folder and of all below it write to them. Nothing runs in it any more; no link is followed.
fn open_up(folder: PathBuf) {
    let mut open = vec![folder];
    while let Some(folder) = open.pop() {
        let _ = std::fs::set_permissions(&folder, Permissions::from_mode(0o700));
        let Ok(entries) = std::fs::read_dir(&folder) else { continue };
        let below = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        open.extend(below.map(|entry| entry.path()));
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::{
        fs::{self, Permissions},
        os::unix::fs::PermissionsExt as _,
    };

    use super::remove_folder;

    #[tokio::test]
    async fn a_folder_that_nobody_may_write_to_is_removed() {
        let root = tempfile::tempdir().unwrap();
        let folder = root.path().join("folder");
        fs::create_dir_all(folder.join("a/b/c")).unwrap();
        fs::write(folder.join("a/b/file"), "x").unwrap();
        for (path, mode) in [("a/b/c", 0), ("a/b", 0o555), ("a", 0o500)] {
            fs::set_permissions(folder.join(path), Permissions::from_mode(mode)).unwrap();
        }
        remove_folder(folder.clone()).await;
        assert!(!folder.exists());
    }
}
