//! A coordinator on a real socket, and a runner that is registered with it.

#![allow(clippy::unwrap_used, dead_code, unreachable_pub)]

use std::{path::Path, sync::Arc, time::Duration};

use ash_coordinator::{CoordinatorService, PodsConfig, Registry, RegistryConfig};
use ash_core::{
    fleet::{Heard, Heartbeat, Held, ModelKey, Register, Registered, RunnerId},
    ports::{FleetStore, Load, Store},
};
use ash_link::{Peer, SecretFile};
use ash_protocol::fleet::{Hidden, INCARNATION_HEADER, RUNNER_HEADER, coordinator as path};
use ash_runner::Coordinators;
use secrecy::SecretBox;
use tokio::{net::TcpListener, time::interval};
use tokio_util::sync::CancellationToken;

pub const WAIT: Duration = Duration::from_secs(30);
/// How often a runner says that it lives.
const BEAT: Duration = Duration::from_secs(1);

pub const MODEL_KEY: &str = "sk-of-the-test";

pub fn runner(name: &str) -> RunnerId {
    RunnerId { name: name.parse().unwrap(), incarnation: uuid::Uuid::new_v4() }
}

pub fn secret(folder: &Path) -> Arc<SecretFile> {
    let path = folder.join("secret");
    std::fs::write(&path, "s".repeat(32)).unwrap();
    Arc::new(SecretFile::open(&path).unwrap())
}

/// A coordinator that serves until `stop`, its registry, and where it is.
pub async fn serve(folder: &Path, store: Arc<dyn FleetStore>, stop: &CancellationToken) -> (Arc<Registry>, String) {
    serve_with(folder, store, None, stop).await
}

/// What a registry is made from.
pub fn config(folder: &Path, pods: Option<PodsConfig>) -> RegistryConfig {
    RegistryConfig {
        secret: secret(folder),
        token_key: SecretBox::new(Box::new([7; 32])),
        model_key: Some(ModelKey::ApiKey(Hidden(MODEL_KEY.to_owned()))),
        pods,
    }
}

/// As [`serve`], with sandboxes that are pods.
pub async fn serve_with(
    folder: &Path,
    store: Arc<dyn FleetStore>,
    pods: Option<PodsConfig>,
    stop: &CancellationToken,
) -> (Arc<Registry>, String) {
    let config = config(folder, pods);
    let mut metrics = prometheus_client::registry::Registry::default();
    let registry = Registry::start(config, store, &mut metrics).await.unwrap();
    tokio::spawn(ash_coordinator::watch(Arc::clone(&registry), stop.clone()));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let service = Arc::new(CoordinatorService::new(Arc::clone(&registry)));
    tokio::spawn(ash_link::serve(listener, secret(folder), service, stop.clone()));
    (registry, address)
}

/// Registers a runner at an address, with what the store has on its sandboxes, and lets it say that it lives.
pub async fn join(
    folder: &Path,
    coordinator: &str,
    id: &RunnerId,
    address: &str,
    held: Vec<Held>,
) -> Arc<Coordinators> {
    let peer = Peer::new(coordinator, secret(folder)).unwrap();
    let headers = [(RUNNER_HEADER, id.name.to_string()), (INCARNATION_HEADER, id.incarnation.to_string())];
    let (runner, address) = (id.clone(), address.to_owned());
    let register = Register {
        runner,
        address,
        pool: String::new(),
        node: String::new(),
        release: String::new(),
        capacity: 8,
        held,
        homes: Vec::new(),
    };
    let registered: Registered = peer.exchange(path::REGISTER, &headers, WAIT, &register).await.unwrap();
    assert_eq!((registered.token_key.0.len(), registered.disowned.len()), (64, 0));
    let beat = Heartbeat { load: Load { running: 3, ..Load::default() }, warm_revision: registered.warm.revision };
    let heard: Heard = peer.exchange(path::HEARTBEAT, &headers, WAIT, &beat).await.unwrap();
    assert!(heard.written);
    Arc::new(Coordinators::new(&[coordinator.to_owned()], &secret(folder), id).unwrap())
}

/// What the store has on sandboxes.
pub async fn held(store: &dyn Store) -> Vec<Held> {
    let placed = store.placed_sessions().await.unwrap();
    placed.iter().map(|row| Held { session: row.id, sandbox: row.sandbox.unwrap() }).collect()
}

/// A coordinator, and what its one runner reaches it by.
pub async fn coordinator(folder: &Path, store: Arc<dyn FleetStore>, stop: &CancellationToken) -> Arc<Coordinators> {
    let held = held(&*store as &dyn Store).await;
    let (_, address) = serve(folder, store, stop).await;
    let id = runner("one");
    let joined = join(folder, &address, &id, "http://127.0.0.1:9", held).await;
    tokio::spawn(live(Peer::new(&address, secret(folder)).unwrap(), id, stop.clone()));
    joined
}

/// Says that a runner lives, until `stop`: on a busy machine a test may take longer than a silent one is waited for.
async fn live(peer: Peer, id: RunnerId, stop: CancellationToken) {
    let headers = [(RUNNER_HEADER, id.name.to_string()), (INCARNATION_HEADER, id.incarnation.to_string())];
    let mut beats = interval(BEAT);
    let beats = async {
        loop {
            beats.tick().await;
            let beat = Heartbeat { load: Load::default(), warm_revision: 0 };
            // One that is not answered is not the last.
            let _ = peer.exchange::<Heard>(path::HEARTBEAT, &headers, WAIT, &beat).await;
        }
    };
    stop.run_until_cancelled(beats).await;
}
