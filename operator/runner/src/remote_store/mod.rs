//! The store of a remote runner: what it needs of it, asked of a coordinator over the wire.
//!
//! A coordinator that does not answer for a moment is waited for; every call can be repeated, since each says what it expects.

mod frames;

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ash_core::{
    EntryKind, Epoch, Sequence,
    agent::AgentVersion,
    fleet::{Admitted, AppendHead, DamagedSnapshot, NewSnapshot, OfAgent, OfBundle, OfLog, OfPod, OfSession, Placed},
    id::{AgentId, SandboxId, SessionId, TenantId, TurnId},
    opening::Opening,
    ports::{Append, OpenEpoch, Page, PodIdentity, RunnerPods, RunnerStore, SnapshotRow, StoreError, TurnRecord},
    session::Session,
    transcript::Transcript,
};
use ash_link::LinkError;
use ash_protocol::{
    fleet::coordinator as path,
    frame::{Frame, FrameKind},
};
use async_trait::async_trait;
use bytes::Bytes;
use serde::{Serialize, de::DeserializeOwned};
use tokio::time::{Instant, sleep};

use crate::{ModelKeys, coordinators::Coordinators};

/// How long a call may take.
const CALL: Duration = Duration::from_secs(30);
/// How long a coordinator that does not answer is waited for; then the store counts as unavailable.
const WAIT: Duration = Duration::from_secs(15);
/// The pause between two tries.
const RETRY: Duration = Duration::from_millis(200);
/// Sessions whose tenant is remembered; at the bound all are forgotten.
const MAX_TENANTS: usize = 10_000;
/// Bytes of entries in one call; an append that is longer by itself has a call of its own.
const APPEND_BYTES: usize = 8 << 20;

/// The store behind a coordinator.
#[derive(Debug)]
pub struct RemoteStore {
    coordinators: Arc<Coordinators>,
    model_keys: Arc<ModelKeys>,
    /// Whose the sessions are that were looked up.
    tenants: Mutex<HashMap<SessionId, TenantId>>,
}

/// The tries of one call: a coordinator that does not answer is waited for, for [`WAIT`].
struct Tries {
    deadline: Instant,
    /// A try before may have been carried out although it was not answered.
    may_have_been_carried_out: bool,
}

impl Tries {
    fn new() -> Self {
        Self { deadline: Instant::now() + WAIT, may_have_been_carried_out: false }
    }

    /// Waits for the next try, where there is one.
    async fn again(&mut self, error: LinkError) -> Result<(), StoreError> {
        self.may_have_been_carried_out |= matches!(error, LinkError::Broken { .. });
        if matches!(error, LinkError::Malformed { .. }) || Instant::now() >= self.deadline {
            return Err(StoreError::Unavailable(error.to_string()));
        }
        tracing::debug!(%error, "a coordinator is asked again");
        sleep(RETRY).await;
        Ok(())
    }
}

impl RemoteStore {
    /// A store that is asked through these coordinators. Keys that come with sessions are kept in `model_keys`.
    pub fn new(coordinators: Arc<Coordinators>, model_keys: Arc<ModelKeys>) -> Self {
        Self { coordinators, model_keys, tenants: Mutex::default() }
    }

    async fn ask<T: DeserializeOwned>(&self, path: &str, message: &(impl Serialize + Sync)) -> Result<T, StoreError> {
        let mut tries = Tries::new();
        loop {
            match self.coordinators.exchange::<Result<T, StoreError>>(path, CALL, message).await {
                Ok(answer) => return answer,
                Err(error) => tries.again(error).await?,
            }
        }
    }

    /// A call whose answer is a head and raw frames.
    async fn ask_frames<T: DeserializeOwned>(
        &self,
        path: &str,
        message: &(impl Serialize + Sync),
    ) -> Result<(T, Vec<Frame>), StoreError> {
        let bytes = serde_json::to_vec(message).map_err(|error| StoreError::Unavailable(error.to_string()))?;
        let bytes = Bytes::from(bytes);
        let mut tries = Tries::new();
        loop {
            let asked = async {
                let answer = self.coordinators.call(path, CALL, || ash_link::full(bytes.clone())).await?;
                frames::read::<T>(answer.into_body(), CALL).await
            };
            match asked.await {
                Ok(answer) => return answer,
                Err(error) => tries.again(error).await?,
            }
        }
    }

