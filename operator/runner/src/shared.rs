//! What every part of the runner shares.

use std::{
    collections::HashMap,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, AtomicUsize},
    },
    time::{Duration, Instant},
};

use ash_core::{
    agent::AgentVersion,
    id::{AgentId, SandboxId, SessionId},
    opening::Opening,
    ports::{RunnerStore, StoreError},
    session::{Session, SessionState},
};
use ash_gateway::Gateway;
use ash_sandbox::Limits;
use ash_snapshot::Vault;
use tokio::sync::{Notify, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::{
    backend::Backend,
    budget::Budget,
    commit::CommitQueue,
    hub::{Hub, Place},
    limits::{BATCH_BYTES, LOG_BOUNDS, REMEMBERED_LOG_BYTES, SLOW_STARTS_PER_CORE, STARTS_PER_CORE},
    metering::Metering,
    metrics::Metrics,
    model_keys::ModelKeys,
    sandbox::{Folders, Sandbox},
    snapshots::Snapshots,
    standing::Standing,
    starts::Starts,
};

/// What the runner is built from.
#[derive(Debug, Clone)]
pub struct RunnerConfig {
    /// The data directory; `sandboxes/` in it is the runner's.
    pub data: PathBuf,
    /// The program of the bridge on the host.
    pub bridge: PathBuf,
    /// Claude Code's program on the host.
    pub claude: PathBuf,
    /// Sandboxes at the most, at least 1.
    pub max_sandboxes: usize,
    /// Sandboxes kept warm per agent; in all no more than half of `max_sandboxes`, rounded up.
    pub warm: usize,
    /// Bounds of one sandbox.
    pub limits: Limits,
    /// Resident bytes over which Claude Code is restarted between turns.
    pub memory_bound_bytes: u64,
    /// Bytes that all sessions may have in memory together which are not in the log yet, beside 2 MiB for each;
    /// [`MIN_LOG_MEMORY_BYTES`](crate::MIN_LOG_MEMORY_BYTES) at the least.
    pub log_memory_bytes: u64,
    /// How long a sandbox may be unused before its session sleeps.
    pub idle_timeout: Duration,
    /// How long a permission request waits for an answer before it is denied.
    pub permission_timeout: Duration,
    /// How long a message waits for a place in the pool before it is refused; [`CAPACITY_WAIT`](crate::CAPACITY_WAIT) but in
    /// tests.
    pub capacity_wait: Duration,
    /// The keys of the model API that sessions have for themselves; empty where the gateway has one for all.
    pub model_keys: Arc<ModelKeys>,
    /// Where snapshots of workspaces are kept; none are taken without.
    pub vault: Option<Vault>,
    /// Bytes that the files of a workspace may have for a snapshot, holes aside.
    pub snapshot_bytes: u64,
    /// Until when it may serve if nobody says more: it could be called lost after that. Without it, for ever.
    pub serves_until: Option<Instant>,
}

/// Shared by the tasks of one runner.
pub(crate) struct Shared {
    pub(crate) config: RunnerConfig,
    pub(crate) backend: Backend,
    pub(crate) gateway: Gateway,
    pub(crate) store: Arc<dyn RunnerStore>,
    pub(crate) folders: Folders,
    pub(crate) queue: Arc<CommitQueue>,
    pub(crate) metrics: Arc<Metrics>,
    /// The memory for what is not in the log yet.
    pub(crate) budget: Arc<Budget>,
    /// The capacity: a permit is a sandbox's place.
    pub(crate) places: Arc<Semaphore>,
    /// Starts at the same time.
    pub(crate) starts: Starts,
    /// Messages that wait for a place.
    pub(crate) waiting: AtomicUsize,
    /// A sandbox became warm; for messages that wait.
    pub(crate) warmed: Notify,
    /// Sandboxes that are being put to sleep.
    pub(crate) evicting: AtomicUsize,
    /// No more sessions are served.
    pub(crate) closing: CancellationToken,
    /// Nothing comes any more: readers end when they have given everything there is.
    pub(crate) silent: CancellationToken,
    pub(crate) snapshots: Snapshots,
    /// Whether it may serve.
    pub(crate) standing: Arc<Standing>,
    pub(crate) pre_warm_hits: AtomicU64,
    pub(crate) resume_cold_hits: AtomicU64,
    hubs: Mutex<HashMap<SessionId, Known>>,
    sandboxes: Mutex<HashMap<SandboxId, Arc<Sandbox>>>,
    warm_versions: Mutex<HashMap<AgentId, WarmTarget>>,
    /// Messages that wait for a place and would take a warm sandbox of this version of an agent instead.
    wanted: Mutex<HashMap<(AgentId, u32), usize>>,
}

/// What a process knows of a session.
struct Known {
    hub: Weak<Hub>,
    metering: Arc<Metering>,
}

impl Known {
    /// Whether anybody has the session, or it wrote enough to be counted on when it wakes.
    fn is_needed(&self) -> bool {
        self.hub.strong_count() > 0 || self.metering.total_bytes() >= REMEMBERED_LOG_BYTES
    }
}

/// A version to keep sandboxes warm of.
#[derive(Debug, Clone)]
pub(crate) struct WarmTarget {
    pub(crate) agent: AgentVersion,
    /// Whether somebody is filling its pool.
    pub(crate) filling: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    pub(crate) fn new(
        config: RunnerConfig,
        backend: Backend,
        gateway: Gateway,
        store: Arc<dyn RunnerStore>,
        metrics: Arc<Metrics>,
    ) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            folders: Folders::new(&config.data),
            queue: Arc::default(),
            budget: Budget::new(config.log_memory_bytes, Arc::clone(&metrics)),
            metrics,
            places: Arc::new(Semaphore::new(config.max_sandboxes)),
            starts: Starts::new(cores * STARTS_PER_CORE, cores * SLOW_STARTS_PER_CORE),
            waiting: AtomicUsize::new(0),
            warmed: Notify::new(),
            evicting: AtomicUsize::new(0),
            closing: CancellationToken::new(),
            silent: CancellationToken::new(),
            snapshots: Snapshots::new(config.vault.clone(), config.snapshot_bytes),
            standing: Arc::new(Standing::new(config.serves_until)),
            pre_warm_hits: AtomicU64::new(0),
            resume_cold_hits: AtomicU64::new(0),
            hubs: Mutex::default(),
            sandboxes: Mutex::default(),
            warm_versions: Mutex::default(),
            wanted: Mutex::default(),
            config,
            backend,
            gateway,
            store,
        }
    }

    /// The hub of a session; made from what the store has of it where there is none yet.
    ///
    /// A row that a caller read earlier may be older than the hub, or than what a hub that is gone wrote: it names the session.
    pub(crate) async fn hub(&self, row: &Session) -> Result<Arc<Hub>, StoreError> {
        if let Some(hub) = self.existing_hub(row.id) {
            return Ok(hub);
        }
        let latest = self.store.session(&row.tenant, row.id).await?;
        Ok(self.hub_of(latest.as_ref().unwrap_or(row)))
    }

    /// The hub of a session of which this is the latest row.
    pub(crate) fn hub_of(&self, row: &Session) -> Arc<Hub> {
        let mut hubs = lock(&self.hubs);
        if let Some(hub) = hubs.get(&row.id).and_then(|known| known.hub.upgrade()) {
            return hub;
        }
        // What is not needed any more goes when the map is full, which then has room for as much again: constant work per session.
        if hubs.len() == hubs.capacity() {
            hubs.retain(|_, known| {
                let needed = known.is_needed();
                let counted = known.metering.total_bytes() > 0;
                self.metrics.log_counts_forgotten.inc_by(u64::from(!needed && counted));
                needed
            });
            let needed = hubs.len();
            hubs.reserve(needed + 1);
        }
        let metering = hubs.get(&row.id).map(|known| Arc::clone(&known.metering));
        let metering = metering.unwrap_or_else(|| Arc::new(Metering::new(LOG_BOUNDS)));
        let hub = Hub::new(row.clone(), Arc::clone(&metering), self.budget.share(), Arc::clone(&self.metrics));
        let hub = Arc::new(hub);
        hubs.insert(row.id, Known { hub: Arc::downgrade(&hub), metering });
        hub
    }

    /// The hub of a session, if anybody has it.
    pub(crate) fn existing_hub(&self, session: SessionId) -> Option<Arc<Hub>> {
        lock(&self.hubs).get(&session).and_then(|known| known.hub.upgrade())
    }

    /// Takes over what the store has of a session whose hub turned out to be made from an older row: true where it was.
    pub(crate) async fn refresh(&self, hub: &Hub) -> Result<bool, StoreError> {
        let row = self.store.session(&hub.session().tenant, hub.session).await?;
        Ok(row.is_some_and(|row| hub.refresh(row)))
    }

    /// What the store has of a session whose next epoch without a sandbox was opened by a try whose answer was lost, or by whoever
    /// else saw that the sandbox is gone: its row, and the opening as the log has it, which is what readers are to see.
    pub(crate) async fn opened(&self, hub: &Hub, opening: &Opening, state: SessionState) -> Option<(Session, Opening)> {
        let row = self.store.session(&hub.session().tenant, hub.session).await.ok().flatten()?;
        let sequence = opening.entry(row.epoch).sequence;
        if row.last != sequence || row.sandbox.is_some() || row.state != state {
            return None;
        }
        let page = self.store.read(hub.session, ash_core::Sequence(sequence.0 - 1), BATCH_BYTES).await.ok()?;
        let entry = page.entries.into_iter().find(|entry| entry.sequence == sequence)?;
        Some((row, Opening::read(&entry.body).ok()?))
    }

    /// Counts one more, or one less, message that would take a warm sandbox of this version.
    pub(crate) fn want(&self, agent: &AgentVersion, one_more: bool) {
        let mut wanted = lock(&self.wanted);
        let version = (agent.agent, agent.number);
        let count = wanted.entry(version).or_default();
        *count = if one_more { *count + 1 } else { count.saturating_sub(1) };
        if *count == 0 {
            wanted.remove(&version);
        }
    }

    /// Whether a message waits that would take a warm sandbox of this version.
    pub(crate) fn is_wanted(&self, agent: &AgentVersion) -> bool {
        lock(&self.wanted).contains_key(&(agent.agent, agent.number))
    }

    /// Whether a session has a sandbox, is on its way to one, or has a turn.
    pub(crate) fn is_busy(&self, session: SessionId) -> bool {
        self.existing_hub(session).is_some_and(|hub| !matches!(hub.place(), Place::None) || hub.turn().is_some())
    }

    pub(crate) fn add_sandbox(&self, sandbox: Arc<Sandbox>) {
        let mut sandboxes = lock(&self.sandboxes);
        sandboxes.insert(sandbox.id, sandbox);
        self.metrics.sandboxes.set(i64::try_from(sandboxes.len()).unwrap_or(i64::MAX));
    }

    /// Adds a sandbox unless there is one of its id, which it gives then.
    pub(crate) fn add_sandbox_once(&self, sandbox: &Arc<Sandbox>) -> Option<Arc<Sandbox>> {
        let mut sandboxes = lock(&self.sandboxes);
        if let Some(there) = sandboxes.get(&sandbox.id) {
            return Some(Arc::clone(there));
        }
        sandboxes.insert(sandbox.id, Arc::clone(sandbox));
        self.metrics.sandboxes.set(i64::try_from(sandboxes.len()).unwrap_or(i64::MAX));
        None
    }

    pub(crate) fn sandbox(&self, id: SandboxId) -> Option<Arc<Sandbox>> {
        lock(&self.sandboxes).get(&id).cloned()
    }

    pub(crate) fn remove_sandbox(&self, id: SandboxId) {
        let mut sandboxes = lock(&self.sandboxes);
        sandboxes.remove(&id);
        self.metrics.sandboxes.set(i64::try_from(sandboxes.len()).unwrap_or(i64::MAX));
    }

    pub(crate) fn sandboxes(&self) -> Vec<Arc<Sandbox>> {
        lock(&self.sandboxes).values().cloned().collect()
    }

    /// The versions to keep warm; for the pool.
    pub(crate) fn warm_versions(&self) -> MutexGuard<'_, HashMap<AgentId, WarmTarget>> {
        lock(&self.warm_versions)
    }
}
