//! What every handler shares.

use std::{
    fmt,
    ops::Deref,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use ash_core::{
    agent::AgentVersion,
    id::{SessionId, TenantId},
    ports::{ConfigureStore, CredentialStore, MembershipStore, QueueStore, Resources, Runner, Store},
    session::Session,
};
use prometheus_client::registry::Registry;
use secrecy::{ExposeSecret as _, SecretString};
use tokio::sync::{Semaphore, watch};

use crate::{
    access::{Access, AccessConfig},
    body::LargeBodies,
    error::ApiError,
    hash_key,
    metrics::Metrics,
    queue::Queues,
};

/// Deployments that are unpacked and packed at once: each takes up to 350 MiB of memory and a core. Others wait.
const MAX_DEPLOYMENTS: usize = 2;

/// How an API behaves.
#[derive(Debug, Clone)]
pub struct ApiConfig {
    /// The release, as `GET /health` says it.
    pub version: String,
    /// This process, as `GET /health` says it: host name and process id.
    pub coordinator_id: String,
    /// Whether agents may be deployed from a directory of the server's machine: in standalone mode only.
    pub allow_path: bool,
    /// A key that is valid beside those in the store: `ASH_API_KEY`. It belongs to the default tenant.
    pub api_key: Option<SecretString>,
    /// Kubernetes tokens beside the keys; without it there are keys only.
    pub access: Option<AccessConfig>,
    /// Silence on a stream after which a comment is sent. The contract says 10 s.
    pub keep_alive: Duration,
}

impl Default for ApiConfig {
    fn default() -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            coordinator_id: format!("ash-{}", std::process::id()),
            allow_path: false,
            api_key: None,
            access: None,
            keep_alive: Duration::from_secs(10),
        }
    }
}

/// Ports that not every server has. What is asked of one that is missing is refused with a sentence.
#[derive(Clone, Default)]
pub struct OptionalPorts {
    /// Stored credentials.
    pub credentials: Option<Arc<dyn CredentialStore>>,
    /// Messages that wait for their turn.
    pub queue: Option<Arc<dyn QueueStore>>,
    /// Options that change in a session's life.
    pub configure: Option<Arc<dyn ConfigureStore>>,
    /// The runners of a coordinator.
    pub fleet: Option<Arc<dyn MembershipStore>>,
    /// The resources of a cluster, which keep what people want.
    pub resources: Option<Arc<dyn Resources>>,
}

/// What every handler shares: the ports, the configuration and metrics. Cheap to clone.
#[derive(Clone)]
pub struct ApiState(Arc<Inner>);

/// The inside of [`ApiState`]. Public only as far as `Deref` needs it to be: its fields are not.
pub struct Inner {
    pub(crate) store: Arc<dyn Store>,
    pub(crate) runner: Arc<dyn Runner>,
    pub(crate) optional: OptionalPorts,
    pub(crate) config: ApiConfig,
    pub(crate) metrics: Metrics,
    pub(crate) registry: Arc<Mutex<Registry>>,
    pub(crate) extra_key: Option<[u8; 32]>,
    pub(crate) access: Option<Access>,
    pub(crate) large_bodies: LargeBodies,
    pub(crate) deployments: Semaphore,
    pub(crate) started: Instant,
    /// True from the moment the server shuts down.
    pub(crate) closing: watch::Sender<bool>,
    pub(crate) queues: Arc<Queues>,
}

impl ApiState {
    /// The state of one server. Adds the API's metrics to the registry, which `GET /metrics` shows.
    pub fn new(
        store: Arc<dyn Store>,
        runner: Arc<dyn Runner>,
        registry: Arc<Mutex<Registry>>,
        config: ApiConfig,
    ) -> Self {
        Self::with(store, runner, OptionalPorts::default(), registry, config)
    }

    /// As [`ApiState::new`], with ports that not every server has.
    pub fn with(
        store: Arc<dyn Store>,
        runner: Arc<dyn Runner>,
        optional: OptionalPorts,
        registry: Arc<Mutex<Registry>>,
        config: ApiConfig,
    ) -> Self {
        let metrics = Metrics::default();
        metrics.register(&mut registry.lock().unwrap_or_else(PoisonError::into_inner));
        let extra_key = config.api_key.as_ref().map(|key| hash_key(key.expose_secret()));
        let access = config.access.clone().map(|config| Access::new(config, metrics.clone()));
        Self(Arc::new(Inner {
            store,
            runner,
            optional,
            config,
            metrics,
            registry,
            extra_key,
            access,
            large_bodies: LargeBodies::default(),
            deployments: Semaphore::new(MAX_DEPLOYMENTS),
            started: Instant::now(),
            closing: watch::Sender::new(false),
            queues: Arc::default(),
        }))
    }

    /// A session of the tenant, by the text of its id; 404 where there is none, whoever else may have one.
    pub(crate) async fn session(&self, tenant: &TenantId, id: &str) -> Result<Session, ApiError> {
        let unknown = || ApiError::not_found("Session not found");
        let id: SessionId = id.parse().map_err(|_| unknown())?;
        tracing::Span::current().record("session", tracing::field::display(id));
        self.store.session(tenant, id).await?.ok_or_else(unknown)
    }

    /// The agent's version that a session has. Of a deleted agent too: its sessions keep their version.
    pub(crate) async fn version_of(&self, session: &Session) -> Result<AgentVersion, ApiError> {
        let version = self.store.agent_version(&session.tenant, session.agent, session.agent_version).await?;
        version.ok_or_else(|| {
            tracing::error!(session = %session.id, agent = %session.agent, version = session.agent_version, "a session's agent is gone");
            ApiError::internal()
        })
    }
}

impl Deref for ApiState {
    type Target = Inner;

    fn deref(&self) -> &Inner {
        &self.0
    }
}

impl fmt::Debug for ApiState {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("ApiState").field("config", &self.config).finish_non_exhaustive()
    }
}

/// Runs what must not be left half done when its client goes away.
pub(crate) async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = T> + Send + 'static,
) -> Result<T, ApiError> {
    use tracing::Instrument as _;

    tokio::spawn(work.in_current_span()).await.map_err(|error| {
        tracing::error!(%error, "a request's work did not end");
        ApiError::internal()
    })
}
