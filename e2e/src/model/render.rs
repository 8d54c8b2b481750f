//! From an answer to what goes over the wire: server-sent events, or one JSON message.

use std::time::Duration;

use bytes::Bytes;
use serde_json::{Value, json};
use uuid::Uuid;

use super::record::ToolCall;
use super::reply::{Cut, Reply, Step};

/// Characters of a tool's input in one `input_json_delta`.
const TOOL_INPUT_PIECE: usize = 16;

/// Time between the last delta and a cut. A client that gets data and the end of the connection in one go may throw the data
/// away (Claude Code 2.1.330 does), and no real cut comes in the very moment of a delta.
const PAUSE_BEFORE_CUT: Duration = Duration::from_millis(50);

/// One thing that the body of a response does.
#[derive(Debug)]
pub(super) enum Frame {
    /// Sends bytes; `said` is what they mean.
    Data { bytes: Bytes, said: Option<Piece> },
    /// Waits.
    Wait(Duration),
    /// Ends the connection once everything before it was sent.
    Cut(Cut),
}

/// What a frame says.
#[derive(Debug, Clone, PartialEq)]
pub(super) enum Piece {
    Text(String),
    Thinking(String),
    /// A part of a tool's input; counted as a delta.
    Input,
    Tool(ToolCall),
}

/// What an answer needs beside its steps.
#[derive(Debug, Clone, Copy)]
pub(super) struct Envelope<'a> {
    pub(super) model: &'a str,
    /// Bytes of the request, from which the input tokens are told when the answer does not say them.
    pub(super) request_bytes: usize,
}

fn new_id(prefix: &str) -> String {
    let id = Uuid::new_v4().simple().to_string();
    format!("{prefix}_{}", &id[..24])
}

/// A text as the deltas that carry it: one per word, white space with the word before it.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split_inclusive(char::is_whitespace)
}

fn burst(deltas: usize, bytes: Option<usize>) -> impl Iterator<Item = String> {
    (0..deltas).map(move |index| {
        let number = format!("{index} ");
        match bytes {
            None => number,
            Some(bytes) => number.chars().chain(std::iter::repeat('x')).take(bytes).collect(),
        }
    })
}

fn input_pieces(input: &Value) -> Vec<String> {
    let text: Vec<char> = input.to_string().chars().collect();
    text.chunks(TOOL_INPUT_PIECE).map(|piece| piece.iter().collect()).collect()
}

fn says_something(reply: &Reply) -> bool {
    reply.steps.iter().any(|step| !matches!(step, Step::Delay(_) | Step::Pace(_)))
}

fn stop_reason(reply: &Reply) -> &str {
    let calls = reply.steps.iter().any(|step| matches!(step, Step::Tool { .. }));
    reply.stop_reason.as_deref().unwrap_or(if calls { "tool_use" } else { "end_turn" })
}

fn tokens_of(characters: usize) -> u64 {
    (characters / 4).max(1) as u64
}

/// The frames of a streamed answer.
pub(super) fn stream(reply: &Reply, envelope: Envelope<'_>) -> Vec<Frame> {
    let mut writer = Writer::new(reply, envelope);
    let done = [Step::Text("Done.".to_owned())];
    let steps = reply.steps.iter().chain(if says_something(reply) { &[] } else { done.as_slice() });
    for step in steps {
        if writer.ended {
            break;
        }
        writer.step(step);
    }
    writer.finish(stop_reason(reply), reply.usage)
}

struct Writer {
    frames: Vec<Frame>,
    index: usize,
    deltas: usize,
    characters: usize,
    pace: Duration,
    cut: Option<(usize, Cut)>,
    ended: bool,
}

