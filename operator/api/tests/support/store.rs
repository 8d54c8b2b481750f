//! The store in memory.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard},
};

use ash_core::{
    Entry, Epoch, Sequence,
    agent::{Agent, AgentVersion},
    id::{AgentId, KeyId, SessionId, TenantId, TurnId},
    name::AgentName,
    ports::{
        AgentStore, Append, DeployAgent, EventLog, Key, KeyStore, NewKey, NewSession, OpenEpoch, Page, SessionFilter,
        SessionPage, SessionStore, SnapshotRow, SnapshotStore, StoreError, TurnRecord,
    },
    session::{Session, SessionState},
    transcript::Transcript,
};
use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::watch;

#[derive(Default)]
pub struct Memory {
    tables: Mutex<Tables>,
    /// Counts changes, so that readers can wait for one.
    pub changed: watch::Sender<u64>,
}

#[derive(Default)]
pub struct Tables {
    pub agents: Vec<Agent>,
    pub versions: Vec<AgentVersion>,
    pub bundles: BTreeMap<String, Bytes>,
    pub sessions: Vec<Session>,
    pub idempotency: BTreeMap<String, SessionId>,
    /// The next that looks for a key does not find it yet.
    pub is_key_unknown_once: bool,
    pub logs: BTreeMap<SessionId, Vec<Entry>>,
    /// Entries from here on are not committed.
    pub uncommitted_from: BTreeMap<SessionId, usize>,
    pub keys: BTreeMap<[u8; 32], Key>,
    pub failure: Option<StoreError>,
}

impl Memory {
    pub fn tables(&self) -> MutexGuard<'_, Tables> {
        self.tables.lock().unwrap()
    }

    /// Makes every call fail from now on.
    pub fn fail(&self, error: StoreError) {
        self.tables().failure = Some(error);
    }

    /// Has the next that looks for an idempotency key not find it.
    pub fn forget_key_once(&self) {
        self.tables().is_key_unknown_once = true;
    }

    fn working(&self) -> Result<MutexGuard<'_, Tables>, StoreError> {
        let tables = self.tables();
        match &tables.failure {
            Some(error) => Err(error.clone()),
            None => Ok(tables),
        }
    }

    /// Appends to a session's log, with the next sequences.
    pub fn write(&self, session: SessionId, entries: impl IntoIterator<Item = Entry>) {
        {
            let mut tables = self.tables();
            let log = tables.logs.entry(session).or_default();
            for mut entry in entries {
                if entry.sequence == Sequence::START {
                    entry.sequence = next(log);
                }
                log.push(entry);
            }
            let last = log.last().map_or(Sequence::START, |entry| entry.sequence);
            tables.sessions.iter_mut().find(|row| row.id == session).unwrap().last = last;
        }
        self.changed.send_modify(|changes| *changes += 1);
    }

    /// The sequence of the next entry.
    pub fn next(&self, session: SessionId) -> Sequence {
        self.tables().logs.get(&session).map_or(Epoch(1).sequence(2), |log| next(log))
    }

    pub fn update(&self, session: SessionId, change: impl FnOnce(&mut Session)) -> Session {
        let updated = {
            let mut tables = self.tables();
            let session = tables.sessions.iter_mut().find(|row| row.id == session).unwrap();
            change(session);
            session.clone()
        };
        self.changed.send_modify(|changes| *changes += 1);
        updated
    }
}

fn next(log: &[Entry]) -> Sequence {
    log.last().map_or(Epoch(1).sequence(2), |last| last.sequence.next().unwrap())
}

#[async_trait]
impl AgentStore for Memory {
    async fn describe_agent(
        &self,
        tenant: &TenantId,
        name: &AgentName,
        slug: Option<String>,
        description: Option<String>,
    ) -> Result<Agent, StoreError> {
        let mut tables = self.working()?;
        let found = tables.agents.iter_mut().find(|agent| agent.tenant == *tenant && agent.name == *name);
        let agent = found.ok_or_else(|| StoreError::NotFound("there is no such agent".to_owned()))?;
        agent.slug = slug.or(agent.slug.take());
        agent.description = description.or(agent.description.take());
        Ok(agent.clone())
    }

