//! What runners call.

use std::{collections::HashMap, sync::Arc};

use ash_core::{
    fleet::{Heard, Heartbeat, Register, Registered, RunnerId},
    id::{SandboxId, SessionId},
    loss::RESTART,
    placement::HEARTBEAT,
    ports::{NewRunner, StoreError},
};
use ash_link::{Body, LinkError, Service, answer_json, derived_key, read_json, refuse};
use ash_protocol::fleet::{Hidden, INCARNATION_HEADER, RUNNER_HEADER, coordinator as path};
use async_trait::async_trait;
use http::{HeaderMap, Request, Response, StatusCode};
use hyper::body::Incoming;
use secrecy::ExposeSecret as _;
use tokio::time::{Duration, timeout};

use crate::{
    limits::{HEARD_WRITE, MAX_RUNNERS},
    lost::lose,
    registry::{Registry, check_address},
    store_calls, warm,
};

/// What the keys that are made for runners are for.
const TOKENS: &str = "sandbox tokens";

/// Carries out the calls of runners.
pub struct CoordinatorService {
    registry: Arc<Registry>,
}

impl CoordinatorService {
    /// The calls on this registry and its store.
    pub fn new(registry: Arc<Registry>) -> Self {
        Self { registry }
    }

    async fn register(&self, register: Register) -> Response<Body> {
        match self.enter(&register).await {
            Ok(disowned) => self.registered(&register.runner, disowned),
            Err(EnterError::Full) => refuse(
                StatusCode::SERVICE_UNAVAILABLE,
                format!("there are {MAX_RUNNERS} runners already: stop one that is not needed"),
            ),
            Err(EnterError::Address(error)) => {
                refuse(StatusCode::BAD_REQUEST, format!("the runner's address cannot be used: {error}"))
            }
            Err(EnterError::Store(StoreError::Conflict(reason))) => refuse(StatusCode::FORBIDDEN, reason),
            Err(EnterError::Store(error)) => {
                tracing::error!(%error, "a runner cannot register: the store does not answer");
                refuse(StatusCode::SERVICE_UNAVAILABLE, "the store does not answer: try again in a moment")
            }
        }
    }

    /// Writes a runner's row, and finds out which of the sessions that it holds are not its own.
    async fn enter(&self, register: &Register) -> Result<Vec<SessionId>, EnterError> {
        let Register { runner, address, pool, node, release, capacity, held, .. } = register;
        check_address(address, &self.registry.config.secret).map_err(EnterError::Address)?;
        let is_full =
            self.registry.with(|inner| inner.runners.len() >= MAX_RUNNERS && !inner.runners.contains_key(&runner.name));
        if is_full {
            return Err(EnterError::Full);
        }
        let store = &self.registry.store;
        let new = NewRunner {
            id: runner.clone(),
            address: address.clone(),
            pool: pool.clone(),
            node: node.clone(),
            release: release.clone(),
            capacity: *capacity,
        };
        store.register_runner(new).await?;
        let sandboxes: Vec<SandboxId> = held.iter().map(|one| one.sandbox).collect();
        let own = store.adopt(&runner.name, &sandboxes).await?;
        self.registry.refresh(Duration::ZERO).await?;
        for row in &own {
            self.registry.opened(row, Some(&runner.name));
        }
        // A sandbox is named by its own id: a folder may not have got its session's name before the runner died.
        let on: HashMap<SandboxId, SessionId> = own.iter().filter_map(|row| Some((row.sandbox?, row.id))).collect();
        let disowned = held.iter().filter(|one| !on.contains_key(&one.sandbox)).map(|one| one.session).collect();
        Ok(disowned)
    }

    fn registered(&self, runner: &RunnerId, disowned: Vec<SessionId>) -> Response<Body> {
        self.registry.metrics.registrations.inc();
        tracing::info!(runner = %runner.name, incarnation = %runner.incarnation, disowned = disowned.len(), "a runner registered");
        let Some(key) = derived_key(&self.registry.config.token_key, TOKENS, runner.name.as_str()) else {
            return refuse(StatusCode::INTERNAL_SERVER_ERROR, "the runner's key could not be made");
        };
        let token_key = Hidden(key.expose_secret().iter().map(|byte| format!("{byte:02x}")).collect());
        let heartbeat_ms = u64::try_from(HEARTBEAT.as_millis()).unwrap_or(u64::MAX);
        let warm = self.registry.with(|inner| inner.warm.clone());
        answer_json(&Registered { token_key, heartbeat_ms, disowned, warm })
    }

