//! The standalone server's runner with the model keys of its sessions: what a coordinator does for runners, in one process.

use std::sync::Arc;

use ash_coordinator::ModelKeySource;
use ash_core::{
    agent::AgentVersion,
    id::SessionId,
    ports::{EntryReader, FleetStore, Load, NewMessage, Runner, RunnerError, Sent},
    session::{Closing, Session},
    sse::Position,
};
use ash_protocol::{message::Decision, options::SessionOptions};
use ash_runner::LocalRunner;
use async_trait::async_trait;

/// A runner that is told each session's own key before the session. Those without one have the gateway's.
pub(super) struct KeyedRunner {
    runner: Arc<LocalRunner>,
    keys: ModelKeySource,
}

impl KeyedRunner {
    /// Wraps a runner, and gives it the keys of the sessions that it has already.
    pub(super) async fn start(runner: Arc<LocalRunner>, store: Arc<dyn FleetStore>) -> Result<Self, RunnerError> {
        let placed = store.placed_sessions().await?;
        let keyed = Self { runner, keys: ModelKeySource::new(Arc::clone(&store), None) };
        for session in placed {
            let agent = store.agent_version(&session.tenant, session.agent, session.agent_version).await?;
            let Some(agent) = agent else { continue };
            if let Err(error) = keyed.tell(&session, &agent).await {
                tracing::warn!(session = %session.id, %error, "a session has no model key");
            }
        }
        Ok(keyed)
    }

    async fn tell(&self, session: &Session, agent: &AgentVersion) -> Result<(), RunnerError> {
        let key = self.keys.of(session, &agent.settings).await?;
        self.runner.keep_model_key(session.id, key.as_ref());
        Ok(())
    }
}

#[async_trait]
impl Runner for KeyedRunner {
    fn prepare(&self, agent: AgentVersion) {
        self.runner.prepare(agent);
    }

    fn forget(&self, agent: &AgentVersion) {
        self.runner.forget(agent);
    }

    async fn place(&self, session: Session, agent: AgentVersion) -> Result<Session, RunnerError> {
        // A session is made whatever is wrong with its key: its first message says what it is.
        if let Err(error) = self.tell(&session, &agent).await {
            tracing::warn!(session = %session.id, %error, "a session has no model key");
        }
        self.runner.place(session, agent).await
    }

    async fn send(&self, session: Session, agent: AgentVersion, message: NewMessage) -> Result<Sent, RunnerError> {
        self.tell(&session, &agent).await?;
        self.runner.send(session, agent, message).await
    }

    async fn read(&self, session: &Session, after: Position) -> Result<Box<dyn EntryReader>, RunnerError> {
        self.runner.read(session, after).await
    }

    async fn interrupt(&self, session: SessionId) -> Result<bool, RunnerError> {
        self.runner.interrupt(session).await
    }

    async fn answer(&self, session: SessionId, permission: &str, decision: Decision) -> Result<(), RunnerError> {
        self.runner.answer(session, permission, decision).await
    }

    async fn configure(&self, session: SessionId, options: SessionOptions) -> Result<(), RunnerError> {
        self.runner.configure(session, options).await
    }

    async fn close(&self, session: Session, closing: Closing) -> Result<Session, RunnerError> {
        self.runner.close(session, closing).await
    }

    async fn resume(&self, session: Session, agent: AgentVersion) -> Result<Session, RunnerError> {
        self.tell(&session, &agent).await?;
        self.runner.resume(session, agent).await
    }

    fn load(&self) -> Load {
        self.runner.load()
    }
}
