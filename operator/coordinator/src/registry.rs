//! What coordinators share, as this one knows it: a cache of the store's rows, and a way to call each runner.
//!
//! The store is the truth. Runners are read every second, when one is not there, and when a reservation came too late; a session's
//! route is asked for unless its epoch shows that what is known still holds. So any coordinator serves any session.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::{Duration, Instant},
};

use ash_core::{
    fleet::{ModelKey, RunnerId, RunnerName, WarmList},
    id::SessionId,
    loss::{LOST_AFTER, OwnWrites},
    placement::Offer,
    ports::{AgentsStamp, CoordinatorRow, FleetStore, Load, Resources, RouteRow, RunnerRow, StoreError},
};
use ash_link::{LinkError, Peer, SecretFile};
use prometheus_client::registry::Registry as MetricsRegistry;
use secrecy::SecretBox;
use tokio::sync::{Mutex as AsyncMutex, Notify, watch};
use uuid::Uuid;

use crate::{feed::Feed, keys::ModelKeySource, metrics::Metrics, placing::Wish, warm};

/// What a registry is made from.
pub struct RegistryConfig {
    /// The shared secret.
    pub secret: Arc<SecretFile>,
    /// The key from which each runner's own for its sandboxes' tokens is made.
    pub token_key: SecretBox<[u8; 32]>,
    /// The key of the model API for sessions that have none of their own.
    pub model_key: Option<ModelKey>,
    /// Where sandboxes are pods that an operator makes; `None` where runners make their own.
    pub pods: Option<PodsConfig>,
}

/// Sandboxes that are pods.
#[derive(Clone)]
pub struct PodsConfig {
    /// The namespace of the default tenant; every other tenant is named like its namespace.
    pub default_namespace: String,
    /// Asks for a sandbox where none is warm; without it a message only waits for one.
    pub resources: Option<Arc<dyn Resources>>,
}

/// Shared by the API's side and the runners'.
pub struct Registry {
    pub(crate) config: RegistryConfig,
    pub(crate) store: Arc<dyn FleetStore>,
    pub(crate) keys: ModelKeySource,
    pub(crate) metrics: Metrics,
    /// This life of the coordinator.
    pub(crate) id: Uuid,
    began: Instant,
    inner: Mutex<Inner>,
    changed: Notify,
    refreshing: AsyncMutex<()>,
    /// Held by whoever places sessions, for all that wait.
    pub(crate) placing: AsyncMutex<()>,
    pub(crate) wishes: Mutex<Vec<Wish>>,
}

#[derive(Default)]
pub(crate) struct Inner {
    pub(crate) runners: BTreeMap<RunnerName, RunnerRow>,
    /// When they were last read.
    read: Option<Instant>,
    peers: HashMap<RunnerName, Arc<Peer>>,
    pub(crate) routes: HashMap<SessionId, RouteRow>,
    pub(crate) watched: HashMap<SessionId, Watched>,
    /// Sessions whose stream several readers share.
    pub(crate) feeds: HashMap<SessionId, Weak<Feed>>,
    pub(crate) warm: WarmList,
    pub(crate) stamp: Option<AgentsStamp>,
    pub(crate) writes: OwnWrites,
    pub(crate) coordinators: Vec<CoordinatorRow>,
    /// Heartbeats so far.
    beats: u64,
    /// Runners that were heard, of which it is not known that it was written.
    pub(crate) unwritten: HashMap<RunnerId, Unwritten>,
}

/// What a runner said that may not be in the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Unwritten {
    pub(crate) load: Load,
    /// The number of the heartbeat: what was written of one says nothing of a later one.
    pub(crate) beat: u64,
}

/// A session that somebody reads.
pub(crate) struct Watched {
    pub(crate) readers: usize,
    pub(crate) route: watch::Sender<Option<RouteRow>>,
    /// Held by the reader that begins its stream.
    pub(crate) opening: Arc<AsyncMutex<()>>,
}

/// A runner that can be called.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) id: RunnerId,
    pub(crate) peer: Arc<Peer>,
}

impl Registry {
    /// A coordinator's registry of this store. Writes its own row: from now on nobody is called lost behind its back. Whoever
    /// starts it has it watch ([`watch`](crate::watch)).
    pub async fn start(
        config: RegistryConfig,
        store: Arc<dyn FleetStore>,
        metrics: &mut MetricsRegistry,
    ) -> Result<Arc<Self>, StoreError> {
        let registry = Self::new(config, store, metrics);
        let begun = registry.now();
        let coordinators = registry.store.coordinator_lives(registry.id).await?;
        registry.with(|inner| {
            inner.writes.wrote(begun);
            inner.coordinators = coordinators;
        });
        registry.read().await
    }

