//! `ash runner list|cordon|uncordon` and `ash status`: a server's fleet, as it says it.

use std::process::ExitCode;

use ash_client::Client;
use clap::Subcommand;
use serde_json::json;

use crate::output::{Output, listing};

/// What can be done with the runners of a server.
#[derive(Debug, Subcommand)]
pub(crate) enum Administration {
    /// List all runners
    List,
    /// Let no new sessions go to a runner; those that are there go on
    Cordon {
        /// Its name
        runner: String,
    },
    /// Let new sessions go to a runner again
    Uncordon {
        /// Its name
        runner: String,
    },
}

/// Carries it out.
pub(crate) async fn run(command: Option<Administration>, client: &Client, output: Output) -> anyhow::Result<ExitCode> {
    match command {
        None | Some(Administration::List) => {
            let runners = client.runners().await?;
            output.result(&json!({ "runners": runners }), || listing::runners(&runners))?;
        }
        Some(Administration::Cordon { runner }) => {
            let runner = client.cordon_runner(&runner, true).await?;
            output.result(&json!({ "runner": runner }), || format!("No new sessions go to {}.", runner.name))?;
        }
        Some(Administration::Uncordon { runner }) => {
            let runner = client.cordon_runner(&runner, false).await?;
            output.result(&json!({ "runner": runner }), || format!("New sessions go to {} again.", runner.name))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Says what the server is. Its runners are shown to those who may see them.
pub(crate) async fn status(client: &Client, output: Output) -> anyhow::Result<ExitCode> {
    let health = client.health().await?;
    let runners = match client.runners().await {
        Ok(runners) => Some(runners),
        // A key of another tenant; or a server of an earlier release.
        Err(error) if matches!(error.status(), Some(403 | 404)) => None,
        Err(error) => return Err(error.into()),
    };
    output.result(&json!({ "server": health, "runners": runners }), || {
        let server = listing::server(&health, runners.as_deref());
        match &runners {
            Some(runners) if !runners.is_empty() => format!("{server}\n\n{}", listing::runners(runners)),
            _ => server,
        }
    })?;
    Ok(if health.status == "ok" { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
