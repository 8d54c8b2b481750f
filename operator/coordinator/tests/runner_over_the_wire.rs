//! Every call of the runner's port, from a coordinator to a runner over a real socket: what is asked arrives, what is answered
//! comes back, errors too. The runner here keeps what it is asked; the real one is tried end to end.

#![allow(clippy::unwrap_used)]

#[path = "../../store/tests/contract/fixtures.rs"]
#[allow(dead_code, unreachable_pub)]
mod fixtures;
mod support;

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, AtomicUsize, Ordering},
};

use ash_coordinator::{FleetRunner, Registry};
use ash_core::{
    Entry, EntryKind, Epoch, Sequence,
    agent::AgentVersion,
    fleet::{ModelKey, WarmList},
    id::{SessionId, TurnId},
    ports::{
        Batch, EntryReader, FleetStore, Load, LoggedEntry, NewMessage, ReadError, Runner, RunnerError, Sent, StoreError,
    },
    session::{Closing, PausedReason, Session, SessionEvent, SessionState},
    sse::Position,
};
use ash_protocol::{
    message::Decision,
    options::{SessionOptions, TurnOptions},
};
use ash_runner::{RunnerService, Told};
use ash_store::SqliteStore;
use async_trait::async_trait;
use serde_json::value::RawValue;
use tokio::{net::TcpListener, sync::watch};
use tokio_util::sync::CancellationToken;

/// Says what it was asked.
#[derive(Default)]
struct Asked {
    calls: Mutex<Vec<String>>,
    error: Mutex<Option<RunnerError>>,
    /// It stops with each message that it takes, and its next life knows nothing of it.
    forgets: AtomicBool,
    /// How many entries a session has by now, and whether a turn is in progress, where it is one that grows.
    grown: Mutex<Option<watch::Receiver<(u32, bool)>>>,
    /// It may serve nobody, and how often it said so.
    frozen: AtomicBool,
    refused: AtomicUsize,
}

impl Asked {
    fn note(&self, call: impl Into<String>) -> Result<(), RunnerError> {
        self.calls.lock().unwrap().push(call.into());
        self.error.lock().unwrap().clone().map_or(Ok(()), Err)
    }

    /// How often a session's stream was begun.
    fn reads(&self) -> usize {
        self.calls.lock().unwrap().iter().filter(|call| call.starts_with("read")).count()
    }

    fn last(&self) -> String {
        self.calls.lock().unwrap().last().cloned().unwrap_or_default()
    }
}

impl Told for Asked {
    fn keep_model_key(&self, session: SessionId, key: Option<&ModelKey>) {
        assert!(matches!(key, Some(ModelKey::ApiKey(key)) if key.0 == support::MODEL_KEY));
        let _ = self.note(format!("key {session}"));
    }

    fn keep_warm(&self, list: &WarmList) {
        let _ = self.note(format!("warm {}", list.versions.len()));
    }

    fn serves(&self) -> bool {
        let serves = !self.frozen.load(Ordering::SeqCst);
        self.refused.fetch_add(usize::from(!serves), Ordering::SeqCst);
        serves
    }
}

/// Gives two batches, then what the test says.
struct Batches {
    position: Sequence,
    end: Option<ReadError>,
}

fn body(n: u32) -> Vec<u8> {
    // One that is longer than a frame of data, and bytes that no text has.
    vec![u8::try_from(n).unwrap() | 0x80; 100_000 * n as usize]
}

#[async_trait]
impl EntryReader for Batches {
    async fn next(&mut self) -> Result<Option<Batch>, ReadError> {
        let n = self.position.n();
        if n >= 5 {
            return match self.end.take() {
                Some(error) => Err(error),
                None => std::future::pending().await,
            };
        }
        let entries = [n + 1, n + 2].map(|n| {
            let entry = Entry {
                sequence: Epoch(1).sequence(n),
                kind: EntryKind::Claude,
                flags: ash_core::EntryFlags(0),
                body: body(n).into(),
            };
            Arc::new(LoggedEntry::new(entry))
        });
        self.position = Epoch(1).sequence(n + 2);
        Ok(Some(entries.into()))
    }

