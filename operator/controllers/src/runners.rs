//! Where sandboxes can go: the Services of node pools, and the runners that have room.

mod absence;
mod coming;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ash_core::{
    fleet::RunnerId,
    id::SandboxId,
    ports::{RunnerRow, StoreError},
};
use ash_crd::{Reason, names};
use k8s_openapi::api::core::v1::{Pod, Service};
use kube::{Api, Client, api::ListParams};
use tokio::time::Instant;

use self::{absence::Absence, coming::Coming};
use crate::{config::Fleet, error::StepError, limits::SERVICE_AGE};

/// Rows of runners are read at most this often, however many sessions begin.
const ROWS_AGE: Duration = Duration::from_secs(1);
/// What runner pods say is read at most this often, however many sessions wait for one.
const ABSENCE_AGE: Duration = Duration::from_secs(2);
/// Runner pods that are looked at where none serves.
const MAX_RUNNER_PODS: u32 = 20;
/// Pools whose addresses are remembered.
const MAX_POOLS: usize = 256;

/// Where a sandbox of a pool can go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Room {
    /// The node whose runner has the most places left.
    Near(String),
    /// No runner is there. The pod may bring a node, and the node its runner.
    NoRunner,
    /// Every runner is full.
    Full,
}

/// The place that is best: pure. `on_the_way` says how many pods go to a node that its runner has not met yet.
pub(crate) fn room(runners: &[RunnerRow], pool: &str, on_the_way: impl Fn(&str) -> u32) -> Room {
    let of_pool = runners.iter().filter(|runner| runner.pool == pool);
    let open = of_pool.filter(|runner| !runner.cordoned);
    let used = |runner: &RunnerRow| i64::from(runner.used) + i64::from(on_the_way(&runner.node));
    let free = |runner: &&RunnerRow| i64::from(runner.capacity) - used(runner);
    match open.max_by_key(|runner| (free(runner), std::cmp::Reverse(used(runner)))) {
        None => Room::NoRunner,
        Some(runner) if free(&runner) <= 0 => Room::Full,
        Some(runner) => Room::Near(runner.node.clone()),
    }
}

/// Whether a runner has more sandboxes than places, and another one has a place: pure.
fn is_better_elsewhere(rows: &[RunnerRow], runner: &RunnerId, pool: &str, on_the_way: impl Fn(&str) -> u32) -> bool {
    let is_full = |row: &RunnerRow| row.id == *runner && row.used > row.capacity;
    match rows.iter().find(|row| is_full(row)) {
        Some(full) => matches!(room(rows, pool, on_the_way), Room::Near(node) if node != full.node),
        None => false,
    }
}

type Cached<T> = Option<(Instant, T)>;

/// Looks them up, and remembers the answers for a moment.
pub(crate) struct Runners {
    services: Api<Service>,
    pods: Api<Pod>,
    fleet: Arc<dyn Fleet>,
    addresses: Mutex<HashMap<String, (Instant, Option<String>)>>,
    rows: Mutex<Cached<Arc<Vec<RunnerRow>>>>,
    absences: Mutex<HashMap<String, (Instant, Absence)>>,
    coming: Mutex<Coming>,
}

impl Runners {
    pub(crate) fn new(client: Client, namespace: &str, fleet: Arc<dyn Fleet>) -> Self {
        let pods = Api::namespaced(client.clone(), namespace);
        let services = Api::namespaced(client, namespace);
        Self {
            services,
            pods,
            fleet,
            addresses: Mutex::default(),
            rows: Mutex::default(),
            absences: Mutex::default(),
            coming: Mutex::default(),
        }
    }

