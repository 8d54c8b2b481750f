//! The runner's port over the wire: finds a session's runner and passes the call on.

use std::sync::Arc;

use ash_core::{
    Epoch,
    agent::AgentVersion,
    fleet::{Answer, Close, Configure, ModelKey, Place, Send, Taken},
    id::{SandboxId, SessionId},
    opening::OpeningReason,
    placement::Want,
    ports::{EntryReader, Load, NewMessage, Runner, RunnerError, Sent, StoreError},
    session::{Closing, Impossible, Session, SessionEvent},
    sse::Position,
};
use ash_protocol::{Sequence, fleet::runner as path, message::Decision, options::SessionOptions};
use async_trait::async_trait;
use tokio::time::{Instant, sleep};

use crate::{
    calls::{self, CallError},
    limits::{CALL, PLACE_RETRY, RETRY, RUNNER_WAIT, SEND},
    lost,
    reader::FleetReader,
    registry::{Registry, Target},
    routes::Whereabouts,
    warm,
};

/// The sessions of all runners.
pub struct FleetRunner {
    registry: Arc<Registry>,
}

/// Where a session gets served.
enum Spot {
    /// Here.
    At {
        target: Target,
        /// The pod that was claimed for it, where sandboxes are pods.
        sandbox: Option<SandboxId>,
    },
    /// Its pod is on the way.
    Coming,
    /// Nowhere yet.
    Nowhere,
}

impl Spot {
    fn of(target: Option<Target>, sandbox: Option<SandboxId>) -> Self {
        target.map_or(Self::Nowhere, |target| Self::At { target, sandbox })
    }
}

impl FleetRunner {
    /// The runners of this registry.
    pub fn new(registry: Arc<Registry>) -> Self {
        Self { registry }
    }

    fn reader(&self, session: Session, after: Sequence) -> FleetReader {
        FleetReader::new(&self.registry, session, after)
    }

    /// The runner that has a session now. One that is not registered may come back: it is waited for.
    async fn on(&self, session: SessionId, epoch: Option<Epoch>) -> Result<Whereabouts, RunnerError> {
        let deadline = Instant::now() + RUNNER_WAIT;
        loop {
            match self.registry.locate(session, epoch).await? {
                Whereabouts::Awaited if Instant::now() < deadline => sleep(PLACE_RETRY).await,
                found => return Ok(found),
            }
        }
    }

    async fn live(&self, session: SessionId) -> Result<Option<Target>, RunnerError> {
        Ok(match self.on(session, None).await? {
            Whereabouts::On(target) => Some(target),
            _ => None,
        })
    }

    fn failed(&self, error: CallError) -> RunnerError {
        if !matches!(error, CallError::Runner(_)) {
            self.registry.metrics.unanswered.inc();
        }
        error.into_runner_error()
    }

    /// What a runner needs and the log and the resource do not have: the agent's secret variables, and the session's key.
    async fn secrets(
        &self,
        session: &Session,
        agent: AgentVersion,
    ) -> Result<(AgentVersion, Option<ModelKey>), RunnerError> {
        let model_key = self.registry.keys.of(session, &agent.settings).await?;
        Ok((self.registry.keys.complete(agent).await?, model_key))
    }

    /// Finds a session a place. What is known of it holds while its epoch is `known`.
    async fn spot(&self, session: &Session, want: Want, known: Option<Epoch>) -> Result<Spot, RunnerError> {
        if self.registry.config.pods.is_none() {
            return Ok(Spot::of(self.registry.find_place(session, want, known).await?, None));
        }
        if session.epoch != Epoch::NONE {
            match self.registry.locate(session.id, known).await? {
                Whereabouts::On(target) => return Ok(Spot::At { target, sandbox: None }),
                Whereabouts::Awaited => return Ok(Spot::Coming),
                Whereabouts::Home(_) | Whereabouts::Nowhere => {}
            }
        }
        let Session { id, tenant, agent, agent_version, .. } = session;
        let Some(pod) = self.registry.store.claim_warm(tenant, *agent, *agent_version, *id).await? else {
            self.registry.metrics.pods_missed.inc();
            return Ok(Spot::Nowhere);
        };
        // One that starts for it names no runner yet.
        let Some(runner) = pod.runner else { return Ok(Spot::Coming) };
        self.registry.metrics.pods_claimed.inc();
        Ok(match self.registry.target(&runner.name).await {
            Some(target) => Spot::At { target, sandbox: Some(pod.id) },
            None => Spot::Coming,
        })
    }