impl Writer {
    fn new(reply: &Reply, envelope: Envelope<'_>) -> Self {
        let input = reply.usage.map_or_else(|| tokens_of(envelope.request_bytes), |(input, _)| input);
        let mut writer = Self {
            frames: Vec::new(),
            index: 0,
            deltas: 0,
            characters: 0,
            pace: Duration::ZERO,
            cut: reply.cut,
            ended: false,
        };
        let start = json!({"type": "message_start", "message": {
            "id": new_id("msg"), "type": "message", "role": "assistant", "model": envelope.model, "content": [],
            "stop_reason": null, "stop_sequence": null,
            "usage": {"input_tokens": input, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0, "output_tokens": 1},
        }});
        writer.event("message_start", &start.to_string(), None);
        writer.event("ping", r#"{"type":"ping"}"#, None);
        writer
    }

    fn event(&mut self, name: &str, data: &str, said: Option<Piece>) {
        if !self.ended {
            let bytes = Bytes::from(format!("event: {name}\ndata: {data}\n\n"));
            self.frames.push(Frame::Data { bytes, said });
        }
    }

    fn cut_if_due(&mut self, at_the_latest: bool) {
        if let Some((after, how)) = self.cut
            && !self.ended
            && (self.deltas >= after || at_the_latest)
        {
            self.frames.push(Frame::Wait(PAUSE_BEFORE_CUT));
            self.frames.push(Frame::Cut(how));
            self.ended = true;
        }
    }

    /// A delta, or the cut that is due before it.
    fn delta(&mut self, kind: &str, field: &str, value: &str, said: Piece) {
        self.cut_if_due(false);
        if self.ended {
            return;
        }
        if !self.pace.is_zero() {
            self.frames.push(Frame::Wait(self.pace));
        }
        let value_json = Value::from(value).to_string();
        let data = format!(
            r#"{{"type":"content_block_delta","index":{},"delta":{{"type":"{kind}","{field}":{value_json}}}}}"#,
            self.index
        );
        self.event("content_block_delta", &data, Some(said));
        self.deltas += 1;
        self.characters += value.len();
    }

    fn open(&mut self, block: &Value) {
        let data = json!({"type": "content_block_start", "index": self.index, "content_block": block});
        self.event("content_block_start", &data.to_string(), None);
    }

    fn close(&mut self, said: Option<Piece>) {
        self.cut_if_due(false);
        let data = json!({"type": "content_block_stop", "index": self.index});
        self.event("content_block_stop", &data.to_string(), said);
        self.index += 1;
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Delay(wait) => self.frames.push(Frame::Wait(*wait)),
            Step::Pace(wait) => self.pace = *wait,
            Step::Text(text) => {
                self.open(&json!({"type": "text", "text": ""}));
                for word in words(text) {
                    self.delta("text_delta", "text", word, Piece::Text(word.to_owned()));
                }
                self.close(None);
            }
            Step::Burst { deltas, bytes } => {
                self.open(&json!({"type": "text", "text": ""}));
                for piece in burst(*deltas, *bytes) {
                    self.delta("text_delta", "text", &piece, Piece::Text(piece.clone()));
                }
                self.close(None);
            }
            Step::Think(text) => {
                self.open(&json!({"type": "thinking", "thinking": "", "signature": ""}));
                for word in words(text) {
                    self.delta("thinking_delta", "thinking", word, Piece::Thinking(word.to_owned()));
                }
                let signature = json!({"type": "content_block_delta", "index": self.index,
                    "delta": {"type": "signature_delta", "signature": "c2NyaXB0ZWQ="}});
                self.cut_if_due(false);
                self.event("content_block_delta", &signature.to_string(), None);
                self.close(None);
            }
            Step::Tool { name, input } => {
                let call = ToolCall { id: new_id("toolu"), name: name.clone(), input: input.clone() };
                self.open(&json!({"type": "tool_use", "id": call.id, "name": name, "input": {}}));
                for piece in input_pieces(input) {
                    self.delta("input_json_delta", "partial_json", &piece, Piece::Input);
                }
                self.close(Some(Piece::Tool(call)));
            }
            Step::StreamError(kind) => {
                self.cut_if_due(false);
                self.event("error", &error_body(kind, "the script says so"), None);
                self.ended = true;
            }
        }
    }

    fn finish(mut self, stop_reason: &str, usage: Option<(u64, u64)>) -> Vec<Frame> {
        self.cut_if_due(true);
        let output = usage.map_or_else(|| tokens_of(self.characters), |(_, output)| output);
        let delta = json!({"type": "message_delta", "delta": {"stop_reason": stop_reason, "stop_sequence": null},
            "usage": {"output_tokens": output}});
        self.event("message_delta", &delta.to_string(), None);
        self.event("message_stop", r#"{"type":"message_stop"}"#, None);
        self.frames
    }
}

/// An answer that is not streamed, with what it says. Delays are added up into the second value; a burst is one text.
pub(super) fn whole(reply: &Reply, envelope: Envelope<'_>) -> (Value, Duration, Vec<Piece>) {
    let mut content = Vec::new();
    let mut wait = Duration::ZERO;
    let mut said = Vec::new();
    for step in &reply.steps {
        match step {
            Step::Delay(more) => wait += *more,
            Step::Pace(_) | Step::StreamError(_) => {}
            Step::Text(text) => {
                content.push(json!({"type": "text", "text": text}));
                said.push(Piece::Text(text.clone()));
            }
            Step::Burst { deltas, bytes } => {
                let text: String = burst(*deltas, *bytes).collect();
                content.push(json!({"type": "text", "text": text}));
                said.push(Piece::Text(text));
            }
            Step::Think(text) => {
                content.push(json!({"type": "thinking", "thinking": text, "signature": "c2NyaXB0ZWQ="}));
                said.push(Piece::Thinking(text.clone()));
            }
            Step::Tool { name, input } => {
                let call = ToolCall { id: new_id("toolu"), name: name.clone(), input: input.clone() };
                content.push(json!({"type": "tool_use", "id": call.id, "name": name, "input": input}));
                said.push(Piece::Tool(call));
            }
        }
    }
    if content.is_empty() {
        content.push(json!({"type": "text", "text": "Done."}));
        said.push(Piece::Text("Done.".to_owned()));
    }
    let characters = Value::from(content.clone()).to_string().len();
    let (input, output) = reply.usage.unwrap_or_else(|| (tokens_of(envelope.request_bytes), tokens_of(characters)));
    let message = json!({
        "id": new_id("msg"), "type": "message", "role": "assistant", "model": envelope.model, "content": content,
        "stop_reason": stop_reason(reply), "stop_sequence": null,
        "usage": {"input_tokens": input, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0, "output_tokens": output},
    });
    (message, wait, said)
}

/// The type that the API gives to an error of this status.
pub(super) fn error_kind(status: u16) -> &'static str {
    match status {
        401 => "authentication_error",
        403 => "permission_error",
        404 => "not_found_error",
        413 => "request_too_large",
        429 => "rate_limit_error",
        529 => "overloaded_error",
        500..=599 => "api_error",
        _ => "invalid_request_error",
    }
}

