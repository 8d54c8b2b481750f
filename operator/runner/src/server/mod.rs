//! What a coordinator calls: the runner's port, over the wire.

mod leftovers;
mod life;
mod member;
mod metrics;
mod stream;

use std::sync::Arc;

use ash_core::{
    fleet::{Answer, Close, Configure, ModelKey, Place, Read, RunnerId, Send, Taken, WarmList},
    id::{SandboxId, SessionId},
    ports::{Runner, RunnerError, Sent, StoreError},
    session::Session,
    sse::Position,
};
use ash_link::{Body, Service, answer_json, channel, read_json, refuse};
use ash_protocol::fleet::{FROZEN_STATUS, INCARNATION_HEADER, runner as path};
use async_trait::async_trait;
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use serde::Serialize;
use tracing::Instrument as _;

pub use self::{
    leftovers::leftovers,
    member::{Membership, MembershipConfig},
};
use crate::LocalRunner;

/// What a coordinator says to a runner beside the calls of its port.
#[async_trait]
pub trait Told: std::marker::Send + Sync {
    /// A session's key of the model API.
    fn keep_model_key(&self, session: SessionId, key: Option<&ModelKey>);

    /// The versions to keep warm.
    fn keep_warm(&self, list: &WarmList);

    /// Whether the runner may serve. Whoever is in no fleet always may.
    fn serves(&self) -> bool {
        true
    }

    /// Gives a session the warm pod that the coordinator claimed for it. Who has no pods has none to give.
    async fn claim(&self, session: Session, sandbox: SandboxId) -> Result<Session, RunnerError> {
        Err(RunnerError::Unreachable(format!("sandbox {sandbox} of session {} is not on this runner", session.id)))
    }
}

struct LocalTold {
    runner: Arc<LocalRunner>,
    membership: Arc<Membership>,
}

#[async_trait]
impl Told for LocalTold {
    fn keep_model_key(&self, session: SessionId, key: Option<&ModelKey>) {
        self.runner.keep_model_key(session, key);
    }

    fn keep_warm(&self, list: &WarmList) {
        self.membership.keep_warm(&self.runner, list);
    }

    fn serves(&self) -> bool {
        self.runner.serves()
    }

    async fn claim(&self, session: Session, sandbox: SandboxId) -> Result<Session, RunnerError> {
        self.runner.claim(session, sandbox).await
    }
}

/// Carries out the calls of coordinators.
pub struct RunnerService {
    id: RunnerId,
    calls: Arc<Calls>,
}

struct Calls {
    runner: Arc<dyn Runner>,
    told: Arc<dyn Told>,
}

impl RunnerService {
    /// The calls for this life of a runner.
    pub fn new(runner: Arc<LocalRunner>, membership: Arc<Membership>) -> Self {
        let id = membership.id().clone();
        Self::of(id, Arc::clone(&runner) as _, Arc::new(LocalTold { runner, membership }))
    }

    /// The calls for whatever is a runner.
    pub fn of(id: RunnerId, runner: Arc<dyn Runner>, told: Arc<dyn Told>) -> Self {
        Self { id, calls: Arc::new(Calls { runner, told }) }
    }
}

#[async_trait]
impl Service for RunnerService {
    async fn call(&self, request: Request<Incoming>) -> Response<Body> {
        let meant = request.headers().get(INCARNATION_HEADER).and_then(|value| value.to_str().ok());
        if meant != Some(self.id.incarnation.to_string().as_str()) {
            return refuse(StatusCode::GONE, "the runner was started anew: what was meant is gone");
        }
        if !self.calls.told.serves() {
            let status = StatusCode::from_u16(FROZEN_STATUS).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
            return refuse(status, "nobody has answered the runner for too long: it serves nobody until somebody does");
        }
        let calls = Arc::clone(&self.calls);
        // What was begun is not left half done when the coordinator goes away.
        let carried = tokio::spawn(async move { carry_out(&calls, request).await }.in_current_span()).await;
        carried
            .unwrap_or_else(|error| refuse(StatusCode::INTERNAL_SERVER_ERROR, format!("a call did not end: {error}")))
    }
}

