//! `ash serve --mode coordinator`: the API without sandboxes, and what runners call.
//!
//! One function, [`wire`], makes every part. It makes no key: whatever many processes have to share is given to it.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, bail};
use ash_api::{ApiConfig, ApiState, OptionalPorts, ServeLimits};
use ash_controllers::resources::KubeResources;
use ash_coordinator::{CoordinatorService, FleetRunner, PodsConfig, Registry, RegistryConfig};
use ash_core::{
    fleet::ModelKey,
    ports::{MembershipStore, Resources},
};
use ash_gateway::Credential;
use ash_link::SecretFile;
use ash_protocol::fleet::Hidden;
use ash_store::{Database, DirectoryLock};
use prometheus_client::registry::Registry as MetricsRegistry;
use secrecy::{ExposeSecret as _, SecretBox, SecretString};
use tokio::{net::TcpListener, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{
    DRAIN, access,
    arguments::{Arguments, FleetArguments, SandboxKind},
    compaction,
    key::{self, hexadecimal},
    snapshots, store_metrics, wait_for_signal, wiring,
};

/// A wired coordinator.
struct Coordinator {
    listener: TcpListener,
    fleet_listener: TcpListener,
    state: ApiState,
    limits: ServeLimits,
    registry: Arc<Registry>,
    secret: Arc<SecretFile>,
    store: Arc<dyn Database>,
    compaction_metrics: compaction::Metrics,
    /// Of the data directory, with Postgres: held for as long as the coordinator runs.
    _lock: Option<DirectoryLock>,
}

/// Serves until told to stop. Turns go on without a coordinator: only the streams are given time to end.
pub(super) async fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let coordinator = wire(arguments).await?;
    tracing::info!(address = %coordinator.listener.local_addr()?, runners = %coordinator.fleet_listener.local_addr()?, "listening");
    let stop = CancellationToken::new();
    let service = Arc::new(CoordinatorService::new(Arc::clone(&coordinator.registry)));
    let fleet_stop = CancellationToken::new();
    let for_runners =
        tokio::spawn(ash_link::serve(coordinator.fleet_listener, coordinator.secret, service, fleet_stop.clone()));
    let registry = Arc::clone(&coordinator.registry);
    let watching = tokio::spawn(ash_coordinator::watch(registry, fleet_stop.clone()));
    let compacting = tokio::spawn(compaction::keep(
        coordinator.store.clone(),
        arguments.compact_after,
        coordinator.compaction_metrics,
        stop.clone(),
    ));
    let queueing = tokio::spawn(ash_api::keep_queues(coordinator.state.clone(), stop.clone().cancelled_owned()));
    let stopped = stop.clone().cancelled_owned();
    let serving = tokio::spawn(async move {
        let router = ash_api::router(coordinator.state.clone());
        ash_api::serve(coordinator.listener, router, &coordinator.state, coordinator.limits, stopped).await;
    });
    wait_for_signal().await?;
    tracing::info!("stopping: streams may end within {} s", arguments.shutdown_timeout.as_secs());
    stop.cancel();
    let stopping = async {
        let _ = timeout(arguments.shutdown_timeout + DRAIN, serving).await;
        fleet_stop.cancel();
        let _ = timeout(DRAIN * 2, for_runners).await;
        let _ = timeout(DRAIN, watching).await;
        let _ = timeout(DRAIN, compacting).await;
        let _ = timeout(DRAIN, queueing).await;
        coordinator.registry.leave().await;
        coordinator.store.close().await;
    };
    tokio::select! {
        () = stopping => tracing::info!("stopped"),
        signal = wait_for_signal() => {
            signal?;
            tracing::warn!("stopped at once; runners wait for the next coordinator");
        }
    }
    Ok(())
}