    /// The address of a pool's Service; none where there is no such pool.
    pub(crate) async fn address(&self, pool: &str) -> Result<Option<String>, StepError> {
        if let Some((at, address)) = self.addresses.lock().unwrap_or_else(PoisonError::into_inner).get(pool)
            && at.elapsed() < SERVICE_AGE
            && address.is_some()
        {
            return Ok(address.clone());
        }
        let service = self.services.get_opt(&format!("ash-runner-{pool}")).await?;
        let address = service
            .and_then(|service| service.spec?.cluster_ip)
            .filter(|address| !address.is_empty() && address != "None");
        let mut addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        if addresses.len() >= MAX_POOLS {
            addresses.clear();
        }
        addresses.insert(pool.to_owned(), (Instant::now(), address.clone()));
        Ok(address)
    }

    /// Where a sandbox of a pool can go. It counts there from now on, and asked again it goes to the same place.
    pub(crate) async fn room(&self, namespace: &str, pool: &str, id: SandboxId) -> Result<Room, StoreError> {
        let rows = self.rows().await?;
        let mut coming = self.coming.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        if let Some(node) = coming.node_of(id, now) {
            return Ok(Room::Near(node.to_owned()));
        }
        let room = room(&rows, pool, |node| coming.to(node, now));
        if let Room::Near(node) = &room {
            coming.mean(id, namespace, node, now);
        }
        Ok(room)
    }

    /// Which sandboxes of a namespace wait for a runner, with the node that each has, if it has one.
    pub(crate) fn see(&self, namespace: &str, waiting: &HashMap<SandboxId, Option<String>>) {
        self.coming.lock().unwrap_or_else(PoisonError::into_inner).see(namespace, waiting, Instant::now());
    }

    /// Whether a runner has more sandboxes than places, and another one of the pool has a place.
    pub(crate) async fn is_better_elsewhere(&self, runner: &RunnerId, pool: &str) -> Result<bool, StoreError> {
        let rows = self.rows().await?;
        let coming = self.coming.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        Ok(is_better_elsewhere(&rows, runner, pool, |node| coming.to(node, now)))
    }

    /// Why no runner of a pool takes sandboxes, for a condition; none where one does, or where all of them are only full. The log
    /// has it when it changes.
    pub(crate) async fn absence(&self, pool: &str) -> Result<Option<(Reason, String)>, StepError> {
        if self.rows().await?.iter().any(|runner| runner.pool == pool && !runner.cordoned) {
            return Ok(None);
        }
        let told = |absence: Absence| Some((absence.reason, absence.message));
        let known = self.absences.lock().unwrap_or_else(PoisonError::into_inner).get(pool).cloned();
        if let Some((at, known)) = &known
            && at.elapsed() < ABSENCE_AGE
        {
            return Ok(told(known.clone()));
        }
        let selector = format!("{}={},{}={pool}", names::COMPONENT, names::RUNNER, names::NODE_POOL);
        let pods = self.pods.list(&ListParams::default().labels(&selector).limit(MAX_RUNNER_PODS)).await?;
        let found = absence::absence(pool, &pods.items);
        if known.is_none_or(|(_, known)| known != found) {
            let Absence { reason, message, words } = &found;
            tracing::warn!(pool, reason = reason.as_str(), message, words, "no runner takes sandboxes");
        }
        let mut absences = self.absences.lock().unwrap_or_else(PoisonError::into_inner);
        if absences.len() >= MAX_POOLS {
            absences.clear();
        }
        absences.insert(pool.to_owned(), (Instant::now(), found.clone()));
        Ok(told(found))
    }

    /// Whether there is a runner of this name.
    pub(crate) async fn is_registered(&self, name: &str) -> Result<bool, StoreError> {
        Ok(self.rows().await?.iter().any(|runner| runner.id.name.as_str() == name))
    }

    async fn rows(&self) -> Result<Arc<Vec<RunnerRow>>, StoreError> {
        let known = self.rows.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((_, rows)) = known.filter(|(at, _)| at.elapsed() < ROWS_AGE) {
            return Ok(rows);
        }
        let rows = Arc::new(self.fleet.runners().await?);
        *self.rows.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), Arc::clone(&rows)));
        Ok(rows)
    }
}

#[cfg(test)]
mod tests;
