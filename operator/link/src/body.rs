//! Bodies: made whole, piece by piece, or by a task; read whole within a bound.

use std::{convert::Infallible, io};

use ash_protocol::frame::Frame;
use bytes::{Bytes, BytesMut};
use futures::{StreamExt as _, stream};
use http_body_util::{BodyExt as _, Empty, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::Frame as Piece;
use serde::{Serialize, de::DeserializeOwned};
use tokio::sync::mpsc;

use crate::{
    error::with_causes,
    limits::{MAX_JSON_BYTES, PIECES},
};

/// Frames with bodies up to this size are joined into pieces; a longer body is a piece of its own and is not copied.
const DIRECT_BYTES: usize = 16 << 10;
/// About how large a joined piece becomes.
const PIECE_BYTES: usize = 64 << 10;

/// A body that is sent.
pub type Body = UnsyncBoxBody<Bytes, io::Error>;

fn never(never: Infallible) -> io::Error {
    match never {}
}

/// Nothing.
pub fn empty() -> Body {
    Empty::new().map_err(never).boxed_unsync()
}

/// These bytes.
pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(never).boxed_unsync()
}

/// A value as JSON.
///
/// # Panics
/// Never for the types that cross the link: they have texts as keys.
#[allow(clippy::expect_used, reason = "serialising our own types with string keys to memory cannot fail")]
pub fn json(value: &impl Serialize) -> Body {
    full(serde_json::to_vec(value).expect("messages have string keys"))
}

/// These pieces, one after the other.
pub fn pieces(pieces: Vec<Bytes>) -> Body {
    StreamBody::new(stream::iter(pieces).map(|piece| Ok(Piece::data(piece)))).boxed_unsync()
}

/// Frames as pieces: small ones joined, the bodies of large ones as they are.
pub fn frames(frames: impl IntoIterator<Item = Frame>) -> Vec<Bytes> {
    let mut pieces = Vec::new();
    let mut joined = BytesMut::new();
    for frame in frames {
        if frame.body.len() < DIRECT_BYTES {
            frame.encode(&mut joined);
            if joined.len() >= PIECE_BYTES {
                pieces.push(joined.split().freeze());
            }
        } else {
            joined.extend_from_slice(&frame.header());
            pieces.push(joined.split().freeze());
            pieces.push(frame.body);
        }
    }
    if !joined.is_empty() {
        pieces.push(joined.freeze());
    }
    pieces
}

/// The sender of a body that a task makes. Dropped, it ends the body.
#[derive(Debug, Clone)]
pub struct Outgoing(mpsc::Sender<Bytes>);

impl Outgoing {
    /// Sends a piece, once there is room: false where nobody reads any more.
    pub async fn send(&self, piece: Bytes) -> bool {
        self.0.send(piece).await.is_ok()
    }

    /// Completes when nobody reads any more.
    pub async fn closed(&self) {
        self.0.closed().await;
    }
}

/// A body that a task makes, bounded in what is ready before it is sent.
pub fn channel() -> (Outgoing, Body) {
    let (sender, receiver) = mpsc::channel(PIECES);
    let pieces = stream::unfold(receiver, |mut receiver| async move {
        let piece = receiver.recv().await?;
        Some((Ok(Piece::data(piece)), receiver))
    });
    (Outgoing(sender), StreamBody::new(pieces).boxed_unsync())
}

/// Reads a body of at most so many bytes. The error is a sentence.
pub async fn read_bounded<B>(body: B, most: usize) -> Result<Bytes, String>
where
    B: hyper::body::Body<Data = Bytes>,
    B::Error: std::error::Error,
{
    let mut body = std::pin::pin!(body);
    let mut first: Option<Bytes> = None;
    let mut joined = BytesMut::new();
    let mut length = 0;
    while let Some(piece) = body.frame().await {
        let Ok(piece) = piece.map_err(|error| with_causes(&error))?.into_data() else { continue };
        length += piece.len();
        if length > most {
            return Err(format!("a body is longer than {most} bytes"));
        }
        // Most bodies are one piece, which is not copied.
        match first.take() {
            None if joined.is_empty() => first = Some(piece),
            before => {
                joined.extend_from_slice(&before.unwrap_or_default());
                joined.extend_from_slice(&piece);
            }
        }
    }
    Ok(first.unwrap_or_else(|| joined.freeze()))
}

/// Reads a body of JSON. The error is a sentence.
pub async fn read_json<T: DeserializeOwned, B>(body: B) -> Result<T, String>
where
    B: hyper::body::Body<Data = Bytes>,
    B::Error: std::error::Error,
{
    let bytes = read_bounded(body, MAX_JSON_BYTES).await?;
    serde_json::from_slice(&bytes).map_err(|error| format!("a body is no JSON of the kind that was agreed: {error}"))
}
