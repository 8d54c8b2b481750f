//! The store, for runners: each reads and writes the sessions that it has.

use std::sync::Arc;

use ash_core::{
    Sequence,
    fleet::{AppendHead, OfAgent, OfBundle, OfLog, OfSession, PageHead, Placed, RunnerId},
    id::SessionId,
    placement::Stage,
    ports::{Append, OpenEpoch, Store, StoreError},
    session::{Session, SessionState},
};
use ash_link::{Body, FrameReader, answer_json, read_json, refuse};
use ash_protocol::{
    fleet::coordinator as path,
    frame::{Frame, FrameKind, MAX_DATA_BYTES},
};
use bytes::Bytes;
use http::{Response, StatusCode};
use hyper::body::Incoming;
use serde::Serialize;

use crate::{limits::MAX_APPEND_BYTES, registry::Registry};

/// Carries out a call of the store.
pub(crate) async fn carry_out(
    registry: Arc<Registry>,
    store: Arc<dyn Store>,
    runner: RunnerId,
    called: String,
    body: Incoming,
) -> Response<Body> {
    let calls = Calls { registry, store, runner };
    let answered = match called.as_str() {
        path::SESSION => match read_json(body).await {
            Ok(which) => Ok(answer_json(&calls.session(which).await)),
            Err(reason) => Err(reason),
        },
        path::PLACED_SESSIONS => Ok(answer_json(&calls.placed_sessions().await)),
        path::SESSION_EXISTS => match read_json::<OfSession, _>(body).await {
            Ok(which) => Ok(answer_json(&calls.store.session_exists(which.session).await)),
            Err(reason) => Err(reason),
        },
        path::AGENT_VERSION => match read_json::<OfAgent, _>(body).await {
            Ok(which) => Ok(answer_json(&calls.store.agent_version(&which.tenant, which.agent, which.number).await)),
            Err(reason) => Err(reason),
        },
        path::BUNDLE => match read_json::<OfBundle, _>(body).await {
            Ok(which) => Ok(calls.bundle(&which).await),
            Err(reason) => Err(reason),
        },
        path::OPEN_EPOCH => match read_json(body).await {
            Ok(open) => Ok(answer_json(&calls.open_epoch(open).await)),
            Err(reason) => Err(reason),
        },
        path::APPEND => match appends(body).await {
            Ok(appends) => Ok(answer_json(&calls.append(appends).await)),
            Err(reason) => Err(reason),
        },
        path::READ => match read_json(body).await {
            Ok(which) => Ok(calls.read(&which).await),
            Err(reason) => Err(reason),
        },
        path::TRANSCRIPT => match read_json::<OfSession, _>(body).await {
            Ok(which) => Ok(calls.transcript(which.session).await),
            Err(reason) => Err(reason),
        },
        path::UNFINISHED_TURN => match read_json::<OfSession, _>(body).await {
            Ok(which) => Ok(answer_json(&calls.store.unfinished_turn(which.session).await)),
            Err(reason) => Err(reason),
        },
        path::TURN => match read_json::<OfSession, _>(body).await {
            Ok(OfSession { session, turn: Some(turn), .. }) => Ok(answer_json(&calls.store.turn(session, turn).await)),
            Ok(_) => Err("the call names no turn".to_owned()),
            Err(reason) => Err(reason),
        },
        _ => return refuse(StatusCode::NOT_FOUND, "a coordinator has nothing at this address: is the runner newer?"),
    };
    answered.unwrap_or_else(|reason| refuse(StatusCode::BAD_REQUEST, reason))
}

/// The appends of a body: a head, then its entries, for each session.
async fn appends(body: Incoming) -> Result<Vec<Append>, String> {
    let mut reader = FrameReader::new(body);
    let mut appends: Vec<Append> = Vec::new();
    let mut bytes = 0;
    while let Some(frame) = reader.next().await? {
        bytes += frame.body.len();
        if bytes > MAX_APPEND_BYTES {
            return Err(format!("an append is longer than {MAX_APPEND_BYTES} bytes"));
        }
        match (frame.kind, appends.last_mut()) {
            (FrameKind::Request, _) => {
                let head: AppendHead = serde_json::from_slice(&frame.body).map_err(|error| error.to_string())?;
                appends.push(Append { session: head.session, after: head.after, entries: Vec::new() });
            }
            (FrameKind::Event, Some(append)) => {
                append.entries.push(frame.into_entry().map_err(|error| error.to_string())?);
            }
            _ => return Err("an append has a frame that it cannot have".to_owned()),
        }
    }
    Ok(appends)
}

