//! Frames out of a body that comes in pieces.

use ash_protocol::frame::Frame;
use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;

use crate::error::with_causes;

/// Reads the frames of a body. Holds what is not complete yet: one frame at the most.
#[derive(Debug)]
pub struct FrameReader<B> {
    body: B,
    buffer: BytesMut,
}

impl<B> FrameReader<B>
where
    B: hyper::body::Body<Data = Bytes> + Unpin,
    B::Error: std::error::Error,
{
    /// Reads from the beginning of a body.
    pub fn new(body: B) -> Self {
        Self { body, buffer: BytesMut::new() }
    }

    /// The next frame; `None` at the end. The error is a sentence. Safe to cancel: what came is kept.
    pub async fn next(&mut self) -> Result<Option<Frame>, String> {
        loop {
            if let Some(frame) = Frame::decode(&mut self.buffer).map_err(|error| error.to_string())? {
                return Ok(Some(frame));
            }
            match self.body.frame().await {
                Some(Ok(piece)) => {
                    if let Ok(data) = piece.into_data() {
                        self.buffer.extend_from_slice(&data);
                    }
                }
                Some(Err(error)) => return Err(with_causes(&error)),
                None if self.buffer.is_empty() => return Ok(None),
                None => return Err("a body ended in the middle of a frame".to_owned()),
            }
        }
    }
}
