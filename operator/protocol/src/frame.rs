//! Frames: a header of 16 bytes and a body.
//!
//! | bytes | field |
//! |---|---|
//! | 0..4 | length of the body, little endian |
//! | 4 | kind of the frame |
//! | 5 | kind of the entry, for an event; otherwise 0 |
//! | 6 | flags |
//! | 7 | 0 |
//! | 8..16 | number, little endian: a sequence for events and acknowledgements, a request's id for everything else |

use bytes::{Buf, BufMut, Bytes, BytesMut};
use thiserror::Error;

use crate::{
    entry::{Entry, EntryFlags, EntryKind, MAX_LINE_BYTES},
    sequence::Sequence,
};

/// Bytes of a header.
pub const HEADER_BYTES: usize = 16;

/// The longest body: a line of Claude Code and 64 KiB of wrapping.
pub const MAX_BODY_BYTES: usize = MAX_LINE_BYTES + (64 << 10);

/// The most that one [`FrameKind::Data`] frame carries: 256 KiB, so that events never wait long behind a file.
pub const MAX_DATA_BYTES: usize = 256 << 10;

/// Bytes of data that a bridge may send for a request before its host grants more: 1 MiB.
pub const INITIAL_CREDIT: u64 = 1 << 20;

/// What a frame is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FrameKind {
    /// Bridge → host, first: [`crate::message::Hello`]. May carry the gateway's listener as ancillary data.
    Hello = 1,
    /// Host → bridge, the answer to `Hello`: [`crate::message::Welcome`].
    Welcome = 2,
    /// Bridge → host: an entry of the log, raw.
    Event = 3,
    /// Host → bridge: every entry up to this sequence is committed; the body is empty.
    Acknowledge = 4,
    /// Host → bridge: [`crate::message::Request`].
    Request = 5,
    /// Bridge → host: [`crate::message::Reply`] to the request of that number.
    Reply = 6,
    /// Both ways: raw bytes that belong to the request of that number. [`DATA_END`] marks the last.
    Data = 7,
    /// Host → bridge: that many more bytes (u32, little endian) of data may be sent for the request of that number.
    Credit = 8,
    /// Bridge → host: [`crate::message::Status`], not part of the log.
    Status = 9,
    /// Bridge → host: everything that was not acknowledged has been sent again; what follows is live. Empty.
    Synced = 10,
}

impl FrameKind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Self::Hello,
            2 => Self::Welcome,
            3 => Self::Event,
            4 => Self::Acknowledge,
            5 => Self::Request,
            6 => Self::Reply,
            7 => Self::Data,
            8 => Self::Credit,
            9 => Self::Status,
            10 => Self::Synced,
            _ => return None,
        })
    }
}

/// Flag of a [`FrameKind::Data`] frame: no more data follows for this request.
pub const DATA_END: u8 = 1;
/// Flag of a [`FrameKind::Data`] frame from the bridge: the bytes are of the standard error stream.
pub const DATA_STANDARD_ERROR: u8 = 2;

/// Flag of a [`FrameKind::Data`] frame from the bridge: the bytes of one file end with this frame, and the next one's begin.
pub const DATA_FILE_END: u8 = 4;
/// Flag of a [`FrameKind::Data`] frame from the bridge: so many zeros of a file are not sent (u64, little endian): a hole.
pub const DATA_HOLE: u8 = 8;

/// One frame of the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    /// What it is.
    pub kind: FrameKind,
    /// The byte of the entry's kind, for an event; otherwise 0.
    pub entry_kind: u8,
    /// Flags, by kind.
    pub flags: u8,
    /// A sequence or a request's id, by kind.
    pub number: u64,
    /// The body.
    pub body: Bytes,
}

/// Why bytes are no frame. A connection that produced one is closed: nothing after it can be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum FrameError {
    /// The length is over the bound.
    #[error(
        "a frame announces {0} bytes, more than {MAX_BODY_BYTES}; the peer is no Ash bridge or is of another version"
    )]
    TooLong(u32),
    /// The kind is unknown or the reserved byte is set.
    #[error("a frame of unknown kind {0}; the peer is no Ash bridge or is of another version")]
    UnknownKind(u8),
    /// An event's entry kind is unknown.
    #[error("an event of unknown kind {0}; the bridge is newer than its host: update the host")]
    UnknownEntryKind(u8),
}

impl Frame {
    /// A frame with a body and no flags.
    pub fn new(kind: FrameKind, number: u64, body: impl Into<Bytes>) -> Self {
        Self { kind, entry_kind: 0, flags: 0, number, body: body.into() }
    }

    /// A frame whose body is JSON.
    ///
    /// # Panics
    /// Never for the message types of this crate: they hold only strings as keys.
    #[allow(clippy::expect_used, reason = "serialising our own types with string keys to memory cannot fail")]
    pub fn json(kind: FrameKind, number: u64, message: &impl serde::Serialize) -> Self {
        Self::new(kind, number, serde_json::to_vec(message).expect("messages have string keys"))
    }

