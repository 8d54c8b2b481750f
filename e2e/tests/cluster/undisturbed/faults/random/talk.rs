//! One session that talks on and on, and what must hold of it in the end: its clients saw what the log has, the log has
//! what the model said, and the conversation has every message once.

use std::{
    sync::atomic::{AtomicBool, AtomicUsize, Ordering},
    time::Duration,
};

use ash_client::{CreateSession, Error, Frame, FrameStream, Message, Session};
use ash_e2e::{
    cluster::DEADLINE,
    harness::{Turn, check_order, compare_with_log, counted, position, without_superseded, without_withdrawn},
};
use uuid::Uuid;

use crate::tenant::Tenant;

/// Deltas of a turn at the least, and how many more there may be: no two neighbouring turns are alike.
const DELTAS: (usize, usize) = (60, 40);
/// Has the model say how many messages it is shown.
const COUNT: &str = "[[count]]";
/// The pause before a message that was not taken is sent again.
const AGAIN: Duration = Duration::from_millis(200);

/// How far all sessions are.
#[derive(Debug, Default)]
pub(super) struct Progress {
    turns: AtomicUsize,
    is_over: AtomicBool,
}

/// Ends the talk when it is dropped, also by a panic.
pub(super) struct Over<'a>(&'a Progress);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.is_over.store(true, Ordering::Relaxed);
    }
}

impl Progress {
    /// How many turns have begun.
    pub(super) fn turns(&self) -> usize {
        self.turns.load(Ordering::Relaxed)
    }

    /// Something once so many turns have begun.
    ///
    /// # Panics
    /// When a session has failed.
    pub(super) fn is_at(&self, turns: usize) -> Option<()> {
        assert!(!self.is_over.load(Ordering::Relaxed), "a session failed");
        (self.turns() >= turns).then_some(())
    }

    /// No further turn begins once this is dropped.
    pub(super) fn over(&self) -> Over<'_> {
        Over(self)
    }
}

/// A turn, as its client saw it.
struct Told {
    text: String,
    deltas: usize,
    turn: Turn,
}

/// A session and its turns.
pub(super) struct Talk {
    pub(super) session: Session,
    turns: Vec<Told>,
}

impl Talk {
    /// Says one thing after the other to a session, until told to stop.
    pub(super) async fn go_on(tenant: &Tenant<'_>, number: usize, session: Session, progress: &Progress) -> Self {
        let mut talk = Self { session, turns: Vec::new() };
        while !progress.is_over.load(Ordering::Relaxed) {
            let deltas = DELTAS.0 + (7 * number + 3 * talk.turns.len()) % DELTAS.1;
            let text = format!("Session {number}, turn {}: [[pace: 40ms]] [[burst: {deltas}]]", talk.turns.len());
            let stream = send(tenant, &talk.session, &text).await;
            progress.turns.fetch_add(1, Ordering::Relaxed);
            let turn = read(stream, &format!("{}: {text}", talk.session.id)).await;
            talk.turns.push(Told { text, deltas, turn });
        }
        talk
    }

    /// How many turns there were.
    pub(super) fn len(&self) -> usize {
        self.turns.len()
    }

    /// Compares every turn with the log and with what the model said. A turn may have been cut off where the session's
    /// sandbox was killed so often, and then has said a part; any other ends well.
    pub(super) async fn check(&self, tenant: &Tenant<'_>, sandboxes_killed: usize) {
        let mut cut_off = 0;
        for told in &self.turns {
            let Told { text, deltas, turn } = told;
            let (frames, whole) = (&turn.frames, counted(*deltas));
            let counting = without_withdrawn(frames);
            let answer = without_superseded(&counting);
            if let Some(error) = turn.error() {
                cut_off += 1;
                assert!(error.contains("lost") && error.contains("send the message again"), "{text}: {error}");
                assert!(whole.starts_with(&answer), "{text}: {answer}");
                assert!(!counting.iter().any(|frame| frame.event == "turn_complete"), "{text}: {:?}", turn.names());
            } else {
                assert_eq!(answer, whole, "{text}");
                assert_eq!(turn.result().as_deref().map(str::trim), Some(whole.trim()), "{text}");
            }
            assert_eq!(turn.names().last(), Some(&"done"), "{text}");
            // One that was lost before it was written is nowhere in the log.
            if counting.iter().any(|frame| position(frame).is_some()) {
                compare_with_log(&tenant.client(), &self.session, frames, text).await;
            }
        }
        // Each turn's frames follow those of the one before.
        let frames: Vec<Frame> = self.turns.iter().flat_map(|told| told.turn.frames.clone()).collect();
        check_order(&frames);
        let id = &self.session.id;
        assert!(cut_off <= sandboxes_killed, "{id}: {cut_off} turns were cut off, {sandboxes_killed} sandboxes killed");
    }

