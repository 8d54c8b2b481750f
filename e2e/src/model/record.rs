//! Keeps what the model was asked and what it said, within bounds, and lets a test wait for it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use serde_json::Value;
use tokio::sync::watch;

use super::render::Piece;

/// Bytes of request bodies that are kept; beyond it the oldest bodies are emptied (their records stay).
pub(super) const MAX_KEPT_BODY_BYTES: usize = 256 << 20;

/// What kind of request it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestKind {
    /// A request for a message that offers tools: a step of a turn. Only these take entries of a queue.
    Turn,
    /// A request for a message without tools: Claude Code asks for a title or a summary of its own.
    Helper,
    /// `POST /v1/messages/count_tokens`.
    CountTokens,
    /// `HEAD /api/hello`.
    Hello,
    /// Anything else; it was refused.
    Other,
}

/// A call of a tool that the model asked for.
#[derive(Debug, Clone, PartialEq)]
pub struct ToolCall {
    /// Id of the call, `toolu_...`.
    pub id: String,
    /// Name of the tool.
    pub name: String,
    /// Its input.
    pub input: Value,
}

/// What the model said in one response, as far as it was handed to the connection.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Said {
    /// HTTP status; 0 while there is none, and where the connection was cut before an answer.
    pub status: u16,
    /// All text deltas, joined.
    pub text: String,
    /// All thinking deltas, joined.
    pub thinking: String,
    /// Calls whose input was sent completely.
    pub tools: Vec<ToolCall>,
    /// Number of deltas sent: text, thinking and tool input.
    pub deltas: usize,
    /// Whether the response came to its end; false while it runs, after a cut, and where the client went away.
    pub finished: bool,
}

/// One request as it came, and what was said to it.
#[derive(Debug, Clone)]
pub struct RecordedRequest {
    /// Number of the request, from 1, counting every kind.
    pub number: u64,
    /// What kind it is.
    pub kind: RequestKind,
    /// HTTP method.
    pub method: String,
    /// Path with query.
    pub path: String,
    /// Headers by lower-case name; values of a repeated header are joined by `, `.
    pub headers: BTreeMap<String, String>,
    /// The body as it came; emptied when newer bodies needed its room (256 MiB).
    pub body: Bytes,
    /// When the head of the request had come.
    pub at: Instant,
    /// What was said to it until now.
    pub said: Said,
}

impl RecordedRequest {
    /// The body as JSON; `Null` where it is none.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_default()
    }

    /// The key that it came with: `x-api-key`, or the bearer token of `authorization`.
    pub fn api_key(&self) -> Option<&str> {
        let bearer = || self.headers.get("authorization").and_then(|value| value.strip_prefix("Bearer "));
        self.headers.get("x-api-key").map(String::as_str).or_else(bearer)
    }
}

#[derive(Debug, Default)]
struct Kept {
    requests: VecDeque<RecordedRequest>,
    /// Number of the first request in `requests`.
    first: u64,
    total: u64,
    turns: u64,
    body_bytes: usize,
    /// Index from which bodies are still there.
    bodies_from: usize,
}

/// Everything that was recorded.
#[derive(Debug)]
pub(super) struct Recorder {
    kept: Mutex<Kept>,
    changes: watch::Sender<u64>,
    max_requests: usize,
}

impl Recorder {
    /// Keeps the last `max_requests` requests.
    pub(super) fn new(max_requests: usize) -> Arc<Self> {
        let (changes, _) = watch::channel(0);
        let kept = Kept { first: 1, ..Kept::default() };
        Arc::new(Self { kept: Mutex::new(kept), changes, max_requests: max_requests.max(1) })
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        // What is kept is whole after every step, so a panic elsewhere leaves nothing half done.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn changed(&self) {
        self.changes.send_modify(|version| *version += 1);
    }

