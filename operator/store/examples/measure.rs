//! Measures the store on this machine's disk, with commits that survive a power failure and with ones that may not; or on the
//! Postgres database whose address is given.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a tool for people who measure")]

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use ash_core::{
    Entry, EntryFlags, EntryKind,
    agent::{Agent, AgentSettings},
    id::{SandboxId, SessionId, TenantId},
    opening::{Opening, OpeningReason},
    ports::{Append, DeployAgent, NewSession, OpenEpoch},
    session::SessionState,
};
use ash_store::{Database, PostgresStore, Settings, SqliteStore, Synchronous};
use bytes::Bytes;

const ROUNDS: usize = 300;
const AT_ONCE: usize = 200;
const ENTRIES: u32 = 500;
const LOOK_UPS: u32 = 5_000;

#[tokio::main(flavor = "multi_thread", worker_threads = 2)]
async fn main() {
    let directory = std::env::args().nth(1).unwrap_or_else(|| std::env::temp_dir().display().to_string());
    if directory.starts_with("postgres") {
        measure(&Arc::new(PostgresStore::open(&directory.into()).await.unwrap())).await;
        return;
    }
    for synchronous in [Synchronous::Full, Synchronous::Normal] {
        let directory = tempfile::tempdir_in(&directory).unwrap();
        let settings = Settings { synchronous, ..Settings::default() };
        let store = Arc::new(SqliteStore::open_with(&directory.path().join("ash.db"), settings).await.unwrap());
        println!("{synchronous:?}");
        measure(&store).await;
        store.close().await;
    }
}

async fn measure(store: &Arc<impl Database + 'static>) {
    let agent = store.deploy_agent(deployment()).await.unwrap();

    let mut times = Vec::new();
    for _ in 0..ROUNDS {
        let begin = Instant::now();
        store.create_session(new(&agent)).await.unwrap();
        times.push(begin.elapsed());
    }
    report("create_session", times);

    let mut at_once = Vec::new();
    for _ in 0..5 {
        let begin = Instant::now();
        let tasks: Vec<_> = (0..AT_ONCE)
            .map(|_| {
                let (store, new) = (Arc::clone(store), new(&agent));
                tokio::spawn(async move { store.create_session(new).await.unwrap() })
            })
            .collect();
        for task in tasks {
            task.await.unwrap();
        }
        at_once.push(begin.elapsed());
    }
    report("200 sessions at once, all", at_once);

    let (session, _) = store.create_session(new(&agent)).await.unwrap();
    let open = OpenEpoch {
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
    };
    let begin = Instant::now();
    let session = store.open_epoch(open).await.unwrap();
    report("open_epoch", vec![begin.elapsed()]);

    let mut times = Vec::new();
    let mut after = session.last;
    for _ in 0..100 {
        let entries: Vec<_> = (1..=ENTRIES)
            .map(|n| Entry {
                sequence: session.epoch.sequence(after.n() + n),
                kind: EntryKind::Partial,
                flags: EntryFlags::default(),
                body: Bytes::from(format!(
                    r#"{{"type":"stream_event","event":{{"type":"content_block_delta","index":0,"delta":{{"type":"text_delta","text":"w{n} "}}}},"uuid":"{}"}}"#,
                    uuid::Uuid::new_v4()
                )),
            })
            .collect();
        let last = entries.last().unwrap().sequence;
        let begin = Instant::now();
        let outcome = store.append(vec![Append { session: session.id, after, entries }]).await;
        times.push(begin.elapsed());
        outcome.into_iter().collect::<Result<Vec<()>, _>>().unwrap();
        after = last;
    }
    report("append of 500 partials", times);

    let begin = Instant::now();
    let page = store.read(session.id, session.last, usize::MAX).await.unwrap();
    println!("  read of {} entries in one page: {:?}", page.entries.len(), begin.elapsed());

    let begin = Instant::now();
    for _ in 0..LOOK_UPS {
        store.session(&session.tenant, session.id).await.unwrap().unwrap();
    }
    println!("  session(), a hit: {:?}", begin.elapsed() / LOOK_UPS);
    println!("  {:?}", store.statistics());
}

fn report(what: &str, mut times: Vec<Duration>) {
    times.sort();
    let at = |part: usize| times[(times.len() - 1) * part / 100];
    println!("  {what}: p50 {:?}, p99 {:?}, most {:?}", at(50), at(99), at(100));
}

fn deployment() -> DeployAgent {
    DeployAgent {
        tenant: TenantId::default_tenant(),
        name: "measured".parse().unwrap(),
        slug: None,
        description: None,
        settings: AgentSettings::default(),
        digest: "0a".repeat(32),
        bundle: Bytes::from_static(b"a bundle"),
    }
}

fn new(agent: &Agent) -> NewSession {
    NewSession {
        id: SessionId::new(),
        tenant: agent.tenant.clone(),
        agent: agent.id,
        agent_name: agent.name.clone(),
        agent_version: agent.version.number,
        options: ash_protocol::options::SessionOptions::default(),
        metadata: [("team".to_owned(), "blue".to_owned())].into(),
        credential: None,
        idempotency_key: None,
    }
}
