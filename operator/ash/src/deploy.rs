//! `ash deploy`: an agent's folder travels to the server.

use std::{io::IsTerminal, path::PathBuf, process::ExitCode};

use anyhow::Context;
use ash_bundle::Bundle;
use ash_client::{AgentFile, Client, Deployment, Upload};
use base64::{Engine, engine::general_purpose::STANDARD};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

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
}

/// Reads the folder and deploys what is in it.
pub(crate) async fn run(arguments: Arguments, client: &Client, output: Output) -> anyhow::Result<ExitCode> {
    let name = match arguments.name {
        Some(name) => name,
        None => folder_name(&arguments.folder)?,
    };
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
        ..Deployment::default()
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
