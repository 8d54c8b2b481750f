//! The runners and where sessions are, shared by everything in the process. What is decided is decided by `ash_core::placement`.
//!
//! It is in memory: a coordinator that starts learns it from the runners, who register again within a second, and from the
//! store, which knows the sessions on sandboxes.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use ash_core::{
    fleet::{Held, ModelKey, RunnerId, RunnerName, WarmList},
    id::SessionId,
    placement::{Fleet, Stage, Want, choose},
    ports::Load,
};
use ash_link::{LinkError, Peer, SecretFile};
use prometheus_client::registry::Registry as MetricsRegistry;
use secrecy::SecretBox;
use tokio::sync::Notify;

use crate::{limits::MAX_RUNNERS, metrics::Metrics};

/// What a registry is made from.
pub struct RegistryConfig {
    /// The shared secret.
    pub secret: Arc<SecretFile>,
    /// The key from which each runner's own for its sandboxes' tokens is made.
    pub token_key: SecretBox<[u8; 32]>,
    /// The key of the model API, which runners get with each session.
    pub model_key: Option<ModelKey>,
}

/// Shared by the API's side and the runners'.
pub struct Registry {
    pub(crate) config: RegistryConfig,
    pub(crate) metrics: Metrics,
    began: Instant,
    inner: Mutex<Inner>,
    changed: Notify,
}

struct Inner {
    fleet: Fleet,
    peers: HashMap<RunnerName, Arc<Peer>>,
    warm: WarmList,
}

/// A runner that can be called.
#[derive(Debug, Clone)]
pub(crate) struct Target {
    pub(crate) id: RunnerId,
    pub(crate) peer: Arc<Peer>,
}

/// Where a session is.
#[derive(Debug, Clone)]
pub(crate) enum Whereabouts {
    /// It has a place on this runner.
    On(Target),
    /// Its files are on this runner.
    Home(Target),
    /// It had a sandbox when this coordinator started; its runner may come back.
    Awaited,
    /// Nowhere.
    Nowhere,
}

