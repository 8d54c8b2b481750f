//! One served namespace: what its controllers share.

use std::{
    collections::{HashMap, HashSet},
    fmt::Debug,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ash_core::{
    id::{AgentId, SandboxId, SessionId, TenantId},
    ports::PodSandbox,
};
use ash_crd::{Agent, Session};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, Resource,
    runtime::reflector::{ObjectRef, Store},
};
use serde::de::DeserializeOwned;
use tokio::sync::mpsc;

use crate::{
    Metrics, OperatorConfig, Ports,
    event::Events,
    failure::Failure,
    limits::{FIRST_RETRY, LAST_RETRY, MAX_REMEMBERED},
    object::Guard,
    pool::{demand::Demand, events::Asked, wake::Wake},
    runners::Runners,
};

/// What the controllers of a namespace share.
pub(crate) struct Namespace {
    /// Its name.
    pub(crate) name: String,
    pub(crate) client: Client,
    pub(crate) config: Arc<OperatorConfig>,
    pub(crate) ports: Ports,
    pub(crate) metrics: Metrics,
    pub(crate) runners: Arc<Runners>,
    pub(crate) events: Events,
    pub(crate) agents: Store<Guard<Agent>>,
    pub(crate) sessions: Store<Guard<Session>>,
    pub(crate) pods: Store<Pod>,
    /// Sandboxes are looked at again.
    pub(crate) pool_wake: Wake,
    pub(crate) look_at_session: mpsc::Sender<ObjectRef<Guard<Session>>>,
    pub(crate) look_at_agent: mpsc::Sender<ObjectRef<Guard<Agent>>>,
    memory: Mutex<Memory>,
}

/// What is remembered between two looks. All of it can be lost: it makes things quieter, not right.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    /// What is wrong with sandboxes that are there.
    pub(crate) of_pods: HashMap<SandboxId, Failure>,
    /// Sandboxes of a session that failed one after another.
    pub(crate) of_sessions: HashMap<SessionId, Trouble>,
    /// Since when the sandbox of a session is its own without a place on its runner.
    pub(crate) unplaced: HashMap<SessionId, (SandboxId, Timestamp)>,
    /// Warm sandboxes of an agent that failed one after another.
    pub(crate) of_agents: HashMap<AgentId, Trouble>,
    /// What pods' Events said of which nothing starts.
    pub(crate) asked: HashMap<SandboxId, Asked>,
    pub(crate) demand: HashMap<AgentId, Demand>,
    /// Sandboxes whose session counts in the demand already.
    pub(crate) counted: HashSet<SandboxId>,
    pub(crate) counts: HashMap<AgentId, Counts>,
    /// Sessions whose first message is being sent.
    pub(crate) sending: HashSet<SessionId>,
    /// First messages whose end is known: taken, or refused with these words. The log has them soon.
    pub(crate) messages: HashMap<SessionId, Result<(), String>>,
    /// Sessions whose variables, as a REST call left them, are deleted: their rows have them.
    pub(crate) forgotten: HashSet<SessionId>,
    /// Objects that failed one time after another, by kind and name.
    retries: HashMap<(&'static str, String), u32>,
    /// When an agent's status was written last.
    pub(crate) status_written: HashMap<String, Timestamp>,
    /// Agents whose newest version is another's than the one that their status names: its number, and since when that is known.
    pub(crate) others_version: HashMap<String, (u32, Timestamp)>,
}

impl Memory {
    /// Forgets agents: those whose row is not among these, and those whose resource is gone.
    pub(crate) fn keep_agents(&mut self, rows: &HashSet<AgentId>, is_there: impl Fn(&str) -> bool) {
        self.demand.retain(|agent, _| rows.contains(agent));
        self.counts.retain(|agent, _| rows.contains(agent));
        self.of_agents.retain(|agent, _| rows.contains(agent));
        self.status_written.retain(|name, _| is_there(name));
        self.others_version.retain(|name, _| is_there(name));
    }
}

/// Sandboxes of an agent.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    pub(crate) warm: u32,
    pub(crate) active: u32,
    /// How many should be warm.
    pub(crate) target: u32,
}

/// What failed, how often, and when it is tried again.
#[derive(Debug, Clone)]
pub(crate) struct Trouble {
    pub(crate) failure: Failure,
    pub(crate) attempts: u32,
    pub(crate) not_before: Timestamp,
}

impl Trouble {
    /// One failure more.
    pub(crate) fn after(before: Option<&Self>, failure: Failure, now: Timestamp) -> Self {
        let attempts = before.map_or(0, |before| before.attempts).saturating_add(1);
        let pause = jiff::SignedDuration::try_from(pause(attempts)).unwrap_or_default();
        Self { failure, attempts, not_before: now.checked_add(pause).unwrap_or(now) }
    }
}

/// The pause after so many failures: twice as long each time.
pub(crate) fn pause(failures: u32) -> Duration {
    FIRST_RETRY.saturating_mul(1 << failures.saturating_sub(1).min(16)).min(LAST_RETRY)
}