/// The body of an error.
pub(super) fn error_body(kind: &str, message: &str) -> String {
    json!({"type": "error", "error": {"type": kind, "message": message}, "request_id": new_id("req")}).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    const ENVELOPE: Envelope<'static> = Envelope { model: "m", request_bytes: 400 };

    /// Types of the events; `cut` and `wait` for what is no event.
    fn kinds(reply: &Reply) -> Vec<String> {
        stream(reply, ENVELOPE)
            .iter()
            .map(|frame| match frame {
                Frame::Data { bytes, .. } => {
                    let text = std::str::from_utf8(bytes).unwrap();
                    let (first, second) = text.trim_end().split_once('\n').unwrap();
                    let data: Value = serde_json::from_str(second.strip_prefix("data: ").unwrap()).unwrap();
                    let name = first.strip_prefix("event: ").unwrap();
                    assert_eq!(data["type"], name);
                    name.trim_start_matches("content_block_").trim_start_matches("message_").to_owned()
                }
                Frame::Wait(_) => "wait".to_owned(),
                Frame::Cut(_) => "cut".to_owned(),
            })
            .collect()
    }

    #[test]
    fn a_text_is_a_whole_message() {
        assert_eq!(
            kinds(&Reply::new().text("a b\nc")),
            ["start", "ping", "start", "delta", "delta", "delta", "stop", "delta", "stop"]
        );
    }

    #[test]
    fn the_deltas_give_the_text_again() {
        let text = "  two  blanks\n\nand \"quotes\" ü ";
        assert_eq!(words(text).collect::<String>(), text);
        let input = json!({"command": "grep -n 'ü' \"x y\"", "list": [1, 2, 3]});
        assert_eq!(serde_json::from_str::<Value>(&input_pieces(&input).concat()).unwrap(), input);
        assert!(burst(3, Some(64)).all(|piece| piece.len() == 64));
    }

    #[test]
    fn nothing_to_say_is_done() {
        assert_eq!(kinds(&Reply::new()).len(), 7);
    }

    #[test]
    fn a_cut_comes_after_its_deltas_and_ends_everything() {
        assert_eq!(
            kinds(&Reply::new().burst(9).cut(2, Cut::Close)),
            ["start", "ping", "start", "delta", "delta", "wait", "cut"]
        );
        assert_eq!(kinds(&Reply::new().burst(9).cut(0, Cut::Close)), ["start", "ping", "start", "wait", "cut"]);
        assert_eq!(
            kinds(&Reply::new().burst(1).cut(5, Cut::Reset)),
            ["start", "ping", "start", "delta", "stop", "wait", "cut"]
        );
    }

    #[test]
    fn an_error_in_the_stream_ends_it() {
        assert_eq!(
            kinds(&Reply::new().text("a").stream_error("overloaded_error").text("b")),
            ["start", "ping", "start", "delta", "stop", "error"]
        );
    }

    #[test]
    fn the_pace_waits_before_each_delta() {
        let kinds = kinds(&Reply::new().text("a").pace(Duration::from_millis(1)).text("b c"));
        assert_eq!(kinds.iter().filter(|kind| *kind == "wait").count(), 2);
    }

    #[test]
    fn a_call_stops_for_its_tool() {
        assert_eq!(stop_reason(&Reply::new().text("a").tool("Bash", json!({}))), "tool_use");
        assert_eq!(stop_reason(&Reply::new().text("a")), "end_turn");
        let (message, _, _) = whole(&Reply::new().tool("Bash", json!({"command": "ls"})).usage(7, 8), ENVELOPE);
        assert_eq!(message["content"][0]["input"]["command"], "ls");
        assert_eq!((&message["usage"]["input_tokens"], &message["stop_reason"]), (&json!(7), &json!("tool_use")));
    }
}
