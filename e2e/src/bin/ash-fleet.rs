//! `make fleet`: a whole fleet on this machine, for people who try it, until Ctrl-C.
#![allow(clippy::print_stdout)]
#![allow(clippy::doc_markdown, reason = "the comments on arguments are what --help prints")]

use std::{
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, bail};
use ash_e2e::{
    fleet::{Fleet, Keys, Settings},
    harness::{ObjectStorage, program},
    model::{Script, ScriptedModel},
};
use ash_test_postgres::Postgres;
use clap::Parser;
use secrecy::SecretString;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::sleep,
};

/// Coordinators behind the load balancer, whose configuration is for two.
const COORDINATORS: usize = 2;
/// How often it is looked whether something ended.
const WATCH: Duration = Duration::from_secs(1);
/// Variables of the model API that are passed on to the coordinators, which have its key, and to the runners, which call it.
const KEYS: [&str; 2] = ["ANTHROPIC_API_KEY", "ANTHROPIC_AUTH_TOKEN"];
const WAYS: [&str; 3] = ["ANTHROPIC_BASE_URL", "HTTPS_PROXY", "NO_PROXY"];

/// Runs two coordinators behind HAProxy, runners, Postgres and object storage on this machine, until Ctrl-C. Everything is in
/// temporary folders, and gone at the end.
///
/// With ANTHROPIC_API_KEY (or ANTHROPIC_AUTH_TOKEN) sessions talk to the real model; without, to the scripted one, offline.
#[derive(Debug, Parser)]
#[command(name = "ash-fleet", version)]
struct Arguments {
    /// Where clients reach the fleet
    #[arg(long, env = "ASH_FLEET_BALANCER", default_value = "127.0.0.1:4100", value_name = "ADDRESS")]
    listen: SocketAddr,
    /// Runners
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=20))]
    runners: u16,
    /// One more argument of each coordinator; can be repeated
    #[arg(long, value_name = "ARGUMENT", allow_hyphen_values = true)]
    coordinator_argument: Vec<String>,
    /// One more argument of each runner; can be repeated
    #[arg(long, value_name = "ARGUMENT", allow_hyphen_values = true)]
    runner_argument: Vec<String>,
    /// What each process logs into its file
    #[arg(long, default_value = "info", value_name = "FILTER")]
    log: String,
}

/// What ends the fleet: Ctrl-C, a supervisor, or the terminal that is closed.
struct Ends(Signal, Signal, Signal);

impl Ends {
    /// From now on none of them ends this process by itself.
    fn listen() -> anyhow::Result<Self> {
        Ok(Self(signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?, signal(SignalKind::hangup())?))
    }

    async fn come(&mut self) {
        tokio::select! {
            _ = self.0.recv() => {}
            _ = self.1.recv() => {}
            _ = self.2.recv() => {}
        }
    }
}

// One thread: what it starts ends when the thread does that started it, and this one lives as long as the process.
#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    let mut ends = Ends::listen()?;
    check(arguments.listen)?;
    let folder = tempfile::Builder::new().prefix("ash-fleet-").tempdir().context("cannot make a temporary folder")?;
    let model = if KEYS.iter().all(|name| std::env::var_os(name).is_none()) {
        println!("No ANTHROPIC_API_KEY is set: the scripted model answers, offline.");
        Some(ScriptedModel::start(Script::directives().keep(16)).context("the scripted model does not start")?)
    } else {
        None
    };
    let postgres = Postgres::start();
    let mut storage = object_storage();
    let address = match &storage {
        Some(storage) => storage.url(),
        None => folder.path().join("snapshots").display().to_string(),
    };
    let storage_environment: Vec<(&'static str, SecretString)> =
        storage.iter().flat_map(ObjectStorage::variables).map(|(name, value)| (name, value.into())).collect();
    let with_storage = |mut environment: Vec<(&'static str, SecretString)>| {
        environment.extend(storage_environment.iter().cloned());
        environment.push(("ASH_OBJECT_STORE", address.clone().into()));
        environment
    };
    let settings = Settings {
        folder: folder.path().to_owned(),
        keys: Keys::make(&folder.path().join("keys"), None).context("cannot write the keys")?,
        database: Some(postgres.url("postgres").into()),
        log: arguments.log.clone(),
        coordinator_arguments: arguments.coordinator_argument.clone(),
        coordinator_environment: with_storage(match &model {
            Some(_) => vec![("ANTHROPIC_API_KEY", "offline".into())],
            None => given(&KEYS),
        }),
        runner_environment: with_storage(match &model {
            Some(model) => vec![("ANTHROPIC_BASE_URL", model.base_url().into())],
            None => given(&WAYS),
        }),
        claude: pinned_claude(),
        partitions: false,
        apart: true,
    };
    // Dropped before the database and the folder, also where it could not start.
    let mut fleet = Fleet::new(settings, COORDINATORS);
    let started = tokio::select! {
        started = start(&mut fleet, &arguments) => Some(started),
        () = ends.come() => None,
    };
    match started {
        Some(Ok(())) => {
            describe(&fleet, storage.as_ref(), &arguments);
            watch(&mut fleet, storage.as_mut(), &mut ends).await;
        }
        Some(Err(error)) => {
            fleet.stop();
            return Err(error);
        }
        None => {}
    }
    println!("\nStopping: running turns may end within a few seconds ...");
    fleet.stop();
    Ok(())
}

