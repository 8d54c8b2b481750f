//! Coordinators that share a Postgres database: they spread what is created at once, and answer runners while they cannot write.

#![allow(clippy::unwrap_used)]

#[path = "../../store/tests/contract/fixtures.rs"]
#[allow(dead_code, unreachable_pub)]
mod fixtures;
mod support;

use std::sync::Arc;

use ash_coordinator::{FleetRunner, Registry};
use ash_core::{
    fleet::{Heard, Heartbeat, Place, RunnerId},
    ports::{FleetStore, Load, Runner as _},
};
use ash_link::{Body, LinkError, Peer, Service, answer_json, read_json, refuse};
use ash_protocol::fleet::{INCARNATION_HEADER, RUNNER_HEADER, coordinator, runner as path};
use ash_store::PostgresStore;
use ash_test_postgres::Postgres;
use async_trait::async_trait;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

/// Sessions that are created at once.
const SESSIONS: u32 = 100;

/// A runner that takes every session.
struct Takes;

#[async_trait]
impl Service for Takes {
    async fn call(&self, request: Request<Incoming>) -> Response<Body> {
        if request.uri().path() != path::PLACE {
            return refuse(StatusCode::NOT_FOUND, "not asked for here");
        }
        let place: Place = read_json(request.into_body()).await.unwrap();
        answer_json(&Ok::<_, ash_core::ports::RunnerError>(place.session))
    }
}

struct Coordinator {
    registry: Arc<Registry>,
    store: Arc<dyn FleetStore>,
    address: String,
    folder: tempfile::TempDir,
}

async fn coordinator(server: &Postgres, stop: &CancellationToken) -> Coordinator {
    let folder = tempfile::tempdir().unwrap();
    let store: Arc<dyn FleetStore> = Arc::new(PostgresStore::open(&server.url("postgres").into()).await.unwrap());
    let (registry, address) = support::serve(folder.path(), Arc::clone(&store), stop).await;
    Coordinator { registry, store, address, folder }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_creations_at_two_coordinators_spread_over_three_runners() {
    let server = Postgres::start();
    let stop = CancellationToken::new();
    let coordinators = [coordinator(&server, &stop).await, coordinator(&server, &stop).await];
    for number in 0..3 {
        let at = &coordinators[number % 2];
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(ash_link::serve(listener, support::secret(at.folder.path()), Arc::new(Takes), stop.clone()));
        let id = support::runner(&format!("runner-{number}"));
        let peer = Peer::new(&at.address, support::secret(at.folder.path())).unwrap();
        let register = ash_core::fleet::Register {
            runner: id.clone(),
            address: own,
            pool: String::new(),
            node: String::new(),
            release: String::new(),
            capacity: 64,
            held: Vec::new(),
            homes: Vec::new(),
        };
        let _: ash_core::fleet::Registered =
            peer.exchange(coordinator::REGISTER, &headers(&id), support::WAIT, &register).await.unwrap();
        assert!(beat(&peer, &id).await.unwrap().written);
    }
    let store = &coordinators[0].store;
    let agent = fixtures::agent(&**store, &ash_core::id::TenantId::default_tenant()).await;
    let mut tasks = Vec::new();
    for number in 0..SESSIONS {
        let at = &coordinators[number as usize % 2];
        let fleet = FleetRunner::new(Arc::clone(&at.registry));
        let (store, agent) = (Arc::clone(&at.store), agent.clone());
        tasks.push(tokio::spawn(async move {
            let (session, _) = store.create_session(fixtures::new_session(&agent)).await.unwrap();
            fleet.place(session, agent.version).await.unwrap()
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    let mut used: Vec<u32> = store.runners().await.unwrap().into_iter().map(|row| row.used).collect();
    used.sort_unstable();
    assert_eq!(used.iter().sum::<u32>(), SESSIONS);
    assert!(used[2] - used[0] <= 1, "{used:?}");
    stop.cancel();
}

fn headers(id: &RunnerId) -> [(&'static str, String); 2] {
    [(RUNNER_HEADER, id.name.to_string()), (INCARNATION_HEADER, id.incarnation.to_string())]
}

async fn beat(peer: &Peer, id: &RunnerId) -> Result<Heard, LinkError> {
    let beat = Heartbeat { load: Load::default(), warm_revision: 0 };
    peer.exchange(coordinator::HEARTBEAT, &headers(id), support::WAIT, &beat).await
}

#[tokio::test(flavor = "multi_thread")]
async fn while_it_cannot_write_a_coordinator_answers_whom_it_knows_and_says_so() {
    let mut server = Postgres::start();
    let stop = CancellationToken::new();
    let at = coordinator(&server, &stop).await;
    let id = support::runner("one");
    support::join(at.folder.path(), &at.address, &id, "http://127.0.0.1:9", Vec::new()).await;
    let peer = Peer::new(&at.address, support::secret(at.folder.path())).unwrap();
    assert_eq!(beat(&peer, &id).await.unwrap(), Heard { written: true });
    server = tokio::task::spawn_blocking(move || {
        server.stop();
        server
    })
    .await
    .unwrap();
    assert_eq!(beat(&peer, &id).await.unwrap(), Heard { written: false });
    let stranger = support::runner("two");
    assert_eq!(beat(&peer, &stranger).await.unwrap_err().status(), Some(503), "it may be registered, or not");
    server = tokio::task::spawn_blocking(move || {
        server.start_again();
        server
    })
    .await
    .unwrap();
    // Whom it heard is written before its own row, without another word of the runner.
    let heard = async {
        loop {
            let rows = at.store.runners().await.unwrap_or_default();
            if rows.iter().any(|row| row.id == id && row.silent < std::time::Duration::from_secs(2)) {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(support::WAIT, heard).await.unwrap();
    stop.cancel();
    drop(server);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_only_places_sessions_has_no_row_that_falls_silent() {
    let server = Postgres::start();
    let folder = tempfile::tempdir().unwrap();
    let store: Arc<dyn FleetStore> = Arc::new(PostgresStore::open(&server.url("postgres").into()).await.unwrap());
    let mut metrics = prometheus_client::registry::Registry::default();
    let config = support::config(folder.path(), None);
    let _operator = Registry::start_without_runners(config, Arc::clone(&store), &mut metrics).await.unwrap();
    let own = uuid::Uuid::new_v4();
    let coordinators = store.coordinator_lives(own).await.unwrap();
    assert_eq!(coordinators.iter().map(|row| row.id).collect::<Vec<_>>(), [own]);
}