    /// Asks the operator for a pod, once in each epoch of the log: what was asked in an earlier one has had its answer.
    async fn wake(&self, session: &Session, asked: &mut Option<Epoch>) -> Result<(), RunnerError> {
        let Some(resources) = self.registry.config.pods.as_ref().and_then(|pods| pods.resources.as_ref()) else {
            return Ok(());
        };
        let now = self.registry.store.session(&session.tenant, session.id).await?;
        let epoch = now.map_or(session.epoch, |now| now.epoch);
        if asked.replace(epoch) == Some(epoch) {
            return Ok(());
        }
        self.registry.metrics.wakes.inc();
        resources
            .wake_session(&session.tenant, session.id, epoch)
            .await
            .map_err(|error| RunnerError::Unreachable(error.to_string()))
    }

    /// What is said where no place was found in time.
    fn no_place(&self) -> RunnerError {
        let waited_seconds = RUNNER_WAIT.as_secs();
        if self.registry.config.pods.is_some() {
            return RunnerError::NoCapacity { waited_seconds };
        }
        RunnerError::Unreachable(format!(
            "no runner took the session within {waited_seconds} s: try again later, or start one (`ash runner`)"
        ))
    }

    /// The turn of a message whose runner was lost while it took it: in the log, or nowhere.
    async fn after_loss(&self, session: Session, message: &NewMessage) -> Result<Sent, RunnerError> {
        let Some(turn) = self.registry.store.turn(session.id, message.turn).await? else {
            return Err(RunnerError::Unreachable(
                "the session's runner was lost while it took the message, which may have begun: look, and send it again"
                    .to_owned(),
            ));
        };
        let reader = self.reader(session, Sequence(turn.first.0.saturating_sub(1))).of_turn(message.turn);
        Ok(Sent { joined: true, reader: Box::new(reader) })
    }

    /// A session that is over needs no pod any more.
    async fn give_up_pod(&self, session: SessionId) {
        if self.registry.config.pods.is_none() {
            return;
        }
        let given_up = async {
            match self.registry.store.pod_of(session).await? {
                Some(pod) => self.registry.store.delete_pod(pod.id).await.map(|_| ()),
                None => Ok(()),
            }
        };
        if let Err(error) = given_up.await {
            tracing::warn!(%session, %error, "the pod of an ended session stays until the operator looks");
        }
    }
}

fn allowed(changed: Result<Result<Session, Impossible>, StoreError>) -> Result<Session, RunnerError> {
    changed?.map_err(|impossible| RunnerError::State(impossible.0))
}

#[async_trait]
impl Runner for FleetRunner {
    fn prepare(&self, _agent: AgentVersion) {
        warm::refresh_soon(&self.registry);
    }

    fn forget(&self, _agent: &AgentVersion) {
        warm::refresh_soon(&self.registry);
    }

    async fn place(&self, session: Session, agent: AgentVersion) -> Result<Session, RunnerError> {
        // Whatever is in the way, the session is made: its first message finds it a place, or says why there is none.
        let later =
            |error: &RunnerError| tracing::warn!(session = %session.id, %error, "a new session got no place yet");
        let (agent, model_key) = match self.secrets(&session, agent).await {
            Ok(secrets) => secrets,
            Err(error) => {
                later(&error);
                return Ok(session);
            }
        };
        let (target, sandbox) = match self.spot(&session, Want::Free, None).await {
            Ok(Spot::At { target, sandbox }) => (target, sandbox),
            Ok(Spot::Coming | Spot::Nowhere) => return Ok(session),
            Err(error) => {
                later(&error);
                return Ok(session);
            }
        };
        let place = Place { session: session.clone(), agent, model_key, sandbox };
        match calls::call(&target, path::PLACE, CALL, &place).await {
            Ok(placed) => Ok(placed),
            Err(error) => {
                later(&self.failed(error));
                self.registry.give_back(session.id).await;
                Ok(session)
            }
        }
    }