/// A server that speaks S3, where `make fleet` could build it; else snapshots are kept in a folder.
fn object_storage() -> Option<ObjectStorage> {
    if !ObjectStorage::is_installed() {
        println!("There is no Go to build an object storage with: snapshots of workspaces are kept in a folder.");
        return None;
    }
    Some(ObjectStorage::start_apart())
}

/// Looks for what has to be there, so that nothing is started in vain.
fn check(listen: SocketAddr) -> anyhow::Result<()> {
    if !Postgres::is_installed() {
        bail!("Postgres is not installed: run scripts/install-fleet-tools.sh");
    }
    // Nobody may have it when the balancer wants it.
    TcpListener::bind(listen).with_context(|| {
        format!("cannot listen on {listen}: stop what listens there, or name another address with --listen")
    })?;
    Ok(())
}

async fn start(fleet: &mut Fleet, arguments: &Arguments) -> anyhow::Result<()> {
    println!("Starting {COORDINATORS} coordinators, {} runners and HAProxy ...", arguments.runners);
    for number in 0..COORDINATORS {
        fleet.start_coordinator(number).await?;
    }
    let more: Vec<&str> = arguments.runner_argument.iter().map(String::as_str).collect();
    for _ in 0..arguments.runners {
        fleet.add_runner(&more);
    }
    fleet.wait_runners(usize::from(arguments.runners)).await?;
    fleet.start_balancer(arguments.listen).await
}

/// Says where everything is, and how to talk to it.
fn describe(fleet: &Fleet, storage: Option<&ObjectStorage>, arguments: &Arguments) {
    let ash = program("ash");
    let ash = ash.display();
    println!("\nThe fleet runs. In another terminal:\n");
    println!("  export ASH_URL=http://{} ASH_API_KEY=$(cat {})", arguments.listen, fleet.keys().api_key().display());
    println!("  {ash} status");
    println!("  {ash} deploy config/samples/assistant --name assistant");
    println!("  {ash} chat assistant\n");
    println!("Kill any of these in the middle of a turn, with -9: its stream goes on. It is started again.\n");
    let members = fleet.coordinators.iter().map(|one| (one.describe(), format!("http://{}", one.address)));
    let members = members.chain(fleet.runners.iter().map(|one| (one.describe(), String::new())));
    let balancers =
        fleet.balancer.iter().map(|one| (one.describe(), format!("http://{} says what it sees", one.status)));
    let storages = storage.map(|one| (one.describe(), format!("http://{} speaks S3", one.address())));
    for ((name, pid, log), address) in members.chain(balancers).chain(storages) {
        let pid = pid.map_or_else(String::new, |pid| pid.to_string());
        println!("  {name:<14} {pid:<8} log {}  {address}", log.display());
    }
    println!("\nCtrl-C stops everything and removes it.");
}

/// Starts again whatever ends, until this is to end.
async fn watch(fleet: &mut Fleet, mut storage: Option<&mut ObjectStorage>, ends: &mut Ends) {
    loop {
        tokio::select! {
            () = sleep(WATCH) => {}
            () = ends.come() => return,
        }
        let storage = storage.as_mut().and_then(|storage| storage.restart_if_ended());
        for line in fleet.restart_ended().into_iter().chain(storage) {
            println!("{line}");
        }
    }
}

/// Variables of this process.
fn given(names: &[&'static str]) -> Vec<(&'static str, SecretString)> {
    names.iter().filter_map(|name| Some((*name, std::env::var(name).ok()?.into()))).collect()
}

/// Claude Code where `make tools` put it; without it `ash` looks on the `PATH`.
fn pinned_claude() -> Option<PathBuf> {
    let cache = PathBuf::from(std::env::var_os("HOME")?).join(".cache/ash");
    Some(cache.join(format!("claude-code-{}/package/claude", ash_protocol::claude::VERSION)))
        .filter(|file| file.is_file())
}