    fn position(&self) -> Sequence {
        self.position
    }

    fn turn_in_progress(&self) -> bool {
        self.position.n() < 5
    }
}

/// Bytes of an entry of a session that grows: a few dozen are more than is kept for readers.
const GROWN_BYTES: usize = 40_000;

/// Gives what a session has by now, one entry at a time.
struct Grows {
    position: Sequence,
    grown: watch::Receiver<(u32, bool)>,
}

#[async_trait]
impl EntryReader for Grows {
    async fn next(&mut self) -> Result<Option<Batch>, ReadError> {
        let next = self.position.n() + 1;
        if self.grown.wait_for(|(grown, _)| *grown >= next).await.is_err() {
            std::future::pending::<()>().await;
        }
        let flags = ash_core::EntryFlags(0);
        let sequence = Epoch(1).sequence(next);
        let entry = Entry { sequence, kind: EntryKind::Claude, flags, body: vec![0; GROWN_BYTES].into() };
        self.position = sequence;
        Ok(Some(vec![Arc::new(LoggedEntry::new(entry))]))
    }

    fn position(&self) -> Sequence {
        self.position
    }

    fn turn_in_progress(&self) -> bool {
        self.grown.borrow().1
    }
}

/// What a runner gives that stops.
struct Stops;

#[async_trait]
impl EntryReader for Stops {
    async fn next(&mut self) -> Result<Option<Batch>, ReadError> {
        Ok(None)
    }

    fn position(&self) -> Sequence {
        Sequence::START
    }

    fn turn_in_progress(&self) -> bool {
        true
    }
}

fn batches(after: Sequence) -> Box<dyn EntryReader> {
    let end = Some(ReadError::Unwritten("the disk is full".to_owned()));
    Box::new(Batches { position: after.max(Epoch(1).opening()), end })
}

#[async_trait]
impl Runner for Asked {
    fn prepare(&self, _: AgentVersion) {}

    fn forget(&self, _: &AgentVersion) {}

    async fn place(&self, session: Session, agent: AgentVersion) -> Result<Session, RunnerError> {
        self.note(format!("place {} {}", session.id, agent.digest))?;
        Ok(Session { error: Some("placed".to_owned()), ..session })
    }

    async fn send(&self, session: Session, _: AgentVersion, message: NewMessage) -> Result<Sent, RunnerError> {
        self.note(format!("send {} {} {}", session.id, message.turn, message.content.get()))?;
        if self.forgets.load(Ordering::Relaxed) {
            return Ok(Sent { joined: false, reader: Box::new(Stops) });
        }
        Ok(Sent { joined: true, reader: batches(Sequence::START) })
    }

    async fn read(&self, session: &Session, after: Position) -> Result<Box<dyn EntryReader>, RunnerError> {
        self.note(format!("read {} {}", session.id, after.sequence))?;
        if let Some(grown) = self.grown.lock().unwrap().clone() {
            return Ok(Box::new(Grows { position: after.sequence.max(Epoch(1).opening()), grown }));
        }
        if self.forgets.load(Ordering::Relaxed) {
            return Ok(Box::new(Batches { position: after.sequence.max(Epoch(1).opening()), end: None }));
        }
        Ok(batches(after.sequence))
    }

    async fn interrupt(&self, session: SessionId) -> Result<bool, RunnerError> {
        self.note(format!("interrupt {session}")).map(|()| true)
    }

    async fn answer(&self, session: SessionId, permission: &str, decision: Decision) -> Result<(), RunnerError> {
        self.note(format!("answer {session} {permission} {decision:?}"))
    }

