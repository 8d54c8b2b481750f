//! Data that belongs to a request, as it comes and as it goes: within the credit that is given for it, and never all at once.
//!
//! A transfer that is dropped before its end is given up: the bridge is told, so that it keeps nothing of it.

use ash_protocol::{
    frame::{DATA_END, DATA_FILE_END, DATA_HOLE, Frame, FrameKind, INITIAL_CREDIT, MAX_DATA_BYTES},
    message::Request,
};
use bytes::Bytes;
use serde::de::DeserializeOwned;
use tokio::sync::mpsc::{self, error::TrySendError};

use super::{Answer, Bridge, ConnectionError, RequestError};
use crate::limits::{BRIDGE_READ_BYTES, DOWNLOAD_GRANT, DOWNLOAD_PIECES};

/// Bytes that came for a request.
#[derive(Debug)]
pub(crate) struct Piece {
    pub(crate) bytes: Bytes,
    /// Or so many zeros that were not sent.
    pub(crate) hole: Option<u64>,
    /// The bytes of one file end with these.
    pub(crate) ends_file: bool,
}

/// Where data of a request goes, and how much more may come.
#[derive(Debug)]
pub(super) struct Sink {
    pieces: mpsc::Sender<Option<Piece>>,
    allowed: u64,
}

impl Sink {
    /// Takes a frame of data.
    pub(super) fn take(&mut self, frame: &Frame) -> Result<(), ConnectionError> {
        let wrong = |what: &str| ConnectionError::Greeting(format!("the bridge sent {what}"));
        let too_much = || wrong("more data than it was granted");
        if frame.body.len() > MAX_DATA_BYTES {
            return Err(wrong("a piece of data that is too long"));
        }
        self.allowed = self.allowed.checked_sub(frame.body.len() as u64).ok_or_else(too_much)?;
        let last = frame.flags & DATA_END != 0;
        let ends_file = frame.flags & DATA_FILE_END != 0;
        // Nothing that says nothing is a sign of life: it would cost the bridge no credit.
        if frame.body.is_empty() && !last && !ends_file {
            return Err(wrong("a piece of data without anything in it"));
        }
        let hole = match (frame.flags & DATA_HOLE != 0, <[u8; 8]>::try_from(&frame.body[..])) {
            (false, _) => None,
            (true, Ok(size)) => Some(u64::from_le_bytes(size)),
            (true, Err(_)) => return Err(wrong("a hole without a size")),
        };
        // It would keep the buffer alive that it was read into.
        let bytes = if frame.body.len() < BRIDGE_READ_BYTES / 2 {
            Bytes::copy_from_slice(&frame.body)
        } else {
            frame.body.clone()
        };
        let piece = (!last || !bytes.is_empty()).then(|| Piece { bytes, hole, ends_file });
        match self.pieces.try_send(piece) {
            // Whoever asked has given up: the bridge is told, or is gone.
            Ok(()) | Err(TrySendError::Closed(_)) => Ok(()),
            Err(TrySendError::Full(_)) => Err(too_much()),
        }
    }

    fn grant(&mut self, bytes: u32) {
        self.allowed = self.allowed.saturating_add(bytes.into());
    }
}

/// The data of a request as it comes, and then its answer.
pub(crate) struct Download<'a> {
    bridge: &'a Bridge,
    number: u64,
    pieces: mpsc::Receiver<Option<Piece>>,
    answer: Option<Answer>,
    /// Bytes that were taken since the bridge was granted more.
    taken: usize,
}

impl Download<'_> {
    /// What comes next; `None` where no more comes, and the answer says why.
    pub(crate) async fn next(&mut self) -> Option<Piece> {
        let piece = self.pieces.recv().await??;
        self.taken += piece.bytes.len();
        if self.taken >= DOWNLOAD_GRANT {
            let bytes = u32::try_from(std::mem::take(&mut self.taken)).unwrap_or(u32::MAX);
            if let Some(sink) =
                self.bridge.lock_pending().get_mut(&self.number).and_then(|waiting| waiting.data.as_mut())
            {
                sink.grant(bytes);
            }
            let credit = Frame::new(FrameKind::Credit, self.number, bytes.to_le_bytes().to_vec());
            let _ = self.bridge.out.send(credit).await;
        }
        Some(piece)
    }

    /// The answer, once there is no more data.
    pub(crate) async fn finish<T: DeserializeOwned>(mut self) -> Result<T, RequestError> {
        match self.answer.take() {
            Some(answer) => answer.read().await,
            None => Err(RequestError::Gone),
        }
    }
}

impl Drop for Download<'_> {
    fn drop(&mut self) {
        if self.answer.is_some() {
            self.bridge.give_up(self.number);
        }
    }
}

/// The data of a request as it goes, and then its answer.
pub(crate) struct Upload<'a> {
    bridge: &'a Bridge,
    number: u64,
    answer: Option<Answer>,
}

impl Upload<'_> {
    /// Sends bytes; false where the bridge has answered already, or is gone: there is no use in more.
    pub(crate) async fn send(&mut self, mut bytes: Bytes) -> bool {
        while !bytes.is_empty() {
            let piece = bytes.split_to(bytes.len().min(MAX_DATA_BYTES / 4));
            if !self.put(Frame::data(self.number, 0, piece)).await {
                return false;
            }
        }
        true
    }

    /// Says that there is no more, and waits for the answer.
    pub(crate) async fn finish<T: DeserializeOwned>(mut self) -> Result<T, RequestError> {
        self.put(Frame::data(self.number, DATA_END, Bytes::new())).await;
        match self.answer.take() {
            Some(answer) => answer.read().await,
            None => Err(RequestError::Gone),
        }
    }

    async fn put(&mut self, frame: Frame) -> bool {
        // The connection may be gone, and the next one knows nothing of this: then there is an answer.
        let is_waited_for = self.bridge.lock_pending().contains_key(&self.number);
        is_waited_for && self.bridge.out.send(frame).await.is_ok()
    }
}

impl Drop for Upload<'_> {
    fn drop(&mut self) {
        if self.answer.is_some() {
            self.bridge.give_up(self.number);
        }
    }
}

impl Bridge {
    /// Sends a request whose data comes in pieces.
    pub(crate) async fn download(&self, request: &Request) -> Download<'_> {
        let (pieces, received) = mpsc::channel(DOWNLOAD_PIECES);
        let sink = Sink { pieces, allowed: INITIAL_CREDIT };
        let (number, answer) = self.ask(request, Some(sink)).await;
        Download { bridge: self, number, pieces: received, answer: Some(answer), taken: 0 }
    }

    /// Sends a request whose data follows in pieces.
    pub(crate) async fn upload(&self, request: &Request) -> Upload<'_> {
        let (number, answer) = self.ask(request, None).await;
        Upload { bridge: self, number, answer: Some(answer) }
    }

    /// Tells the bridge that nobody waits for the answer to a request. Where there is no room to tell it, its next connection
    /// knows nothing of the request anyway.
    fn give_up(&self, number: u64) {
        if self.lock_pending().remove(&number).is_some() {
            let id = self.next_number();
            let _ = self.out.try_send(Frame::json(FrameKind::Request, id, &Request::Cancel { request: number }));
        }
    }
}
