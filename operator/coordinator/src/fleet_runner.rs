//! The runner's port over the wire: finds a session's runner and passes the call on.

use std::sync::Arc;

use ash_core::{
    agent::AgentVersion,
    fleet::{Answer, Close, Configure, Place, Send, Taken},
    id::SessionId,
    opening::OpeningReason,
    placement::{Stage, Want},
    ports::{EntryReader, Load, NewMessage, Runner, RunnerError, Sent, Store, StoreError},
    session::{Closing, Impossible, Session, SessionEvent},
    sse::Position,
};
use ash_protocol::{Sequence, fleet::runner as path, message::Decision, options::SessionOptions};
use async_trait::async_trait;
use tokio::time::{Instant, sleep, timeout};

use crate::{
    calls::{self, CallError},
    limits::{CALL, RETRY, RUNNER_WAIT, SEND},
    lost,
    reader::FleetReader,
    registry::{Registry, Target, Whereabouts},
    service::push_warm,
};

/// The sessions of all runners.
pub struct FleetRunner {
    registry: Arc<Registry>,
    store: Arc<dyn Store>,
}

impl FleetRunner {
    /// The runners of this registry, whose sessions are in this store.
    pub fn new(registry: Arc<Registry>, store: Arc<dyn Store>) -> Self {
        Self { registry, store }
    }

    fn reader(&self, session: Session, after: Sequence) -> FleetReader {
        FleetReader::new(&self.registry, &self.store, session, after)
    }

    /// The runner that has a session now.
    fn on(&self, session: SessionId) -> Option<Target> {
        match self.registry.locate(session) {
            Whereabouts::On(target) => Some(target),
            _ => None,
        }
    }

    /// Waits while a session's runner may still come back after this coordinator started.
    async fn wait_awaited(&self, session: SessionId) {
        let _ = timeout(RUNNER_WAIT, async {
            loop {
                let changed = self.registry.changed();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if !matches!(self.registry.locate(session), Whereabouts::Awaited) {
                    return;
                }
                changed.await;
            }
        })
        .await;
    }

    /// A place that was reserved and came to nothing is free again.
    fn give_back(&self, session: SessionId) {
        self.registry.change(|fleet, _| {
            if fleet.route(session).is_some_and(|route| matches!(route.stage, Stage::Reserved { .. })) {
                fleet.left(session);
            }
        });
    }

    fn failed(&self, error: CallError) -> RunnerError {
        if !matches!(error, CallError::Runner(_)) {
            self.registry.metrics.unanswered.inc();
        }
        error.into_runner_error()
    }

    /// The turn of a message whose runner was lost while it took it: in the log, or nowhere.
    async fn after_loss(&self, session: Session, message: &NewMessage) -> Result<Sent, RunnerError> {
        let Some(turn) = self.store.turn(session.id, message.turn).await? else {
            return Err(RunnerError::Unreachable(
                "the session's runner was lost while it took the message, which may have begun: look, and send it again"
                    .to_owned(),
            ));
        };
        let reader = self.reader(session, Sequence(turn.first.0.saturating_sub(1))).of_turn(message.turn);
        Ok(Sent { joined: true, reader: Box::new(reader) })
    }
}

fn allowed(changed: Result<Result<Session, Impossible>, StoreError>) -> Result<Session, RunnerError> {
    changed?.map_err(|impossible| RunnerError::State(impossible.0))
}

#[async_trait]
impl Runner for FleetRunner {
    fn prepare(&self, agent: AgentVersion) {
        self.registry.change_warm(|list| {
            list.versions.retain(|version| version.agent != agent.agent);
            list.versions.push(agent);
        });
        push_warm(&self.registry);
    }

    fn forget(&self, agent: &AgentVersion) {
        self.registry.change_warm(|list| list.versions.retain(|version| version.agent != agent.agent));
        push_warm(&self.registry);
    }

    async fn place(&self, session: Session, agent: AgentVersion) -> Result<Session, RunnerError> {
        // Without room, or a runner, its first message finds it one.
        let Some(target) = self.registry.find_place(session.id, Want::Free) else { return Ok(session) };
        let model_key = self.registry.config.model_key.clone();
        let place = Place { session: session.clone(), agent, model_key, sandbox: None };
        match calls::call(&target, path::PLACE, CALL, &place).await {
            Ok(placed) => Ok(placed),
            Err(error) => {
                let error = self.failed(error);
                tracing::warn!(session = %session.id, runner = %target.id.name, %error, "a new session got no place yet");
                self.give_back(session.id);
                Ok(session)
            }
        }
    }