    /// The registry of a process that places sessions and is asked by no runner: it only follows ([`follow`](crate::follow)).
    /// It has no row among the coordinators: one that nobody writes again would keep every runner from being called lost.
    pub async fn start_without_runners(
        config: RegistryConfig,
        store: Arc<dyn FleetStore>,
        metrics: &mut MetricsRegistry,
    ) -> Result<Arc<Self>, StoreError> {
        Self::new(config, store, metrics).read().await
    }

    fn new(config: RegistryConfig, store: Arc<dyn FleetStore>, metrics: &mut MetricsRegistry) -> Arc<Self> {
        let own = Metrics::default();
        own.register(metrics);
        let keys = ModelKeySource::new(Arc::clone(&store), config.model_key.clone());
        Arc::new(Self {
            config,
            store,
            keys,
            metrics: own,
            id: Uuid::new_v4(),
            began: Instant::now(),
            inner: Mutex::default(),
            changed: Notify::new(),
            refreshing: AsyncMutex::default(),
            placing: AsyncMutex::default(),
            wishes: Mutex::default(),
        })
    }

    async fn read(self: Arc<Self>) -> Result<Arc<Self>, StoreError> {
        self.refresh(Duration::ZERO).await?;
        warm::refresh(&self).await?;
        Ok(self)
    }

    /// Says that this coordinator stops: it answers nobody any more. Whom it heard is written before its row goes.
    pub async fn leave(&self) {
        let left = async {
            self.write_heard().await?;
            self.store.remove_coordinator(self.id).await
        };
        if let Err(error) = left.await {
            tracing::warn!(%error, "the coordinator's row stays: no runner is called lost for the next 75 s");
        }
    }

    /// Notes that a runner is heard, before it is tried to write that: gives the number of the heartbeat.
    pub(crate) fn hears(&self, runner: &RunnerId, load: Load) -> u64 {
        self.with(|inner| {
            inner.beats += 1;
            let beat = inner.beats;
            inner.unwritten.insert(runner.clone(), Unwritten { load, beat });
            beat
        })
    }

    /// Notes that this heartbeat of a runner needs no writing any more: it is in the store, or its runner is not registered.
    pub(crate) fn settled(&self, runner: &RunnerId, beat: u64) {
        self.with(|inner| {
            if inner.unwritten.get(runner).is_some_and(|heard| heard.beat <= beat) {
                inner.unwritten.remove(runner);
            }
        });
    }

    /// Writes whom it heard, as far as that is not known to be written.
    pub(crate) async fn write_heard(&self) -> Result<(), StoreError> {
        let heard = self.with(|inner| inner.unwritten.clone());
        for (runner, Unwritten { load, beat }) in heard {
            self.store.runner_lives(&runner, load).await?;
            self.settled(&runner, beat);
        }
        Ok(())
    }

    pub(crate) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn with<T>(&self, look: impl FnOnce(&mut Inner) -> T) -> T {
        look(&mut self.lock())
    }