    /// An entry of the log as a frame.
    pub fn event(entry: &Entry) -> Self {
        Self {
            kind: FrameKind::Event,
            entry_kind: entry.kind.byte(),
            flags: entry.flags.0,
            number: entry.sequence.0,
            body: entry.body.clone(),
        }
    }

    /// A data frame of a request.
    pub fn data(request: u64, flags: u8, body: impl Into<Bytes>) -> Self {
        Self { kind: FrameKind::Data, entry_kind: 0, flags, number: request, body: body.into() }
    }

    /// The entry that an event frame carries.
    pub fn into_entry(self) -> Result<Entry, FrameError> {
        let kind = EntryKind::from_byte(self.entry_kind).ok_or(FrameError::UnknownEntryKind(self.entry_kind))?;
        Ok(Entry { sequence: Sequence(self.number), kind, flags: EntryFlags(self.flags), body: self.body })
    }

    /// The header's bytes, for writers that send header and body without joining them.
    pub fn header(&self) -> [u8; HEADER_BYTES] {
        let mut header = [0; HEADER_BYTES];
        let length = u32::try_from(self.body.len()).unwrap_or(u32::MAX);
        header[0..4].copy_from_slice(&length.to_le_bytes());
        header[4] = self.kind as u8;
        header[5] = self.entry_kind;
        header[6] = self.flags;
        header[8..16].copy_from_slice(&self.number.to_le_bytes());
        header
    }

    /// Appends the whole frame to a buffer.
    pub fn encode(&self, buffer: &mut BytesMut) {
        buffer.reserve(HEADER_BYTES + self.body.len());
        buffer.put_slice(&self.header());
        buffer.put_slice(&self.body);
    }

    /// The length of the frame that begins a buffer, its header included; `None` while that is not known.
    pub fn announced(buffer: &[u8]) -> Option<usize> {
        let length = u32::from_le_bytes(*buffer.get(..HEADER_BYTES)?.first_chunk()?);
        Some(HEADER_BYTES + length as usize)
    }

    /// Takes the next whole frame off the front of a buffer; `None` while it is not complete.
    ///
    /// Reserves no more than the bytes that the header announces, which are bounded by [`MAX_BODY_BYTES`].
    pub fn decode(buffer: &mut BytesMut) -> Result<Option<Self>, FrameError> {
        if buffer.len() < HEADER_BYTES {
            return Ok(None);
        }
        let header = &buffer[..HEADER_BYTES];
        let length = u32::from_le_bytes([header[0], header[1], header[2], header[3]]);
        if length as usize > MAX_BODY_BYTES {
            return Err(FrameError::TooLong(length));
        }
        let kind =
            FrameKind::from_byte(header[4]).filter(|_| header[7] == 0).ok_or(FrameError::UnknownKind(header[4]))?;
        let (entry_kind, flags) = (header[5], header[6]);
        let total = HEADER_BYTES + length as usize;
        if buffer.len() < total {
            buffer.reserve(total - buffer.len());
            return Ok(None);
        }
        let mut frame = buffer.split_to(total).freeze();
        frame.advance(8);
        let number = frame.get_u64_le();
        Ok(Some(Self { kind, entry_kind, flags, number, body: frame }))
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use bytes::{Bytes, BytesMut};
    use proptest::prelude::*;

    use super::{Frame, FrameError, FrameKind, MAX_BODY_BYTES};

    fn frames() -> impl Strategy<Value = Vec<Frame>> {
        let frame = (1u8..=10, any::<u8>(), any::<u8>(), any::<u64>(), prop::collection::vec(any::<u8>(), 0..300))
            .prop_map(|(kind, entry_kind, flags, number, body)| Frame {
                kind: FrameKind::from_byte(kind).unwrap(),
                entry_kind,
                flags,
                number,
                body: Bytes::from(body),
            });
        prop::collection::vec(frame, 0..20)
    }

    proptest! {
        #[test]
        fn whatever_the_cuts_the_frames_come_back(frames in frames(), cut in 1usize..64) {
            let mut wire = BytesMut::new();
            for frame in &frames {
                frame.encode(&mut wire);
            }
            let mut buffer = BytesMut::new();
            let mut seen = Vec::new();
            for piece in wire.chunks(cut) {
                buffer.extend_from_slice(piece);
                while let Some(frame) = Frame::decode(&mut buffer).unwrap() {
                    seen.push(frame);
                }
            }
            prop_assert_eq!(seen, frames);
            prop_assert!(buffer.is_empty());
        }

        #[test]
        fn arbitrary_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let mut buffer = BytesMut::from(&bytes[..]);
            while let Ok(Some(_)) = Frame::decode(&mut buffer) {}
        }
    }

    #[test]
    fn a_length_over_the_bound_is_refused_before_anything_is_reserved() {
        let mut buffer = BytesMut::from(&[0xff; 16][..]);
        assert_eq!(Frame::decode(&mut buffer), Err(FrameError::TooLong(u32::MAX)));
        assert!(buffer.capacity() < MAX_BODY_BYTES);
    }
}
