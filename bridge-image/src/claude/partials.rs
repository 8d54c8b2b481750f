//! Knows which partial messages a repeated model call supersedes.
//!
//! Claude Code repeats a model call whose stream was cut: it closes the block, says `system/api_retry` and begins again with a
//! new `message_start`; only the second attempt becomes a message. A finished message has a `message_delta` with its stop
//! reason, a cut one has none. Source: Claude Code 2.1.330 as observed.

use ash_protocol::Sequence;
use memchr::memmem::Finder;

/// Partials from here to there do not count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Superseded {
    /// The first of them.
    pub from: Sequence,
    /// The last of them.
    pub to: Sequence,
}

/// Which event of a model's stream a line is, as far as it matters here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Start,
    Finish,
    Other,
}

/// Follows the partials of a conversation.
pub struct Partials {
    finder: Finder<'static>,
    /// The partials of the message that is being written.
    open: Option<Superseded>,
    /// Claude Code said that it repeats the call.
    repeats: bool,
}

impl std::fmt::Debug for Partials {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Partials").field("open", &self.open).field("repeats", &self.repeats).finish()
    }
}

impl Default for Partials {
    fn default() -> Self {
        // A quote inside of a JSON string is escaped: the needle is never part of a text.
        Self { finder: Finder::new(br#""type":"message_"#), open: None, repeats: false }
    }
}

impl Partials {
    fn kind(&self, line: &[u8]) -> Kind {
        let Some(at) = self.finder.find(line) else { return Kind::Other };
        let rest = &line[at + self.finder.needle().len()..];
        // A sub-agent's stream is interleaved with its parent's; ranges of it would hit partials that count.
        let finder = memchr::memmem::find(line, br#""parent_tool_use_id":""#);
        match rest {
            _ if finder.is_some() => Kind::Other,
            rest if rest.starts_with(b"start\"") => Kind::Start,
            rest if rest.starts_with(b"delta\"") => Kind::Finish,
            _ => Kind::Other,
        }
    }

    /// Looks at a partial that is about to be logged; returns what has to be said to be superseded before it.
    pub fn before(&mut self, line: &[u8], next: Sequence) -> Option<Superseded> {
        match self.kind(line) {
            Kind::Start => {
                let superseded = self.open.filter(|_| self.repeats);
                self.repeats = false;
                // The event that is written first takes this partial's number.
                let from = if superseded.is_some() { next.next().unwrap_or(next) } else { next };
                self.open = Some(Superseded { from, to: from });
                superseded
            }
            Kind::Finish => {
                self.settle();
                None
            }
            Kind::Other => {
                if let Some(open) = &mut self.open {
                    open.to = next;
                }
                None
            }
        }
    }

    /// Claude Code said `api_retry`.
    pub fn retry(&mut self) {
        self.repeats = self.open.is_some();
    }

    /// The message is complete: nothing supersedes its partials.
    pub fn settle(&mut self) {
        (self.open, self.repeats) = (None, false);
    }
}

#[cfg(test)]
mod tests {
    use ash_protocol::Sequence;

    use super::{Partials, Superseded};

    const START: &[u8] = br#"{"type":"stream_event","event":{"type":"message_start","message":{}}}"#;
    const TEXT: &[u8] = br#"{"type":"stream_event","event":{"type":"content_block_delta","delta":{"type":"text_delta","text":"\"type\":\"message_delta\""}}}"#;
    const DELTA: &[u8] = br#"{"type":"stream_event","event":{"type":"message_delta","delta":{"stop_reason":"end_turn"}}}"#;
    const STOP: &[u8] = br#"{"type":"stream_event","event":{"type":"message_stop"}}"#;

    fn feed(partials: &mut Partials, lines: &[&[u8]], first: u64) -> Vec<Option<Superseded>> {
        lines.iter().zip(first..).map(|(line, at)| partials.before(line, Sequence(at))).collect()
    }

    #[test]
    fn a_cut_call_is_superseded_by_its_repetition() {
        let mut partials = Partials::default();
        assert_eq!(feed(&mut partials, &[START, TEXT, TEXT, STOP], 10), [None; 4]);
        partials.retry();
        let superseded = Superseded { from: Sequence(10), to: Sequence(13) };
        assert_eq!(partials.before(START, Sequence(15)), Some(superseded));
        // The event took 15, this partial 16; a second cut counts from there.
        assert_eq!(partials.before(TEXT, Sequence(17)), None);
        partials.retry();
        let superseded = Superseded { from: Sequence(16), to: Sequence(17) };
        assert_eq!(partials.before(START, Sequence(19)), Some(superseded));
    }

    #[test]
    fn a_finished_message_stays_when_the_next_call_is_retried() {
        let mut partials = Partials::default();
        feed(&mut partials, &[START, TEXT, DELTA, STOP], 10);
        partials.retry();
        assert_eq!(partials.before(START, Sequence(20)), None);
    }

    #[test]
    fn a_call_that_never_began_supersedes_nothing() {
        let mut partials = Partials::default();
        partials.retry();
        assert_eq!(partials.before(START, Sequence(5)), None);
    }
}
