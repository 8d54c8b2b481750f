//! The scripted model as a program: for the quickstart, for a person who wants to try, and for benchmarks across processes.
#![allow(clippy::print_stdout)]

use std::io::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use ash_e2e::model::{Script, ScriptedModel};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

/// A model that follows the directives in the user's text, for running Claude Code without the internet.
#[derive(Parser)]
#[command(name = "scripted-model", version)]
struct Arguments {
    /// Address to listen on; port 0 takes any free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    /// File that gets the port number once the model listens; it appears complete or not at all.
    #[arg(long)]
    port_file: Option<PathBuf>,
    /// Refuses requests without this key, with 401.
    #[arg(long)]
    expect_key: Option<String>,
    /// Number of requests to remember. Nobody reads them in this program, so few are enough.
    #[arg(long, default_value_t = 16)]
    keep: usize,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    // Listened for before anybody can know that the model is up, so that no early signal is lost.
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut script = Script::directives().keep(arguments.keep);
    if let Some(key) = &arguments.expect_key {
        script = script.expect_api_key(key);
    }
    let model = ScriptedModel::start_on(arguments.listen, script)?;
    if let Some(file) = &arguments.port_file {
        write_whole(file, &format!("{}\n", model.address().port()))
            .with_context(|| format!("cannot write the port file {}; does its folder exist?", file.display()))?;
    }
    println!("{}", model.base_url());
    std::io::stdout().flush()?;
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

/// Writes beside the file and renames, so that a reader who waits for it never sees half of it.
fn write_whole(file: &Path, text: &str) -> std::io::Result<()> {
    let mut beside = file.as_os_str().to_owned();
    beside.push(".new");
    std::fs::write(&beside, text)?;
    std::fs::rename(&beside, file)
}