async fn carry_out(calls: &Calls, request: Request<Incoming>) -> Response<Body> {
    let runner = &calls.runner;
    let called = request.uri().path().to_owned();
    let body = request.into_body();
    let answered = match called.as_str() {
        path::WARM => read_json(body).await.map(|list: WarmList| {
            calls.told.keep_warm(&list);
            answer_json(&())
        }),
        path::PLACE => match read_json(body).await {
            Ok(place) => Ok(answer(place_session(calls, place).await)),
            Err(reason) => Err(reason),
        },
        path::SEND => match read_json(body).await {
            Ok(send) => Ok(send_message(calls, send).await),
            Err(reason) => Err(reason),
        },
        path::READ => match read_json(body).await {
            Ok(Read { session, after }) => Ok(match runner.read(&session, Position::after(after)).await {
                Ok(reader) => streamed(&(), reader),
                Err(error) => failed(error),
            }),
            Err(reason) => Err(reason),
        },
        path::INTERRUPT => match read_json::<SessionId, _>(body).await {
            Ok(session) => Ok(answer(runner.interrupt(session).await)),
            Err(reason) => Err(reason),
        },
        path::ANSWER => match read_json(body).await {
            Ok(Answer { session, permission, decision }) => {
                Ok(answer(runner.answer(session, &permission, decision).await))
            }
            Err(reason) => Err(reason),
        },
        path::CONFIGURE => match read_json(body).await {
            Ok(Configure { session, options }) => Ok(answer(runner.configure(session, options).await)),
            Err(reason) => Err(reason),
        },
        path::CLOSE => match read_json(body).await {
            Ok(Close { session, closing }) => Ok(answer(runner.close(session, closing).await)),
            Err(reason) => Err(reason),
        },
        path::RESUME => match read_json(body).await {
            Ok(place) => Ok(answer(resume_session(calls, place).await)),
            Err(reason) => Err(reason),
        },
        _ => return refuse(StatusCode::NOT_FOUND, "a runner has nothing at this address: is the coordinator newer?"),
    };
    answered.unwrap_or_else(|reason| refuse(StatusCode::BAD_REQUEST, reason))
}

async fn place_session(calls: &Calls, place: Place) -> Result<Session, RunnerError> {
    calls.told.keep_model_key(place.session.id, place.model_key.as_ref());
    match place.sandbox {
        Some(sandbox) => calls.told.claim(place.session, sandbox).await,
        None => calls.runner.place(place.session, place.agent).await,
    }
}

async fn resume_session(calls: &Calls, place: Place) -> Result<Session, RunnerError> {
    calls.told.keep_model_key(place.session.id, place.model_key.as_ref());
    let resumed = calls.runner.resume(place.session, place.agent).await?;
    match place.sandbox {
        Some(sandbox) => calls.told.claim(resumed, sandbox).await,
        None => Ok(resumed),
    }
}

async fn send_message(calls: &Calls, send: Send) -> Response<Body> {
    let Send { place, message } = send;
    calls.told.keep_model_key(place.session.id, place.model_key.as_ref());
    let session = match place.sandbox {
        Some(sandbox) => match calls.told.claim(place.session, sandbox).await {
            Ok(session) => session,
            Err(error) => return failed(error),
        },
        None => place.session,
    };
    match calls.runner.send(session, place.agent, message).await {
        Ok(Sent { joined, reader }) => streamed(&Taken { joined }, reader),
        Err(error) => failed(error),
    }
}

fn answer(result: Result<impl Serialize, RunnerError>) -> Response<Body> {
    answer_json(&result.map_err(said))
}

/// An answer of a head alone, which is an error.
fn failed(error: RunnerError) -> Response<Body> {
    Response::new(ash_link::pieces(ash_link::frames([stream::head::<()>(&Err(said(error)))])))
}

/// An answer of a head and a stream of entries.
fn streamed(head: &impl Serialize, reader: Box<dyn ash_core::ports::EntryReader>) -> Response<Body> {
    let (outgoing, body) = channel();
    tokio::spawn(stream::pump(stream::head(&Ok(head)), reader, outgoing));
    Response::new(body)
}

/// An error as it crosses the wire: what is wrong with the log stays in this runner's.
fn said(error: RunnerError) -> RunnerError {
    if let RunnerError::Store(error @ StoreError::Damaged(_)) | RunnerError::Store(error @ StoreError::Unavailable(_)) =
        &error
    {
        tracing::error!(%error, "a call of a coordinator failed");
    }
    error
}
