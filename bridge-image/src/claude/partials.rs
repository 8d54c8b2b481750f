//! Knows which partial messages a repeated model call supersedes.
//!
//! Claude Code goes on after a model's stream was cut: blocks that were complete it keeps (it has printed them as `assistant`
//! lines, each before its `content_block_stop`), the one that was cut it throws away, and begins anew with a `message_start`. A
//! message that came to its end has a `message_delta` with its stop reason, a cut one has none. So what counts for nothing is
//! what came since the last complete block of a message without `message_delta`. Source: Claude Code 2.1.330 as recorded in
//! `tests/corpus`.

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
    MessageStart,
    MessageEnd,
    BlockStart,
    Other,
}

/// Follows the partials of a conversation.
#[derive(Debug)]
pub struct Partials {
    /// A quote inside of a JSON string is escaped: these are never part of a text.
    message: Finder<'static>,
    block: Finder<'static>,
    child: Finder<'static>,
    /// The partials that no complete block covers yet.
    open: Option<Superseded>,
}

impl Default for Partials {
    fn default() -> Self {
        Self {
            message: Finder::new(br#""type":"message_"#),
            block: Finder::new(br#""type":"content_block_start""#),
            child: Finder::new(br#""parent_tool_use_id":""#),
            open: None,
        }
    }
}

impl Partials {
    fn kind(&self, line: &[u8]) -> Kind {
        let kind = match self.message.find(line).map(|at| &line[at + self.message.needle().len()..]) {
            Some(rest) if rest.starts_with(b"start\"") => Kind::MessageStart,
            Some(rest) if rest.starts_with(b"delta\"") => Kind::MessageEnd,
            Some(_) => Kind::Other,
            None if self.open.is_none() && self.block.find(line).is_some() => Kind::BlockStart,
            None => Kind::Other,
        };
        // A sub-agent's stream is interleaved with its parent's; ranges of it would hit partials that count.
        if kind != Kind::Other && self.child.find(line).is_some() { Kind::Other } else { kind }
    }

    /// Looks at a partial that is about to be logged; returns what has to be said to be superseded before it.
    pub fn before(&mut self, line: &[u8], next: Sequence) -> Option<Superseded> {
        match self.kind(line) {
            Kind::MessageStart => {
                let superseded = self.open.take();
                // The event that says so is written first and takes this partial's number.
                let from = if superseded.is_some() { next.next().unwrap_or(next) } else { next };
                self.open = Some(Superseded { from, to: from });
                return superseded;
            }
            Kind::MessageEnd => self.settle(),
            Kind::BlockStart => self.open = Some(Superseded { from: next, to: next }),
            Kind::Other => {
                if let Some(open) = &mut self.open {
                    open.to = next;
                }
            }
        }
        None
    }

    /// A complete block was printed, or the turn has ended: nothing supersedes the partials so far.
    pub fn settle(&mut self) {
        self.open = None;
    }
}

#[cfg(test)]
mod tests {
    use ash_protocol::Sequence;

    use super::{Partials, Superseded};

    const START: &[u8] = br#"{"type":"stream_event","event":{"type":"message_start","message":{}}}"#;
    const TEXT: &[u8] = br#"{"type":"stream_event","event":{"type":"content_block_delta","delta":{"type":"text_delta","text":"\"type\":\"message_delta\""}}}"#;
    const DELTA: &[u8] =
        br#"{"type":"stream_event","event":{"type":"message_delta","delta":{"stop_reason":"end_turn"}}}"#;
    const STOP: &[u8] = br#"{"type":"stream_event","event":{"type":"message_stop"}}"#;
    const BLOCK: &[u8] = br#"{"type":"stream_event","event":{"type":"content_block_start","index":1}}"#;

    fn feed(partials: &mut Partials, lines: &[&[u8]], first: u64) -> Vec<Option<Superseded>> {
        lines.iter().zip(first..).map(|(line, at)| partials.before(line, Sequence(at))).collect()
    }

    #[test]
    fn a_cut_call_is_superseded_by_its_repetition() {
        let mut partials = Partials::default();
        assert_eq!(feed(&mut partials, &[START, BLOCK, TEXT, STOP], 10), [None; 4]);
        let superseded = Superseded { from: Sequence(10), to: Sequence(13) };
        assert_eq!(partials.before(START, Sequence(15)), Some(superseded));
        // The event took 15, this partial 16; a second cut counts from there.
        assert_eq!(partials.before(TEXT, Sequence(17)), None);
        let superseded = Superseded { from: Sequence(16), to: Sequence(17) };
        assert_eq!(partials.before(START, Sequence(19)), Some(superseded));
    }

    #[test]
    fn a_finished_message_stays() {
        let mut partials = Partials::default();
        feed(&mut partials, &[START, TEXT, DELTA, STOP], 10);
        assert_eq!(partials.before(START, Sequence(20)), None);
    }

    #[test]
    fn complete_blocks_of_a_cut_message_stay() {
        let mut partials = Partials::default();
        feed(&mut partials, &[START, BLOCK, TEXT], 10);
        partials.settle();
        feed(&mut partials, &[TEXT, BLOCK, TEXT, STOP], 14);
        let superseded = Superseded { from: Sequence(15), to: Sequence(17) };
        assert_eq!(partials.before(START, Sequence(20)), Some(superseded));
    }
}