    /// Adds a request; its number is given here.
    pub(super) fn add(self: &Arc<Self>, mut request: RecordedRequest) -> Entry {
        let mut kept = self.lock();
        kept.total += 1;
        kept.turns += u64::from(request.kind == RequestKind::Turn);
        kept.body_bytes += request.body.len();
        request.number = kept.total;
        kept.requests.push_back(request);
        while kept.requests.len() > self.max_requests
            && let Some(dropped) = kept.requests.pop_front()
        {
            kept.first += 1;
            kept.body_bytes -= dropped.body.len();
            kept.bodies_from = kept.bodies_from.saturating_sub(1);
        }
        while kept.body_bytes > MAX_KEPT_BODY_BYTES && kept.bodies_from + 1 < kept.requests.len() {
            let index = kept.bodies_from;
            let body = std::mem::take(&mut kept.requests[index].body);
            kept.body_bytes -= body.len();
            kept.bodies_from += 1;
        }
        let number = kept.total;
        drop(kept);
        self.changed();
        Entry { recorder: Arc::clone(self), number }
    }

    /// The requests that are kept, oldest first.
    pub(super) fn all(&self) -> Vec<RecordedRequest> {
        self.lock().requests.iter().cloned().collect()
    }

    /// Number of `Turn` requests ever.
    pub(super) fn turns(&self) -> u64 {
        self.lock().turns
    }

    /// Forgets everything that is kept; numbers and totals go on.
    pub(super) fn clear(&self) {
        let mut kept = self.lock();
        kept.first = kept.total + 1;
        kept.requests.clear();
        kept.body_bytes = 0;
        kept.bodies_from = 0;
    }

    /// Changes whenever a request comes or its response changes state.
    pub(super) fn subscribe(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }
}

/// The place of one request in the recorder. After the request was dropped there, nothing more is recorded for it.
#[derive(Debug, Clone)]
pub(super) struct Entry {
    recorder: Arc<Recorder>,
    number: u64,
}

impl Entry {
    fn change(&self, change: impl FnOnce(&mut Said)) {
        let mut kept = self.recorder.lock();
        let index = self.number.checked_sub(kept.first).and_then(|index| usize::try_from(index).ok());
        if let Some(request) = index.and_then(|index| kept.requests.get_mut(index)) {
            change(&mut request.said);
        }
    }

    pub(super) fn status(&self, status: u16) {
        self.change(|said| said.status = status);
        self.recorder.changed();
    }

    pub(super) fn said(&self, piece: &Piece) {
        self.change(|said| {
            said.deltas += usize::from(!matches!(piece, Piece::Tool(_)));
            match piece {
                Piece::Text(text) => said.text.push_str(text),
                Piece::Thinking(text) => said.thinking.push_str(text),
                Piece::Input => {}
                Piece::Tool(call) => said.tools.push(call.clone()),
            }
        });
    }

    pub(super) fn finished(&self) {
        self.change(|said| said.finished = true);
        self.recorder.changed();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(body: Vec<u8>) -> RecordedRequest {
        RecordedRequest {
            number: 0,
            kind: RequestKind::Turn,
            method: "POST".into(),
            path: "/v1/messages".into(),
            headers: BTreeMap::new(),
            body: Bytes::from(body),
            at: Instant::now(),
            said: Said::default(),
        }
    }

    #[test]
    fn only_the_last_requests_are_kept() {
        let recorder = Recorder::new(2);
        let entries: Vec<Entry> = (0..3).map(|_| recorder.add(request(vec![1]))).collect();
        entries[0].said(&Piece::Text("lost".into()));
        entries[2].said(&Piece::Text("kept".into()));
        let all = recorder.all();
        assert_eq!(all.iter().map(|request| request.number).collect::<Vec<_>>(), [2, 3]);
        assert_eq!((all[0].said.text.as_str(), all[1].said.text.as_str()), ("", "kept"));
        assert_eq!(recorder.turns(), 3);
    }

    #[test]
    fn old_bodies_make_room() {
        let recorder = Recorder::new(100);
        for _ in 0..5 {
            recorder.add(request(vec![0; MAX_KEPT_BODY_BYTES / 4]));
        }
        let kept: Vec<bool> = recorder.all().iter().map(|request| !request.body.is_empty()).collect();
        assert_eq!(kept, [false, true, true, true, true]);
    }

    #[test]
    fn the_key_is_in_either_header() {
        let mut with_key = request(Vec::new());
        assert_eq!(with_key.api_key(), None);
        with_key.headers.insert("authorization".into(), "Bearer a".into());
        assert_eq!(with_key.api_key(), Some("a"));
        with_key.headers.insert("x-api-key".into(), "b".into());
        assert_eq!(with_key.api_key(), Some("b"));
    }
}
