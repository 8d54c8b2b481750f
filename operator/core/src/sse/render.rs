//! The frames of an entry, as bytes.

use std::borrow::Cow;

use ash_protocol::{
    Entry, EntryKind, Sequence,
    claude::{Line, PartialLine},
    message::BridgeEvent,
};
use bytes::{Bytes, BytesMut};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::{id::SessionId, opening::Opening, sse::Position};

/// The frames of one entry.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Rendered {
    /// All frames, one after the other.
    bytes: Bytes,
    /// Where each frame ends in `bytes`.
    ends: Vec<u32>,
}

impl Rendered {
    /// How many frames there are.
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    /// Whether the entry gives no frame.
    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    /// The bytes of the frames from the `first`th on.
    pub fn from(&self, first: u32) -> Bytes {
        match usize::try_from(first).ok().filter(|first| *first <= self.ends.len()) {
            None => Bytes::new(),
            Some(0) => self.bytes.clone(),
            Some(first) => self.bytes.slice(self.ends[first - 1] as usize..),
        }
    }
}

/// Writes frames of one entry.
struct Writer {
    sequence: Sequence,
    /// The number of the next frame.
    next: u32,
    buffer: BytesMut,
    ends: Vec<u32>,
}

impl Writer {
    fn new(sequence: Sequence, capacity: usize) -> Self {
        Self { sequence, next: 0, buffer: BytesMut::with_capacity(capacity), ends: Vec::with_capacity(2) }
    }

    /// A frame whose data is the given pieces of JSON joined. Line breaks, which compact JSON never has outside of strings, are
    /// written as spaces, so that no data can end its frame early.
    fn frame(&mut self, event: &str, pieces: &[&[u8]]) {
        self.buffer.extend_from_slice(b"event: ");
        self.one_line(event.as_bytes());
        self.buffer.extend_from_slice(b"\ndata: ");
        for piece in pieces {
            self.one_line(piece);
        }
        self.buffer.extend_from_slice(b"\nid: ");
        let mut number = NumberBuffer::default();
        self.buffer.extend_from_slice(number.format(self.sequence.0));
        self.buffer.extend_from_slice(b".");
        self.buffer.extend_from_slice(number.format(u64::from(self.next)));
        self.buffer.extend_from_slice(b"\n\n");
        self.end_frame();
    }

    fn json(&mut self, event: &str, data: &impl Serialize) {
        let data = serde_json::to_vec(data).unwrap_or_else(|_| b"{}".to_vec());
        self.frame(event, &[&data]);
    }

    /// Leaves out a frame but keeps its number, so that the numbers of those after it do not depend on the reader.
    fn skip(&mut self) {
        self.end_frame();
    }

    fn end_frame(&mut self) {
        self.next += 1;
        self.ends.push(u32::try_from(self.buffer.len()).unwrap_or(u32::MAX));
    }

    fn one_line(&mut self, bytes: &[u8]) {
        let mut rest = bytes;
        while let Some(at) = memchr::memchr2(b'\n', b'\r', rest) {
            self.buffer.extend_from_slice(&rest[..at]);
            self.buffer.extend_from_slice(b" ");
            rest = &rest[at + 1..];
        }
        self.buffer.extend_from_slice(rest);
    }

    fn done(&mut self, session: SessionId) {
        self.json("done", &Done { session_id: session });
    }

    fn finish(self) -> Rendered {
        Rendered { bytes: self.buffer.freeze(), ends: self.ends }
    }
}

/// Decimal digits without an allocation: numbers are written twice per frame, thousands of times per second.
#[derive(Default)]
struct NumberBuffer([u8; 20]);

impl NumberBuffer {
    fn format(&mut self, mut number: u64) -> &[u8] {
        let mut at = self.0.len();
        loop {
            at -= 1;
            self.0[at] = b'0' + (number % 10) as u8;
            number /= 10;
            if number == 0 {
                return &self.0[at..];
            }
        }
    }
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Done {
    session_id: SessionId,
}

#[derive(Serialize)]
struct ErrorData<'a> {
    error: &'a str,
}