    async fn send(&self, session: Session, agent: AgentVersion, message: NewMessage) -> Result<Sent, RunnerError> {
        let deadline = Instant::now() + RUNNER_WAIT;
        let (agent, model_key) = self.secrets(&session, agent).await?;
        let mut send = Send { place: Place { session: session.clone(), agent, model_key, sandbox: None }, message };
        let mut uncertain: Option<Target> = None;
        let mut woken = None;
        // The row is fresh now; what is known on its word is asked for anew when it did not work.
        let mut known = session.sandbox.map(|_| session.epoch);
        loop {
            let changed = self.registry.changed();
            tokio::pin!(changed);
            changed.as_mut().enable();
            let spot = self.spot(&session, Want::Any, known.take()).await?;
            // Only the same life of the same runner knows whether it took the message.
            if let Some(uncertain) = &uncertain
                && !matches!(&spot, Spot::At { target, .. } if target.id == uncertain.id)
            {
                return self.after_loss(session, &send.message).await;
            }
            let mut pause = PLACE_RETRY;
            match spot {
                Spot::Nowhere => self.wake(&session, &mut woken).await?,
                Spot::Coming => {}
                Spot::At { target, sandbox } => {
                    pause = RETRY;
                    send.place.sandbox = sandbox;
                    match calls::stream::<Taken>(&target, path::SEND, SEND, &send).await {
                        Ok((taken, frames)) => {
                            let turn = send.message.turn;
                            let mut reader =
                                self.reader(session, Sequence::START).of_turn(turn).with_stream(target, frames);
                            reader.begin().await;
                            return Ok(Sent { joined: taken.joined, reader: Box::new(reader) });
                        }
                        // Its pod is not there (yet, or any more): it is looked for again.
                        Err(CallError::Runner(error @ RunnerError::Unreachable(_)))
                            if self.registry.config.pods.is_some() =>
                        {
                            self.registry.metrics.unanswered.inc();
                            tracing::debug!(session = %session.id, runner = %target.id.name, %error, "a message is tried again");
                        }
                        Err(CallError::Runner(error)) => {
                            self.registry.give_back(session.id).await;
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
            }
            if Instant::now() >= deadline {
                return Err(self.no_place());
            }
            tokio::select! {
                () = changed => {}
                () = sleep(pause) => {}
            }
        }
    }

    async fn read(&self, session: &Session, after: Position) -> Result<Box<dyn EntryReader>, RunnerError> {
        let mut reader = self.reader(session.clone(), after.entries_after());
        reader.begin().await;
        Ok(Box::new(reader))
    }

    async fn interrupt(&self, session: SessionId) -> Result<bool, RunnerError> {
        let Some(target) = self.live(session).await? else { return Ok(false) };
        calls::call(&target, path::INTERRUPT, CALL, &session).await.map_err(|error| self.failed(error))
    }

    async fn answer(&self, session: SessionId, permission: &str, decision: Decision) -> Result<(), RunnerError> {
        let target = self.live(session).await?.ok_or(RunnerError::UnknownPermission)?;
        let answer = Answer { session, permission: permission.to_owned(), decision };
        calls::call(&target, path::ANSWER, CALL, &answer).await.map_err(|error| self.failed(error))
    }

    async fn configure(&self, session: SessionId, options: SessionOptions) -> Result<(), RunnerError> {
        let Some(target) = self.live(session).await? else { return Ok(()) };
        let configure = Configure { session, options };
        calls::call(&target, path::CONFIGURE, CALL, &configure).await.map_err(|error| self.failed(error))
    }

    async fn close(&self, session: Session, closing: Closing) -> Result<Session, RunnerError> {
        let close = Close { session, closing };
        let by_itself = || lost::change(&*self.registry.store, &close.session, closing.event(), closing.reason());
        let closed = match self.on(close.session.id, None).await? {
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
        if closing == Closing::End {
            self.registry.opened(&closed, None);
            self.give_up_pod(closed.id).await;
        }
        Ok(closed)
    }

    async fn resume(&self, session: Session, agent: AgentVersion) -> Result<Session, RunnerError> {
        let (agent, model_key) = self.secrets(&session, agent).await?;
        let Spot::At { target, sandbox } = self.spot(&session, Want::Free, None).await? else {
            let store = &*self.registry.store;
            return allowed(lost::change(store, &session, SessionEvent::Resume, OpeningReason::Resumed).await);
        };
        let place = Place { session: session.clone(), agent, model_key, sandbox };
        match calls::call(&target, path::RESUME, CALL, &place).await {
            Ok(resumed) => Ok(resumed),
            Err(error) => {
                self.registry.give_back(session.id).await;
                Err(self.failed(error))
            }
        }
    }

    fn load(&self) -> Load {
        self.registry.load()
    }
}