    fn remember(&self, session: &Session) {
        let mut tenants = self.tenants.lock().unwrap_or_else(PoisonError::into_inner);
        if tenants.len() >= MAX_TENANTS {
            tenants.clear();
        }
        tenants.insert(session.id, session.tenant.clone());
    }

    /// Whether the epoch that a session is in is the one that was asked for: the answer to the first try was lost.
    async fn is_ours(&self, open: &OpenEpoch, row: &Session) -> Result<bool, StoreError> {
        if Some(row.epoch) != open.expected.next() || row.sandbox != open.sandbox {
            return Ok(false);
        }
        let before = Sequence(row.epoch.opening().0 - 1);
        let page = self.read(open.session, before, 1).await?;
        let opening = page.entries.first().filter(|entry| entry.kind == EntryKind::Opening);
        Ok(opening.and_then(|entry| Opening::read(&entry.body).ok()).is_some_and(|opening| opening == open.opening))
    }

    async fn append_some(&self, appends: &[Append]) -> Vec<Result<(), StoreError>> {
        let frames = appends.iter().enumerate().flat_map(|(index, append)| {
            let head = AppendHead { session: append.session, after: append.after };
            let head = Frame::json(FrameKind::Request, index as u64, &head);
            std::iter::once(head).chain(append.entries.iter().map(Frame::event))
        });
        let pieces = ash_link::frames(frames);
        let mut tries = Tries::new();
        loop {
            let asked = async {
                let answer = self.coordinators.call(path::APPEND, CALL, || ash_link::pieces(pieces.clone())).await?;
                let results = ash_link::read_json::<Vec<Result<(), StoreError>>, _>(answer.into_body()).await;
                results
                    .ok()
                    .filter(|results| results.len() == appends.len())
                    .ok_or_else(|| frames::broken("the answer to an append is not whole".to_owned()))
            };
            let error = match asked.await {
                Ok(results) => return results,
                Err(error) => error,
            };
            if let Err(error) = tries.again(error).await {
                return vec![Err(error); appends.len()];
            }
        }
    }
}

#[async_trait]
impl RunnerStore for RemoteStore {
    async fn session(&self, tenant: &TenantId, id: SessionId) -> Result<Option<Session>, StoreError> {
        let which = OfSession { session: id, tenant: Some(tenant.clone()), turn: None };
        let row: Option<Session> = self.ask(path::SESSION, &which).await?;
        if let Some(row) = &row {
            self.remember(row);
        }
        Ok(row)
    }

    async fn placed_sessions(&self) -> Result<Vec<Session>, StoreError> {
        let placed: Vec<Placed> = self.ask(path::PLACED_SESSIONS, &()).await?;
        let keep = |placed: Placed| {
            self.model_keys.set(placed.session.id, placed.model_key.as_ref());
            self.remember(&placed.session);
            placed.session
        };
        Ok(placed.into_iter().map(keep).collect())
    }

    async fn session_exists(&self, id: SessionId) -> Result<bool, StoreError> {
        self.ask(path::SESSION_EXISTS, &OfSession { session: id, tenant: None, turn: None }).await
    }

    async fn agent_version(
        &self,
        tenant: &TenantId,
        agent: AgentId,
        number: u32,
    ) -> Result<Option<AgentVersion>, StoreError> {
        self.ask(path::AGENT_VERSION, &OfAgent { tenant: tenant.clone(), agent, number }).await
    }

    async fn bundle(&self, tenant: &TenantId, digest: &str) -> Result<Option<Bytes>, StoreError> {
        let which = OfBundle { tenant: tenant.clone(), digest: digest.to_owned() };
        let (found, frames) = self.ask_frames::<bool>(path::BUNDLE, &which).await?;
        Ok(found.then(|| frames::joined(frames)))
    }