/// The frame that begins the answer to a message. It has no id.
pub fn session_start(session: SessionId) -> Bytes {
    let version = env!("CARGO_PKG_VERSION");
    Bytes::from(format!("event: session_start\ndata: {{\"sessionId\":\"{session}\",\"version\":\"{version}\"}}\n\n"))
}

/// The frames of an entry. Total: bytes that are no known message give the frames that can be made of them, or none.
///
/// An entry of kind `Opening` depends on its reader's position too: [`render_opening`].
pub fn render(session: SessionId, entry: &Entry) -> Rendered {
    match entry.kind {
        EntryKind::Partial => partial(entry),
        EntryKind::Claude => claude(session, entry),
        EntryKind::Bridge => bridge(session, entry),
        EntryKind::Opening | EntryKind::User | EntryKind::Transcript => Rendered::default(),
    }
}

/// The frames of an opening for a reader at `position`: `withdrawn` where it saw more than was committed, then `error` and
/// `done` of a turn that was in progress, and `recovered` where the workspace was not at hand any more. The frames are numbered 0
/// to 3, whether or not those before are sent.
pub fn render_opening(session: SessionId, entry: &Entry, position: Position) -> Rendered {
    let Ok(opening) = Opening::read(&entry.body) else { return Rendered::default() };
    let mut writer = Writer::new(entry.sequence, 256);
    let saw_more = position.sequence > opening.last_committed && position.sequence < entry.sequence;
    if saw_more {
        writer.json("withdrawn", &serde_json::json!({ "after": opening.last_committed.to_string() }));
    } else {
        writer.skip();
    }
    if opening.interrupted.is_some() {
        let message = opening.message.as_deref().unwrap_or("The turn was interrupted.");
        writer.json("error", &ErrorData { error: message });
        writer.done(session);
    }
    if let Some(recovered) = &opening.recovered {
        if opening.interrupted.is_none() {
            writer.skip();
            writer.skip();
        }
        writer.json("recovered", recovered);
    }
    writer.finish()
}

