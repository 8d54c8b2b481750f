//! Where sandboxes can go: the Services of node pools, and the runners that have room.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ash_core::ports::{RunnerRow, StoreError};
use k8s_openapi::api::core::v1::Service;
use kube::{Api, Client};
use tokio::time::Instant;

use crate::{config::Fleet, error::StepError, limits::SERVICE_AGE};

/// Rows of runners are read at most this often, however many sessions begin.
const ROWS_AGE: Duration = Duration::from_secs(1);
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

/// The place that is best: pure.
pub(crate) fn room(runners: &[RunnerRow], pool: &str) -> Room {
    let of_pool = runners.iter().filter(|runner| runner.pool == pool);
    let open = of_pool.filter(|runner| !runner.cordoned);
    let free = |runner: &&RunnerRow| i64::from(runner.capacity) - i64::from(runner.used);
    match open.max_by_key(|runner| (free(runner), std::cmp::Reverse(runner.used))) {
        None => Room::NoRunner,
        Some(runner) if free(&runner) <= 0 => Room::Full,
        Some(runner) => Room::Near(runner.node.clone()),
    }
}

type Cached<T> = Option<(Instant, T)>;

/// Looks them up, and remembers the answers for a moment.
pub(crate) struct Runners {
    services: Api<Service>,
    fleet: Arc<dyn Fleet>,
    addresses: Mutex<HashMap<String, (Instant, Option<String>)>>,
    rows: Mutex<Cached<Arc<Vec<RunnerRow>>>>,
}

impl Runners {
    pub(crate) fn new(client: Client, namespace: &str, fleet: Arc<dyn Fleet>) -> Self {
        let services = Api::namespaced(client, namespace);
        Self { services, fleet, addresses: Mutex::default(), rows: Mutex::default() }
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

    /// Where a sandbox of a pool can go.
    pub(crate) async fn room(&self, pool: &str) -> Result<Room, StoreError> {
        let known = self.rows.lock().unwrap_or_else(PoisonError::into_inner).clone();
        if let Some((_, rows)) = known.filter(|(at, _)| at.elapsed() < ROWS_AGE) {
            return Ok(room(&rows, pool));
        }
        let rows = Arc::new(self.fleet.runners().await?);
        *self.rows.lock().unwrap_or_else(PoisonError::into_inner) = Some((Instant::now(), Arc::clone(&rows)));
        Ok(room(&rows, pool))
    }
}
