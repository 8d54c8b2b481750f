//! One function that wires a runner: every part is made here, and handed to those that need it.

use std::{
    fs::File,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Context;
use ash_core::{fleet::RunnerId, ports::TokenReviews};
use ash_gateway::{Gateway, GatewayConfig, Limits, TokenSigner};
use ash_link::SecretFile;
use ash_pods::{manifest::TOKEN_AUDIENCE, token_reviews::ApiServerReviews};
use ash_runner::{
    Coordinators, LocalRunner, Membership, MembershipConfig, ModelKeys, PodsConfig, RemoteStore, RunnerConfig,
    RunnerService,
};
use ash_sandbox::ProcessBackend;
use prometheus_client::registry::Registry;
use secrecy::SecretBox;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{arguments::Arguments, observed};
use crate::serve::{
    arguments::{SandboxArguments, SandboxKind},
    claude,
    key::hexadecimal,
    sinks, snapshots, wiring,
};

/// Held by the runner of a data directory: the file that a server with a store there holds, so that there is one of either.
const LOCK: &str = "ash.lock";

/// A wired runner.
pub(super) struct Runner {
    pub(super) id: RunnerId,
    pub(super) listener: TcpListener,
    pub(super) secret: Arc<SecretFile>,
    pub(super) service: Arc<RunnerService>,
    pub(super) membership: Arc<Membership>,
    pub(super) local: Arc<LocalRunner>,
    /// Ends the ports that pods reach.
    pub(super) stop_bridges: CancellationToken,
    _lock: File,
}

/// Claude Code in a pod, found on the path that the runner gives it.
const CLAUDE_IN_PODS: &str = "claude";

/// What a runner needs to come to its sandboxes.
enum Made {
    /// It starts them.
    Here(Programs),
    /// They dial it.
    Pods(Ports),
}

/// The programs of sandboxes on this machine.
struct Programs {
    bridge: PathBuf,
    claude: PathBuf,
}

/// What pods reach.
struct Ports {
    bridges: TcpListener,
    gateway: TcpListener,
    advertised: SocketAddr,
    reviews: Arc<dyn TokenReviews>,
}

async fn programs(sandboxing: &SandboxArguments) -> anyhow::Result<Programs> {
    let (bridge, claude) = (wiring::absolute(&sandboxing.bridge()?)?, wiring::absolute(&sandboxing.claude()?)?);
    claude::check(&claude, sandboxing.any_claude_version).await?;
    Ok(Programs { bridge, claude })
}

async fn ports(arguments: &Arguments) -> anyhow::Result<Ports> {
    anyhow::ensure!(!arguments.node.is_empty(), "a runner of pods serves one node: name it with --node");
    let advertised = arguments.gateway_advertise.context(
        "pods have to reach the runner's gateway: name the address of its Service with --gateway-advertise http://ADDRESS:PORT",
    )?;
    let listen = |address, flag| {
        wiring::listen(address).with_context(|| {
            format!("cannot listen on {address}: stop what listens there, or name another with {flag}")
        })
    };
    Ok(Ports {
        bridges: listen(arguments.bridge_listen, "--bridge-listen")?,
        gateway: listen(arguments.gateway_listen, "--gateway-listen")?,
        advertised,
        reviews: Arc::new(ApiServerReviews::of_cluster().await?),
    })
}

/// Makes every part of a runner. What a person got wrong is found before anything is started; then it waits for a coordinator,
/// who has the keys.
pub(super) async fn wire(arguments: &Arguments) -> anyhow::Result<Runner> {
    let sandboxing = &arguments.sandboxes;
    anyhow::ensure!(
        !arguments.coordinator.is_empty(),
        "a runner has no store of its own: name a coordinator with --coordinator http://HOST:PORT"
    );
    let secret = arguments.fleet_secret_file.as_deref().context(
        "a runner needs the secret that it shares with its coordinators: name the file with --fleet-secret-file",
    )?;
    let secret = Arc::new(SecretFile::open(secret)?);
    let upstream = wiring::upstream(&arguments.upstream)?;
    let egress = wiring::egress(sandboxing)?;
    let id = RunnerId { name: arguments.name()?, incarnation: Uuid::new_v4() };
    let address = arguments.address()?;
    let listener = wiring::listen(arguments.listen).with_context(|| {
        format!("cannot listen on {}: stop what listens there, or name another address with --listen", arguments.listen)
    })?;
    let made = match arguments.kind {
        SandboxKind::Processes => Made::Here(programs(sandboxing).await?),
        SandboxKind::Pods => Made::Pods(ports(arguments).await?),
    };
    let data = wiring::data_directory(&arguments.data_dir)?;
    let lock = lock(&data)?;

    let mut metrics = Registry::default();
    let coordinators = Arc::new(Coordinators::new(&arguments.coordinator, &secret, &id)?);
    let config = MembershipConfig {
        runner: id.clone(),
        address,
        capacity: sandboxing.max_sandboxes,
        data: data.clone(),
        pool: arguments.pool.clone(),
        node: arguments.node.clone(),
    };
    let membership = Arc::new(Membership::new(config, Arc::clone(&coordinators), &mut metrics));
    let registered = membership.join().await?;

    let token_key = hexadecimal(&registered.token_key.0).context("the coordinator gave no key for tokens")?;
    let gateway = Gateway::new(
        GatewayConfig { upstream, egress, limits: Limits::default() },
        TokenSigner::new(SecretBox::new(Box::new(token_key))),
        Arc::new(sinks::UsageLog),
        Arc::new(sinks::RefusalLog),
    )?;
    gateway.register_metrics(&mut metrics);
    let model_keys: Arc<ModelKeys> = Arc::default();
    let store = Arc::new(RemoteStore::new(coordinators, Arc::clone(&model_keys)));
    let (backend, bridge, claude, ports) = match made {
        Made::Here(Programs { bridge, claude }) => {
            let backend = Arc::new(ProcessBackend::new(wiring::sandboxes(sandboxing, &data)).await?);
            wiring::say_protections(&backend);
            (backend.into(), bridge, claude, None)
        }
        Made::Pods(ports) => {
            let ticket_key =
                ash_link::derived_key(&SecretBox::new(Box::new(token_key)), "bridge tickets", &arguments.node)
                    .context("the key of tickets cannot be made")?;
            let pods = PodsConfig {
                node: arguments.node.clone(),
                gateway: ports.advertised,
                claude: CLAUDE_IN_PODS.to_owned(),
                audience: TOKEN_AUDIENCE.to_owned(),
                reviews: Arc::clone(&ports.reviews),
                calls: Arc::clone(&store) as _,
                ticket_key,
            };
            (pods.into(), PathBuf::new(), PathBuf::new(), Some(ports))
        }
    };
    let vault = snapshots::vault(sandboxing, None)?;
    let serves_until = Some(membership.serves_until());
    let config =
        RunnerConfig { model_keys, vault, serves_until, ..wiring::runner_config(sandboxing, &data, bridge, claude) };
    let local = Arc::new(LocalRunner::start(config, backend, gateway.clone(), store, &mut metrics).await?);
    let stop_bridges = CancellationToken::new();
    if let Some(Ports { bridges, gateway: listener, .. }) = ports {
        let (served, stop) = (Arc::clone(&local), stop_bridges.clone());
        tokio::spawn(async move { served.serve_bridges(bridges, stop).await });
        let stop = stop_bridges.clone();
        tokio::spawn(async move { gateway.serve_network(listener, stop).await });
    }
    membership.take(&local, &registered);
    let service = Arc::new(RunnerService::new(Arc::clone(&local), Arc::clone(&membership)));
    if let Some(address) = arguments.metrics_listen {
        let observed = wiring::listen(address)
            .with_context(|| format!("cannot listen on {address}: name another address with --metrics-listen"))?;
        let shared = Arc::new(Mutex::new(Registry::default()));
        *shared.lock().unwrap_or_else(PoisonError::into_inner) = metrics;
        tokio::spawn(observed::serve(observed, shared, Arc::clone(&local), Arc::clone(&membership)));
    }
    Ok(Runner { id, listener, secret, service, membership, local, stop_bridges, _lock: lock })
}

fn lock(data: &Path) -> anyhow::Result<File> {
    let path = data.join(LOCK);
    let file = File::options().create(true).append(true).open(&path);
    let file = file.with_context(|| format!("cannot write {}", path.display()))?;
    file.try_lock().with_context(|| {
        format!("another runner or server uses {}: stop it, or name another folder with --data-dir", data.display())
    })?;
    Ok(file)
}