    async fn heartbeat(&self, runner: &RunnerId, beat: &Heartbeat) -> Response<Body> {
        // Its own row, if it is written meanwhile, must not say that there is nobody whom it heard and could not write.
        let number = self.registry.hears(runner, beat.load);
        let written = timeout(HEARD_WRITE, self.registry.store.runner_lives(runner, beat.load)).await;
        let written = match written {
            Ok(Ok(true)) => true,
            Ok(Ok(false)) => {
                self.registry.settled(runner, number);
                return unknown();
            }
            Ok(Err(_)) | Err(_) => false,
        };
        if written {
            self.registry.settled(runner, number);
        } else if !self.may_answer_unwritten(runner) {
            return refuse(StatusCode::SERVICE_UNAVAILABLE, "the store does not answer: ask another coordinator");
        }
        let (has_list, is_new) = self.registry.with(|inner| {
            let row = inner.runners.get_mut(&runner.name).filter(|row| row.id == *runner);
            let is_new = row.as_ref().is_none_or(|row| !row.ready);
            if let Some(row) = row {
                row.load = beat.load;
            }
            (inner.warm.revision == beat.warm_revision, is_new)
        });
        if written && is_new {
            // New sessions may go there from now on, and those that wait for a runner look again.
            let _ = self.registry.refresh(Duration::ZERO).await;
            self.registry.notify();
        }
        if !has_list {
            warm::push(&self.registry);
        }
        answer_json(&Heard { written })
    }

    /// Whether a runner may be told that it was heard although that cannot be written.
    fn may_answer_unwritten(&self, runner: &RunnerId) -> bool {
        let now = self.registry.now();
        let may_answer = self.registry.with(|inner| {
            let is_known = inner.runners.get(&runner.name).is_some_and(|row| row.id == *runner);
            is_known && inner.writes.may_answer_unwritten(now)
        });
        if may_answer {
            self.registry.metrics.heard_unwritten.inc();
        }
        may_answer
    }

    async fn restarting(&self, runner: &RunnerId) -> Response<Body> {
        match self.registry.store.runner_restarts(runner, RESTART).await {
            Ok(true) => {
                tracing::info!(runner = %runner.name, "a runner announced a restart");
                answer_json(&())
            }
            Ok(false) => unknown(),
            Err(error) => unavailable(&error),
        }
    }

    async fn deregister(&self, runner: &RunnerId) -> Response<Body> {
        let removed = match self.registry.store.remove_runner(runner, None).await {
            Ok(removed) => removed,
            Err(error) => return unavailable(&error),
        };
        self.registry.forget_runner(runner);
        if removed {
            let left = self.registry.store.sessions_on(&runner.name).await.unwrap_or_default();
            tracing::info!(runner = %runner.name, sessions = left.len(), "a runner deregistered");
            let registry = Arc::clone(&self.registry);
            tokio::spawn(async move { lose(&registry, left).await });
        }
        answer_json(&())
    }
}

/// Why a runner was not registered.
enum EnterError {
    Full,
    Address(LinkError),
    Store(StoreError),
}

impl From<StoreError> for EnterError {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

fn unavailable(error: &StoreError) -> Response<Body> {
    tracing::warn!(%error, "the store does not answer");
    refuse(StatusCode::SERVICE_UNAVAILABLE, "the store does not answer: try again in a moment")
}

fn unknown() -> Response<Body> {
    refuse(StatusCode::CONFLICT, "this coordinator does not know the runner: register first")
}

fn caller(headers: &HeaderMap) -> Option<RunnerId> {
    let text = |name: &str| headers.get(name)?.to_str().ok();
    Some(RunnerId { name: text(RUNNER_HEADER)?.parse().ok()?, incarnation: text(INCARNATION_HEADER)?.parse().ok()? })
}

#[async_trait]
impl Service for CoordinatorService {
    async fn call(&self, request: Request<Incoming>) -> Response<Body> {
        let Some(caller) = caller(request.headers()) else {
            return refuse(StatusCode::BAD_REQUEST, "the request does not name its runner");
        };
        let called = request.uri().path().to_owned();
        let body = request.into_body();
        let bad = |reason: String| refuse(StatusCode::BAD_REQUEST, reason);
        match called.as_str() {
            path::REGISTER => match read_json::<Register, _>(body).await {
                Ok(register) if register.runner == caller => self.register(register).await,
                Ok(_) => bad("a runner registers itself only".to_owned()),
                Err(reason) => bad(reason),
            },
            path::HEARTBEAT => match read_json(body).await {
                Ok(beat) => self.heartbeat(&caller, &beat).await,
                Err(reason) => bad(reason),
            },
            path::RESTARTING => self.restarting(&caller).await,
            path::DEREGISTER => self.deregister(&caller).await,
            _ if !self.registry.knows(&caller).await => unknown(),
            _ => {
                let registry = Arc::clone(&self.registry);
                // A write goes to its end when the runner goes away, as it would in one process.
                let carried = tokio::spawn(store_calls::carry_out(registry, caller, called, body)).await;
                carried.unwrap_or_else(|error| {
                    refuse(StatusCode::INTERNAL_SERVER_ERROR, format!("a call did not end: {error}"))
                })
            }
        }
    }
}
