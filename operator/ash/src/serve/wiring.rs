//! One function that wires a standalone server: every part is made here, and handed to those that need it.

use std::{
    io,
    net::SocketAddr,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use anyhow::Context;
use ash_api::{ApiConfig, ApiState, OptionalPorts, ServeLimits};
use ash_core::{
    id::TenantId,
    ports::{Runner, Store, WholeStore},
};
use ash_gateway::{
    Credential, EgressConfig, Gateway, GatewayConfig, Limits as GatewayLimits, OperatorAllow, UpstreamConfig,
};
use ash_runner::{LocalRunner, RunnerConfig};
use ash_sandbox::{Limits, Policy, ProcessBackend, ProcessConfig};
use ash_store::{Database, DirectoryLock, Keyring, PostgresStore, SqliteStore};
use prometheus_client::registry::Registry;
use secrecy::SecretString;
use tokio::net::{TcpListener, TcpSocket};

use super::{
    access,
    arguments::{Arguments, SandboxArguments, SandboxPolicy, UpstreamArguments},
    claude, compaction, key,
    keyed::KeyedRunner,
    sinks, snapshots, store_metrics, system_metrics,
};
use crate::values::Size;

/// The database in the data directory.
pub(super) const DATABASE: &str = "ash.db";

/// Connections that wait to be accepted, where the system allows as many; one more has to try again after a second.
const BACKLOG: u32 = 1024;

/// Claude Code's memory bound between turns, as a part of the sandbox's memory: three quarters, 1.5 GiB of 2.
const MEMORY_BOUND: (u64, u64) = (3, 4);

/// `/tmp` and `/dev/shm` count as memory: full, they take half of a small sandbox's and leave the rest to its programs.
const TEMPORARY_PART: u64 = 4;

/// The part of the process's memory that what sessions wrote and the log has not may take: the rest is for everything else, and
/// for what a line takes on its way to the store.
const LOG_MEMORY_PART: u64 = 2;

/// ... where nothing says how much memory the process may use.
const LOG_MEMORY_BYTES: u64 = 1 << 30;

/// A wired server.
pub(super) struct Server {
    pub(super) listener: TcpListener,
    pub(super) router: axum::Router,
    pub(super) state: ApiState,
    pub(super) limits: ServeLimits,
    pub(super) runner: Arc<LocalRunner>,
    pub(super) store: Arc<dyn Database>,
    pub(super) compaction_metrics: compaction::Metrics,
    /// Of the data directory, where the store does not hold it.
    pub(super) _lock: Option<DirectoryLock>,
}

/// Makes every part of a standalone server, in the order in which they depend on each other. What a person got wrong is found
/// before anything is started.
pub(super) async fn wire(arguments: &Arguments) -> anyhow::Result<Server> {
    let sandboxing = &arguments.sandboxes;
    let (bridge, claude) = (absolute(&sandboxing.bridge()?)?, absolute(&sandboxing.claude()?)?);
    let upstream = UpstreamConfig { credential: credential(arguments), ..upstream(&arguments.upstream)? };
    let egress = egress(sandboxing)?;
    let access = access::config(&arguments.fleet).await?;
    let listener = listen(arguments.listen).with_context(|| {
        format!("cannot listen on {}: stop what listens there, or name another address with --listen", arguments.listen)
    })?;
    claude::check(&claude, sandboxing.any_claude_version).await?;

    let data = data_directory(&arguments.data_dir)?;
    // Made only by whoever has the directory.
    let keys = || key::credential_keys(&arguments.credentials, Some(&data));
    let (store, lock) = open_store(&data, arguments.database_url.as_ref(), keys).await?;
    let backend = Arc::new(ProcessBackend::new(sandboxes(sandboxing, &data)).await?);
    say_protections(&backend);

    let gateway = Gateway::new(
        GatewayConfig { upstream, egress, limits: GatewayLimits::default() },
        key::token_signer(&data)?,
        Arc::new(sinks::UsageLog),
        Arc::new(sinks::RefusalLog),
    )?;
    let registry = Arc::new(Mutex::new(Registry::default()));
    let mut runner_metrics = Registry::default();
    gateway.register_metrics(&mut runner_metrics);
    runner_metrics.register_collector(Box::new(store_metrics::StoreMetrics {
        store: Arc::clone(&store),
        write_ahead_log: data.join(format!("{DATABASE}-wal")),
    }));
    let compaction_metrics = compaction::Metrics::register(&mut runner_metrics);
    runner_metrics.register_collector(Box::new(system_metrics::SystemMetrics(Arc::clone(&backend))));
    let as_port: Arc<dyn Store> = store.clone();
    let vault = snapshots::vault(sandboxing, Some(&data))?;
    let collections = snapshots::Collections::register(&mut runner_metrics);
    let runner = LocalRunner::start(
        RunnerConfig { vault: vault.clone(), ..runner_config(sandboxing, &data, bridge, claude) },
        backend.into(),
        gateway,
        Arc::new(WholeStore(Arc::clone(&as_port))),
        &mut runner_metrics,
    )
    .await?;
    let runner = Arc::new(runner);
    *registry.lock().unwrap_or_else(PoisonError::into_inner) = runner_metrics;

    if let Some(vault) = vault {
        tokio::spawn(snapshots::collect(vault, Arc::clone(&as_port), collections));
    }
    for agent in as_port.agents(&TenantId::default_tenant()).await? {
        runner.prepare(agent.version);
    }
    if arguments.api_key.is_none()
        && let Some(path) = ash_api::ensure_initial_key(&*as_port, &data).await?
    {
        tracing::info!(path = %path.display(), "the first API key was written to this file");
    }
    let config = ApiConfig { allow_path: true, api_key: arguments.api_key.clone(), access, ..ApiConfig::default() };
    // Streams end with their turns; a moment more lets them say so.
    let shutdown_grace = arguments.shutdown_timeout + ash_runner::CLOSING + super::DRAIN;
    let limits = serve_limits(arguments, shutdown_grace);
    let optional = OptionalPorts {
        credentials: Some(store.clone()),
        queue: Some(store.clone()),
        configure: Some(store.clone()),
        ..OptionalPorts::default()
    };
    let keyed = KeyedRunner::start(Arc::clone(&runner), store.clone()).await?;
    let state = ApiState::with(as_port, Arc::new(keyed), optional, registry, config);
    Ok(Server {
        listener,
        router: ash_api::router(state.clone()),
        state,
        limits,
        runner,
        store,
        compaction_metrics,
        _lock: lock,
    })
}

/// The database in the data directory, or Postgres. The directory is this server's in both cases: sandboxes are in it.
pub(crate) async fn open_store(
    data: &Path,
    database_url: Option<&SecretString>,
    keys: impl FnOnce() -> anyhow::Result<Keyring>,
) -> anyhow::Result<(Arc<dyn Database>, Option<DirectoryLock>)> {
    let Some(url) = database_url else {
        let store = SqliteStore::open(&data.join(DATABASE)).await?;
        return Ok((Arc::new(store.with_credential_keys(keys()?)), None));
    };
    let lock = DirectoryLock::take(data)?;
    let store = PostgresStore::open(url).await?;
    Ok((Arc::new(store.with_credential_keys(keys()?)), Some(lock)))
}

pub(crate) fn say_protections(backend: &ProcessBackend) {
    for protection in backend.protections().iter() {
        if protection.in_force {
            tracing::info!(protection = protection.name, detail = protection.detail, "in force");
        } else {
            tracing::warn!(protection = protection.name, detail = protection.detail, "NOT in force");
        }
    }
}

pub(crate) fn listen(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4() } else { TcpSocket::new_v6() }?;
    // Connections of a server that was just stopped must not keep its port.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// What clients are allowed.
pub(super) fn serve_limits(arguments: &Arguments, shutdown_grace: Duration) -> ServeLimits {
    let max_connections = ash_api::connections_within_descriptors(arguments.max_connections as usize);
    ServeLimits { max_connections, shutdown_grace, ..ServeLimits::default() }
}

pub(crate) fn absolute(program: &Path) -> anyhow::Result<std::path::PathBuf> {
    program.canonicalize().with_context(|| format!("cannot find {}", program.display()))
}

/// The data directory, made where it is not there. Others may pass through it, to the folder of their own sandbox, and not look.
pub(crate) fn data_directory(path: &Path) -> anyhow::Result<std::path::PathBuf> {
    use std::os::unix::fs::DirBuilderExt;

    let advice =
        || format!("{} cannot be used: let this user write it, or name another with --data-dir", path.display());
    std::fs::DirBuilder::new().recursive(true).mode(0o711).create(path).with_context(advice)?;
    path.canonicalize().with_context(advice)
}

/// The key of the model API, where one is given.
pub(crate) fn credential(arguments: &Arguments) -> Option<Credential> {
    let key = arguments.anthropic_api_key.clone().map(Credential::ApiKey);
    let token = arguments.anthropic_auth_token.clone().map(Credential::AuthToken);
    if key.is_none() && token.is_none() {
        tracing::warn!("no model key: set ANTHROPIC_API_KEY or ANTHROPIC_AUTH_TOKEN, or every turn will fail");
    }
    key.or(token)
}

/// The model API, without a key.
pub(crate) fn upstream(arguments: &UpstreamArguments) -> anyhow::Result<UpstreamConfig> {
    Ok(UpstreamConfig {
        base_url: arguments.anthropic_base_url.clone(),
        credential: None,
        proxy: arguments.https_proxy.clone(),
        no_proxy: arguments.no_proxy.clone(),
        extra_ca: arguments.upstream_ca_file.clone(),
        extra_headers: arguments.upstream_headers()?,
    })
}

/// What the operator permits beyond public addresses: networks, and everything else as hosts.
pub(crate) fn egress(arguments: &SandboxArguments) -> anyhow::Result<EgressConfig> {
    let mut allow = OperatorAllow::default();
    for target in &arguments.egress_allow {
        match target.parse() {
            Ok(network) => allow.networks.push(network),
            Err(_) => allow.hosts.push(target.parse().with_context(|| format!("--egress-allow {target}"))?),
        }
    }
    let forbid = |network: &String| network.parse().with_context(|| format!("--egress-forbid {network}"));
    let forbidden = arguments.egress_forbid.iter().map(forbid).collect::<anyhow::Result<_>>()?;
    Ok(EgressConfig { allow, forbidden, ..EgressConfig::default() })
}

pub(crate) fn sandboxes(arguments: &SandboxArguments, data: &Path) -> ProcessConfig {
    use std::os::unix::fs::MetadataExt;

    // Two servers on one machine must not share a group; their data directories differ. An inode alone does not: the top of
    // every file system may have the same.
    let (device, inode) = std::fs::metadata(data).map_or((0, 0), |metadata| (metadata.dev(), metadata.ino()));
    ProcessConfig {
        policy: match arguments.sandbox_policy {
            SandboxPolicy::BestEffort => Policy::BestEffort,
            SandboxPolicy::Strict => Policy::Strict,
        },
        group: format!("ash-{device}-{inode}"),
        ..ProcessConfig::default()
    }
}

pub(crate) fn runner_config(
    arguments: &SandboxArguments,
    data: &Path,
    bridge: std::path::PathBuf,
    claude: std::path::PathBuf,
) -> RunnerConfig {
    let memory_bytes = arguments.memory.bytes();
    let limits = Limits::default();
    let log_memory = || ash_sandbox::memory_limit().map_or(LOG_MEMORY_BYTES, |bytes| bytes / LOG_MEMORY_PART);
    RunnerConfig {
        data: data.to_owned(),
        bridge,
        claude,
        max_sandboxes: arguments.max_sandboxes as usize,
        warm: arguments.warm as usize,
        limits: Limits {
            memory_bytes,
            cpu_millis: arguments.cpu_millis,
            processes: arguments.processes,
            workspace_bytes: arguments.workspace_quota.bytes(),
            tmp_bytes: limits.tmp_bytes.min(memory_bytes / TEMPORARY_PART),
            ..limits
        },
        memory_bound_bytes: memory_bytes / MEMORY_BOUND.1 * MEMORY_BOUND.0,
        log_memory_bytes: arguments.log_memory.map_or_else(log_memory, Size::bytes),
        idle_timeout: arguments.idle_timeout,
        capacity_wait: arguments.capacity_wait.unwrap_or(ash_runner::CAPACITY_WAIT),
        permission_timeout: arguments.permission_timeout,
        model_keys: Arc::default(),
        vault: None,
        snapshot_bytes: arguments.snapshot_quota.unwrap_or(arguments.workspace_quota).bytes(),
        serves_until: None,
    }
}