fn partial(entry: &Entry) -> Rendered {
    #[derive(Deserialize)]
    struct Delta<'a> {
        #[serde(rename = "type", borrow)]
        kind: Cow<'a, str>,
        #[serde(borrow, default)]
        text: Option<&'a RawValue>,
        #[serde(borrow, default)]
        thinking: Option<&'a RawValue>,
    }

    if let Some(text) = plain_text_delta(&entry.body) {
        let mut writer = Writer::new(entry.sequence, entry.body.len() + text.len() + 192);
        writer.frame("text_delta", &[br#"{"delta":"#, text, b"}"]);
        writer.frame("message", &[&entry.body]);
        return writer.finish();
    }
    let mut writer = Writer::new(entry.sequence, entry.body.len() + 256);
    let line: Option<PartialLine<'_>> = serde_json::from_slice(&entry.body).ok();
    let delta = line.as_ref().filter(|line| line.event.kind == "content_block_delta").and_then(|line| line.event.delta);
    if let Some(raw) = delta
        && let Ok(delta) = serde_json::from_str::<Delta<'_>>(raw.get())
    {
        match (delta.kind.as_ref(), delta.text, delta.thinking) {
            ("text_delta", Some(text), _) => {
                writer.frame("text_delta", &[br#"{"delta":"#, text.get().as_bytes(), b"}"]);
            }
            ("thinking_delta", _, Some(thinking)) => {
                writer.frame("thinking_delta", &[br#"{"delta":"#, thinking.get().as_bytes(), b"}"]);
            }
            (kind, ..) => writer.frame(kind, &[raw.get().as_bytes()]),
        }
    }
    writer.frame("message", &[&entry.body]);
    writer.finish()
}

/// The text, as a JSON string, of a text delta written just as Claude Code writes it: most lines of most turns, so they are not
/// parsed as a whole. `None` for everything else.
fn plain_text_delta(line: &[u8]) -> Option<&[u8]> {
    let rest = line.strip_prefix(br#"{"type":"stream_event","event":{"type":"content_block_delta","index":"#)?;
    let digits = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let text = rest.get(digits..)?.strip_prefix(br#","delta":{"type":"text_delta","text":"#)?;
    let inside = text.strip_prefix(b"\"")?;
    let mut end = 0;
    loop {
        end += memchr::memchr2(b'"', b'\\', inside.get(end..)?)?;
        if inside[end] == b'"' {
            break;
        }
        // Other escapes are left to the parser, which knows which of them are valid.
        matches!(inside.get(end + 1)?, b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't').then_some(())?;
        end += 2;
    }
    let text = &text[..end + 2];
    let is_json = digits > 0
        && std::str::from_utf8(text).is_ok()
        && !text.iter().any(u8::is_ascii_control)
        && inside[end + 1..].starts_with(b"}}")
        && line.ends_with(b"}");
    is_json.then_some(text)
}

fn claude(session: SessionId, entry: &Entry) -> Rendered {
    let mut writer = Writer::new(entry.sequence, entry.body.len() + 512);
    match Line::parse(&entry.body) {
        Ok(Line::Other(kind)) if kind == "assistant" || kind == "user" => {
            blocks(&mut writer, &entry.body);
            writer.frame("message", &[&entry.body]);
        }
        Ok(Line::Result { is_error }) => result(&mut writer, &entry.body, is_error),
        Ok(_) => writer.frame("message", &[&entry.body]),
        Err(_) => writer.json("error", &ErrorData { error: "Claude Code printed a line that is no message." }),
    }
    if entry.ends_turn() {
        writer.done(session);
    }
    writer.finish()
}

/// The granular frames of an assistant's or a user's message: one per content block, text excepted, which came as deltas and
/// stands whole in the `message` frame.
fn blocks(writer: &mut Writer, body: &[u8]) {
    #[derive(Deserialize)]
    struct Carrier<'a> {
        #[serde(borrow)]
        message: Message<'a>,
    }
    #[derive(Deserialize)]
    struct Message<'a> {
        #[serde(borrow)]
        content: Vec<&'a RawValue>,
    }
    #[derive(Deserialize)]
    struct Block<'a> {
        #[serde(rename = "type", borrow)]
        kind: Cow<'a, str>,
        #[serde(borrow, default)]
        id: Option<&'a RawValue>,
        #[serde(borrow, default)]
        name: Option<&'a RawValue>,
        #[serde(borrow, default)]
        input: Option<&'a RawValue>,
        #[serde(borrow, default)]
        thinking: Option<&'a RawValue>,
        #[serde(borrow, default)]
        tool_use_id: Option<&'a RawValue>,
        #[serde(borrow, default)]
        content: Option<&'a RawValue>,
        #[serde(default)]
        is_error: Option<bool>,
    }
    fn raw(value: Option<&RawValue>) -> &[u8] {
        value.map_or(b"null", |value| value.get().as_bytes())
    }

    let Ok(carrier) = serde_json::from_slice::<Carrier<'_>>(body) else { return };
    for raw_block in carrier.message.content {
        let Ok(block) = serde_json::from_str::<Block<'_>>(raw_block.get()) else { continue };
        match block.kind.as_ref() {
            "text" => {}
            "thinking" => writer.frame("thinking_delta", &[br#"{"delta":"#, raw(block.thinking), b"}"]),
            "tool_use" => writer.frame(
                "tool_use",
                &[
                    br#"{"id":"#,
                    raw(block.id),
                    br#","name":"#,
                    raw(block.name),
                    br#","input":"#,
                    raw(block.input),
                    b"}",
                ],
            ),
            "tool_result" => {
                let error: &[u8] = match block.is_error {
                    Some(true) => br#","is_error":true}"#,
                    Some(false) => br#","is_error":false}"#,
                    None => b"}",
                };
                let (id, content) = (raw(block.tool_use_id), raw(block.content));
                writer.frame("tool_result", &[br#"{"tool_use_id":"#, id, br#","content":"#, content, error]);
            }
            kind => writer.frame(kind, &[raw_block.get().as_bytes()]),
        }
    }
}

/// What is said of a turn that was interrupted.
pub const INTERRUPTED: &str = "The turn was interrupted.";

/// Whether the `terminal_reason` of a `result` says that the turn was interrupted. Claude Code's own words are a diagnostic of its
/// inside then (`[ede_diagnostic] ...`, observed with 2.1.330).
pub fn was_interrupted(terminal_reason: &str) -> bool {
    terminal_reason.starts_with("aborted")
}

fn result(writer: &mut Writer, body: &[u8], is_error: bool) {
    #[derive(Deserialize)]
    struct ResultLine<'a> {
        #[serde(borrow, default)]
        subtype: Option<Cow<'a, str>>,
        #[serde(default)]
        num_turns: Option<u64>,
        #[serde(borrow, default)]
        result: Option<&'a RawValue>,
        #[serde(default)]
        errors: Vec<String>,
        #[serde(borrow, default)]
        terminal_reason: Option<Cow<'a, str>>,
    }

    let Ok(line) = serde_json::from_slice::<ResultLine<'_>>(body) else {
        writer.frame("message", &[body]);
        return;
    };
    let text: Option<String> = line.result.and_then(|raw| serde_json::from_str(raw.get()).ok());
    let turns = line.num_turns.unwrap_or_default().to_string();
    let result = line.result.map_or("null", RawValue::get);
    writer.frame("turn_complete", &[br#"{"numTurns":"#, turns.as_bytes(), br#","result":"#, result.as_bytes(), b"}"]);
    writer.frame("message", &[body]);
    let subtype = line.subtype.as_deref().unwrap_or_default();
    if is_error || subtype.starts_with("error") {
        let error = text.filter(|text| !text.is_empty()).unwrap_or_else(|| {
            if line.terminal_reason.as_deref().is_some_and(was_interrupted) {
                INTERRUPTED.to_owned()
            } else if line.errors.is_empty() {
                format!("The turn ended with {subtype}.")
            } else {
                line.errors.join("; ")
            }
        });
        writer.json("error", &ErrorData { error: &error });
    }
}

fn bridge(session: SessionId, entry: &Entry) -> Rendered {
    let mut writer = Writer::new(entry.sequence, entry.body.len() + 128);
    match serde_json::from_slice::<BridgeEvent>(&entry.body) {
        Ok(BridgeEvent::TurnFailed { message, .. } | BridgeEvent::InvalidOutput { message }) => {
            writer.json("error", &ErrorData { error: &message });
        }
        Ok(BridgeEvent::PermissionRequest { id, tool_name, input, expires_at_ms, .. }) => {
            #[derive(Serialize)]
            #[serde(rename_all = "camelCase")]
            struct Data<'a> {
                id: &'a str,
                tool_name: &'a str,
                input: &'a RawValue,
                expires_at: String,
            }
            let expires_at = Timestamp::from_millisecond(expires_at_ms).unwrap_or(Timestamp::MAX);
            let expires_at = format!("{expires_at:.3}");
            writer.json("permission_request", &Data { id: &id, tool_name: &tool_name, input: &input, expires_at });
        }
        Ok(BridgeEvent::PermissionResolved { id, resolution }) => {
            writer.json("permission_resolved", &serde_json::json!({ "id": id, "resolution": resolution }));
        }
        Ok(BridgeEvent::Superseded { from, to }) => {
            writer.json("replaced", &serde_json::json!({ "from": from.to_string(), "to": to.to_string() }));
        }
        Ok(BridgeEvent::ClaudeRestarted { reason }) => {
            writer.json("claude_restarted", &serde_json::json!({ "reason": reason }));
        }
        Ok(BridgeEvent::McpServersFailed { servers }) => {
            writer.json("mcp_status", &serde_json::json!({ "servers": servers }));
        }
        Err(_) => {}
    }
    if entry.ends_turn() {
        writer.done(session);
    }
    writer.finish()
}

#[cfg(test)]
#[path = "render_tests.rs"]
mod tests;