/// What a namespace begins with.
pub(crate) struct Parts {
    pub(crate) client: Client,
    pub(crate) config: Arc<OperatorConfig>,
    pub(crate) ports: Ports,
    pub(crate) metrics: Metrics,
    pub(crate) runners: Arc<Runners>,
    pub(crate) agents: Store<Guard<Agent>>,
    pub(crate) sessions: Store<Guard<Session>>,
    pub(crate) pods: Store<Pod>,
    pub(crate) look_at_session: mpsc::Sender<ObjectRef<Guard<Session>>>,
    pub(crate) look_at_agent: mpsc::Sender<ObjectRef<Guard<Agent>>>,
}

impl Namespace {
    pub(crate) fn new(name: String, parts: Parts) -> Self {
        let events = Events::new(parts.client.clone(), &parts.config.identity);
        let Parts { client, config, ports, metrics, runners, agents, sessions, pods, look_at_session, look_at_agent } =
            parts;
        Self {
            name,
            client,
            config,
            ports,
            metrics,
            runners,
            events,
            agents,
            sessions,
            pods,
            pool_wake: Wake::default(),
            look_at_session,
            look_at_agent,
            memory: Mutex::default(),
        }
    }

    /// The tenant that it is.
    pub(crate) fn tenant(&self) -> TenantId {
        if self.name == self.config.default_namespace {
            TenantId::default_tenant()
        } else {
            TenantId(self.name.clone())
        }
    }

    /// The objects of a kind in it.
    pub(crate) fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope> + DeserializeOwned + Clone + Debug,
    {
        Api::namespaced(self.client.clone(), &self.name)
    }

    /// The same, of objects that may be malformed.
    pub(crate) fn api_guarded<K>(&self) -> Api<Guard<K>>
    where
        K: Resource<DynamicType = (), Scope = k8s_openapi::NamespaceResourceScope> + DeserializeOwned + Clone + Debug,
    {
        Api::namespaced(self.client.clone(), &self.name)
    }

    pub(crate) fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether there is an agent of this name, readable or not.
    pub(crate) fn has_agent(&self, name: &str) -> bool {
        self.agents.get(&ObjectRef::new(name).within(&self.name)).is_some()
    }

    /// An agent by its name, where it can be read.
    pub(crate) fn agent(&self, name: &str) -> Option<Agent> {
        let found = self.agents.get(&ObjectRef::new(name).within(&self.name))?;
        found.0.as_ref().ok().cloned()
    }

    /// Has a session looked at. Where too many wait already, the next full look takes it.
    pub(crate) fn trigger_session(&self, name: &str) {
        let _ = self.look_at_session.try_send(ObjectRef::new(name).within(&self.name));
    }

    /// Has an agent looked at.
    pub(crate) fn trigger_agent(&self, name: &str) {
        let _ = self.look_at_agent.try_send(ObjectRef::new(name).within(&self.name));
    }

    /// The pause before an object that failed is looked at again.
    pub(crate) fn failed(&self, kind: &'static str, name: &str) -> Duration {
        let mut memory = self.memory();
        if memory.retries.len() >= MAX_REMEMBERED {
            memory.retries.clear();
        }
        let failures = memory.retries.entry((kind, name.to_owned())).or_default();
        *failures = failures.saturating_add(1);
        pause(*failures)
    }

    /// An object did not fail.
    pub(crate) fn succeeded(&self, kind: &'static str, name: &str) {
        let mut memory = self.memory();
        if !memory.retries.is_empty() {
            memory.retries.remove(&(kind, name.to_owned()));
        }
    }

    /// A sandbox is over: what it was for tries again after a pause.
    pub(crate) fn sandbox_failed(&self, row: &PodSandbox, failure: Failure, now: Timestamp) {
        let mut memory = self.memory();
        if memory.of_sessions.len() >= MAX_REMEMBERED {
            memory.of_sessions.clear();
        }
        match row.session {
            Some(session) => {
                let trouble = Trouble::after(memory.of_sessions.get(&session), failure, now);
                memory.of_sessions.insert(session, trouble);
            }
            None => {
                let trouble = Trouble::after(memory.of_agents.get(&row.agent), failure, now);
                memory.of_agents.insert(row.agent, trouble);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use ash_core::id::AgentId;
    use jiff::Timestamp;

    use super::{Counts, Memory};

    #[test]
    fn nothing_is_remembered_of_agents_that_are_gone() {
        let mut memory = Memory::default();
        let (stays, gone) = (AgentId::new(), AgentId::new());
        for (agent, name) in [(stays, "stays"), (gone, "gone")] {
            memory.counts.insert(agent, Counts::default());
            memory.demand.entry(agent).or_default();
            memory.status_written.insert(name.to_owned(), Timestamp::UNIX_EPOCH);
        }
        memory.keep_agents(&HashSet::from([stays]), |name| name == "stays");
        assert_eq!((memory.counts.len(), memory.demand.len(), memory.status_written.len()), (1, 1, 1));
    }
}
