//! Cuts Claude Code's standard output into lines without copying them.

use ash_protocol::entry::MAX_LINE_BYTES;
use bytes::{Buf, Bytes, BytesMut};
use memchr::memchr;

/// Bytes asked of the pipe at a time: large enough that a burst costs few reads, small enough to keep a bridge small.
pub const READ_BYTES: usize = 64 << 10;

/// Bytes of a bad line that are repeated to people.
const EXCERPT_BYTES: usize = 200;

/// What the splitter found next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Piece {
    /// A whole line without its newline; never empty.
    Line(Bytes),
    /// A line over the bound. What follows of it is skipped; this is how it began (200 bytes at the most).
    TooLong(Bytes),
    /// The output ended within a line.
    Unfinished(Bytes),
}

/// Cuts bytes into lines. Holds one line at the most, up to its bound, and what was read behind it.
#[derive(Debug)]
pub struct LineSplitter {
    buffer: BytesMut,
    /// Bytes at the front of the buffer that hold no newline.
    scanned: usize,
    /// The rest of a line over the bound is being skipped.
    skipping: bool,
    bound: usize,
}

impl Default for LineSplitter {
    fn default() -> Self {
        Self::new(MAX_LINE_BYTES)
    }
}

impl LineSplitter {
    /// A splitter for lines of at most `bound` bytes.
    pub fn new(bound: usize) -> Self {
        Self { buffer: BytesMut::new(), scanned: 0, skipping: false, bound }
    }

    /// Where to read to: at least some room behind what is there.
    pub fn buffer(&mut self) -> &mut BytesMut {
        if self.buffer.capacity() - self.buffer.len() < READ_BYTES / 8 {
            self.buffer.reserve(READ_BYTES);
        }
        &mut self.buffer
    }

    /// Gives the memory back where nothing is kept; for the time between turns.
    pub fn release(&mut self) {
        if self.buffer.is_empty() {
            self.buffer = BytesMut::new();
        }
    }

    /// The next line that is complete; blank lines are passed over.
    pub fn next_piece(&mut self) -> Option<Piece> {
        loop {
            let newline = memchr(b'\n', &self.buffer[self.scanned..]).map(|at| self.scanned + at);
            match newline {
                Some(at) if self.skipping => {
                    self.buffer.advance(at + 1);
                    (self.skipping, self.scanned) = (false, 0);
                }
                Some(at) => {
                    let mut line = self.buffer.split_to(at + 1).freeze();
                    line.truncate(at);
                    self.scanned = 0;
                    if line.len() > self.bound {
                        return Some(Piece::TooLong(excerpt(&line)));
                    }
                    if !line.is_empty() {
                        return Some(Piece::Line(line));
                    }
                }
                None if self.skipping => {
                    (self.buffer, self.scanned) = (BytesMut::new(), 0);
                    return None;
                }
                None if self.buffer.len() > self.bound => {
                    let head = excerpt(&self.buffer);
                    (self.buffer, self.scanned, self.skipping) = (BytesMut::new(), 0, true);
                    return Some(Piece::TooLong(head));
                }
                None => {
                    self.scanned = self.buffer.len();
                    return None;
                }
            }
        }
    }

    /// What is left when the output has ended. The splitter is as new afterwards.
    pub fn finish(&mut self) -> Option<Piece> {
        let left = std::mem::take(&mut self.buffer).freeze();
        let skipped = std::mem::take(&mut self.skipping);
        self.scanned = 0;
        (!left.is_empty() && !skipped).then_some(Piece::Unfinished(left))
    }
}

/// The beginning of a line, copied so that it keeps nothing else alive.
fn excerpt(line: &[u8]) -> Bytes {
    Bytes::copy_from_slice(&line[..line.len().min(EXCERPT_BYTES)])
}

/// How a bad line begins, for a person: at most 200 bytes, what is not text replaced.
pub fn readable(line: &[u8]) -> String {
    let text = String::from_utf8_lossy(&line[..line.len().min(EXCERPT_BYTES)]);
    text.chars().map(|char| if char.is_control() { '\u{fffd}' } else { char }).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{LineSplitter, Piece};

    /// Feeds bytes in pieces of `cut` bytes and takes all that comes.
    fn split(input: &[u8], cut: usize, bound: usize) -> Vec<Piece> {
        let mut splitter = LineSplitter::new(bound);
        let mut seen = Vec::new();
        for bytes in input.chunks(cut) {
            splitter.buffer().extend_from_slice(bytes);
            while let Some(piece) = splitter.next_piece() {
                seen.push(piece);
            }
        }
        seen.extend(splitter.finish());
        seen
    }

    /// The same, said plainly: what the pieces have to be.
    fn expected(input: &[u8], bound: usize) -> Vec<Piece> {
        let mut lines: Vec<&[u8]> = input.split(|byte| *byte == b'\n').collect();
        let last = lines.pop().unwrap_or_default();
        let too_long = |line: &[u8]| Piece::TooLong(line[..line.len().min(200)].to_vec().into());
        let mut pieces: Vec<Piece> = lines
            .into_iter()
            .filter(|line| !line.is_empty())
            .map(|line| if line.len() > bound { too_long(line) } else { Piece::Line(line.to_vec().into()) })
            .collect();
        if last.len() > bound {
            pieces.push(too_long(last));
        } else if !last.is_empty() {
            pieces.push(Piece::Unfinished(last.to_vec().into()));
        }
        pieces
    }

    proptest! {
        #[test]
        fn whatever_the_cuts_the_lines_are_the_same(
            input in prop::collection::vec(prop_oneof![Just(b'\n'), any::<u8>(), Just(b'x')], 0..600),
            cut in 1usize..80,
            bound in 1usize..40,
        ) {
            let shortened = |pieces: Vec<Piece>| pieces.into_iter().map(|piece| match piece {
                // How much of a long line is shown depends on the cuts; that it is one, does not.
                Piece::TooLong(head) => Piece::TooLong(head.slice(..bound.min(head.len()))),
                other => other,
            }).collect::<Vec<_>>();
            prop_assert_eq!(shortened(split(&input, cut, bound)), shortened(expected(&input, bound)));
        }
    }

    #[test]
    fn a_line_at_the_bound_passes_and_one_beyond_does_not() {
        assert_eq!(split(b"12345\n", 100, 5), [Piece::Line("12345".into())]);
        assert_eq!(split(b"123456\nok\n", 3, 5), [Piece::TooLong("123456".into()), Piece::Line("ok".into())]);
    }
}
