//! How a turn looks: from a frame to what is written. No I/O.

use ash_client::{Event, Frame};
use serde::{Deserialize, Serialize};
use serde_json::{Value, value::RawValue};

use crate::output::text::{Style, printable, short};

/// Characters of a tool call or its result that are shown.
const SHOWN_CHARACTERS: usize = 100;

/// Members of a tool's input that say best what it does, in the order in which they are looked for.
const TELLING: [&str; 9] =
    ["command", "file_path", "path", "pattern", "url", "query", "skill", "description", "prompt"];

/// What is written because of a frame.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Shown {
    /// On standard output.
    pub(super) output: String,
    /// On standard error, a line.
    pub(super) note: Option<String>,
}

/// How a turn is shown.
#[derive(Debug)]
pub(super) enum View {
    /// For a person at a terminal.
    Terminal(Terminal),
    /// The agent's texts as they are written, and nothing else.
    Plain(Plain),
    /// Every frame as a line of JSON.
    Frames,
}

impl View {
    pub(super) fn terminal(style: Style) -> Self {
        Self::Terminal(Terminal { style, place: Place::LineStart, streamed: false, interrupted: false })
    }

    pub(super) fn plain() -> Self {
        Self::Plain(Plain::default())
    }

    pub(super) fn frames() -> Self {
        Self::Frames
    }

    /// What a frame gives.
    pub(super) fn show(&mut self, frame: &Frame, event: &Event) -> Shown {
        match self {
            Self::Terminal(terminal) => Shown { output: terminal.show(event), note: None },
            Self::Plain(plain) => plain.show(event),
            Self::Frames => Shown { output: line(frame), note: None },
        }
    }

    /// Something that the client itself has to say about the turn.
    pub(super) fn say(&mut self, text: &str) -> Shown {
        match self {
            Self::Terminal(terminal) => Shown { output: terminal.aside(text), note: None },
            Self::Plain(_) | Self::Frames => Shown { output: String::new(), note: Some(text.to_owned()) },
        }
    }

    /// The connection was lost; the stream connects again by itself.
    pub(super) fn lost(&mut self, reason: &str) -> Shown {
        self.say(&format!("Connection lost, reconnecting … ({reason})"))
    }

    /// The connection is there again; what comes follows this event, with no gap and nothing twice.
    pub(super) fn resumed(&mut self, after: Option<&str>) -> Shown {
        match after {
            Some(event) => self.say(&format!("Connection lost, resumed after event {event}.")),
            None => self.say("Connection lost, resumed from the turn's beginning."),
        }
    }

    /// A question to the person; the answer follows on the same line.
    pub(super) fn ask(&mut self, text: &str) -> Shown {
        match self {
            Self::Terminal(terminal) => {
                let output = format!("{}{}", terminal.new_line(), terminal.style.bold(text));
                // The person's own line break ends the line.
                terminal.place = Place::LineStart;
                Shown { output, note: None }
            }
            Self::Plain(_) | Self::Frames => Shown::default(),
        }
    }

    /// The person interrupted the turn: the failure that it ends with is expected.
    pub(super) fn interrupted(&mut self) {
        if let Self::Terminal(terminal) = self {
            terminal.interrupted = true;
        }
    }
}

/// A frame as a line of JSON: `{"event", "id"?, "data"}`. Data that is no JSON becomes a string.
fn line(frame: &Frame) -> String {
    #[derive(Serialize)]
    struct Line<'a> {
        event: &'a str,
        #[serde(skip_serializing_if = "Option::is_none")]
        id: Option<&'a str>,
        data: &'a RawValue,
    }
    let text = serde_json::value::to_raw_value(&frame.data).unwrap_or_default();
    let data = serde_json::from_str::<&RawValue>(&frame.data).unwrap_or(&text);
    let line = Line { event: &frame.event, id: frame.id.as_deref(), data };
    serde_json::to_string(&line).map_or_else(|_| String::new(), |line| line + "\n")
}

/// A file or a pipe, as far as it was written to. Each message ends its line.
#[derive(Debug, Default)]
pub(super) struct Plain {
    /// Something of the message that is being written was shown already.
    streamed: bool,
    /// How much of it, without line breaks, which stand between the texts of a complete message, too.
    streamed_bytes: usize,
}

impl Plain {
    fn show(&mut self, event: &Event) -> Shown {
        match event {
            Event::Message(message) => Shown { output: self.message(message.get()), note: None },
            Event::Replaced { .. } if self.streamed => {
                Shown { output: self.end_line(), note: Some(REPLACED.to_owned()) }
            }
            Event::Withdrawn { .. } => Shown { output: self.end_line(), note: Some(WITHDRAWN.to_owned()) },
            Event::Error(error) => Shown { output: self.end_line(), note: Some(format!("error: {error}")) },
            Event::Done { .. } => Shown { output: self.end_line(), note: None },
            _ => Shown::default(),
        }
    }

    fn message(&mut self, message: &str) -> String {
        if let Some(delta) = written(message).filter(|delta| !delta.is_empty()) {
            self.streamed = true;
            self.streamed_bytes += without_breaks(&delta);
            return delta;
        }
        let texts = texts(message);
        if texts.is_empty() {
            return texts;
        }
        let repeats = self.streamed && self.streamed_bytes == without_breaks(&texts);
        let end = self.end_line();
        // The complete message repeats what was written piece by piece; another one (an error's) says something new.
        if repeats { end } else { format!("{end}{texts}\n") }
    }

    fn end_line(&mut self) -> String {
        self.streamed_bytes = 0;
        if std::mem::take(&mut self.streamed) { "\n".to_owned() } else { String::new() }
    }
}

