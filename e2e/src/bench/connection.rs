//! A lean HTTP/1.1 client on one kept connection: it writes, reads, and notes when which bytes had come. Nothing of a library
//! runs between the socket and the clock.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use memchr::memmem;

/// How long an answer may be silent. Far beyond everything that is measured.
const SILENCE: Duration = Duration::from_mins(1);

/// Bytes of one read.
const READ_BYTES: usize = 256 << 10;

/// A kept connection.
#[derive(Debug)]
pub(crate) struct Connection {
    stream: TcpStream,
    address: SocketAddr,
    key: String,
    buffer: Vec<u8>,
    piece: Vec<u8>,
}

/// An answer that was read to its end.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    /// The HTTP status.
    pub(crate) status: u16,
    /// When each of the looked-for markers had come, since the request was written; `None` where it did not.
    pub(crate) seen: Vec<Option<Duration>>,
    /// When the answer had ended.
    pub(crate) whole: Duration,
    /// Status line, headers and body as they came, chunk sizes included.
    pub(crate) bytes: Vec<u8>,
}

impl Answer {
    /// When a marker had come.
    pub(crate) fn at(&self, marker: usize) -> anyhow::Result<Duration> {
        self.seen[marker].with_context(|| {
            format!(
                "the answer lacks what is measured: {}",
                String::from_utf8_lossy(&self.bytes[..self.bytes.len().min(2000)])
            )
        })
    }

    /// The body of an answer that is not chunked, as JSON.
    pub(crate) fn json(&self) -> anyhow::Result<serde_json::Value> {
        let start = memmem::find(&self.bytes, b"\r\n\r\n").context("an answer without an end of its headers")? + 4;
        Ok(serde_json::from_slice(&self.bytes[start..])?)
    }

    /// How many numbered frames the body has.
    pub(crate) fn frames(&self) -> usize {
        memmem::find_iter(&self.bytes, b"\nid: ").count()
    }
}

impl Connection {
    /// Connects; small writes leave at once.
    pub(crate) fn open(address: SocketAddr, key: &str) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        stream.set_read_timeout(Some(SILENCE))?;
        let piece = vec![0; READ_BYTES];
        Ok(Self { stream, address, key: key.to_owned(), buffer: Vec::new(), piece })
    }

    /// Sends a request and reads the whole answer; `markers` are looked for in it as it comes.
    pub(crate) fn send(&mut self, method: &str, path: &str, body: &str, markers: &[&[u8]]) -> anyhow::Result<Answer> {
        let request = format!(
            "{method} {path} HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {}\r\ncontent-type: application/json\r\n\
             content-length: {}\r\n\r\n{body}",
            self.address,
            self.key,
            body.len()
        );
        self.buffer.clear();
        let mut seen = vec![None; markers.len()];
        let mut end = End::Unknown;
        let start = Instant::now();
        self.stream.write_all(request.as_bytes())?;
        loop {
            let count = self.stream.read(&mut self.piece).context("the server is silent")?;
            let now = start.elapsed();
            ensure!(count > 0, "the connection was closed: {}", String::from_utf8_lossy(&self.buffer));
            let before = self.buffer.len();
            self.buffer.extend_from_slice(&self.piece[..count]);
            for (seen, marker) in seen.iter_mut().zip(markers) {
                // A marker may lie across two reads.
                let from = before.saturating_sub(marker.len());
                if seen.is_none() && memmem::find(&self.buffer[from..], marker).is_some() {
                    *seen = Some(now);
                }
            }
            if end == End::Unknown {
                end = End::of(&self.buffer)?;
            }
            if end.is_reached(&self.buffer) {
                let status = std::str::from_utf8(self.buffer.get(9..12).unwrap_or_default())?.parse()?;
                return Ok(Answer { status, seen, whole: now, bytes: self.buffer.clone() });
            }
        }
    }
}

/// Where an answer ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Unknown,
    /// After so many bytes in all.
    At(usize),
    /// With the last chunk. Frames of events hold no carriage return, so its bytes appear nowhere else.
    LastChunk,
}

impl End {
    fn of(bytes: &[u8]) -> anyhow::Result<Self> {
        let Some(headers) = memmem::find(bytes, b"\r\n\r\n") else { return Ok(Self::Unknown) };
        let text = String::from_utf8_lossy(&bytes[..headers]).to_ascii_lowercase();
        let header = |name: &str| text.lines().find_map(|line| line.strip_prefix(name).map(str::trim));
        if let Some(length) = header("content-length:") {
            return Ok(Self::At(headers + 4 + length.parse::<usize>()?));
        }
        if header("transfer-encoding:").is_some() {
            return Ok(Self::LastChunk);
        }
        bail!("an answer without a length: {text}")
    }

    fn is_reached(self, bytes: &[u8]) -> bool {
        match self {
            Self::Unknown => false,
            Self::At(length) => bytes.len() >= length,
            Self::LastChunk => bytes.ends_with(b"\r\n0\r\n\r\n"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_end_of_an_answer_is_known_from_its_headers() {
        let sized = b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\n\r\n{}";
        let end = End::of(sized).unwrap();
        assert!(end.is_reached(sized) && !end.is_reached(&sized[..sized.len() - 1]));
        let chunked = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n2\r\nx\n\r\n0\r\n\r\n";
        let end = End::of(chunked).unwrap();
        assert!(end.is_reached(chunked) && !end.is_reached(&chunked[..chunked.len() - 5]));
        assert_eq!(End::of(b"HTTP/1.1 200 OK\r\n").unwrap(), End::Unknown);
    }
}
