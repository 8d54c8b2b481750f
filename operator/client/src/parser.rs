//! The format of an event stream, read piece by piece as it arrives.
//!
//! Source: the HTML standard, section "Server-sent events", with two differences: an id belongs to its frame alone (a frame
//! without one has none), and what a frame may hold is bounded. The crates that there are for this (eventsource-stream, sseer)
//! have no such bound.

use bytes::BytesMut;

use crate::Frame;

/// The most bytes of a frame (and of a line of it): the longest line that Claude Code may print, and 64 KiB for what the server
/// puts around it. A longer frame ends the stream with [`TooLong`].
pub const MAX_FRAME_BYTES: usize = ash_protocol::entry::MAX_LINE_BYTES + (64 << 10);

/// What may stand at the very beginning of a stream.
const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// What a stream holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Parsed {
    /// A frame.
    Frame(Frame),
    /// A comment: a sign of life.
    Comment,
}

/// A frame is longer than its bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("a frame of the stream is longer than {0} bytes")]
pub struct TooLong(pub usize);

/// Reads an event stream. Bytes go in as they arrive ([`Parser::feed`]), frames come out ([`Parser::next`]) the same however
/// the bytes were cut. A frame that has no end yet is not given out.
#[derive(Debug)]
pub struct Parser {
    buffer: BytesMut,
    /// Bytes at the start of `buffer` in which no end of line is.
    scanned: usize,
    /// The last line ended with CR: an LF right after it belongs to it.
    after_return: bool,
    /// Nothing has been read yet.
    at_start: bool,
    limit: usize,
    event: String,
    data: Option<String>,
    id: Option<String>,
}

impl Default for Parser {
    fn default() -> Self {
        Self::new(MAX_FRAME_BYTES)
    }
}

impl Parser {
    /// A parser at the beginning of a stream whose frames have at most `limit` bytes.
    pub fn new(limit: usize) -> Self {
        Self {
            buffer: BytesMut::new(),
            scanned: 0,
            after_return: false,
            at_start: true,
            limit,
            event: String::new(),
            data: None,
            id: None,
        }
    }

    /// Takes bytes of the stream.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    /// The next frame or comment; `None` where more bytes are needed.
    #[expect(
        clippy::should_implement_trait,
        reason = "`None` means \"not yet\", after which an iterator would be over"
    )]
    pub fn next(&mut self) -> Result<Option<Parsed>, TooLong> {
        while let Some(line) = self.line()? {
            if let Some(parsed) = self.take(&line) {
                return Ok(Some(parsed));
            }
        }
        Ok(None)
    }

    /// The next complete line, without its end.
    fn line(&mut self) -> Result<Option<BytesMut>, TooLong> {
        if self.after_return && !self.buffer.is_empty() {
            self.after_return = false;
            if self.buffer[0] == b'\n' {
                let _ = self.buffer.split_to(1);
            }
        }
        if self.at_start {
            if self.buffer.starts_with(BYTE_ORDER_MARK) {
                let _ = self.buffer.split_to(BYTE_ORDER_MARK.len());
            } else if BYTE_ORDER_MARK.starts_with(&self.buffer) {
                return Ok(None);
            }
            self.at_start = false;
        }
        let Some(end) = memchr::memchr2(b'\n', b'\r', &self.buffer[self.scanned..]) else {
            self.scanned = self.buffer.len();
            return if self.held() + self.buffer.len() > self.limit { Err(TooLong(self.limit)) } else { Ok(None) };
        };
        let end = self.scanned + end;
        if self.held() + end > self.limit {
            return Err(TooLong(self.limit));
        }
        let line = self.buffer.split_to(end);
        let terminator = self.buffer.split_to(1);
        self.after_return = terminator[0] == b'\r';
        self.scanned = 0;
        Ok(Some(line))
    }

    /// Bytes of the unfinished frame.
    fn held(&self) -> usize {
        self.event.len() + self.data.as_ref().map_or(0, String::len) + self.id.as_ref().map_or(0, String::len)
    }

    /// What a line completes.
    fn take(&mut self, line: &[u8]) -> Option<Parsed> {
        if line.is_empty() {
            return self.frame();
        }
        let (name, value) = match memchr::memchr(b':', line) {
            Some(0) => return Some(Parsed::Comment),
            Some(colon) => {
                let value = &line[colon + 1..];
                (&line[..colon], value.strip_prefix(b" ").unwrap_or(value))
            }
            None => (line, &b""[..]),
        };
        match name {
            b"event" => self.event = String::from_utf8_lossy(value).into_owned(),
            b"data" => match &mut self.data {
                Some(data) => {
                    data.push('\n');
                    data.push_str(&String::from_utf8_lossy(value));
                }
                data => *data = Some(String::from_utf8_lossy(value).into_owned()),
            },
            b"id" if !value.contains(&0) => self.id = Some(String::from_utf8_lossy(value).into_owned()),
            _ => {}
        }
        None
    }

    /// The frame that an empty line ends. One without data is none.
    fn frame(&mut self) -> Option<Parsed> {
        let event = std::mem::take(&mut self.event);
        let id = self.id.take();
        let data = self.data.take()?;
        let event = if event.is_empty() { "message".to_owned() } else { event };
        Some(Parsed::Frame(Frame { event, data, id }))
    }
}

#[cfg(test)]
#[path = "parser_tests.rs"]
mod tests;
