//! Counts tokens in a model's answer while it passes, without delaying or changing a byte.
//!
//! The scanner looks at lines of the event stream (`data: {...}`), takes those that can be a
//! `message_start` or `message_delta` and reads the counts from them. A line that spans chunks is
//! kept up to [`MAX_LINE`]; a longer one is skipped (the messages that carry counts are short).

use memchr::memmem;
use serde::Deserialize;

use crate::id::{Epoch, SandboxId, SessionId, TenantId};

/// Longest line in bytes that is looked at; a longer one is skipped and counted as skipped.
pub(crate) const MAX_LINE: usize = 64 * 1024;

/// Longest body in bytes of an answer that is not a stream which is kept to read its counts.
pub(crate) const MAX_DOCUMENT: usize = 4 * 1024 * 1024;

/// Longest model name that is reported, in bytes.
const MAX_MODEL: usize = 256;

/// Tokens of one model call.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TokenUsage {
    /// Read by the model, not from its cache.
    pub input: u64,
    /// Written by the model.
    pub output: u64,
    /// Read from the model's prompt cache.
    pub cache_read: u64,
    /// Written to the model's prompt cache.
    pub cache_creation: u64,
}

/// What one model call used, reported once, when its answer has ended.
#[derive(Clone, Debug)]
pub struct UsageReport {
    /// Whose session.
    pub tenant: TenantId,
    /// Which session.
    pub session: SessionId,
    /// Under which claim the call was made.
    pub epoch: Epoch,
    /// From which sandbox.
    pub sandbox: SandboxId,
    /// The model as the answer names it, at most 256 bytes; none where it did not.
    pub model: Option<String>,
    /// The counts. Of a cut answer: the last that were seen.
    pub usage: TokenUsage,
    /// Whether the answer was seen to its end.
    pub complete: bool,
}

/// Takes the counts of model calls. Called from the stream's own task: it must not block.
pub trait UsageSink: Send + Sync + 'static {
    /// One model call has ended.
    fn record(&self, report: UsageReport);
}

/// How an answer's body is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Shape {
    /// `text/event-stream`.
    Events,
    /// One JSON document.
    Document,
}

/// The incremental reader of one answer.
#[derive(Debug)]
pub(crate) struct Scanner {
    shape: Shape,
    /// The unfinished line, or the document so far.
    kept: Vec<u8>,
    /// The rest of the current line (or document) is too long to be looked at.
    skipping: bool,
    skipped: u64,
    model: Option<String>,
    usage: Option<TokenUsage>,
}

impl Scanner {
    pub(crate) fn new(shape: Shape) -> Self {
        Self { shape, kept: Vec::new(), skipping: false, skipped: 0, model: None, usage: None }
    }

    /// Looks at the next bytes of the answer, in whatever pieces they come.
    pub(crate) fn feed(&mut self, chunk: &[u8]) {
        match self.shape {
            Shape::Events => self.feed_events(chunk),
            Shape::Document => self.keep(chunk, MAX_DOCUMENT),
        }
    }

    /// The answer is over: looks at what was kept.
    pub(crate) fn finish(&mut self) {
        let kept = std::mem::take(&mut self.kept);
        if self.skipping || kept.is_empty() {
            return;
        }
        match self.shape {
            Shape::Events => self.line(&kept),
            Shape::Document => {
                if let Ok(message) = serde_json::from_slice::<Message>(&kept) {
                    self.message(message);
                }
            }
        }
    }

    /// The counts so far; none where the answer carried none.
    pub(crate) fn usage(&self) -> Option<TokenUsage> {
        self.usage
    }

    /// The model's name, once.
    pub(crate) fn take_model(&mut self) -> Option<String> {
        self.model.take()
    }

    /// How many lines or documents were too long to be looked at.
    pub(crate) fn skipped(&self) -> u64 {
        self.skipped
    }

    fn feed_events(&mut self, mut chunk: &[u8]) {
        // Both line ends of the format are one: the empty line between CR and LF says nothing.
        while let Some(end) = memchr::memchr2(b'\n', b'\r', chunk) {
            let (line, rest) = (&chunk[..end], &chunk[end + 1..]);
            if self.skipping {
                self.skipping = false;
            } else if self.kept.is_empty() {
                if line.len() <= MAX_LINE {
                    self.line(line);
                } else {
                    self.skipped += 1;
                }
            } else {
                self.keep(line, MAX_LINE);
                if self.skipping {
                    self.skipping = false;
                } else {
                    let kept = std::mem::take(&mut self.kept);
                    self.line(&kept);
                }
            }
            chunk = rest;
        }
        self.keep(chunk, MAX_LINE);
    }

    fn keep(&mut self, bytes: &[u8], bound: usize) {
        if self.skipping {
            return;
        }
        if self.kept.len() + bytes.len() > bound {
            self.kept = Vec::new();
            self.skipping = true;
            self.skipped += 1;
        } else {
            self.kept.extend_from_slice(bytes);
        }
    }

    fn line(&mut self, line: &[u8]) {
        let Some(data) = line.strip_prefix(b"data:") else {
            return;
        };
        // Cheap first: nearly every line is a content delta. Inside a JSON string a quote is
        // escaped, so text that talks about these names does not match.
        if memmem::find(data, b"\"message_start\"").is_none() && memmem::find(data, b"\"message_delta\"").is_none() {
            return;
        }
        let Ok(event) = serde_json::from_slice::<Event>(data) else {
            return;
        };
        match event.kind.as_deref() {
            Some("message_start") => {
                if let Some(message) = event.message {
                    self.message(message);
                }
            }
            Some("message_delta") => self.counts(event.usage),
            _ => {}
        }
    }

