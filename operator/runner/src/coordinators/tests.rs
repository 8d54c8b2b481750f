//! What is asked of several coordinators gets the best of their answers, also where one of them says nothing.

#![allow(clippy::unwrap_used)]

use ash_core::fleet::Heard;
use ash_link::{Service, answer_json, refuse};
use async_trait::async_trait;
use http::{Request, StatusCode};
use hyper::body::Incoming;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::*;

const WITHIN: Duration = Duration::from_secs(20);
/// Long enough for one that answers.
const APART: Duration = Duration::from_secs(2);
const PATH: &str = "/fleet/v1/heartbeat";

/// How a coordinator answers.
#[derive(Debug, Clone, Copy)]
enum Manner {
    Writes,
    CannotWrite,
    MayNotAnswer,
    DoesNotKnow,
    SaysNothing,
}

/// Whoever is behind an address: the first connection leads to one that says nothing, the next one to another.
struct Balanced(std::sync::atomic::AtomicBool);

#[async_trait]
impl Service for Balanced {
    async fn call(&self, _: Request<Incoming>) -> Response<Body> {
        if self.0.swap(true, Ordering::Relaxed) {
            answer_json(&Heard { written: true })
        } else {
            std::future::pending().await
        }
    }
}

#[async_trait]
impl Service for Manner {
    async fn call(&self, _: Request<Incoming>) -> Response<Body> {
        match self {
            Self::Writes => answer_json(&Heard { written: true }),
            Self::CannotWrite => answer_json(&Heard { written: false }),
            Self::MayNotAnswer => refuse(StatusCode::SERVICE_UNAVAILABLE, "ask another"),
            Self::DoesNotKnow => refuse(StatusCode::CONFLICT, "register"),
            Self::SaysNothing => std::future::pending().await,
        }
    }
}

async fn coordinators(manners: &[Manner]) -> Coordinators {
    of(manners.iter().map(|manner| Arc::new(*manner) as Arc<dyn Service>)).await
}

async fn of(services: impl Iterator<Item = Arc<dyn Service>>) -> Coordinators {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("secret");
    std::fs::write(&file, "s".repeat(32)).unwrap();
    let secret = Arc::new(SecretFile::open(&file).unwrap());
    let mut addresses = Vec::new();
    for service in services {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        addresses.push(format!("http://{}", listener.local_addr().unwrap()));
        tokio::spawn(ash_link::serve(listener, Arc::clone(&secret), service, CancellationToken::new()));
    }
    let id = RunnerId { name: "one".parse().unwrap(), incarnation: uuid::Uuid::nil() };
    Coordinators::new(&addresses, &secret, &id).unwrap()
}

async fn ask(coordinators: &Coordinators) -> Result<bool, Option<u16>> {
    let asked = coordinators.ask_each(PATH, (WITHIN, APART), &(), |heard: &Heard| heard.written).await;
    asked.map(|heard| heard.written).map_err(|error| error.status())
}

#[tokio::test]
async fn whoever_writes_is_found_behind_those_who_do_not() {
    for before in [Manner::SaysNothing, Manner::CannotWrite, Manner::MayNotAnswer] {
        let coordinators = coordinators(&[before, before, Manner::Writes]).await;
        assert_eq!(ask(&coordinators).await, Ok(true), "{before:?}");
        assert_eq!(coordinators.current.load(Ordering::Relaxed), 2, "{before:?}: it is asked first from now on");
    }
}

#[tokio::test]
async fn an_address_that_says_nothing_is_asked_again_over_another_connection() {
    let balanced: Arc<dyn Service> = Arc::new(Balanced(false.into()));
    let coordinators = of(std::iter::once(balanced)).await;
    let short = (WITHIN, Duration::from_millis(100));
    let heard = coordinators.ask_each(PATH, short, &(), |heard: &Heard| heard.written).await;
    assert!(heard.unwrap().written);
}

#[tokio::test]
async fn where_nobody_writes_whoever_answers_is_taken() {
    let asked = coordinators(&[Manner::MayNotAnswer, Manner::CannotWrite, Manner::MayNotAnswer]).await;
    assert_eq!(ask(&asked).await, Ok(false));
    assert_eq!(ask(&coordinators(&[Manner::MayNotAnswer]).await).await, Err(Some(503)));
    assert_eq!(ask(&coordinators(&[]).await).await, Err(None));
}

#[tokio::test]
async fn who_does_not_know_the_runner_is_believed() {
    assert_eq!(ask(&coordinators(&[Manner::DoesNotKnow, Manner::Writes]).await).await, Err(Some(409)));
}

#[tokio::test]
async fn whoever_did_not_answer_is_not_asked_first_again() {
    let coordinators = coordinators(&[Manner::SaysNothing, Manner::Writes]).await;
    let short = Duration::from_millis(100);
    let silent = coordinators.exchange::<Heard>(PATH, short, &()).await.unwrap_err();
    assert!(matches!(silent, LinkError::Broken { .. }), "{silent:?}");
    assert!(coordinators.exchange::<Heard>(PATH, WITHIN, &()).await.unwrap().written);
}