    /// Asks the model what it is shown: every message, once and in order. One whose turn was cut off may be missing: the
    /// sandbox may have had it alone.
    pub(super) async fn check_conversation(&self, tenant: &Tenant<'_>) {
        let id = &self.session.id;
        let history = answer(tenant, &self.session, "[[history]]").await;
        let history: Vec<String> = serde_json::from_str(&history).expect("a list of texts");
        let mut shown = history.iter().peekable();
        assert_eq!(shown.next().map(String::as_str), Some(COUNT), "{id}");
        for told in &self.turns {
            let is_shown = shown.next_if(|text| **text == told.text).is_some();
            assert!(is_shown || told.turn.error().is_some(), "{id}: {:?} is missing in {history:#?}", told.text);
        }
        let rest: Vec<&String> = shown.collect();
        assert_eq!(rest, ["[[history]]"], "{id}: each message was said once");
        assert_eq!(answer(tenant, &self.session, COUNT).await, (history.len() + 1).to_string(), "{id}");
    }
}

/// Makes a session, and has it answer.
pub(super) async fn begin(tenant: &Tenant<'_>, agent: &str) -> Session {
    let wanted = CreateSession { agent: agent.to_owned(), ..CreateSession::default() };
    let session = tenant.client().create_session(&wanted).await.expect("a session");
    assert_eq!(answer(tenant, &session, COUNT).await, "1");
    session
}

/// What a session answers to a message.
async fn answer(tenant: &Tenant<'_>, session: &Session, text: &str) -> String {
    let turn = read(send(tenant, session, text).await, &format!("{}: {text}", session.id)).await;
    turn.result().unwrap_or_else(|| panic!("{}: {text}: {:?}", session.id, turn.error()))
}

/// Sends a message until it is taken, under one key: however often that is, it counts once.
async fn send(tenant: &Tenant<'_>, session: &Session, text: &str) -> FrameStream {
    let (client, message, key) = (tenant.client(), Message::text(text), Uuid::new_v4().to_string());
    let taken = async {
        loop {
            match client.send_message_as(&session.id, &message, &key).await {
                Ok(stream) => return stream,
                Err(Error::Refused { status: 503, retry_after, .. }) => {
                    tokio::time::sleep(retry_after.unwrap_or(AGAIN)).await;
                }
                Err(Error::Unreachable { .. }) => tokio::time::sleep(AGAIN).await,
                Err(error) => panic!("{text}: the message is taken: {error}"),
            }
        }
    };
    // A sandbox may have to be made, which a message waits for half a minute at a time.
    let taken = tokio::time::timeout(DEADLINE, taken).await;
    taken.unwrap_or_else(|_| panic!("{}: {text}: the message is not taken", session.id))
}

/// Reads a turn to its end.
async fn read(mut stream: FrameStream, text: &str) -> Turn {
    let mut turn = Turn::default();
    loop {
        let next = tokio::time::timeout(DEADLINE, stream.next()).await;
        match next.unwrap_or_else(|_| panic!("{text}: the stream says no more: {:?}", turn.names())) {
            Some(Ok(frame)) => turn.frames.push(frame),
            Some(Err(error)) => panic!("{text}: the stream goes on: {error}: {:?}", turn.names()),
            None => return turn,
        }
    }
}
