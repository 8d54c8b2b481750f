//! What stands for the coordinators' part of the store and for the runners: rows in memory, and a runner whose every warm sandbox
//! takes the session that it is given.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use ash_controllers::Fleet;
use ash_core::{
    agent::AgentVersion,
    fleet::RunnerId,
    id::{AgentId, SandboxId, SessionId, TenantId, TurnId},
    opening::{Opening, OpeningReason},
    ports::{
        Clear, Credential, CredentialKind, CredentialStore, EntryReader, Load, NewMessage, OpenEpoch, PodIdentity,
        PodSandbox, PodState, PodStore, Runner, RunnerError, RunnerRow, Sent, Store, StoreError,
    },
    session::{Closing, Session, SessionEvent, SessionState},
    sse::Position,
};
use ash_protocol::{message::Decision, options::SessionOptions};
use async_trait::async_trait;
use jiff::Timestamp;
use secrecy::{ExposeSecret as _, SecretBox};
use uuid::Uuid;

pub fn runner_id() -> RunnerId {
    RunnerId { name: "node1".parse().unwrap(), incarnation: Uuid::from_u128(1) }
}

#[derive(Default)]
#[allow(clippy::struct_field_names, reason = "the rows, and what else becomes of them")]
pub struct Rows {
    pub rows: Mutex<BTreeMap<SandboxId, PodSandbox>>,
    pub idle: Mutex<BTreeMap<AgentId, Duration>>,
    /// The next look at sandboxes fails in a way that nobody thought of.
    pub has_defect: AtomicBool,
    /// The same of the next look at a session's.
    pub has_defect_of_session: AtomicBool,
}

impl Rows {
    fn change(&self, id: SandboxId, change: impl FnOnce(&mut PodSandbox) -> bool) -> bool {
        let mut rows = self.rows.lock().unwrap();
        let Some(row) = rows.get_mut(&id) else { return false };
        let changed = change(row);
        if changed {
            row.changed_at = Timestamp::now();
        }
        changed
    }

    pub fn all(&self) -> Vec<PodSandbox> {
        self.rows.lock().unwrap().values().cloned().collect()
    }
}

#[async_trait]
impl PodStore for Rows {
    async fn add_pod(&self, pod: PodSandbox) -> Result<(), StoreError> {
        let mut rows = self.rows.lock().unwrap();
        let has =
            |row: &PodSandbox| row.session.is_some() && row.session == pod.session && row.state != PodState::Deleting;
        if rows.values().any(has) {
            return Err(StoreError::Conflict("the session has a sandbox".into()));
        }
        rows.insert(pod.id, pod);
        Ok(())
    }

    async fn admit_pod(&self, pod: &PodIdentity, runner: &RunnerId) -> Result<Option<PodSandbox>, StoreError> {
        let mut rows = self.rows.lock().unwrap();
        let found = rows.values_mut().find(|row| row.tenant.0 == pod.namespace && row.pod == pod.pod);
        Ok(found.map(|row| {
            row.pod_uid = Some(pod.pod_uid.clone());
            row.node = Some(pod.node.clone());
            row.runner = Some(runner.clone());
            row.clone()
        }))
    }

    async fn pod_is_warm(&self, id: SandboxId) -> Result<bool, StoreError> {
        Ok(self.change(id, |row| {
            let may = row.state == PodState::Starting && row.session.is_none();
            if may {
                row.state = PodState::Warm;
            }
            may
        }))
    }

    async fn claim_warm(
        &self,
        tenant: &TenantId,
        agent: AgentId,
        version: u32,
        session: SessionId,
    ) -> Result<Option<PodSandbox>, StoreError> {
        let mut rows = self.rows.lock().unwrap();
        if let Some(own) = rows.values().find(|row| row.session == Some(session) && row.state == PodState::Claimed) {
            return Ok(Some(own.clone()));
        }
        let fits = |row: &&mut PodSandbox| {
            row.tenant == *tenant && row.agent == agent && row.agent_version == version && row.state == PodState::Warm
        };
        Ok(rows.values_mut().find(fits).map(|row| {
            row.state = PodState::Claimed;
            row.session = Some(session);
            row.changed_at = Timestamp::now();
            row.clone()
        }))
    }

