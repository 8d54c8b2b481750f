//! `ash operator`: makes what `Agent` and `Session` resources say come true. Many may run; one acts.

mod arguments;
mod observed;
mod wiring;

use std::sync::Arc;

use tokio::time::{Duration, timeout};
use tokio_util::sync::CancellationToken;

pub(crate) use arguments::{Arguments, COMMAND, OTHER_VARIABLES, command};

use crate::serve::{log, wait_for_signal};

/// How long what is being done may take to end.
const DRAIN: Duration = Duration::from_secs(10);

/// Runs until told to stop by SIGTERM or SIGINT: what is half done is found by the one that acts next.
pub(crate) async fn run(arguments: Arguments) -> anyhow::Result<()> {
    log::init(&arguments.log, arguments.log_format)?;
    let operator = tokio::select! {
        wired = wiring::wire(&arguments) => wired?,
        signal = wait_for_signal() => return signal,
    };
    let stop = CancellationToken::new();
    let following = tokio::spawn(ash_coordinator::follow(Arc::clone(&operator.registry), stop.clone()));
    let acting = tokio::spawn(ash_controllers::run(
        operator.client,
        operator.config,
        operator.ports,
        operator.metrics,
        stop.clone(),
    ));
    wait_for_signal().await?;
    stop.cancel();
    let stopping = async {
        let _ = timeout(DRAIN, acting).await;
        let _ = timeout(DRAIN, following).await;
        operator.store.close().await;
    };
    tokio::select! {
        () = stopping => tracing::info!("stopped"),
        signal = wait_for_signal() => signal?,
    }
    Ok(())
}
