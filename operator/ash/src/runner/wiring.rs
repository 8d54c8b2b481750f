//! One function that wires a runner: every part is made here, and handed to those that need it.

use std::{
    fs::File,
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::Context;
use ash_core::fleet::RunnerId;
use ash_gateway::{Gateway, GatewayConfig, Limits, TokenSigner};
use ash_link::SecretFile;
use ash_runner::{
    Coordinators, LocalRunner, Membership, MembershipConfig, ModelKeys, RemoteStore, RunnerConfig, RunnerService,
};
use ash_sandbox::ProcessBackend;
use prometheus_client::registry::Registry;
use secrecy::SecretBox;
use tokio::net::TcpListener;
use uuid::Uuid;

use super::{Arguments, observed};
use crate::serve::{claude, key::hexadecimal, sinks, wiring};

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
    _lock: File,
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
    let (bridge, claude) = (wiring::absolute(&sandboxing.bridge()?)?, wiring::absolute(&sandboxing.claude()?)?);
    let upstream = wiring::upstream(&arguments.upstream)?;
    let egress = wiring::egress(sandboxing)?;
    let id = RunnerId { name: arguments.name()?, incarnation: Uuid::new_v4() };
    let address = arguments.address()?;
    let listener = wiring::listen(arguments.listen).with_context(|| {
        format!("cannot listen on {}: stop what listens there, or name another address with --listen", arguments.listen)
    })?;
    claude::check(&claude, sandboxing.any_claude_version).await?;
    let data = wiring::data_directory(&arguments.data_dir)?;
    let lock = lock(&data)?;

    let mut metrics = Registry::default();
    let coordinators = Arc::new(Coordinators::new(&arguments.coordinator, &secret, &id)?);
    let config =
        MembershipConfig { runner: id.clone(), address, capacity: sandboxing.max_sandboxes, data: data.clone() };
    let membership = Arc::new(Membership::new(config, Arc::clone(&coordinators), &mut metrics));
    let registered = membership.join().await?;

    let backend = Arc::new(ProcessBackend::new(wiring::sandboxes(sandboxing, &data)).await?);
    wiring::say_protections(&backend);
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
    let config = RunnerConfig { model_keys, ..wiring::runner_config(sandboxing, &data, bridge, claude) };
    let local = Arc::new(LocalRunner::start(config, backend.into(), gateway, store, &mut metrics).await?);
    membership.take(&local, &registered);
    let service = Arc::new(RunnerService::new(Arc::clone(&local), Arc::clone(&membership)));
    if let Some(address) = arguments.metrics_listen {
        let observed = wiring::listen(address)
            .with_context(|| format!("cannot listen on {address}: name another address with --metrics-listen"))?;
        let shared = Arc::new(Mutex::new(Registry::default()));
        *shared.lock().unwrap_or_else(PoisonError::into_inner) = metrics;
        tokio::spawn(observed::serve(observed, shared, Arc::clone(&local)));
    }
    Ok(Runner { id, listener, secret, service, membership, local, _lock: lock })
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
