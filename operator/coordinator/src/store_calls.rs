//! The store, for runners: each reads and writes the sessions that it has.

use std::sync::Arc;

use ash_core::{
    agent::AgentVersion,
    fleet::{
        AppendHead, DamagedSnapshot, NewSnapshot, OfAgent, OfBundle, OfLog, OfSession, PageHead, Placed, RunnerId,
    },
    id::SessionId,
    ports::{Append, FleetStore, OpenEpoch, StoreError},
    session::Session,
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

use crate::{limits::MAX_APPEND_BYTES, pod_calls, registry::Registry};

/// Carries out a call of the store.
pub(crate) async fn carry_out(
    registry: Arc<Registry>,
    runner: RunnerId,
    called: String,
    body: Incoming,
) -> Response<Body> {
    let calls = Calls { store: Arc::clone(&registry.store), registry, runner };
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
            Ok(which) => Ok(answer_json(&calls.agent_version(&which).await)),
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
        path::LAST_TURN => match read_json::<OfSession, _>(body).await {
            Ok(which) => Ok(answer_json(&calls.store.last_turn(which.session).await)),
            Err(reason) => Err(reason),
        },
        path::ADD_SNAPSHOT => match read_json::<NewSnapshot, _>(body).await {
            Ok(new) => Ok(answer_json(&calls.store.add_snapshot(new.epoch, new.snapshot).await)),
            Err(reason) => Err(reason),
        },
        path::SNAPSHOTS => match read_json::<OfSession, _>(body).await {
            Ok(which) => Ok(answer_json(&calls.store.snapshots(which.session).await)),
            Err(reason) => Err(reason),
        },
        path::SNAPSHOT_DAMAGED => match read_json::<DamagedSnapshot, _>(body).await {
            Ok(which) => Ok(answer_json(&calls.store.snapshot_damaged(which.session, &which.digest).await)),
            Err(reason) => Err(reason),
        },
        path::ADMIT_POD => match read_json(body).await {
            Ok(pod) => Ok(answer_json(&pod_calls::admit(&calls.registry, &calls.runner, &pod).await)),
            Err(reason) => Err(reason),
        },
        path::POD_WARM => match read_json(body).await {
            Ok(pod) => Ok(answer_json(&pod_calls::is_warm(&calls.registry, &pod).await)),
            Err(reason) => Err(reason),
        },
        path::POD_OVER => match read_json(body).await {
            Ok(pod) => Ok(answer_json(&pod_calls::is_over(&calls.registry, &calls.runner, &pod).await)),
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
    store: Arc<dyn FleetStore>,
    runner: RunnerId,
}

impl Calls {
    async fn session(&self, which: OfSession) -> Result<Option<Session>, StoreError> {
        match which.tenant {
            Some(tenant) => self.store.session(&tenant, which.session).await,
            None => Err(StoreError::NotFound("the call names no tenant".to_owned())),
        }
    }

    /// A version, with its secret variables: the runner takes a sandbox of it over.
    async fn agent_version(&self, which: &OfAgent) -> Result<Option<AgentVersion>, StoreError> {
        let found = self.store.agent_version(&which.tenant, which.agent, which.number).await?;
        let Some(agent) = found else { return Ok(None) };
        let agent = pod_calls::with_idle_timeout(&self.registry, agent).await?;
        Ok(Some(self.registry.keys.complete_if_possible(agent).await))
    }

    /// The sessions on this runner's sandboxes, with the keys that its gateway needs again.
    async fn placed_sessions(&self) -> Result<Vec<Placed>, StoreError> {
        let rows = self.store.sessions_on(&self.runner.name).await?;
        let mut placed = Vec::with_capacity(rows.len());
        for session in rows {
            let agent = self.store.agent_version(&session.tenant, session.agent, session.agent_version).await?;
            let settings = agent.map(|agent| agent.settings).unwrap_or_default();
            let model_key = self.registry.keys.of(&session, &settings).await.unwrap_or_else(|error| {
                tracing::warn!(session = %session.id, %error, "a session has no model key");
                None
            });
            placed.push(Placed { session, model_key });
        }
        Ok(placed)
    }

    /// Opens an epoch where no other runner has the session: the store compares that, too.
    async fn open_epoch(&self, open: OpenEpoch) -> Result<Session, StoreError> {
        let session = open.session;
        let opened = self.store.open_epoch_on(open, &self.runner.name).await;
        match &opened {
            Ok(row) => self.registry.opened(row, Some(&self.runner.name)),
            Err(StoreError::Overtaken { .. }) => {
                self.registry.metrics.writes_refused.inc();
                tracing::warn!(%session, runner = %self.runner.name, "a runner that does not have the session was refused");
            }
            Err(_) => {}
        }
        opened
    }

    /// Appends: whoever does not have a session any more does not know its epoch.
    async fn append(&self, appends: Vec<Append>) -> Vec<Result<(), StoreError>> {
        let results = self.store.append(appends).await;
        let refused = results.iter().filter(|result| matches!(result, Err(StoreError::Overtaken { .. }))).count();
        self.registry.metrics.writes_refused.inc_by(refused as u64);
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
