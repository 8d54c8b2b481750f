//! Ends sandboxes gently, and takes their folders away.

use std::{path::PathBuf, sync::Arc};

use ash_protocol::message::Request;
use tokio::time::timeout;

use crate::{
    limits::SANDBOX_END,
    metrics::Metrics,
    sandbox::{EndReason, Sandbox},
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

/// Removes a folder that nobody needs any more, where it is there. One that cannot be removed is said.
pub(crate) async fn remove_folder(folder: PathBuf) {
    match tokio::fs::remove_dir_all(&folder).await {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            tracing::warn!(folder = %folder.display(), %error, "a sandbox's folder could not be removed");
        }
        _ => {}
    }
}
