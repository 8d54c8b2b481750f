//! Freezes the runner and has it go on: stops its sandboxes, cuts what they and its readers have open, and answers nobody.

use std::{sync::Arc, time::Instant};

use ash_protocol::{message::Request, version::FREEZES};
use serde::de::IgnoredAny;

use crate::{enclosure::Enclosure, limits::FREEZE_ANSWER, sandbox::Sandbox, shared::Shared};

/// Freezes: when this returns nobody is served any more. The sandboxes are stopped behind it.
pub(crate) fn freeze(shared: &Arc<Shared>) {
    // The time is up by now, unless another life of the runner has taken its place.
    shared.gateway.serve_until(Instant::now());
    shared.standing.freeze();
    shared.gateway.cut_all();
    shared.metrics.frozen.set(1);
    shared.metrics.freezes.inc();
    settle_all(shared);
}

/// Serves again until then, and has the sandboxes go on.
pub(crate) fn thaw(shared: &Arc<Shared>, until: Instant) {
    shared.gateway.serve_until(until);
    shared.standing.thaw(until);
    shared.metrics.frozen.set(0);
    settle_all(shared);
}

/// A bridge has connected. One of a pod has everything go on for a host that it did not have before.
pub(crate) fn connected(shared: &Arc<Shared>, sandbox: &Arc<Sandbox>) {
    let (shared, sandbox) = (Arc::clone(shared), Arc::clone(sandbox));
    tokio::spawn(async move {
        if matches!(sandbox.enclosure, Enclosure::Pod(_)) {
            *sandbox.stopped.lock().await = false;
        }
        settle(&shared, &sandbox).await;
    });
}

fn settle_all(shared: &Arc<Shared>) {
    for sandbox in shared.sandboxes() {
        let shared = Arc::clone(shared);
        tokio::spawn(async move { settle(&shared, &sandbox).await });
    }
}

/// Stops a sandbox, or has it go on, as the runner is by then: what is done last is what was decided last.
async fn settle(shared: &Shared, sandbox: &Sandbox) {
    let mut stopped = sandbox.stopped.lock().await;
    let wanted = shared.standing.is_frozen();
    // One whose bridge is only just starting has nothing to stop yet: it is looked at again when that comes.
    let starts = wanted && sandbox.hub().is_none() && *sandbox.connections.borrow() == 0;
    // One that ends does so without going on before.
    if *stopped == wanted || starts || sandbox.end.is_cancelled() {
        return;
    }
    match set_stopped(sandbox, wanted).await {
        Ok(()) => *stopped = wanted,
        Err(reason) => {
            shared.metrics.freezes_failed.inc();
            tracing::warn!(sandbox = %sandbox.id, reason, stopped = wanted, "a sandbox could not be stopped or continued");
        }
    }
}

async fn set_stopped(sandbox: &Sandbox, stopped: bool) -> Result<(), String> {
    match &sandbox.enclosure {
        Enclosure::Process(process) => {
            let done = if stopped { process.freeze().await } else { process.thaw().await };
            done.map_err(|error| error.to_string())
        }
        // An older one goes on, and gains nothing by it: its way out is closed.
        Enclosure::Pod(_) if !sandbox.speaks(FREEZES) => Ok(()),
        Enclosure::Pod(_) => {
            let request = if stopped { Request::Freeze {} } else { Request::Thaw {} };
            let answer = sandbox.bridge.call_within::<IgnoredAny>(&request, FREEZE_ANSWER).await;
            answer.map(|_| ()).map_err(|error| error.to_string())
        }
    }
}