    async fn delete_unclaimed_pod(&self, id: SandboxId) -> Result<bool, StoreError> {
        Ok(self.change(id, |row| {
            let may = row.session.is_none() && matches!(row.state, PodState::Warm | PodState::Starting);
            if may {
                row.state = PodState::Deleting;
            }
            may
        }))
    }

    async fn delete_pod(&self, id: SandboxId) -> Result<bool, StoreError> {
        Ok(self.change(id, |row| {
            let may = row.state != PodState::Deleting;
            row.state = PodState::Deleting;
            may
        }))
    }

    async fn remove_pod(&self, id: SandboxId) -> Result<(), StoreError> {
        self.rows.lock().unwrap().remove(&id);
        Ok(())
    }

    async fn pod_of(&self, session: SessionId) -> Result<Option<PodSandbox>, StoreError> {
        assert!(!self.has_defect_of_session.swap(false, Ordering::SeqCst), "a defect, on purpose");
        let rows = self.rows.lock().unwrap();
        Ok(rows.values().find(|row| row.session == Some(session) && row.state != PodState::Deleting).cloned())
    }

    async fn set_idle_timeout(&self, _: &TenantId, agent: AgentId, timeout: Duration) -> Result<(), StoreError> {
        self.idle.lock().unwrap().insert(agent, timeout);
        Ok(())
    }

    async fn idle_timeout(&self, _: &TenantId, agent: AgentId) -> Result<Option<Duration>, StoreError> {
        Ok(self.idle.lock().unwrap().get(&agent).copied())
    }

    async fn pods(&self, tenant: Option<&TenantId>) -> Result<Vec<PodSandbox>, StoreError> {
        assert!(!self.has_defect.swap(false, Ordering::SeqCst), "a defect, on purpose");
        Ok(self.all().into_iter().filter(|row| tenant.is_none_or(|tenant| row.tenant == *tenant)).collect())
    }
}

#[derive(Default)]
pub struct Secrets {
    pub stored: Mutex<BTreeMap<(TenantId, String), (Credential, Vec<u8>)>>,
}

#[async_trait]
impl CredentialStore for Secrets {
    async fn put_credential(
        &self,
        tenant: &TenantId,
        name: &str,
        kind: CredentialKind,
        secret: &Clear,
    ) -> Result<Credential, StoreError> {
        let credential = Credential {
            id: Uuid::new_v4(),
            tenant: tenant.clone(),
            name: name.to_owned(),
            kind,
            created_at: Timestamp::now(),
        };
        let stored = (credential.clone(), secret.expose_secret().to_vec());
        self.stored.lock().unwrap().insert((tenant.clone(), name.to_owned()), stored);
        Ok(credential)
    }

    async fn credentials(&self, _: &TenantId) -> Result<Vec<Credential>, StoreError> {
        Ok(self.stored.lock().unwrap().values().map(|(credential, _)| credential.clone()).collect())
    }

    async fn reveal_credential(&self, _: &TenantId, id: Uuid) -> Result<Option<(Credential, Clear)>, StoreError> {
        let stored = self.stored.lock().unwrap();
        let found = stored.values().find(|(credential, _)| credential.id == id);
        Ok(found.map(|(credential, bytes)| (credential.clone(), SecretBox::new(bytes.clone().into_boxed_slice()))))
    }

    async fn reveal_credential_named(
        &self,
        tenant: &TenantId,
        name: &str,
    ) -> Result<Option<(Credential, Clear)>, StoreError> {
        let stored = self.stored.lock().unwrap();
        let found = stored.get(&(tenant.clone(), name.to_owned()));
        Ok(found.map(|(credential, bytes)| (credential.clone(), SecretBox::new(bytes.clone().into_boxed_slice()))))
    }

    async fn delete_credential_named(&self, tenant: &TenantId, name: &str) -> Result<bool, StoreError> {
        Ok(self.stored.lock().unwrap().remove(&(tenant.clone(), name.to_owned())).is_some())
    }

    async fn delete_credential(&self, _: &TenantId, _: Uuid) -> Result<bool, StoreError> {
        Ok(false)
    }
}