    async fn configure(&self, session: SessionId, options: SessionOptions) -> Result<(), RunnerError> {
        self.note(format!("configure {session} {:?}", options.model))
    }

    async fn close(&self, session: Session, closing: Closing) -> Result<Session, RunnerError> {
        self.note(format!("{closing:?} {}", session.id))?;
        Ok(Session { state: session.state.after(closing.event()).unwrap(), ..session })
    }

    async fn resume(&self, session: Session, agent: AgentVersion) -> Result<Session, RunnerError> {
        self.note(format!("resume {} {}", session.id, agent.number))?;
        Ok(Session { state: session.state.after(SessionEvent::Resume).unwrap(), ..session })
    }

    fn load(&self) -> Load {
        Load::default()
    }
}

struct Fixture {
    _folder: tempfile::TempDir,
    _registry: Arc<Registry>,
    store: Arc<dyn FleetStore>,
    asked: Arc<Asked>,
    fleet: FleetRunner,
    agent: AgentVersion,
    session: Session,
}

async fn fixture() -> Fixture {
    let folder = tempfile::tempdir().unwrap();
    let stop = CancellationToken::new();
    let store: Arc<dyn FleetStore> = Arc::new(SqliteStore::open(&folder.path().join("ash.db")).await.unwrap());
    let (registry, address) = support::serve(folder.path(), Arc::clone(&store), &stop).await;
    let id = support::runner("one");
    let asked = Arc::new(Asked::default());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let own = format!("http://{}", listener.local_addr().unwrap());
    let service = RunnerService::of(id.clone(), Arc::clone(&asked) as _, Arc::clone(&asked) as _);
    tokio::spawn(ash_link::serve(listener, support::secret(folder.path()), Arc::new(service), stop));
    support::join(folder.path(), &address, &id, &own, Vec::new()).await;
    let fleet = FleetRunner::new(Arc::clone(&registry));
    let session = fixtures::session(&*store).await;
    let agent = store.agent_version(&session.tenant, session.agent, session.agent_version).await.unwrap().unwrap();
    Fixture { _folder: folder, _registry: registry, store, asked, fleet, agent, session }
}