impl Registry {
    /// A registry that knows the sessions on sandboxes, and no runner yet.
    pub fn new(config: RegistryConfig, placed: impl IntoIterator<Item = Held>, metrics: &mut MetricsRegistry) -> Self {
        // A list of another process has another revision.
        let revision = SystemTime::now().duration_since(UNIX_EPOCH).map_or(1, |since| since.as_millis());
        let warm = WarmList { revision: u64::try_from(revision).unwrap_or(1), versions: Vec::new() };
        let own = Metrics::default();
        own.register(metrics);
        Self {
            config,
            metrics: own,
            began: Instant::now(),
            inner: Mutex::new(Inner { fleet: Fleet::new(placed), peers: HashMap::new(), warm }),
            changed: Notify::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// The next change; look after this was made.
    pub(crate) fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.changed.notified()
    }

    /// Says that something changed.
    pub(crate) fn notify(&self) {
        self.changed.notify_waiters();
    }

    /// Looks at the fleet.
    pub(crate) fn look<T>(&self, look: impl FnOnce(&Fleet) -> T) -> T {
        look(&self.lock().fleet)
    }

    /// Changes the fleet, and says so.
    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut Fleet, Duration) -> T) -> T {
        let now = self.now();
        let mut inner = self.lock();
        let changed = change(&mut inner.fleet, now);
        self.count(&inner);
        drop(inner);
        self.notify();
        changed
    }

    fn count(&self, inner: &Inner) {
        let gauge = |count: usize| i64::try_from(count).unwrap_or(i64::MAX);
        self.metrics.runners.set(gauge(inner.fleet.loads().count()));
        self.metrics.runners_ready.set(gauge(inner.fleet.offers().len()));
    }

    /// Notes that a runner lives. `None` where it has to register; else whether it has the list of warm versions.
    pub(crate) fn heartbeat(&self, runner: &RunnerId, load: Load, warm_revision: u64) -> Option<bool> {
        let now = self.now();
        let mut inner = self.lock();
        let was_ready = inner.fleet.offers().iter().any(|offer| offer.runner == *runner);
        if !inner.fleet.heartbeat(runner, load, now) {
            return None;
        }
        let has_list = inner.warm.revision == warm_revision;
        self.count(&inner);
        drop(inner);
        if !was_ready {
            self.notify();
        }
        Some(has_list)
    }

    /// Keeps how a runner is reached.
    pub(crate) fn set_peer(&self, name: &RunnerName, address: &str) -> Result<(), LinkError> {
        let peer = Peer::new(address, Arc::clone(&self.config.secret))?;
        let mut inner = self.lock();
        if inner.peers.len() >= MAX_RUNNERS && !inner.peers.contains_key(name) {
            return Err(LinkError::Refused {
                status: 503,
                message: format!("there are {MAX_RUNNERS} runners already"),
            });
        }
        // Its connections stay where nothing changed.
        if inner.peers.get(name).is_none_or(|before| before.address() != peer.address()) {
            inner.peers.insert(name.clone(), Arc::new(peer));
        }
        Ok(())
    }

    /// Forgets how a runner is reached, unless it registered again.
    pub(crate) fn remove_peer(&self, name: &RunnerName) {
        let mut inner = self.lock();
        if inner.fleet.current(name).is_none() {
            inner.peers.remove(name);
        }
    }

    /// Where a session is.
    pub(crate) fn locate(&self, session: SessionId) -> Whereabouts {
        let inner = self.lock();
        if inner.fleet.is_awaited(session) {
            return Whereabouts::Awaited;
        }
        let Some(route) = inner.fleet.route(session) else { return Whereabouts::Nowhere };
        match (inner.target(&route.runner), route.stage) {
            (Some(target), Stage::Home) => Whereabouts::Home(target),
            (Some(target), _) => Whereabouts::On(target),
            (None, _) => Whereabouts::Nowhere,
        }
    }

    /// Finds a session the runner that has it, or that has its files, or decides on one with room. `None` while there is none.
    pub(crate) fn find_place(&self, session: SessionId, want: Want) -> Option<Target> {
        loop {
            match self.locate(session) {
                Whereabouts::On(target) => return Some(target),
                Whereabouts::Awaited => return None,
                Whereabouts::Home(target) => {
                    if self.change(|fleet, now| fleet.reserve_home(session, now)) {
                        return Some(target);
                    }
                }
                Whereabouts::Nowhere => {}
            }
            let offers = self.look(Fleet::offers);
            let offer = choose(&offers, want)?;
            if self.change(|fleet, now| fleet.reserve(session, offer, now)).is_ok() {
                self.metrics.placements.inc();
            } else {
                self.metrics.placements_stale.inc();
            }
        }
    }

    /// Every runner.
    pub(crate) fn targets(&self) -> Vec<Target> {
        let inner = self.lock();
        inner.peers.keys().filter_map(|name| inner.target(name)).collect()
    }

    /// The list of versions to keep warm.
    pub(crate) fn warm(&self) -> WarmList {
        self.lock().warm.clone()
    }

    /// Changes the list of versions to keep warm.
    pub(crate) fn change_warm(&self, change: impl FnOnce(&mut WarmList)) {
        let mut inner = self.lock();
        change(&mut inner.warm);
        inner.warm.revision += 1;
    }

    /// What all runners do.
    pub(crate) fn load(&self) -> Load {
        let inner = self.lock();
        let mut sum = inner.fleet.loads().fold(Load::default(), |sum, (_, load)| Load {
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
        sum.max_capacity = inner.fleet.offers().iter().map(|offer| offer.capacity).sum();
        sum
    }
}

impl Inner {
    fn target(&self, name: &RunnerName) -> Option<Target> {
        Some(Target { id: self.fleet.current(name)?, peer: Arc::clone(self.peers.get(name)?) })
    }
}
