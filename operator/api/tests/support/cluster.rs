//! The resources of a cluster in memory.

use std::sync::{Mutex, MutexGuard};

use ash_core::{
    Epoch,
    agent::AgentSettings,
    id::{SessionId, TenantId},
    name::AgentName,
    ports::{AgentRequest, ResourceError, Resources, SessionRequest},
};
use ash_protocol::options::SessionOptions;
use async_trait::async_trait;

/// A `Session`.
pub struct Resource {
    pub id: SessionId,
    pub request: SessionRequest,
    pub is_ended: bool,
}

#[derive(Default)]
pub struct Cluster {
    sessions: Mutex<Vec<Resource>>,
    /// What others have set on every agent's sandboxes.
    pub sandbox: Mutex<Option<serde_json::Map<String, serde_json::Value>>>,
}

impl Cluster {
    pub fn sessions(&self) -> MutexGuard<'_, Vec<Resource>> {
        self.sessions.lock().unwrap()
    }
}

#[async_trait]
impl Resources for Cluster {
    async fn create_session(&self, request: SessionRequest) -> Result<SessionId, ResourceError> {
        let mut sessions = self.sessions();
        let name = |request: &SessionRequest| (request.agent.clone(), request.idempotency_key.clone());
        let is_same =
            |known: &&Resource| known.request.idempotency_key.is_some() && name(&known.request) == name(&request);
        if let Some(known) = sessions.iter().find(is_same) {
            return Ok(known.id);
        }
        let id = SessionId::new();
        sessions.push(Resource { id, request, is_ended: false });
        Ok(id)
    }

    async fn suspend_session(&self, _: &TenantId, _: SessionId, _: bool, _: bool) -> Result<(), ResourceError> {
        Ok(())
    }

    async fn configure_session(
        &self,
        _: &TenantId,
        id: SessionId,
        _: &SessionOptions,
        to: &SessionOptions,
    ) -> Result<(), ResourceError> {
        let mut sessions = self.sessions();
        sessions.iter_mut().filter(|known| known.id == id).for_each(|known| known.request.options = to.clone());
        Ok(())
    }

    async fn end_session(&self, _: &TenantId, id: SessionId) -> Result<(), ResourceError> {
        self.sessions().iter_mut().filter(|known| known.id == id).for_each(|known| known.is_ended = true);
        Ok(())
    }

    async fn wake_session(&self, _: &TenantId, _: SessionId, _: Epoch) -> Result<(), ResourceError> {
        Ok(())
    }

    async fn check_agent(&self, request: &AgentRequest) -> Result<AgentSettings, ResourceError> {
        Ok(AgentSettings { sandbox: self.sandbox.lock().unwrap().clone(), ..request.settings.clone() })
    }

    async fn apply_agent(&self, _: AgentRequest) -> Result<(), ResourceError> {
        Ok(())
    }

    async fn delete_agent(&self, _: &TenantId, _: &AgentName) -> Result<bool, ResourceError> {
        Ok(true)
    }
}
