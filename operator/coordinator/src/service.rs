//! What runners call.

use std::{collections::HashMap, sync::Arc};

use ash_core::{
    fleet::{Heartbeat, Held, Register, Registered, RunnerId, WarmList},
    placement::HEARTBEAT,
    ports::Store,
};
use ash_link::{Body, Service, answer_json, derived_key, read_json, refuse};
use ash_protocol::fleet::{Hidden, INCARNATION_HEADER, RUNNER_HEADER, coordinator as path, runner};
use async_trait::async_trait;
use http::{HeaderMap, Request, Response, StatusCode};
use hyper::body::Incoming;
use secrecy::ExposeSecret as _;

use crate::{calls, limits::STREAM_BEGIN, lost::lose, registry::Registry, store_calls};

/// What the keys that are made for runners are for.
const TOKENS: &str = "sandbox tokens";

/// Carries out the calls of runners.
pub struct CoordinatorService {
    registry: Arc<Registry>,
    store: Arc<dyn Store>,
}

impl CoordinatorService {
    /// The calls on this registry and store.
    pub fn new(registry: Arc<Registry>, store: Arc<dyn Store>) -> Self {
        Self { registry, store }
    }

    async fn register(&self, register: Register) -> Response<Body> {
        let Register { runner, address, capacity, held, homes, .. } = register;
        let placed = match self.store.placed_sessions().await {
            Ok(placed) => placed,
            Err(error) => {
                tracing::error!(%error, "a runner cannot register: the store does not answer");
                return refuse(StatusCode::SERVICE_UNAVAILABLE, "the store does not answer: try again in a moment");
            }
        };
        if let Err(error) = self.registry.set_peer(&runner.name, &address) {
            return refuse(StatusCode::BAD_REQUEST, format!("the runner's address cannot be used: {error}"));
        }
        // A sandbox is named by its own id: a folder may not have got its session's name before the runner died.
        let on: HashMap<_, _> = placed.iter().filter_map(|row| Some((row.sandbox?, row.id))).collect();
        let named = |one: Held| Held { session: *on.get(&one.sandbox).unwrap_or(&one.session), ..one };
        let held: Vec<Held> = held.into_iter().map(named).collect();
        let is_current = |one: &Held| on.get(&one.sandbox) == Some(&one.session);
        let disowned =
            self.registry.change(|fleet, now| fleet.register(&runner, capacity, &held, &homes, now, is_current));
        self.registry.metrics.registrations.inc();
        tracing::info!(runner = %runner.name, incarnation = %runner.incarnation, address, capacity, held = held.len(),
            disowned = disowned.len(), "a runner registered");
        let Some(key) = derived_key(&self.registry.config.token_key, TOKENS, runner.name.as_str()) else {
            return refuse(StatusCode::INTERNAL_SERVER_ERROR, "the runner's key could not be made");
        };
        let token_key = Hidden(key.expose_secret().iter().map(|byte| format!("{byte:02x}")).collect());
        let heartbeat_ms = u64::try_from(HEARTBEAT.as_millis()).unwrap_or(u64::MAX);
        answer_json(&Registered { token_key, heartbeat_ms, disowned, warm: self.registry.warm() })
    }

    fn heartbeat(&self, runner: &RunnerId, beat: &Heartbeat) -> Response<Body> {
        match self.registry.heartbeat(runner, beat.load, beat.warm_revision) {
            None => unknown(),
            Some(has_list) => {
                if !has_list {
                    push_warm(&self.registry);
                }
                answer_json(&())
            }
        }
    }

    fn deregister(&self, runner: &RunnerId) -> Response<Body> {
        let had = self.registry.change(|fleet, _| fleet.remove(runner));
        self.registry.remove_peer(&runner.name);
        tracing::info!(runner = %runner.name, sessions = had.len(), "a runner deregistered");
        if !had.is_empty() {
            tokio::spawn(lose(Arc::clone(&self.registry), Arc::clone(&self.store), had));
        }
        answer_json(&())
    }
}

/// Gives every runner the list of versions to keep warm.
pub(crate) fn push_warm(registry: &Arc<Registry>) {
    for target in registry.targets() {
        let list: WarmList = registry.warm();
        tokio::spawn(async move {
            // One that does not get it says with its next heartbeat that it has another.
            if let Err(error) = calls::tell(&target, runner::WARM, STREAM_BEGIN, &list).await {
                tracing::debug!(runner = %target.id.name, %error, "a runner did not take the list of warm versions");
            }
        });
    }
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
                Ok(beat) => self.heartbeat(&caller, &beat),
                Err(reason) => bad(reason),
            },
            path::DEREGISTER => self.deregister(&caller),
            _ if !self.registry.look(|fleet| fleet.knows(&caller)) => unknown(),
            _ => {
                let (registry, store) = (Arc::clone(&self.registry), Arc::clone(&self.store));
                // A write goes to its end when the runner goes away, as it would in one process.
                let carried = tokio::spawn(store_calls::carry_out(registry, store, caller, called, body)).await;
                carried.unwrap_or_else(|error| {
                    refuse(StatusCode::INTERNAL_SERVER_ERROR, format!("a call did not end: {error}"))
                })
            }
        }
    }
}