fn without_breaks(text: &str) -> usize {
    text.bytes().filter(|byte| *byte != b'\n').count()
}

/// What is said where the model begins an answer anew.
const REPLACED: &str = "The model is asked again; what follows stands for the text above.";

/// What is said where frames do not count any more.
const WITHDRAWN: &str =
    "The server was lost, and with it the end of what is shown here: the agent does not remember it.";

/// Where on a terminal the next character goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    LineStart,
    /// At the start of the line after "Thinking".
    AfterThinking,
    InLine,
}

/// A terminal, as far as it was written to.
#[derive(Debug)]
pub(super) struct Terminal {
    style: Style,
    place: Place,
    /// Text of the message that is being written was shown already.
    streamed: bool,
    interrupted: bool,
}

impl Terminal {
    fn show(&mut self, event: &Event) -> String {
        match event {
            Event::TextDelta(delta) => {
                self.streamed = true;
                self.text(delta)
            }
            Event::ThinkingDelta(_) if self.place == Place::AfterThinking => String::new(),
            Event::ThinkingDelta(_) => {
                let shown = self.aside("Thinking …");
                self.place = Place::AfterThinking;
                shown
            }
            Event::Message(message) => {
                let texts = texts(message.get());
                // The complete message repeats what was written piece by piece.
                if texts.is_empty() || std::mem::take(&mut self.streamed) { String::new() } else { self.text(&texts) }
            }
            Event::ToolUse { name, input, .. } => {
                let call = format!("● {} {}", self.style.bold(&printable(name)), self.style.dim(&summary(input)));
                self.line(&call)
            }
            Event::ToolResult { content, is_error, .. } => {
                let result = result(content);
                let result = if *is_error { self.style.red(&result) } else { self.style.dim(&result) };
                self.line(&format!("  {result}"))
            }
            Event::Replaced { .. } if std::mem::take(&mut self.streamed) => self.aside(REPLACED),
            Event::Withdrawn { .. } => self.aside(WITHDRAWN),
            Event::ClaudeRestarted { .. } => self.aside("Claude Code was started again."),
            Event::McpStatus { servers } => {
                let servers: Vec<String> = servers.iter().map(|(name, state)| format!("{name} ({state})")).collect();
                self.aside(&format!("MCP servers that are not connected: {}", servers.join(", ")))
            }
            Event::Error(_) if self.interrupted => self.aside("Interrupted."),
            Event::Error(error) => {
                let error = self.style.red(&format!("error: {}", printable(error)));
                self.line(&error)
            }
            Event::Done { .. } => {
                let shown = self.new_line();
                (self.streamed, self.interrupted) = (false, false);
                shown
            }
            _ => String::new(),
        }
    }

    fn text(&mut self, text: &str) -> String {
        let text = printable(text);
        if !text.is_empty() {
            self.place = if text.ends_with('\n') { Place::LineStart } else { Place::InLine };
        }
        text.into_owned()
    }

    /// A line of its own.
    fn line(&mut self, text: &str) -> String {
        format!("{}{text}\n", self.new_line())
    }

    fn aside(&mut self, text: &str) -> String {
        let text = self.style.dim(&printable(text));
        self.line(&text)
    }

    fn new_line(&mut self) -> String {
        let in_line = std::mem::replace(&mut self.place, Place::LineStart) == Place::InLine;
        if in_line { "\n".to_owned() } else { String::new() }
    }
}

/// The texts of an assistant's message; empty for every other message, and for those of sub-agents.
fn texts(message: &str) -> String {
    #[derive(Deserialize)]
    struct Carrier {
        #[serde(rename = "type")]
        kind: String,
        #[serde(default)]
        parent_tool_use_id: Option<String>,
        #[serde(default)]
        message: Value,
    }
    let Ok(carrier) = serde_json::from_str::<Carrier>(message) else { return String::new() };
    if carrier.kind != "assistant" || carrier.parent_tool_use_id.is_some() {
        return String::new();
    }
    blocks(&carrier.message["content"])
}

/// The piece of text in a message that tells of one being written; not of a sub-agent's.
fn written(message: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Carrier {
        #[serde(rename = "type")]
        kind: String,
        #[serde(default)]
        parent_tool_use_id: Option<String>,
        #[serde(default)]
        event: Value,
    }
    let carrier: Carrier = serde_json::from_str(message).ok()?;
    let delta = &carrier.event["delta"];
    let is_text =
        carrier.kind == "stream_event" && delta["type"] == "text_delta" && carrier.parent_tool_use_id.is_none();
    if is_text { delta["text"].as_str().map(ToOwned::to_owned) } else { None }
}

/// The texts among content blocks.
fn blocks(content: &Value) -> String {
    let texts = content.as_array().into_iter().flatten().filter(|block| block["type"] == "text");
    texts.filter_map(|block| block["text"].as_str()).collect::<Vec<_>>().join("\n")
}

/// What a tool is called with, in a few words.
fn summary(input: &Value) -> String {
    let telling = TELLING.iter().find_map(|name| input[name].as_str());
    short(telling.map_or_else(|| input.to_string(), ToOwned::to_owned).as_str(), SHOWN_CHARACTERS)
}

/// What a tool answered: its first line, and how many more there are.
fn result(content: &Value) -> String {
    let text = content.as_str().map_or_else(|| blocks(content), ToOwned::to_owned);
    let mut lines = text.lines().filter(|line| !line.trim().is_empty());
    let first = short(lines.next().unwrap_or("(nothing)"), SHOWN_CHARACTERS);
    match lines.count() {
        0 => first,
        1 => format!("{first} (1 more line)"),
        more => format!("{first} ({more} more lines)"),
    }
}

#[cfg(test)]
#[path = "view_tests.rs"]
mod tests;
