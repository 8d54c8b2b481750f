//! `ash deploy`: an agent's folder travels to the server.

use std::{io::IsTerminal, path::PathBuf, process::ExitCode};

use anyhow::{Context, bail};
use ash_bundle::Bundle;
use ash_client::{AgentFile, Client, Deployment, NetworkPolicy, Upload};
use base64::{Engine, engine::general_purpose::STANDARD};
use clap::{Args, ValueEnum};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Map, Value, json};

use crate::{
    output::{Output, note},
    values,
};

/// What is deployed.
#[derive(Debug, Args)]
pub(crate) struct Arguments {
    /// The agent's folder, with its CLAUDE.md
    folder: PathBuf,
    /// The agent's name [default: the folder's]
    #[arg(long)]
    name: Option<String>,
    /// Another name to find it by
    #[arg(long)]
    slug: Option<String>,
    /// A sentence about it
    #[arg(long)]
    description: Option<String>,
    /// Model of its sessions
    #[arg(long)]
    model: Option<String>,
    /// Environment variable of its sessions, KEY=VALUE; KEY alone takes the value that it has here; can be repeated
    #[arg(long, value_parser = values::variable, value_name = "KEY=VALUE", hide_default_value = true)]
    env: Vec<(String, String)>,
    /// What its sessions are told instead of the folder's CLAUDE.md
    #[arg(long, value_name = "TEXT")]
    system_prompt: Option<String>,
    /// Where its sandboxes may connect to beside the model [default: public, or allowlist with --allow-host]
    #[arg(long, value_enum, value_name = "MODE")]
    network: Option<Network>,
    /// Host of the allowlist: name, *.name or address, with :PORT, :PORT,PORT or :* (443 otherwise); can be repeated
    #[arg(long = "allow-host", value_name = "HOST")]
    allowed_hosts: Vec<String>,
    /// What to keep with this version, a JSON object
    #[arg(long, value_parser = values::object, value_name = "JSON")]
    config_json: Option<Map<String, Value>>,
}

/// Modes of the network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Network {
    /// Nowhere
    Model,
    /// To the hosts of --allow-host
    Allowlist,
    /// To any public address
    Public,
}

/// The policy that the flags say; none where they say nothing.
fn policy(mode: Option<Network>, hosts: Vec<String>) -> anyhow::Result<Option<NetworkPolicy>> {
    Ok(match (mode, hosts.is_empty()) {
        (None, true) => None,
        (None | Some(Network::Allowlist), false) => Some(NetworkPolicy::Allowlist { hosts }),
        (Some(Network::Model), true) => Some(NetworkPolicy::Model),
        (Some(Network::Public), true) => Some(NetworkPolicy::Public),
        (Some(Network::Allowlist), true) => {
            bail!("--network allowlist permits the hosts of --allow-host: name one, or use --network model")
        }
        (Some(Network::Model | Network::Public), false) => {
            bail!("--allow-host is for --network allowlist: leave one of them out")
        }
    })
}

/// Reads the folder and deploys what is in it.
pub(crate) async fn run(arguments: Arguments, client: &Client, output: Output) -> anyhow::Result<ExitCode> {
    let name = match arguments.name {
        Some(name) => name,
        None => folder_name(&arguments.folder)?,
    };
    let network = policy(arguments.network, arguments.allowed_hosts)?;
    let bundle = Bundle::read_directory(&arguments.folder)
        .with_context(|| format!("cannot deploy {}", arguments.folder.display()))?;
    let files = bundle.files().map(|(path, file)| AgentFile {
        path: path.clone(),
        content: STANDARD.encode(&file.bytes),
        executable: file.executable,
    });
    let deployment = Deployment {
        name,
        files: files.collect(),
        slug: arguments.slug,
        description: arguments.description,
        model: arguments.model,
        env: arguments.env.into_iter().collect(),
        system_prompt: arguments.system_prompt,
        network,
        config: arguments.config_json.unwrap_or_default(),
    };
    let (count, size) = (bundle.len(), bundle.size());
    // The files are in the request now; they need not be held twice while it travels.
    drop(bundle);
    let progress = progress_bar();
    let bar = progress.clone();
    let agent = client
        .deploy(&deployment, move |upload| match upload {
            Upload::Begins(bytes) => bar.set_length(bytes),
            Upload::Sent(bytes) => bar.inc(bytes),
        })
        .await;
    progress.finish_and_clear();
    let agent = agent?;
    output.result(&json!({ "agent": agent }), || {
        let files = if count == 1 { "file" } else { "files" };
        format!("Deployed {} version {} ({count} {files}, {size} bytes).", agent.name, agent.version)
    })?;
    if !output.is_json() && std::io::stdout().is_terminal() {
        note(&format!("Talk with it: ash chat {}", agent.name));
    }
    Ok(ExitCode::SUCCESS)
}

/// A bar on standard error where that is a terminal, and none anywhere else.
fn progress_bar() -> ProgressBar {
    let template = "{msg} {wide_bar} {bytes}/{total_bytes}";
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(0).with_style(style).with_message("Uploading")
}

/// The name of a folder, also where it is given as `.`.
fn folder_name(folder: &std::path::Path) -> anyhow::Result<String> {
    let whole = folder.canonicalize().with_context(|| format!("cannot deploy {}", folder.display()))?;
    let name = whole.file_name().and_then(|name| name.to_str());
    name.map(ToOwned::to_owned).context("the folder has no name that could be the agent's: give one with --name")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use ash_client::NetworkPolicy;

    use super::{Network, policy};

    #[test]
    fn hosts_make_an_allowlist() {
        let hosts = || vec!["github.com".to_owned()];
        assert_eq!(policy(None, Vec::new()).unwrap(), None);
        assert_eq!(policy(None, hosts()).unwrap(), Some(NetworkPolicy::Allowlist { hosts: hosts() }));
        assert_eq!(policy(Some(Network::Allowlist), hosts()).unwrap(), policy(None, hosts()).unwrap());
        assert_eq!(policy(Some(Network::Model), Vec::new()).unwrap(), Some(NetworkPolicy::Model));
        assert_eq!(policy(Some(Network::Public), Vec::new()).unwrap(), Some(NetworkPolicy::Public));
        assert!(policy(Some(Network::Model), hosts()).unwrap_err().to_string().contains("--allow-host"));
        assert!(policy(Some(Network::Allowlist), Vec::new()).unwrap_err().to_string().contains("--allow-host"));
    }
}