/// Makes every part of a coordinator. What a person got wrong is found before anything is started.
async fn wire(arguments: &Arguments) -> anyhow::Result<Coordinator> {
    let fleet = &arguments.fleet;
    let token_key = token_key(fleet)?;
    let secret = fleet.fleet_secret_file.as_deref().context(
        "a coordinator needs the secret that it shares with its runners: write 32 characters or more into a file \
         (`openssl rand -hex 32`) and name it with --fleet-secret-file",
    )?;
    let secret = Arc::new(SecretFile::open(secret)?);
    let credential_keys = key::credential_keys(&arguments.credentials, None)?;
    let api_key = api_key(arguments)?;
    let access = access::config(fleet).await?;
    let busy = |flag: &str, address| {
        format!("cannot listen on {address}: stop what listens there, or name another address with {flag}")
    };
    let listener = wiring::listen(arguments.listen).with_context(|| busy("--listen", arguments.listen))?;
    let fleet_listener =
        wiring::listen(fleet.fleet_listen).with_context(|| busy("--fleet-listen", fleet.fleet_listen))?;

    let data = wiring::data_directory(&arguments.data_dir)?;
    let (store, lock) = wiring::open_store(&data, arguments.database_url.as_ref(), || Ok(credential_keys)).await?;
    if api_key.is_none() && !store.has_keys().await? {
        bail!("a coordinator makes no API key: give one as ASH_API_KEY, or in a file that --api-key-file names");
    }
    let mut metrics = MetricsRegistry::default();
    metrics.register_collector(Box::new(store_metrics::StoreMetrics {
        store: Arc::clone(&store),
        write_ahead_log: data.join(format!("{}-wal", wiring::DATABASE)),
    }));
    let compaction_metrics = compaction::Metrics::register(&mut metrics);
    let model_key = wiring::credential(arguments).map(|credential| match credential {
        Credential::ApiKey(key) => ModelKey::ApiKey(Hidden(key.expose_secret().to_owned())),
        Credential::AuthToken(token) => ModelKey::AuthToken(Hidden(token.expose_secret().to_owned())),
    });
    let resources: Option<Arc<dyn Resources>> = if fleet.kubernetes {
        let namespaces = access::namespaces(fleet)?.into_iter().collect();
        let client = ash_controllers::connect().await?;
        let (default, credentials) = (fleet.default_namespace.clone(), store.clone());
        Some(Arc::new(KubeResources::new(client, namespaces, default, Some(credentials))))
    } else {
        None
    };
    let pods = (fleet.kubernetes || fleet.sandbox_kind == SandboxKind::Pods)
        .then(|| PodsConfig { default_namespace: fleet.default_namespace.clone(), resources: resources.clone() });
    if let Some(vault) = snapshots::vault(&arguments.sandboxes, None)? {
        let collections = snapshots::Collections::register(&mut metrics);
        tokio::spawn(snapshots::collect(vault, store.clone(), collections));
    }
    let config = RegistryConfig { secret: Arc::clone(&secret), token_key, model_key, pods };
    let registry = Registry::start(config, store.clone(), &mut metrics).await?;
    let runner = Arc::new(FleetRunner::new(Arc::clone(&registry)));
    let shared = Arc::new(Mutex::new(MetricsRegistry::default()));
    *shared.lock().unwrap_or_else(PoisonError::into_inner) = metrics;
    let config = ApiConfig { allow_path: false, api_key, access, ..ApiConfig::default() };
    let limits = wiring::serve_limits(arguments, arguments.shutdown_timeout + DRAIN);
    let fleet: Arc<dyn MembershipStore> = store.clone();
    let optional = OptionalPorts {
        credentials: Some(store.clone()),
        queue: Some(store.clone()),
        configure: Some(store.clone()),
        fleet: Some(fleet),
        resources,
    };
    let state = ApiState::with(store.clone(), runner, optional, shared, config);
    Ok(Coordinator {
        listener,
        fleet_listener,
        state,
        limits,
        registry,
        secret,
        store,
        compaction_metrics,
        _lock: lock,
    })
}

fn read(path: &Path) -> anyhow::Result<SecretString> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(text.trim().into())
}

fn token_key(fleet: &FleetArguments) -> anyhow::Result<SecretBox<[u8; 32]>> {
    let advice = "a coordinator makes no key of its own: give the one that signs sandboxes' tokens, 64 hexadecimal digits \
                  (`openssl rand -hex 32`), the same at every start, as ASH_TOKEN_KEY, or in a file that --token-key-file names";
    let text = match (&fleet.token_key, &fleet.token_key_file) {
        (Some(key), _) => key.clone(),
        (None, Some(path)) => read(path)?,
        (None, None) => bail!("{advice}"),
    };
    let key = hexadecimal(text.expose_secret()).with_context(|| format!("the token key is no key: {advice}"))?;
    Ok(SecretBox::new(Box::new(key)))
}

fn api_key(arguments: &Arguments) -> anyhow::Result<Option<SecretString>> {
    match (&arguments.api_key, &arguments.fleet.api_key_file) {
        (Some(key), _) => Ok(Some(key.clone())),
        (None, Some(path)) => {
            let key = read(path)?;
            if key.expose_secret().is_empty() {
                bail!("{} is empty: it has to hold the API key", path.display());
            }
            Ok(Some(key))
        }
        (None, None) => Ok(None),
    }
}