    async fn deploy_agent(&self, deploy: DeployAgent) -> Result<Agent, StoreError> {
        let mut tables = self.working()?;
        let taken = |agent: &Agent| agent.name != deploy.name && deploy.slug.is_some() && agent.slug == deploy.slug;
        if tables.agents.iter().any(taken) {
            return Err(StoreError::Conflict("the slug is taken: choose another".to_owned()));
        }
        let old = tables.agents.iter().position(|agent| agent.tenant == deploy.tenant && agent.name == deploy.name);
        let old = old.map(|index| tables.agents.remove(index));
        let id = old.as_ref().map_or_else(AgentId::new, |old| old.id);
        let version = AgentVersion {
            agent: id,
            tenant: deploy.tenant.clone(),
            number: old.as_ref().map_or(1, |old| old.version.number + 1),
            digest: deploy.digest.clone(),
            settings: deploy.settings,
        };
        let now = Timestamp::now();
        let agent = Agent {
            id,
            tenant: deploy.tenant,
            name: deploy.name,
            slug: deploy.slug.or(old.as_ref().and_then(|old| old.slug.clone())),
            description: deploy.description,
            version: version.clone(),
            created_at: old.map_or(now, |old| old.created_at),
            updated_at: now,
        };
        tables.versions.push(version);
        tables.bundles.insert(deploy.digest, deploy.bundle);
        tables.agents.push(agent.clone());
        Ok(agent)
    }

    async fn agent(&self, tenant: &TenantId, name: &str) -> Result<Option<Agent>, StoreError> {
        let tables = self.working()?;
        let mut of_tenant = tables.agents.iter().filter(|agent| agent.tenant == *tenant);
        Ok(of_tenant.find(|agent| agent.name.as_str() == name || agent.slug.as_deref() == Some(name)).cloned())
    }

    async fn agents(&self, tenant: &TenantId) -> Result<Vec<Agent>, StoreError> {
        Ok(self.working()?.agents.iter().filter(|agent| agent.tenant == *tenant).cloned().collect())
    }

    async fn agent_version(
        &self,
        tenant: &TenantId,
        agent: AgentId,
        number: u32,
    ) -> Result<Option<AgentVersion>, StoreError> {
        let tables = self.working()?;
        let wanted =
            |version: &&AgentVersion| version.tenant == *tenant && version.agent == agent && version.number == number;
        Ok(tables.versions.iter().find(wanted).cloned())
    }

    async fn delete_agent(&self, tenant: &TenantId, name: &str) -> Result<bool, StoreError> {
        let Some(agent) = self.agent(tenant, name).await? else { return Ok(false) };
        self.tables().agents.retain(|other| other.id != agent.id);
        Ok(true)
    }

    async fn bundle(&self, _: &TenantId, digest: &str) -> Result<Option<Bytes>, StoreError> {
        Ok(self.working()?.bundles.get(digest).cloned())
    }
}

#[async_trait]
impl SessionStore for Memory {
    async fn create_session(&self, new: NewSession) -> Result<(Session, bool), StoreError> {
        let mut tables = self.working()?;
        if let Some(id) = new.idempotency_key.as_ref().and_then(|key| tables.idempotency.get(key)) {
            return Ok((tables.sessions.iter().find(|session| session.id == *id).unwrap().clone(), false));
        }
        let now = Timestamp::now();
        let session = Session {
            id: new.id,
            tenant: new.tenant,
            agent: new.agent,
            agent_name: new.agent_name,
            agent_version: new.agent_version,
            state: SessionState::Starting,
            error: None,
            sandbox: None,
            options: new.options,
            metadata: new.metadata,
            model_refused: false,
            credential: new.credential,
            epoch: Epoch::NONE,
            last: Sequence::START,
            created_at: now,
            last_active_at: now,
        };
        if let Some(key) = new.idempotency_key {
            tables.idempotency.insert(key, new.id);
        }
        tables.sessions.push(session.clone());
        Ok((session, true))
    }

    async fn session_of_key(&self, tenant: &TenantId, key: &str) -> Result<Option<Session>, StoreError> {
        let id = {
            let mut tables = self.working()?;
            let is_unknown = std::mem::take(&mut tables.is_key_unknown_once);
            tables.idempotency.get(key).copied().filter(|_| !is_unknown)
        };
        let Some(id) = id else { return Ok(None) };
        self.session(tenant, id).await
    }

    async fn session(&self, tenant: &TenantId, id: SessionId) -> Result<Option<Session>, StoreError> {
        let tables = self.working()?;
        Ok(tables.sessions.iter().find(|session| session.id == id && session.tenant == *tenant).cloned())
    }

