//! A stream of a session's entries from its runner, as it comes: a batch, then how things are.

use std::sync::Arc;

use ash_core::{
    Sequence,
    ports::{Batch, LoggedEntry},
};
use ash_link::{Answer, FrameReader};
use ash_protocol::{
    fleet::StreamStatus,
    frame::{Frame, FrameKind},
};
use tokio::time::timeout;

use crate::{
    limits::STREAM_SILENCE,
    registry::{Registry, Target},
};

/// An open stream.
pub(crate) struct Stream {
    pub(crate) target: Target,
    frames: FrameReader<Answer>,
    pending: Batch,
    registry: Arc<Registry>,
}

/// What came.
pub(crate) enum Came {
    /// Nothing to act on yet.
    Nothing,
    /// Entries, or none, and how things are.
    Arrived(Arrived),
    /// The stream is over before the session is.
    Broken(String),
    /// The session's log cannot be written.
    Unwritten(String),
}

/// Entries and how things are behind them.
pub(crate) struct Arrived {
    pub(crate) batch: Batch,
    pub(crate) through: Sequence,
    pub(crate) in_progress: bool,
    /// Nothing more comes on this stream, and why.
    pub(crate) over: Option<String>,
}

impl Stream {
    pub(crate) fn new(registry: &Arc<Registry>, target: Target, frames: FrameReader<Answer>) -> Self {
        registry.metrics.streams.inc();
        Self { target, frames, pending: Batch::new(), registry: Arc::clone(registry) }
    }

    /// Takes one frame. Safe to cancel.
    pub(crate) async fn next(&mut self) -> Came {
        match timeout(STREAM_SILENCE, self.frames.next()).await {
            Ok(Ok(Some(frame))) => self.take(frame),
            Ok(Ok(None)) => Came::Broken("the runner ended it".to_owned()),
            Ok(Err(reason)) => Came::Broken(reason),
            Err(_) => Came::Broken(format!("the runner said nothing for {} s", STREAM_SILENCE.as_secs())),
        }
    }

    fn take(&mut self, frame: Frame) -> Came {
        if frame.kind == FrameKind::Event {
            return match frame.into_entry() {
                Ok(entry) => {
                    self.pending.push(Arc::new(LoggedEntry::new(entry)));
                    Came::Nothing
                }
                Err(error) => Came::Broken(error.to_string()),
            };
        }
        let status = match serde_json::from_slice::<StreamStatus>(&frame.body) {
            Ok(status) if frame.kind == FrameKind::Status => status,
            _ => return Came::Broken("a frame that a stream cannot have".to_owned()),
        };
        if let Some(reason) = status.unwritten {
            return Came::Unwritten(reason);
        }
        Came::Arrived(Arrived {
            batch: std::mem::take(&mut self.pending),
            through: status.through,
            in_progress: status.turn_in_progress,
            over: status.over.then(|| "the runner stops".to_owned()).or(status.unread),
        })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.registry.metrics.streams.dec();
    }
}
