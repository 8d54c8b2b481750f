//! The runner in memory: takes messages; the test writes what comes of them.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
};

use ash_core::{
    EntryKind, Sequence,
    agent::AgentVersion,
    id::{SandboxId, SessionId, TurnId},
    ports::{Batch, EntryReader, Load, LoggedEntry, NewMessage, ReadError, Runner as Port, RunnerError, Sent},
    session::{Closing, Session, SessionEvent, SessionState},
    sse::Position,
};
use ash_protocol::{message::Decision, options::SessionOptions};
use async_trait::async_trait;

use super::{line, store::Memory};

/// Entries that a reader gets at once.
const BATCH: usize = 64;

pub struct Runner {
    pub store: Arc<Memory>,
    /// What the next call that can fail fails with.
    pub failure: Mutex<Option<RunnerError>>,
    pub messages: Mutex<Vec<NewMessage>>,
    pub decisions: Mutex<Vec<(String, Decision)>>,
    pub prepared: Mutex<Vec<AgentVersion>>,
    pub forgotten: Mutex<Vec<AgentVersion>>,
    pub interrupted: Mutex<Vec<SessionId>>,
    pub panics: Mutex<bool>,
    turns: Mutex<BTreeMap<TurnId, (SessionId, Sequence)>>,
}

impl Runner {
    pub fn new(store: Arc<Memory>) -> Self {
        Self {
            store,
            failure: Mutex::default(),
            messages: Mutex::default(),
            decisions: Mutex::default(),
            prepared: Mutex::default(),
            forgotten: Mutex::default(),
            interrupted: Mutex::default(),
            panics: Mutex::default(),
            turns: Mutex::default(),
        }
    }

    pub fn fail(&self, error: RunnerError) {
        *self.failure.lock().unwrap() = Some(error);
    }

    fn working(&self) -> Result<(), RunnerError> {
        assert!(!*self.panics.lock().unwrap(), "a defect, on purpose");
        self.failure.lock().unwrap().take().map_or(Ok(()), Err)
    }

    fn change(&self, session: &Session, event: SessionEvent) -> Result<Session, RunnerError> {
        let state = session.state.after(event).map_err(|impossible| RunnerError::State(impossible.0))?;
        Ok(self.store.update(session.id, |session| {
            session.state = state;
            session.sandbox = None;
        }))
    }

    fn reader(&self, session: SessionId, position: Sequence) -> Box<dyn EntryReader> {
        Box::new(Reader { store: self.store.clone(), session, position })
    }
}

/// Whether a log stops in the middle of a turn.
fn running(store: &Memory, session: SessionId) -> bool {
    let tables = store.tables();
    let log = tables.logs.get(&session).map(Vec::as_slice).unwrap_or_default();
    let last = log.iter().rev().find(|entry| entry.kind == EntryKind::User || entry.ends_turn());
    last.is_some_and(|entry| entry.kind == EntryKind::User)
}

#[async_trait]
impl Port for Runner {
    fn prepare(&self, agent: AgentVersion) {
        self.prepared.lock().unwrap().push(agent);
    }

    fn forget(&self, agent: &AgentVersion) {
        self.forgotten.lock().unwrap().push(agent.clone());
    }

    async fn place(&self, session: Session, _: AgentVersion) -> Result<Session, RunnerError> {
        self.working()?;
        Ok(self.store.update(session.id, |session| {
            session.state = SessionState::Active;
            session.sandbox = Some(SandboxId::new());
        }))
    }

    async fn send(&self, session: Session, _: AgentVersion, message: NewMessage) -> Result<Sent, RunnerError> {
        self.working()?;
        let turn = message.turn;
        if let Some((session, first)) = self.turns.lock().unwrap().get(&turn) {
            return Ok(Sent { joined: true, reader: self.reader(*session, Sequence(first.0 - 1)) });
        }
        if running(&self.store, session.id) {
            return Err(RunnerError::TurnInProgress);
        }
        let body = format!(r#"{{"type":"user","message":{{"content":{}}},"uuid":"{turn}"}}"#, message.content.get());
        let first = self.store.next(session.id);
        self.turns.lock().unwrap().insert(turn, (session.id, first));
        self.messages.lock().unwrap().push(message);
        // Last, because it wakes the test.
        self.store.write(session.id, [line(EntryKind::User, false, &body)]);
        Ok(Sent { joined: false, reader: self.reader(session.id, Sequence(first.0 - 1)) })
    }

    async fn read(&self, session: &Session, after: Position) -> Result<Box<dyn EntryReader>, RunnerError> {
        self.working()?;
        Ok(self.reader(session.id, after.entries_after()))
    }

    async fn interrupt(&self, session: SessionId) -> Result<bool, RunnerError> {
        self.working()?;
        self.interrupted.lock().unwrap().push(session);
        Ok(running(&self.store, session))
    }

    async fn answer(&self, _: SessionId, permission: &str, decision: Decision) -> Result<(), RunnerError> {
        self.working()?;
        self.decisions.lock().unwrap().push((permission.to_owned(), decision));
        Ok(())
    }

    async fn configure(&self, _: SessionId, _: SessionOptions) -> Result<(), RunnerError> {
        self.working()
    }

    async fn close(&self, session: Session, closing: Closing) -> Result<Session, RunnerError> {
        self.working()?;
        self.change(&session, closing.event())
    }

    async fn resume(&self, session: Session, _: AgentVersion) -> Result<Session, RunnerError> {
        self.working()?;
        self.change(&session, SessionEvent::Resume)
    }

    fn load(&self) -> Load {
        Load { total: 2, warm: 1, running: 1, max_capacity: 8, ..Load::default() }
    }
}

struct Reader {
    store: Arc<Memory>,
    session: SessionId,
    position: Sequence,
}

impl Reader {
    fn batch(&self) -> Option<Batch> {
        let tables = self.store.tables();
        let log = tables.logs.get(&self.session)?;
        let rest = log.iter().filter(|entry| entry.sequence > self.position).take(BATCH);
        let batch: Batch = rest.map(|entry| Arc::new(LoggedEntry::new(entry.clone()))).collect();
        (!batch.is_empty()).then_some(batch)
    }
}

#[async_trait]
impl EntryReader for Reader {
    async fn next(&mut self) -> Result<Option<Batch>, ReadError> {
        let mut changes = self.store.changed.subscribe();
        loop {
            if let Some(batch) = self.batch() {
                self.position = batch.last().unwrap().entry.sequence;
                return Ok(Some(batch));
            }
            if let Some(error) = self.store.tables().failure.clone() {
                return Err(error.into());
            }
            let ended = {
                let tables = self.store.tables();
                tables.sessions.iter().any(|row| row.id == self.session && row.state == SessionState::Ended)
            };
            if ended {
                return Ok(None);
            }
            changes.changed().await.unwrap();
        }
    }

    fn position(&self) -> ash_core::Sequence {
        self.position
    }

    fn turn_in_progress(&self) -> bool {
        self.batch().is_some() || running(&self.store, self.session)
    }
}