    async fn sessions(&self, tenant: &TenantId, filter: &SessionFilter) -> Result<SessionPage, StoreError> {
        let tables = self.working()?;
        let wanted = |session: &&Session| {
            session.tenant == *tenant
                && filter.agent.as_ref().is_none_or(|agent| session.agent_name.as_str() == agent)
                && filter.state.as_ref().is_none_or(|state| session.state.name() == state)
                && filter.metadata.iter().all(|(key, value)| session.metadata.get(key) == Some(value))
        };
        let all: Vec<_> = tables.sessions.iter().rev().filter(wanted).cloned().collect();
        let total = all.len() as u64;
        let sessions = all.into_iter().skip(filter.offset as usize).take(filter.limit as usize).collect();
        Ok(SessionPage { sessions, total })
    }

    async fn placed_sessions(&self) -> Result<Vec<Session>, StoreError> {
        Ok(Vec::new())
    }

    async fn session_exists(&self, id: SessionId) -> Result<bool, StoreError> {
        Ok(self.working()?.sessions.iter().any(|session| session.id == id))
    }

    async fn count_active_sessions(&self) -> Result<u64, StoreError> {
        let tables = self.working()?;
        Ok(tables.sessions.iter().filter(|session| session.state == SessionState::Active).count() as u64)
    }
}

#[async_trait]
impl EventLog for Memory {
    async fn open_epoch(&self, _: OpenEpoch) -> Result<Session, StoreError> {
        Err(StoreError::Unavailable("not in this test".to_owned()))
    }

    async fn append(&self, appends: Vec<Append>) -> Vec<Result<(), StoreError>> {
        appends
            .into_iter()
            .map(|append| {
                self.write(append.session, append.entries);
                Ok(())
            })
            .collect()
    }

    async fn read(&self, session: SessionId, after: Sequence, max_bytes: usize) -> Result<Page, StoreError> {
        let tables = self.working()?;
        let log = tables.logs.get(&session).map(Vec::as_slice).unwrap_or_default();
        let committed = &log[..tables.uncommitted_from.get(&session).copied().unwrap_or(log.len()).min(log.len())];
        let rest: Vec<_> = committed.iter().filter(|entry| entry.sequence > after).collect();
        let mut bytes = 0;
        let entries: Vec<Entry> = rest
            .iter()
            .take_while(|entry| {
                let room = bytes < max_bytes;
                bytes += entry.body.len();
                room
            })
            .map(|entry| (*entry).clone())
            .collect();
        let through = entries.last().map_or(after, |entry| entry.sequence);
        Ok(Page { end: entries.len() == rest.len(), entries, through })
    }

    async fn transcript(&self, _: SessionId) -> Result<Option<Transcript>, StoreError> {
        Ok(None)
    }

    async fn unfinished_turn(&self, _: SessionId) -> Result<Option<TurnId>, StoreError> {
        Ok(None)
    }

    async fn turn(&self, _: SessionId, _: TurnId) -> Result<Option<TurnRecord>, StoreError> {
        Ok(None)
    }
}

#[async_trait]
impl SnapshotStore for Memory {
    async fn last_turn(&self, _: SessionId) -> Result<Option<TurnId>, StoreError> {
        Ok(None)
    }

    async fn add_snapshot(&self, _: Epoch, _: SnapshotRow) -> Result<(), StoreError> {
        Err(StoreError::Unavailable("not in this test".to_owned()))
    }

    async fn snapshots(&self, _: SessionId) -> Result<Vec<SnapshotRow>, StoreError> {
        Ok(Vec::new())
    }

    async fn snapshot_damaged(&self, _: SessionId, _: &str) -> Result<(), StoreError> {
        Err(StoreError::Unavailable("not in this test".to_owned()))
    }

    async fn tenants_with_sessions(&self) -> Result<Vec<TenantId>, StoreError> {
        Ok(Vec::new())
    }

    async fn installation(&self) -> Result<uuid::Uuid, StoreError> {
        Err(StoreError::Unavailable("not in this test".to_owned()))
    }

    async fn snapshots_of(&self, _: &TenantId) -> Result<Vec<(SessionId, String)>, StoreError> {
        Ok(Vec::new())
    }
}

#[async_trait]
impl KeyStore for Memory {
    async fn key(&self, hash: &[u8; 32]) -> Result<Option<Key>, StoreError> {
        Ok(self.working()?.keys.get(hash).cloned())
    }

    async fn has_keys(&self) -> Result<bool, StoreError> {
        Ok(!self.working()?.keys.is_empty())
    }

    async fn add_key(&self, key: NewKey) -> Result<Key, StoreError> {
        let added = Key { id: KeyId::new(), tenant: key.tenant, name: key.name, created_at: Timestamp::now() };
        self.working()?.keys.insert(key.hash, added.clone());
        Ok(added)
    }
}
