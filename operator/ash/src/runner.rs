//! `ash runner`: sandboxes for coordinators, on this machine. It has no database.

mod arguments;
mod observed;
mod wiring;

use tokio::time::{Duration, timeout};
use tokio_util::sync::CancellationToken;

pub(crate) use arguments::{Arguments, COMMAND, OTHER_VARIABLES, command};

use crate::serve::{arguments::SandboxKind, log, wait_for_signal};

/// How long the calls of coordinators may take to end.
const DRAIN: Duration = Duration::from_secs(10);

/// Runs until told to stop by SIGTERM or SIGINT: running turns may end, for a bounded time; its sessions are put to sleep; then
/// it leaves its fleet.
pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    log::init(&arguments.log, arguments.log_format)?;
    let runner = tokio::select! {
        wired = wiring::wire(&arguments) => wired?,
        signal = wait_for_signal() => return signal,
    };
    tracing::info!(name = %runner.id.name, address = %runner.listener.local_addr()?, "listening for coordinators");
    let stop = CancellationToken::new();
    let serving = tokio::spawn(ash_link::serve(runner.listener, runner.secret, runner.service, stop.clone()));
    let beating = {
        let (membership, local, stop) = (runner.membership.clone(), runner.local.clone(), stop.clone());
        tokio::spawn(async move { membership.keep(&local, &stop).await })
    };
    let hands_over = arguments.handover || arguments.kind == SandboxKind::Pods;
    tokio::select! {
        signal = wait_for_signal() => signal?,
        () = runner.membership.superseded() => {}
    }
    let is_superseded = runner.membership.is_superseded();
    if hands_over && !is_superseded {
        runner.membership.announce_restart(&runner.local).await;
    }
    tracing::info!("stopping: running turns may end within {} s", arguments.shutdown_timeout.as_secs());
    let stopping = async {
        runner.stop_bridges.cancel();
        if is_superseded {
            runner.local.abandon().await;
        } else {
            runner.local.shut_down(arguments.shutdown_timeout, hands_over).await;
        }
        stop.cancel();
        let _ = timeout(DRAIN, serving).await;
        let _ = timeout(DRAIN, beating).await;
        // With a handover its next life registers under its name, and finds the sandboxes.
        if !hands_over && !is_superseded {
            runner.membership.leave().await;
        }
    };
    tokio::select! {
        () = stopping => {
            tracing::info!("stopped");
            if is_superseded && hands_over {
                // Whoever started the next one ends this one; one that ended by itself would be started again, against it.
                wait_for_signal().await?;
            }
        }
        signal = wait_for_signal() => {
            signal?;
            tracing::warn!("stopped at once; the next runner of this name finds the sandboxes");
        }
    }
    Ok(())
}
