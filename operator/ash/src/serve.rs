//! `ash serve`: the server.

mod access;
pub(crate) mod arguments;
pub(crate) mod claude;
mod compaction;
mod coordinator;
pub(crate) mod key;
mod keyed;
pub(crate) mod log;
mod programs;
pub(crate) mod sinks;
pub(crate) mod snapshots;
mod store_metrics;
pub(crate) mod system_metrics;
pub(crate) mod wiring;

use std::time::Duration;

use anyhow::Context;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

pub(crate) use arguments::{Arguments, COMMAND, CONFIG, OTHER_VARIABLES, command};

/// How long open connections may take to end after their readers were told to.
const DRAIN: Duration = Duration::from_secs(5);

/// Runs the server until it is told to stop by SIGTERM or SIGINT: running turns may end, for a bounded time; a second signal
/// ends it at once, and leaves the sandboxes to the next server.
pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    log::init(&arguments.log, arguments.log_format)?;
    match arguments.fleet.mode {
        arguments::Mode::Standalone => run_standalone(arguments).await,
        arguments::Mode::Coordinator => coordinator::run(&arguments).await,
    }
}

async fn run_standalone(arguments: Arguments) -> anyhow::Result<()> {
    let server = wiring::wire(&arguments).await?;
    let address = server.listener.local_addr()?;
    tracing::info!(%address, "listening");
    let stop = CancellationToken::new();
    // No turn begins by itself any more while the running ones end.
    let queueing = tokio::spawn(ash_api::keep_queues(server.state.clone(), stop.clone().cancelled_owned()));
    let stopped = stop.clone().cancelled_owned();
    let serving = tokio::spawn(async move {
        ash_api::serve(server.listener, server.router, &server.state, server.limits, stopped).await;
    });
    let compaction_stop = CancellationToken::new();
    let compacting = tokio::spawn(compaction::keep(
        server.store.clone(),
        arguments.compact_after,
        server.compaction_metrics,
        compaction_stop.clone(),
    ));
    wait_for_signal().await?;
    tracing::info!("stopping: running turns may end within {} s", arguments.shutdown_timeout.as_secs());
    stop.cancel();
    let stopping = async {
        compaction_stop.cancel();
        server.runner.shut_down(arguments.shutdown_timeout, arguments.handover).await;
        let _ = timeout(DRAIN, compacting).await;
        let _ = timeout(DRAIN, queueing).await;
        // Readers have heard how every turn ended.
        let _ = timeout(DRAIN, serving).await;
        server.store.close().await;
    };
    tokio::select! {
        () = stopping => tracing::info!("stopped"),
        signal = wait_for_signal() => {
            signal?;
            tracing::warn!("stopped at once; the next server finds the sandboxes");
        }
    }
    Ok(())
}

pub(crate) async fn wait_for_signal() -> anyhow::Result<()> {
    let mut terminate = signal(SignalKind::terminate()).context("cannot wait for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("cannot wait for SIGINT")?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}