fn message(content: &str) -> NewMessage {
    let content = RawValue::from_string(content.to_owned()).unwrap();
    NewMessage { turn: TurnId::new(), content, options: TurnOptions::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_frozen_runner_is_asked_again_in_a_moment() {
    let Fixture { asked, fleet, agent, session, .. } = &fixture().await;
    fleet.place(session.clone(), agent.clone()).await.unwrap();
    asked.frozen.store(true, Ordering::SeqCst);
    let refused = fleet.interrupt(session.id).await.unwrap_err();
    assert!(matches!(refused, RunnerError::Unreachable(_)), "the client tries again: {refused:?}");
    // Whoever sends a message, or reads, waits for it, or for the epoch that comes after its loss.
    let mut reader = fleet.read(session, Position::after(Sequence::START)).await.unwrap();
    let sending = fleet.send(session.clone(), agent.clone(), message("\"hello\""));
    let before = asked.refused.load(Ordering::SeqCst);
    assert_eq!(before, 2, "the interrupt, and the reader");
    let thawing = async {
        // It is asked again and again.
        while asked.refused.load(Ordering::SeqCst) < before + 2 {
            tokio::task::yield_now().await;
        }
        assert!(!asked.calls.lock().unwrap().iter().any(|call| call.starts_with("send")), "nothing was carried out");
        asked.frozen.store(false, Ordering::SeqCst);
    };
    let (sent, ()) = tokio::join!(sending, thawing);
    assert!(sent.unwrap().joined);
    assert!(reader.next().await.unwrap().is_some());
    assert_eq!(fleet.interrupt(session.id).await, Ok(true));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_call_arrives_and_is_answered() {
    let Fixture { store, asked, fleet, agent, session, .. } = &fixture().await;
    let id = session.id;
    // Nobody has it yet: there is nothing to interrupt.
    assert_eq!(fleet.interrupt(id).await, Ok(false));
    let placed = fleet.place(session.clone(), agent.clone()).await.unwrap();
    assert_eq!(placed, Session { error: Some("placed".to_owned()), ..session.clone() });
    assert_eq!(asked.last(), format!("place {id} {}", agent.digest));
    assert!(asked.calls.lock().unwrap().contains(&format!("key {id}")));
    assert_eq!(fleet.interrupt(id).await, Ok(true));
    let decision: Decision =
        serde_json::from_str(r#"{"behavior":"allow"}"#).or_else(|_| serde_json::from_str(r#"{"allow":true}"#)).unwrap();
    fleet.answer(id, "the-request", decision).await.unwrap();
    assert!(asked.last().starts_with(&format!("answer {id} the-request")));
    fleet.configure(id, SessionOptions { model: Some("other".to_owned()), ..SessionOptions::default() }).await.unwrap();
    assert_eq!(asked.last(), format!("configure {id} Some(\"other\")"));
    assert_eq!(fleet.load().running, 3);
    let other = store.deploy_agent(fixtures::deployment(&session.tenant, "other")).await.unwrap();
    fleet.prepare(other.version.clone());
    while asked.last() != "warm 2" {
        tokio::task::yield_now().await;
    }
    for name in ["other", "tester"] {
        assert!(store.delete_agent(&session.tenant, name).await.unwrap());
    }
    fleet.forget(&other.version);
    while asked.last() != "warm 0" {
        tokio::task::yield_now().await;
    }
    let paused = fleet.close(session.clone(), Closing::Pause).await.unwrap();
    assert_eq!((paused.state, asked.last()), (SessionState::Paused(PausedReason::Person), format!("Pause {id}")));
    assert_eq!(fleet.resume(paused, agent.clone()).await.unwrap().state, SessionState::Active);
    assert_eq!(asked.last(), format!("resume {id} {}", agent.number));
    assert_eq!(fleet.close(session.clone(), Closing::End).await.unwrap().state, SessionState::Ended);
    assert_eq!(asked.last(), format!("End {id}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn entries_come_as_they_are() {
    let Fixture { asked, fleet, agent, session, .. } = &fixture().await;
    let content = r#"[{"type":"text","text":"kept  as it \u00e9 is"}]"#;
    let message = message(content);
    let turn = message.turn;
    let Sent { joined, mut reader } = fleet.send(session.clone(), agent.clone(), message).await.unwrap();
    assert!(joined);
    assert_eq!(asked.last(), format!("send {} {turn} {content}", session.id));
    let mut entries = Vec::new();
    let end = loop {
        assert!(reader.turn_in_progress() || !entries.is_empty());
        match reader.next().await {
            Ok(batch) => entries.extend(batch.unwrap()),
            Err(error) => break error,
        }
    };
    assert_eq!(end, ReadError::Unwritten("the disk is full".to_owned()));
    let numbers: Vec<u32> = entries.iter().map(|logged| logged.entry.sequence.n()).collect();
    assert_eq!(numbers, [2, 3, 4, 5]);
    assert!(entries.iter().all(|logged| logged.entry.body == body(logged.entry.sequence.n())));
    // From a position on.
    let after = Position::after(Epoch(1).sequence(3));
    let mut reader = fleet.read(session, after).await.unwrap();
    let batch = reader.next().await.unwrap().unwrap();
    assert_eq!(batch[0].entry.sequence, Epoch(1).sequence(4));
    assert_eq!(reader.position(), Epoch(1).sequence(5));
    assert!(!reader.turn_in_progress());
}

/// Reads on until an entry came; all in order, none twice.
async fn read_to(reader: &mut Box<dyn EntryReader>, next: &mut u32, last: u32) {
    while *next <= last {
        let batch = tokio::time::timeout(support::WAIT, reader.next()).await.unwrap().unwrap().unwrap();
        for logged in batch {
            assert_eq!(logged.entry.sequence, Epoch(1).sequence(*next));
            *next += 1;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_of_one_session_share_its_stream() {
    let Fixture { asked, fleet, agent, session, .. } = &fixture().await;
    fleet.place(session.clone(), agent.clone()).await.unwrap();
    let grow = watch::Sender::new((1, true));
    *asked.grown.lock().unwrap() = Some(grow.subscribe());
    let mut readers = Vec::new();
    for _ in 0..50 {
        let mut reader = fleet.read(session, Position::START).await.unwrap();
        assert!(reader.turn_in_progress());
        readers.push(tokio::spawn(async move {
            let mut next = 2;
            for last in [3, 100, 200] {
                read_to(&mut reader, &mut next, last).await;
            }
            assert_eq!(reader.position(), Epoch(1).sequence(200));
        }));
    }
    // The first one had it to itself; the second one began the stream that all share.
    assert_eq!(asked.reads(), 2);
    for grown in 2..=200 {
        grow.send_replace((grown, true));
        tokio::task::yield_now().await;
    }
    for reader in readers {
        reader.await.unwrap();
    }
    // The last of them took it along: who comes now begins another one.
    let mut late = fleet.read(session, Position::after(Epoch(1).sequence(190))).await.unwrap();
    read_to(&mut late, &mut 191, 200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reader_that_is_far_behind_holds_up_nobody_and_misses_nothing() {
    let Fixture { asked, fleet, agent, session, .. } = &fixture().await;
    fleet.place(session.clone(), agent.clone()).await.unwrap();
    let grow = watch::Sender::new((1, true));
    *asked.grown.lock().unwrap() = Some(grow.subscribe());
    let mut readers = Vec::new();
    for _ in 0..3 {
        readers.push((fleet.read(session, Position::START).await.unwrap(), 2));
    }
    let [(one, next_one), (two, next_two), (slow, next_slow)] = &mut readers[..] else { panic!("three readers") };
    // More than three times what is kept for readers, of which one takes nothing.
    for grown in 2..=100 {
        grow.send_replace((grown, true));
        read_to(one, next_one, grown).await;
        read_to(two, next_two, grown).await;
    }
    read_to(slow, next_slow, 100).await;
    // Its log had none of it: it had a stream of its own, until it was as far as the others.
    grow.send_replace((110, true));
    for (reader, next) in &mut readers {
        read_to(reader, next, 110).await;
    }
    assert!((3..=4).contains(&asked.reads()), "{}", asked.reads());
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_comes_is_told_of_a_turn_that_those_who_share_a_stream_have_not_heard_of() {
    let Fixture { asked, fleet, agent, session, .. } = &fixture().await;
    fleet.place(session.clone(), agent.clone()).await.unwrap();
    let grow = watch::Sender::new((1, true));
    *asked.grown.lock().unwrap() = Some(grow.subscribe());
    let mut readers =
        [fleet.read(session, Position::START).await.unwrap(), fleet.read(session, Position::START).await.unwrap()];
    grow.send_replace((1, false));
    for reader in &mut readers {
        let batch = tokio::time::timeout(support::WAIT, reader.next()).await.unwrap().unwrap().unwrap();
        assert!(batch.is_empty() && !reader.turn_in_progress());
    }
    // A turn begins; nothing has come of it yet.
    grow.send_replace((1, true));
    assert!(fleet.read(session, Position::START).await.unwrap().turn_in_progress());
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_has_more_than_those_who_share_a_stream_takes_no_end_from_them_that_it_has_seen() {
    let Fixture { asked, fleet, agent, session, .. } = &fixture().await;
    fleet.place(session.clone(), agent.clone()).await.unwrap();
    let grow = watch::Sender::new((1, true));
    *asked.grown.lock().unwrap() = Some(grow.subscribe());
    let mut one = fleet.read(session, Position::START).await.unwrap();
    let mut two = fleet.read(session, Position::START).await.unwrap();
    // Its client was at another coordinator, which is ahead of this one.
    let mut ahead = fleet.read(session, Position::after(Epoch(1).sequence(5))).await.unwrap();
    assert!(ahead.turn_in_progress());
    // A turn ends that it has seen the end of.
    grow.send_replace((3, false));
    let (mut next_one, mut next_two) = (2, 2);
    tokio::select! {
        biased;
        came = ahead.next() => panic!("nothing came for it: {:?}", came.map(|batch| batch.map(|batch| batch.len()))),
        () = async {
            read_to(&mut one, &mut next_one, 3).await;
            read_to(&mut two, &mut next_two, 3).await;
        } => {}
    }
    assert!(ahead.turn_in_progress());
    grow.send_replace((6, true));
    read_to(&mut ahead, &mut 6, 6).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_come_back_as_they_are() {
    let Fixture { asked, fleet, agent, session, .. } = &fixture().await;
    fleet.place(session.clone(), agent.clone()).await.unwrap();
    for error in [
        RunnerError::TurnInProgress,
        RunnerError::State(SessionState::Stopped),
        RunnerError::LogFull { quota_bytes: 7 },
        RunnerError::NoCapacity { waited_seconds: 30 },
        RunnerError::PermissionClosed,
        RunnerError::UnknownPermission,
        RunnerError::OptionRefused("no".to_owned()),
        RunnerError::ShuttingDown,
        RunnerError::Store(StoreError::Full),
        RunnerError::Internal("broken".to_owned()),
    ] {
        *asked.error.lock().unwrap() = Some(error.clone());
        assert_eq!(fleet.send(session.clone(), agent.clone(), message("\"hi\"")).await.unwrap_err(), error);
        fleet.place(session.clone(), agent.clone()).await.unwrap();
        assert_eq!(fleet.interrupt(session.id).await.map(|_| ()), Ok(()), "its place was given back");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_on_no_runner_is_read_and_ended_without_one() {
    let Fixture { store, asked, fleet, session, .. } = &fixture().await;
    let mut reader = fleet.read(session, Position::START).await.unwrap();
    assert!(!reader.turn_in_progress());
    let stopped = fleet.close(session.clone(), Closing::Stop).await.unwrap();
    assert_eq!(stopped.state, SessionState::Stopped);
    let refused = fleet.close(session.clone(), Closing::Pause).await.unwrap_err();
    assert_eq!(refused, RunnerError::State(SessionState::Stopped));
    let ended = fleet.close(session.clone(), Closing::End).await.unwrap();
    assert_eq!(ended.state, SessionState::Ended);
    assert_eq!(fixtures::now(&**store, session).await.state, SessionState::Ended);
    assert_eq!(asked.last(), "");
    // Whoever follows it is woken by nothing of a runner's, and has the end with the next change.
    fleet.close(session.clone(), Closing::End).await.unwrap();
    let batch = tokio::time::timeout(support::WAIT, reader.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(batch[0].entry.kind, EntryKind::Opening);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_that_was_taken_and_lost_unwritten_ends_whatever_else_comes() {
    let Fixture { asked, fleet, agent, session, .. } = &fixture().await;
    fleet.place(session.clone(), agent.clone()).await.unwrap();
    asked.forgets.store(true, Ordering::Relaxed);
    let Sent { mut reader, .. } = fleet.send(session.clone(), agent.clone(), message("\"hi\"")).await.unwrap();
    let mut entries = 0;
    let end = loop {
        match tokio::time::timeout(support::WAIT, reader.next()).await.unwrap() {
            Ok(batch) => entries += batch.unwrap().len(),
            Err(error) => break error,
        }
    };
    assert!(matches!(&end, ReadError::Unwritten(reason) if reason.contains("send the message again")), "{end}");
    assert_eq!(entries, 4, "what is not the turn's is given");
}