    async fn send(&self, session: Session, agent: AgentVersion, message: NewMessage) -> Result<Sent, RunnerError> {
        let deadline = Instant::now() + RUNNER_WAIT;
        let model_key = self.registry.config.model_key.clone();
        let send = Send { place: Place { session: session.clone(), agent, model_key, sandbox: None }, message };
        let mut uncertain: Option<Target> = None;
        loop {
            let changed = self.registry.changed();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let target = self.registry.find_place(session.id, Want::Any);
            // Only the same life of the same runner knows whether it took the message.
            if let Some(uncertain) = &uncertain
                && target.as_ref().is_none_or(|target| target.id != uncertain.id)
            {
                return self.after_loss(session, &send.message).await;
            }
            if let Some(target) = target {
                match calls::stream::<Taken>(&target, path::SEND, SEND, &send).await {
                    Ok((taken, frames)) => {
                        let turn = send.message.turn;
                        let mut reader =
                            self.reader(session, Sequence::START).of_turn(turn).with_stream(target, frames);
                        reader.begin().await;
                        return Ok(Sent { joined: taken.joined, reader: Box::new(reader) });
                    }
                    Err(CallError::Runner(error)) => {
                        self.give_back(session.id);
                        return Err(error);
                    }
                    Err(CallError::Nothing(error)) => {
                        self.registry.metrics.unanswered.inc();
                        tracing::debug!(session = %session.id, runner = %target.id.name, %error, "a message is tried again");
                    }
                    Err(CallError::Unknown(error)) => {
                        self.registry.metrics.unanswered.inc();
                        tracing::warn!(session = %session.id, runner = %target.id.name, %error, "a message may have been taken");
                        uncertain = Some(target);
                    }
                }
            }
            if Instant::now() >= deadline {
                return Err(RunnerError::Unreachable(format!(
                    "no runner took the session within {} s: try again later, or start one (`ash runner`)",
                    RUNNER_WAIT.as_secs()
                )));
            }
            tokio::select! {
                () = changed => {}
                () = sleep(RETRY) => {}
            }
        }
    }

    async fn read(&self, session: &Session, after: Position) -> Result<Box<dyn EntryReader>, RunnerError> {
        let mut reader = self.reader(session.clone(), after.entries_after());
        reader.begin().await;
        Ok(Box::new(reader))
    }

    async fn interrupt(&self, session: SessionId) -> Result<bool, RunnerError> {
        self.wait_awaited(session).await;
        let Some(target) = self.on(session) else { return Ok(false) };
        calls::call(&target, path::INTERRUPT, CALL, &session).await.map_err(|error| self.failed(error))
    }

    async fn answer(&self, session: SessionId, permission: &str, decision: Decision) -> Result<(), RunnerError> {
        self.wait_awaited(session).await;
        let target = self.on(session).ok_or(RunnerError::UnknownPermission)?;
        let answer = Answer { session, permission: permission.to_owned(), decision };
        calls::call(&target, path::ANSWER, CALL, &answer).await.map_err(|error| self.failed(error))
    }

    async fn configure(&self, session: SessionId, options: SessionOptions) -> Result<(), RunnerError> {
        self.wait_awaited(session).await;
        let Some(target) = self.on(session) else { return Ok(()) };
        let configure = Configure { session, options };
        calls::call(&target, path::CONFIGURE, CALL, &configure).await.map_err(|error| self.failed(error))
    }

    async fn close(&self, session: Session, closing: Closing) -> Result<Session, RunnerError> {
        self.wait_awaited(session.id).await;
        let close = Close { session, closing };
        let by_itself = || lost::change(&*self.store, &close.session, closing.event(), closing.reason());
        let closed = match self.registry.locate(close.session.id) {
            Whereabouts::On(target) => {
                calls::call(&target, path::CLOSE, CALL, &close).await.map_err(|error| self.failed(error))?
            }
            // The readers of a session that sleeps are where its files are.
            Whereabouts::Home(target) => match calls::call(&target, path::CLOSE, CALL, &close).await {
                Ok(closed) => closed,
                Err(CallError::Runner(error)) => return Err(error),
                Err(_) => allowed(by_itself().await)?,
            },
            Whereabouts::Awaited | Whereabouts::Nowhere => allowed(by_itself().await)?,
        };
        match closing {
            Closing::End => self.registry.change(|fleet, _| fleet.forget(close.session.id)),
            Closing::Pause | Closing::Stop => {}
        }
        Ok(closed)
    }

    async fn resume(&self, session: Session, agent: AgentVersion) -> Result<Session, RunnerError> {
        self.wait_awaited(session.id).await;
        let by_itself = || lost::change(&*self.store, &session, SessionEvent::Resume, OpeningReason::Resumed);
        let Some(target) = self.registry.find_place(session.id, Want::Free) else { return allowed(by_itself().await) };
        let model_key = self.registry.config.model_key.clone();
        let place = Place { session: session.clone(), agent, model_key, sandbox: None };
        match calls::call(&target, path::RESUME, CALL, &place).await {
            Ok(resumed) => Ok(resumed),
            Err(error) => {
                self.give_back(session.id);
                Err(self.failed(error))
            }
        }
    }

    fn load(&self) -> Load {
        self.registry.load()
    }
}