    fn message(&mut self, message: Message) {
        self.model = message.model.filter(|model| model.len() <= MAX_MODEL).or(self.model.take());
        self.counts(message.usage);
    }

    /// Counts are cumulative over one answer: a later one replaces an earlier one.
    fn counts(&mut self, counts: Option<Counts>) {
        let Some(counts) = counts else { return };
        let usage = self.usage.get_or_insert_default();
        for (field, value) in [
            (&mut usage.input, counts.input_tokens),
            (&mut usage.output, counts.output_tokens),
            (&mut usage.cache_read, counts.cache_read_input_tokens),
            (&mut usage.cache_creation, counts.cache_creation_input_tokens),
        ] {
            if let Some(value) = value {
                *field = value;
            }
        }
    }
}

#[derive(Deserialize)]
struct Event {
    #[serde(rename = "type")]
    kind: Option<String>,
    message: Option<Message>,
    usage: Option<Counts>,
}

#[derive(Deserialize)]
struct Message {
    model: Option<String>,
    usage: Option<Counts>,
}

/// The names are those of the Messages API.
#[allow(clippy::struct_field_names)]
#[derive(Deserialize)]
struct Counts {
    input_tokens: Option<u64>,
    output_tokens: Option<u64>,
    cache_read_input_tokens: Option<u64>,
    cache_creation_input_tokens: Option<u64>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const STREAM: &str = concat!(
        "event: message_start\r\n",
        "data: {\"type\":\"message_start\",\"message\":{\"model\":\"m-1\",\"usage\":",
        "{\"input_tokens\":12,\"cache_read_input_tokens\":3,",
        "\"cache_creation_input_tokens\":4,\"output_tokens\":1}}}\r\n\r\n",
        "event: content_block_delta\n",
        "data: {\"type\":\"content_block_delta\",\"delta\":{\"text\":",
        "\"{\\\"type\\\":\\\"message_delta\\\",\\\"usage\\\":{\\\"output_tokens\\\":999}}\"}}\n\n",
        ": a comment\n",
        "data:{\"type\":\"message_delta\",\"delta\":{},\"usage\":{\"output_tokens\":70}}\n\n",
        "data: {\"type\":\"message_delta\",\"delta\":{},\"usage\":{\"output_tokens\":77}}\n\n",
        "data: {\"type\":\"message_stop\"}\n\n",
    );

    const EXPECTED: TokenUsage = TokenUsage { input: 12, output: 77, cache_read: 3, cache_creation: 4 };

    #[test]
    fn a_stream_in_one_piece() {
        let mut scanner = Scanner::new(Shape::Events);
        scanner.feed(STREAM.as_bytes());
        scanner.finish();
        assert_eq!(scanner.usage(), Some(EXPECTED));
        assert_eq!(scanner.take_model().as_deref(), Some("m-1"));
        assert_eq!(scanner.skipped(), 0);
    }

    proptest! {
        #[test]
        fn any_pieces_give_the_same_counts(cuts in proptest::collection::vec(0..STREAM.len(), 0..60)) {
            let mut cuts = cuts;
            cuts.push(0);
            cuts.push(STREAM.len());
            cuts.sort_unstable();
            let mut scanner = Scanner::new(Shape::Events);
            for pair in cuts.windows(2) {
                scanner.feed(&STREAM.as_bytes()[pair[0]..pair[1]]);
            }
            scanner.finish();
            prop_assert_eq!(scanner.usage(), Some(EXPECTED));
            prop_assert_eq!(scanner.take_model(), Some("m-1".to_owned()));
        }

        #[test]
        fn any_bytes_are_survived_within_the_bound(
            chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..40),
        ) {
            let mut scanner = Scanner::new(Shape::Events);
            for chunk in &chunks {
                scanner.feed(chunk);
                prop_assert!(scanner.kept.len() <= MAX_LINE);
            }
            scanner.finish();
        }
    }

    #[test]
    fn a_long_line_is_skipped_and_the_next_is_read() {
        for piece in [1_000, MAX_LINE + 1, 3 * MAX_LINE] {
            let mut stream = b"data: ".to_vec();
            stream.resize(3 * MAX_LINE, b'x');
            stream.extend_from_slice(b"\n");
            stream.extend_from_slice(STREAM.as_bytes());
            let mut scanner = Scanner::new(Shape::Events);
            for chunk in stream.chunks(piece) {
                scanner.feed(chunk);
                assert!(scanner.kept.capacity() <= 2 * MAX_LINE);
            }
            scanner.finish();
            assert_eq!(scanner.usage(), Some(EXPECTED), "pieces of {piece}");
            assert_eq!(scanner.skipped(), 1);
        }
    }

    #[test]
    fn a_cut_stream_keeps_what_was_seen() {
        let mut scanner = Scanner::new(Shape::Events);
        let end = STREAM.find("event: content_block_delta").unwrap();
        scanner.feed(&STREAM.as_bytes()[..end]);
        assert_eq!(scanner.usage().unwrap().input, 12);
    }

    #[test]
    fn a_document_is_read_at_its_end() {
        let mut scanner = Scanner::new(Shape::Document);
        scanner.feed(b"{\"model\":\"m\",\"usage\":{\"input_tokens\":5,");
        scanner.feed(b"\"output_tokens\":6}}");
        assert_eq!(scanner.usage(), None);
        scanner.finish();
        assert_eq!(scanner.usage().unwrap().output, 6);
        let mut large = Scanner::new(Shape::Document);
        for _ in 0..5 {
            large.feed(&vec![b' '; 1024 * 1024]);
        }
        large.finish();
        assert_eq!((large.usage(), large.skipped()), (None, 1));
    }
}
