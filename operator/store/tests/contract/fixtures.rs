//! What the tests put into a store.

use std::collections::BTreeMap;

use ash_core::{
    Entry, EntryFlags, EntryKind, Epoch, Sequence,
    agent::{Agent, AgentSettings},
    id::{SandboxId, SessionId, TenantId},
    opening::{Opening, OpeningReason},
    ports::{Append, DeployAgent, NewSession, OpenEpoch, Store, StoreError},
    session::{Session, SessionState},
};
use ash_protocol::{message::TranscriptPart, options::SessionOptions};
use bytes::Bytes;
use uuid::Uuid;

pub fn tenant(name: &str) -> TenantId {
    TenantId(name.to_owned())
}

pub fn deployment(tenant: &TenantId, name: &str) -> DeployAgent {
    DeployAgent {
        tenant: tenant.clone(),
        name: name.parse().unwrap(),
        slug: None,
        description: None,
        settings: AgentSettings::default(),
        digest: "0a".repeat(32),
        bundle: Bytes::from_static(b"a bundle"),
    }
}

pub async fn agent(store: &dyn Store, tenant: &TenantId) -> Agent {
    match store.agent(tenant, "tester").await.unwrap() {
        Some(agent) => agent,
        None => store.deploy_agent(deployment(tenant, "tester")).await.unwrap(),
    }
}

pub fn new_session(agent: &Agent) -> NewSession {
    NewSession {
        id: SessionId::new(),
        tenant: agent.tenant.clone(),
        agent: agent.id,
        agent_name: agent.name.clone(),
        agent_version: agent.version.number,
        options: SessionOptions { model: Some("m".to_owned()), ..SessionOptions::default() },
        metadata: BTreeMap::new(),
        credential: None,
        idempotency_key: None,
    }
}

/// A session of the tenant `default`.
pub async fn session(store: &dyn Store) -> Session {
    let agent = agent(store, &TenantId::default_tenant()).await;
    store.create_session(new_session(&agent)).await.unwrap().0
}

pub fn opening_of(session: &Session) -> OpenEpoch {
    OpenEpoch {
        session: session.id,
        expected: session.epoch,
        state: SessionState::Active,
        error: None,
        sandbox: Some(SandboxId::new()),
        opening: Opening {
            reason: OpeningReason::Claimed,
            last_committed: session.last,
            interrupted: None,
            message: None,
            recovered: None,
            sandbox: None,
        },
    }
}

/// A session with an open epoch.
pub async fn placed(store: &dyn Store) -> Session {
    let session = session(store).await;
    store.open_epoch(opening_of(&session)).await.unwrap()
}

pub fn entry(epoch: Epoch, n: u32, kind: EntryKind, body: impl Into<Bytes>) -> Entry {
    Entry { sequence: epoch.sequence(n), kind, flags: EntryFlags::default(), body: body.into() }
}

pub fn user(epoch: Epoch, n: u32, turn: Uuid) -> Entry {
    entry(epoch, n, EntryKind::User, format!(r#"{{"type":"user","message":{{"content":"hi"}},"uuid":"{turn}"}}"#))
}

pub fn result(epoch: Epoch, n: u32) -> Entry {
    Entry { flags: EntryFlags::ENDS_TURN, ..entry(epoch, n, EntryKind::Claude, r#"{"type":"result"}"#) }
}

pub fn transcript_part(conversation: Uuid, offset: u64, bytes: &[u8]) -> Vec<u8> {
    let mut body = serde_json::to_vec(&TranscriptPart { conversation, offset }).unwrap();
    body.push(b'\n');
    body.extend_from_slice(bytes);
    body
}

/// Bytes that do not compress (xorshift, Marsaglia 2003).
pub fn noise(seed: u32, length: u32) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state.to_le_bytes()[1]
        })
        .collect()
}

/// An append right before its first entry.
pub fn append(session: &Session, entries: Vec<Entry>) -> Append {
    let after = Sequence(entries[0].sequence.0 - 1);
    Append { session: session.id, after, entries }
}

pub async fn append_one(store: &dyn Store, session: &Session, entries: Vec<Entry>) -> Result<(), StoreError> {
    store.append(vec![append(session, entries)]).await.pop().unwrap()
}

pub async fn now(store: &dyn Store, session: &Session) -> Session {
    store.session(&session.tenant, session.id).await.unwrap().unwrap()
}

/// The whole log from a position on, read in pages.
pub async fn log_after(store: &dyn Store, session: SessionId, mut after: Sequence, max_bytes: usize) -> Vec<Entry> {
    let mut entries = Vec::new();
    loop {
        let page = store.read(session, after, max_bytes).await.unwrap();
        assert!(page.end || page.through > after, "a page that is not the last goes further");
        assert!(page.entries.iter().all(|entry| entry.sequence > after && entry.sequence <= page.through));
        entries.extend(page.entries);
        after = page.through;
        if page.end {
            return entries;
        }
    }
}
