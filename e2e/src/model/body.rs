//! The body of a response: sends its frames one by one, waits where they say so, and cuts the connection where they say so.

use std::future::Future as _;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body, Frame as HttpFrame, SizeHint};
use tokio::time::Sleep;

use super::connection::Link;
use super::record::Entry;
use super::render::{Frame, Piece};
use super::reply::Cut;

/// The script cut the connection here.
#[derive(Debug, thiserror::Error)]
#[error("the script cuts the connection here; remove its `cut` to get a whole answer")]
pub(super) struct CutHere;

/// A scripted body. What it hands over is recorded as said in that moment.
pub(super) struct ScriptedBody {
    frames: std::vec::IntoIter<Frame>,
    sleeping: Option<Pin<Box<Sleep>>>,
    cutting: Option<(Cut, u64)>,
    /// Length where nothing waits or cuts: then the response carries a `Content-Length`.
    length: Option<u64>,
    link: Arc<Link>,
    entry: Entry,
}

impl ScriptedBody {
    pub(super) fn streamed(frames: Vec<Frame>, link: Arc<Link>, entry: Entry) -> Self {
        Self { frames: frames.into_iter(), sleeping: None, cutting: None, length: None, link, entry }
    }

    /// A body that is there at once, and everything that it says.
    pub(super) fn whole(bytes: Bytes, said: Vec<Piece>, link: Arc<Link>, entry: Entry) -> Self {
        let length = Some(bytes.len() as u64);
        for piece in said {
            entry.said(&piece);
        }
        let frames = if bytes.is_empty() { Vec::new() } else { vec![Frame::Data { bytes, said: None }] };
        Self { frames: frames.into_iter(), sleeping: None, cutting: None, length, link, entry }
    }
}

impl Body for ScriptedBody {
    type Data = Bytes;
    type Error = CutHere;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<HttpFrame<Bytes>, CutHere>>> {
        loop {
            if let Some(sleep) = &mut self.sleeping {
                ready!(sleep.as_mut().poll(context));
                self.sleeping = None;
            }
            if let Some((how, seen)) = self.cutting {
                ready!(self.link.poll_flushed(seen, context));
                if how == Cut::Reset {
                    self.link.end_with_reset();
                }
                return Poll::Ready(Some(Err(CutHere)));
            }
            match self.frames.next() {
                Some(Frame::Data { bytes, said }) => {
                    if let Some(piece) = said {
                        self.entry.said(&piece);
                    }
                    if self.length.is_some() {
                        // The HTTP library may not ask again after a body of known length.
                        self.entry.finished();
                    }
                    return Poll::Ready(Some(Ok(HttpFrame::data(bytes))));
                }
                Some(Frame::Wait(wait)) => self.sleeping = Some(Box::pin(tokio::time::sleep(wait))),
                Some(Frame::Cut(how)) => self.cutting = Some((how, self.link.flushes())),
                None => {
                    self.entry.finished();
                    return Poll::Ready(None);
                }
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        self.length.map_or_else(SizeHint::default, SizeHint::with_exact)
    }

    fn is_end_stream(&self) -> bool {
        self.length == Some(0)
    }
}