/// One runner that is always there.
pub struct OneRunner;

#[async_trait]
impl Fleet for OneRunner {
    async fn runners(&self) -> Result<Vec<RunnerRow>, StoreError> {
        Ok(vec![RunnerRow {
            id: runner_id(),
            address: "http://runner".into(),
            pool: "default".into(),
            node: "node1".into(),
            release: "0".into(),
            capacity: 100,
            used: 0,
            load: Load::default(),
            cordoned: false,
            ready: true,
            silent: Duration::ZERO,
            restarting: None,
            version: 1,
        }])
    }
}

/// A runner that opens epochs and does nothing else.
pub struct FakeRunner {
    pub store: Arc<dyn Store>,
    pub rows: Arc<Rows>,
    pub sent: Mutex<Vec<(SessionId, TurnId, String)>>,
}

impl FakeRunner {
    pub async fn open(
        &self,
        session: &Session,
        event: SessionEvent,
        reason: OpeningReason,
        sandbox: Option<SandboxId>,
    ) -> Result<Session, RunnerError> {
        loop {
            let row = self.store.session(&session.tenant, session.id).await?.unwrap();
            let state = row.state.after(event).map_err(|refused| RunnerError::State(refused.0))?;
            if row.state == state && row.sandbox == sandbox {
                return Ok(row);
            }
            let opening = Opening {
                reason,
                last_committed: row.last,
                interrupted: None,
                message: None,
                recovered: None,
                sandbox: None,
            };
            let open = OpenEpoch { session: row.id, expected: row.epoch, state, error: None, sandbox, opening };
            match self.store.open_epoch(open).await {
                Err(StoreError::Overtaken { .. }) => {}
                opened => return Ok(opened?),
            }
        }
    }
}

#[async_trait]
impl Runner for FakeRunner {
    fn prepare(&self, _: AgentVersion) {}
    fn forget(&self, _: &AgentVersion) {}

    async fn place(&self, session: Session, agent: AgentVersion) -> Result<Session, RunnerError> {
        let claimed = self.rows.claim_warm(&session.tenant, agent.agent, agent.number, session.id).await?;
        let Some(claimed) = claimed else { return Ok(session) };
        self.open(&session, SessionEvent::Message, OpeningReason::Claimed, Some(claimed.id)).await
    }

    async fn send(&self, session: Session, _: AgentVersion, message: NewMessage) -> Result<Sent, RunnerError> {
        self.sent.lock().unwrap().push((session.id, message.turn, message.content.get().to_owned()));
        struct Nothing;
        #[async_trait]
        impl EntryReader for Nothing {
            async fn next(&mut self) -> Result<Option<ash_core::ports::Batch>, ash_core::ports::ReadError> {
                Ok(None)
            }
            fn position(&self) -> ash_protocol::Sequence {
                ash_protocol::Sequence::START
            }
            fn turn_in_progress(&self) -> bool {
                false
            }
        }
        Ok(Sent { joined: false, reader: Box::new(Nothing) })
    }

    async fn read(&self, _: &Session, _: Position) -> Result<Box<dyn EntryReader>, RunnerError> {
        Err(RunnerError::Internal("not here".into()))
    }

    async fn interrupt(&self, _: SessionId) -> Result<bool, RunnerError> {
        Ok(false)
    }

    async fn answer(&self, _: SessionId, _: &str, _: Decision) -> Result<(), RunnerError> {
        Ok(())
    }

    async fn configure(&self, _: SessionId, _: SessionOptions) -> Result<(), RunnerError> {
        Ok(())
    }

    async fn close(&self, session: Session, closing: Closing) -> Result<Session, RunnerError> {
        let row = self.store.session(&session.tenant, session.id).await?.unwrap();
        if closing == Closing::End && row.state == SessionState::Ended {
            return Ok(row);
        }
        self.open(&session, closing.event(), closing.reason(), None).await
    }

    async fn resume(&self, session: Session, _: AgentVersion) -> Result<Session, RunnerError> {
        self.open(&session, SessionEvent::Resume, OpeningReason::Resumed, None).await
    }

    fn load(&self) -> Load {
        Load::default()
    }
}
