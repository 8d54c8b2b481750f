//! `ash agent`: the agents that are deployed.

use std::process::ExitCode;

use ash_client::Client;
use clap::Subcommand;
use serde_json::json;

use crate::output::{Output, listing};

/// What can be done with agents.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// List all agents
    List,
    /// Show one agent
    Get {
        /// Its name or slug
        agent: String,
    },
    /// Delete an agent with all its versions; its sessions go on until they are ended
    Delete {
        /// Its name or slug
        agent: String,
    },
}

/// Carries it out.
pub(crate) async fn run(command: Command, client: &Client, output: Output) -> anyhow::Result<ExitCode> {
    match command {
        Command::List => {
            let agents = client.agents().await?;
            output.result(&json!({ "agents": agents }), || listing::agents(&agents))?;
        }
        Command::Get { agent } => {
            let agent = client.agent(&agent).await?;
            output.result(&json!({ "agent": agent }), || listing::agent(&agent))?;
        }
        Command::Delete { agent } => {
            client.delete_agent(&agent).await?;
            output.result(&json!({ "ok": true }), || format!("Deleted {agent}."))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}