    async fn open_epoch(&self, open: OpenEpoch) -> Result<Session, StoreError> {
        let mut tries = Tries::new();
        let opened = loop {
            match self.coordinators.exchange::<Result<Session, StoreError>>(path::OPEN_EPOCH, CALL, &open).await {
                Ok(answer) => break answer,
                Err(error) => tries.again(error).await?,
            }
        };
        let overtaken = match opened {
            Err(overtaken @ StoreError::Overtaken { .. }) if tries.may_have_been_carried_out => overtaken,
            answer => return answer,
        };
        let tenant = self.tenants.lock().unwrap_or_else(PoisonError::into_inner).get(&open.session).cloned();
        let Some(tenant) = tenant else { return Err(overtaken) };
        match self.session(&tenant, open.session).await? {
            Some(row) if self.is_ours(&open, &row).await? => Ok(row),
            _ => Err(overtaken),
        }
    }

    async fn append(&self, appends: Vec<Append>) -> Vec<Result<(), StoreError>> {
        let size = |append: &Append| append.entries.iter().map(|entry| entry.body.len() + 16).sum::<usize>();
        let mut results = Vec::with_capacity(appends.len());
        let mut rest = &appends[..];
        while !rest.is_empty() {
            let mut bytes = 0;
            let fits = |append: &&Append| {
                bytes += size(append);
                bytes <= APPEND_BYTES
            };
            let (some, others) = rest.split_at(rest.iter().take_while(fits).count().max(1));
            results.extend(self.append_some(some).await);
            rest = others;
        }
        results
    }

    async fn read(&self, session: SessionId, after: Sequence, max_bytes: usize) -> Result<Page, StoreError> {
        let which = OfLog { session, after, max_bytes };
        let (head, frames) = self.ask_frames::<ash_core::fleet::PageHead>(path::READ, &which).await?;
        let entries = frames.into_iter().map(Frame::into_entry).collect::<Result<_, _>>();
        let entries = entries.map_err(|error| StoreError::Unavailable(error.to_string()))?;
        Ok(Page { entries, through: head.through, end: head.end })
    }

    async fn transcript(&self, session: SessionId) -> Result<Option<Transcript>, StoreError> {
        let which = OfSession { session, tenant: None, turn: None };
        let (conversation, frames) = self.ask_frames::<Option<uuid::Uuid>>(path::TRANSCRIPT, &which).await?;
        Ok(conversation.map(|conversation| Transcript { conversation, bytes: frames::joined(frames).into() }))
    }

    async fn unfinished_turn(&self, session: SessionId) -> Result<Option<TurnId>, StoreError> {
        self.ask(path::UNFINISHED_TURN, &OfSession { session, tenant: None, turn: None }).await
    }

    async fn turn(&self, session: SessionId, turn: TurnId) -> Result<Option<TurnRecord>, StoreError> {
        self.ask(path::TURN, &OfSession { session, tenant: None, turn: Some(turn) }).await
    }

    async fn last_turn(&self, session: SessionId) -> Result<Option<TurnId>, StoreError> {
        self.ask(path::LAST_TURN, &OfSession { session, tenant: None, turn: None }).await
    }

    async fn add_snapshot(&self, epoch: Epoch, snapshot: SnapshotRow) -> Result<(), StoreError> {
        self.ask(path::ADD_SNAPSHOT, &NewSnapshot { epoch, snapshot }).await
    }

    async fn snapshots(&self, session: SessionId) -> Result<Vec<SnapshotRow>, StoreError> {
        self.ask(path::SNAPSHOTS, &OfSession { session, tenant: None, turn: None }).await
    }

    async fn snapshot_damaged(&self, session: SessionId, digest: &str) -> Result<(), StoreError> {
        self.ask(path::SNAPSHOT_DAMAGED, &DamagedSnapshot { session, digest: digest.to_owned() }).await
    }
}

#[async_trait]
impl RunnerPods for RemoteStore {
    async fn admit(&self, pod: &PodIdentity) -> Result<Option<Admitted>, StoreError> {
        let admitted: Option<Admitted> = self.ask(path::ADMIT_POD, pod).await?;
        if let Some(Placed { session, .. }) = admitted.as_ref().and_then(|admitted| admitted.placed.as_ref()) {
            self.remember(session);
        }
        Ok(admitted)
    }

    async fn warm(&self, sandbox: SandboxId) -> Result<bool, StoreError> {
        self.ask(path::POD_WARM, &OfPod { sandbox, reason: None }).await
    }

    async fn over(&self, sandbox: SandboxId, reason: Option<String>) -> Result<bool, StoreError> {
        self.ask(path::POD_OVER, &OfPod { sandbox, reason }).await
    }
}
