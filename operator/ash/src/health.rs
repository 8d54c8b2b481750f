//! `ash health`.

use std::process::ExitCode;

use ash_client::Client;

use crate::output::{Output, listing};

/// Says how the server is.
pub(crate) async fn run(client: &Client, output: Output) -> anyhow::Result<ExitCode> {
    let health = client.health().await?;
    output.result(&health, || listing::health(&health))?;
    Ok(if health.status == "ok" { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
