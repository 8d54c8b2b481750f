//! One answer of the model, built step by step.

use std::time::Duration;

use serde_json::Value;

/// How a connection ends when it is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cut {
    /// An ordinary close in the middle of the response: what was sent arrives, the end of the stream does not.
    Close,
    /// A TCP reset: what was sent may or may not be read by the client.
    Reset,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Step {
    Text(String),
    Burst { deltas: usize, bytes: Option<usize> },
    Think(String),
    Delay(Duration),
    Pace(Duration),
    Tool { name: String, input: Value },
    StreamError(String),
}

/// An answer that is no message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Failure {
    Status { status: u16, retry_after: Option<u32>, message: String },
    Cut(Cut),
}

/// One answer: what it says, how fast, and whether and how it fails.
///
/// ```
/// # use ash_e2e::model::{Cut, Reply};
/// # use std::time::Duration;
/// let plain = Reply::new().think("hm").text("Hello there").delay(Duration::from_millis(5)).text("you");
/// let tool = Reply::new().text("I look.").tool("Bash", serde_json::json!({"command": "ls"}));
/// let cut = Reply::new().burst(100).cut(5, Cut::Close);
/// let busy = Reply::error(429).retry_after(2);
/// ```
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Reply {
    pub(super) steps: Vec<Step>,
    pub(super) failure: Option<Failure>,
    pub(super) cut: Option<(usize, Cut)>,
    pub(super) stop_reason: Option<String>,
    pub(super) usage: Option<(u64, u64)>,
}

impl Reply {
    /// An answer that says nothing yet. Left so, it says `Done.`, since an empty answer is none.
    pub fn new() -> Self {
        Self::default()
    }

    /// An HTTP error instead of a message; `status` from 400 to 599. 429 carries `Retry-After: 1` unless told otherwise.
    pub fn error(status: u16) -> Self {
        let message = format!("the script says {status}");
        let retry_after = (status == 429).then_some(1);
        Self { failure: Some(Failure::Status { status, retry_after, message }), ..Self::default() }
    }

    /// A connection that ends before any byte of an answer.
    pub fn no_answer(how: Cut) -> Self {
        Self { failure: Some(Failure::Cut(how)), ..Self::default() }
    }

    /// Seconds for `Retry-After` of an error; nothing where this is no error.
    #[must_use]
    pub fn retry_after(mut self, seconds: u32) -> Self {
        if let Some(Failure::Status { retry_after, .. }) = &mut self.failure {
            *retry_after = Some(seconds);
        }
        self
    }

    /// The sentence of an error; nothing where this is no error.
    #[must_use]
    pub fn message(mut self, sentence: &str) -> Self {
        if let Some(Failure::Status { message, .. }) = &mut self.failure {
            sentence.clone_into(message);
        }
        self
    }

    /// A text block, one delta per word.
    #[must_use]
    pub fn text(self, text: impl Into<String>) -> Self {
        self.step(Step::Text(text.into()))
    }

    /// A text block of this many deltas, `0 1 2 ...`.
    #[must_use]
    pub fn burst(self, deltas: usize) -> Self {
        self.step(Step::Burst { deltas, bytes: None })
    }

    /// A text block of this many deltas of `bytes` bytes each.
    #[must_use]
    pub fn burst_of(self, deltas: usize, bytes: usize) -> Self {
        self.step(Step::Burst { deltas, bytes: Some(bytes) })
    }

    /// A thinking block, one delta per word, with a signature.
    #[must_use]
    pub fn think(self, text: impl Into<String>) -> Self {
        self.step(Step::Think(text.into()))
    }

    /// Waits here; before anything else is said it holds back the whole response, status line included.
    #[must_use]
    pub fn delay(self, wait: Duration) -> Self {
        self.step(Step::Delay(wait))
    }

    /// From here on waits before each delta.
    #[must_use]
    pub fn pace(self, wait: Duration) -> Self {
        self.step(Step::Pace(wait))
    }

    /// Calls a tool; the answer then stops with `tool_use`. Several in one answer are parallel calls.
    #[must_use]
    pub fn tool(self, name: &str, input: Value) -> Self {
        self.step(Step::Tool { name: name.to_owned(), input })
    }

    /// An `error` event of this type (`overloaded_error`, ...) in the stream, which then ends.
    #[must_use]
    pub fn stream_error(self, kind: &str) -> Self {
        self.step(Step::StreamError(kind.to_owned()))
    }

    /// Cuts the connection 50 ms after this many deltas of any kind, and at the latest before `message_delta`.
    #[must_use]
    pub fn cut(mut self, after_deltas: usize, how: Cut) -> Self {
        self.cut = Some((after_deltas, how));
        self
    }

    /// Another stop reason than `end_turn` or `tool_use`.
    #[must_use]
    pub fn stop_reason(mut self, reason: &str) -> Self {
        self.stop_reason = Some(reason.to_owned());
        self
    }

    /// The tokens that it reports; without it, a quarter of the bytes shown and of the characters said.
    #[must_use]
    pub fn usage(mut self, input: u64, output: u64) -> Self {
        self.usage = Some((input, output));
        self
    }

    pub(super) fn step(mut self, step: Step) -> Self {
        self.steps.push(step);
        self
    }

    /// Splits off the time to hold back the whole response: the delays before anything else.
    pub(super) fn take_hold(&mut self) -> Duration {
        let leading = self.steps.iter().take_while(|step| matches!(step, Step::Delay(_))).count();
        self.steps.drain(..leading).map(|step| if let Step::Delay(wait) = step { wait } else { Duration::ZERO }).sum()
    }
}