/// A head, and nothing else where it is an error.
fn framed(head: &Result<impl Serialize, StoreError>, frames: impl IntoIterator<Item = Frame>) -> Response<Body> {
    let head = Frame::json(FrameKind::Reply, 0, head);
    Response::new(ash_link::pieces(ash_link::frames(std::iter::once(head).chain(frames))))
}

/// Bytes as frames.
fn data(mut bytes: Bytes) -> Vec<Frame> {
    let mut frames = Vec::new();
    while !bytes.is_empty() {
        frames.push(Frame::data(0, 0, bytes.split_to(bytes.len().min(MAX_DATA_BYTES))));
    }
    frames
}

struct Calls {
    registry: Arc<Registry>,
    store: Arc<dyn Store>,
    runner: RunnerId,
}

impl Calls {
    /// What a runner gets that does not have the session.
    fn check(&self, session: SessionId, epoch: ash_core::Epoch, last: Sequence) -> Result<(), StoreError> {
        if self.registry.look(|fleet| fleet.may_write(&self.runner, session)) {
            return Ok(());
        }
        self.registry.metrics.writes_refused.inc();
        tracing::warn!(%session, runner = %self.runner.name, "a runner that does not have the session was refused");
        Err(StoreError::Overtaken { session, epoch, last })
    }

    async fn session(&self, which: OfSession) -> Result<Option<Session>, StoreError> {
        match which.tenant {
            Some(tenant) => self.store.session(&tenant, which.session).await,
            None => Err(StoreError::NotFound("the call names no tenant".to_owned())),
        }
    }

    /// The sessions that have a place on this runner, with the keys that its gateway needs again.
    async fn placed_sessions(&self) -> Result<Vec<Placed>, StoreError> {
        let rows = self.store.placed_sessions().await?;
        let is_its = |row: &Session| {
            let here =
                |route: &ash_core::placement::Route| route.runner == self.runner.name && route.stage != Stage::Home;
            self.registry.look(|fleet| fleet.route(row.id).is_some_and(here))
        };
        let model_key = self.registry.config.model_key.clone();
        let placed = rows.into_iter().filter(is_its);
        Ok(placed.map(|session| Placed { session, model_key: model_key.clone() }).collect())
    }

    async fn open_epoch(&self, open: OpenEpoch) -> Result<Session, StoreError> {
        self.check(open.session, open.expected, open.opening.last_committed)?;
        let row = self.store.open_epoch(open).await?;
        self.registry.change(|fleet, _| match (row.sandbox, row.state) {
            (Some(_), _) => fleet.arrived(row.id, &self.runner.name),
            (None, SessionState::Ended) => fleet.forget(row.id),
            (None, _) => fleet.left(row.id),
        });
        Ok(row)
    }

    async fn append(&self, appends: Vec<Append>) -> Vec<Result<(), StoreError>> {
        let mut results: Vec<Result<(), StoreError>> =
            appends.iter().map(|append| self.check(append.session, append.after.epoch(), append.after)).collect();
        let allowed: Vec<Append> =
            appends.into_iter().zip(&results).filter(|(_, result)| result.is_ok()).map(|(append, _)| append).collect();
        let mut written = self.store.append(allowed).await.into_iter();
        for result in results.iter_mut().filter(|result| result.is_ok()) {
            *result = written
                .next()
                .unwrap_or_else(|| Err(StoreError::Unavailable("the store did not answer for an append".to_owned())));
        }
        results
    }

    async fn read(&self, which: &OfLog) -> Response<Body> {
        match self.store.read(which.session, which.after, which.max_bytes).await {
            Ok(page) => {
                let head = PageHead { through: page.through, end: page.end };
                framed(&Ok(head), page.entries.iter().map(Frame::event))
            }
            Err(error) => framed(&Err::<(), _>(error), []),
        }
    }

    async fn bundle(&self, which: &OfBundle) -> Response<Body> {
        match self.store.bundle(&which.tenant, &which.digest).await {
            Ok(bundle) => framed(&Ok(bundle.is_some()), bundle.map(data).unwrap_or_default()),
            Err(error) => framed(&Err::<(), _>(error), []),
        }
    }

    async fn transcript(&self, session: SessionId) -> Response<Body> {
        match self.store.transcript(session).await {
            Ok(None) => framed(&Ok(None::<uuid::Uuid>), []),
            Ok(Some(transcript)) => framed(&Ok(Some(transcript.conversation)), data(transcript.bytes.into())),
            Err(error) => framed(&Err::<(), _>(error), []),
        }
    }
}