    pub(crate) fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// The next change of the runners; look after this was made.
    pub(crate) fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.changed.notified()
    }

    /// Says that a runner came, left, or can be used now.
    pub(crate) fn notify(&self) {
        self.changed.notify_waiters();
    }

    /// Reads the runners, unless they were read so lately.
    pub(crate) async fn refresh(&self, max_age: Duration) -> Result<(), StoreError> {
        let asked = Instant::now();
        let _one_at_a_time = self.refreshing.lock().await;
        // Whoever waited while another read them has them.
        let is_fresh = |read: Instant| read >= asked || read.elapsed() < max_age;
        if self.with(|inner| inner.read).is_some_and(is_fresh) {
            return Ok(());
        }
        let begun = Instant::now();
        let rows = self.store.runners().await?;
        let has_changed = self.with(|inner| inner.take(rows, begun, &self.config.secret));
        self.count();
        if has_changed {
            self.notify();
        }
        Ok(())
    }

    fn count(&self) {
        let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        let (all, ready) = self.with(|inner| (inner.runners.len(), inner.offers().len()));
        self.metrics.runners.set(gauge(all));
        self.metrics.runners_ready.set(gauge(ready));
    }

    /// Whether this life of a runner is registered; asks the store where it is not known.
    pub(crate) async fn knows(&self, runner: &RunnerId) -> bool {
        let known = |inner: &mut Inner| inner.runners.get(&runner.name).is_some_and(|row| row.id == *runner);
        if self.with(known) {
            return true;
        }
        if let Err(error) = self.refresh(Duration::from_millis(100)).await {
            tracing::warn!(%error, "the runners could not be read");
        }
        self.with(known)
    }

    /// A runner that can be called; asks the store where it is not known.
    pub(crate) async fn target(&self, name: &RunnerName) -> Option<Target> {
        if let Some(target) = self.with(|inner| inner.target(name)) {
            return Some(target);
        }
        if let Err(error) = self.refresh(Duration::from_millis(100)).await {
            tracing::warn!(%error, "the runners could not be read");
        }
        self.with(|inner| inner.target(name))
    }

    /// Every runner.
    pub(crate) fn targets(&self) -> Vec<Target> {
        self.with(|inner| inner.runners.keys().filter_map(|name| inner.target(name)).collect())
    }

    /// What there is for new sessions, as far as it is known.
    pub(crate) fn offers(&self) -> Vec<Offer> {
        self.with(|inner| inner.offers())
    }

    /// Forgets a runner that was taken out.
    pub(crate) fn forget_runner(&self, runner: &RunnerId) {
        self.with(|inner| {
            if inner.runners.get(&runner.name).is_some_and(|row| row.id == *runner) {
                inner.runners.remove(&runner.name);
                if let Some(peer) = inner.peers.remove(&runner.name) {
                    peer.give_up();
                }
            }
        });
        self.count();
        self.notify();
    }

    /// What all runners do.
    pub(crate) fn load(&self) -> Load {
        let inner = self.lock();
        let mut sum = inner.runners.values().map(|row| row.load).fold(Load::default(), |sum, load| Load {
            total: sum.total + load.total,
            cold: sum.cold + load.cold,
            warming: sum.warming + load.warming,
            warm: sum.warm + load.warm,
            waiting: sum.waiting + load.waiting,
            running: sum.running + load.running,
            max_capacity: sum.max_capacity,
            resume_warm_hits: sum.resume_warm_hits + load.resume_warm_hits,
            resume_cold_hits: sum.resume_cold_hits + load.resume_cold_hits,
            pre_warm_hits: sum.pre_warm_hits + load.pre_warm_hits,
        });
        sum.max_capacity = inner.offers().iter().map(|offer| offer.capacity).sum();
        sum
    }
}

impl Inner {
    /// Takes what the store has; gives whether anybody who waits for a runner should look again.
    fn take(&mut self, rows: Vec<RunnerRow>, begun: Instant, secret: &Arc<SecretFile>) -> bool {
        let usable = |inner: &Self| inner.offers().into_iter().map(|offer| offer.runner).collect::<Vec<_>>();
        let before = usable(self);
        let lives =
            |runners: &BTreeMap<RunnerName, RunnerRow>| runners.values().map(|row| row.id.clone()).collect::<Vec<_>>();
        let lives_before = lives(&self.runners);
        let mut runners = BTreeMap::new();
        for row in rows {
            let address = self.runners.get(&row.id.name).map(|before| before.address.clone());
            if address.as_ref() != Some(&row.address) || !self.peers.contains_key(&row.id.name) {
                match Peer::new(&row.address, Arc::clone(secret)) {
                    Ok(peer) => {
                        if let Some(before) = self.peers.insert(row.id.name.clone(), Arc::new(peer)) {
                            before.give_up();
                        }
                    }
                    Err(error) => tracing::error!(runner = %row.id.name, %error, "a runner cannot be called"),
                }
            }
            let newer = self.runners.remove(&row.id.name);
            // A reservation of this coordinator may have come in while they were read.
            let newer = newer.filter(|newer| newer.id == row.id && newer.version > row.version);
            runners.insert(row.id.name.clone(), newer.unwrap_or(row));
        }
        self.peers.retain(|name, peer| {
            let stays = runners.contains_key(name);
            if !stays {
                peer.give_up();
            }
            stays
        });
        self.runners = runners;
        self.read = Some(begun);
        before != usable(self) || lives_before != lives(&self.runners)
    }

    pub(crate) fn target(&self, name: &RunnerName) -> Option<Target> {
        Some(Target { id: self.runners.get(name)?.id.clone(), peer: Arc::clone(self.peers.get(name)?) })
    }

    fn offers(&self) -> Vec<Offer> {
        let since = self.read.map(|read| read.elapsed()).unwrap_or_default();
        let usable = |row: &&RunnerRow| row.ready && !row.cordoned && row.silent + since < LOST_AFTER;
        let offer = |row: &RunnerRow| Offer {
            runner: row.id.clone(),
            capacity: row.capacity,
            used: row.used,
            version: row.version,
        };
        self.runners.values().filter(usable).map(offer).collect()
    }
}

/// Whether an address is one that a runner can be called at.
pub(crate) fn check_address(address: &str, secret: &Arc<SecretFile>) -> Result<(), LinkError> {
    Peer::new(address, Arc::clone(secret)).map(|_| ())
}
