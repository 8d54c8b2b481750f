//! One function that wires an operator: every part is made here, and handed to those that need it.

use std::{
    path::Path,
    sync::{Arc, Mutex, PoisonError},
};

use anyhow::{Context, bail};
use ash_controllers::{Client, Clones, Members, Metrics, OperatorConfig, Ports};
use ash_coordinator::{FleetRunner, PodsConfig, Registry, RegistryConfig};
use ash_core::{fleet::ModelKey, id::TenantId};
use ash_link::SecretFile;
use ash_pods::manifest::Installation;
use ash_protocol::fleet::Hidden;
use ash_store::Database;
use prometheus_client::registry::Registry as MetricsRegistry;
use secrecy::{ExposeSecret as _, SecretBox};

use super::{Arguments, observed};
use crate::serve::{
    key::{credential_keys, hexadecimal},
    wiring,
};

/// A wired operator.
pub(super) struct Operator {
    pub(super) client: Client,
    pub(super) config: OperatorConfig,
    pub(super) ports: Ports,
    pub(super) metrics: Metrics,
    pub(super) registry: Arc<Registry>,
    pub(super) store: Arc<dyn Database>,
    _lock: Option<ash_store::DirectoryLock>,
}

/// Makes every part of an operator. What a person got wrong is found before anything is started.
pub(super) async fn wire(arguments: &Arguments) -> anyhow::Result<Operator> {
    let config = config(arguments)?;
    let secret = arguments.fleet_secret_file.as_deref().context(
        "an operator needs the secret that coordinators and runners share: name the file with --fleet-secret-file",
    )?;
    let secret = Arc::new(SecretFile::open(secret)?);
    let token_key = token_key(arguments.token_key_file.as_deref())?;
    let keys = credential_keys(&arguments.credentials, None)?;
    let address = arguments.metrics_listen;
    let listener = wiring::listen(address)
        .with_context(|| format!("cannot listen on {address}: name another address with --metrics-listen"))?;
    let client = ash_controllers::connect().await?;

    let data = wiring::data_directory(&arguments.data_dir)?;
    let (store, lock) = wiring::open_store(&data, arguments.database_url.as_ref(), || Ok(keys)).await?;
    let mut registered = MetricsRegistry::default();
    let metrics = Metrics::default();
    metrics.register(&mut registered);
    let hidden = |secret: &secrecy::SecretString| Hidden(secret.expose_secret().to_owned());
    let model_key = match (&arguments.anthropic_api_key, &arguments.anthropic_auth_token) {
        (Some(key), _) => Some(ModelKey::ApiKey(hidden(key))),
        (None, Some(token)) => Some(ModelKey::AuthToken(hidden(token))),
        (None, None) => None,
    };
    let resources = Arc::new(ash_controllers::resources::KubeResources::new(
        client.clone(),
        config.namespaces.clone(),
        config.default_namespace.clone(),
        Some(store.clone()),
    ));
    let pods = PodsConfig { default_namespace: config.default_namespace.clone(), resources: Some(resources) };
    let fleet = RegistryConfig { secret, token_key, model_key, pods: Some(pods) };
    let registry = Registry::start_without_runners(fleet, store.clone(), &mut registered).await?;
    let ports = Ports {
        store: store.clone(),
        changes: store.clone(),
        pods: store.clone(),
        fleet: Arc::new(Members(store.clone())),
        credentials: store.clone(),
        configure: store.clone(),
        runner: Arc::new(FleetRunner::new(Arc::clone(&registry))),
    };
    let shared = Arc::new(Mutex::new(MetricsRegistry::default()));
    *shared.lock().unwrap_or_else(PoisonError::into_inner) = registered;
    tokio::spawn(observed::serve(listener, shared));
    Ok(Operator { client, config, ports, metrics, registry, store, _lock: lock })
}

fn config(arguments: &Arguments) -> anyhow::Result<OperatorConfig> {
    let named = |names: &[String]| -> Vec<String> {
        let mut names: Vec<String> = names.iter().filter(|name| !name.is_empty()).cloned().collect();
        names.sort();
        names.dedup();
        names
    };
    let namespaces = named(&arguments.namespaces);
    if namespaces.is_empty() {
        bail!("an operator serves the namespaces that it is told: name them with --namespaces");
    }
    let tenant = TenantId::default_tenant();
    if namespaces.contains(&tenant.0) && arguments.default_namespace != tenant.0 {
        bail!(
            "the namespace {tenant} can only be served as the default tenant's: name it with --default-namespace, or do not \
             serve it"
        );
    }
    let identity = arguments.name.clone().or_else(|| std::env::var("POD_NAME").ok()).or_else(|| {
        let machine = std::fs::read_to_string("/proc/sys/kernel/hostname").ok()?;
        Some(format!("{}-{}", machine.trim(), std::process::id()))
    });
    let mut installation = Installation {
        pull_secrets: named(&arguments.image_pull_secrets),
        user_namespaces: arguments.user_namespaces,
        ..Installation::new(&arguments.bridge_image)
    };
    if let Some(text) = &arguments.sandbox_resources {
        installation.resources = serde_json::from_str(text)
            .context("--sandbox-resources is not written as {\"requests\":{...},\"limits\":{...}}")?;
    }
    Ok(OperatorConfig {
        namespaces,
        default_namespace: arguments.default_namespace.clone(),
        system_namespace: arguments.runner_namespace.clone(),
        identity: identity.context("this process has no name: give it one with --name")?,
        public_url: arguments
            .public_url
            .as_ref()
            .map(|url| url.trim_end_matches('/').to_owned())
            .filter(|url| !url.is_empty()),
        installation,
        clones: Clones {
            https_proxy: arguments.git_https_proxy.clone().filter(|url| !url.is_empty()),
            no_proxy: arguments.git_no_proxy.clone().filter(|names| !names.is_empty()),
            authorities: arguments.git_ca_file.clone(),
        },
    })
}

fn token_key(path: Option<&Path>) -> anyhow::Result<SecretBox<[u8; 32]>> {
    let path =
        path.context("an operator makes no key of its own: name the file of the tokens' key with --token-key-file")?;
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let key =
        hexadecimal(text.trim()).with_context(|| format!("{} has no key of 64 hexadecimal digits", path.display()))?;
    Ok(SecretBox::new(Box::new(key)))
}
