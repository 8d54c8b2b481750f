//! A reader's entries as frames of a body: a head, the state of things, then batch by batch.
//!
//! Nothing waits for a slow reader but this task, which holds one batch: the body takes a few pieces, HTTP/2 its window.

use std::time::Duration;

use ash_core::ports::{EntryReader, ReadError, RunnerError};
use ash_link::Outgoing;
use ash_protocol::{
    fleet::StreamStatus,
    frame::{Frame, FrameKind},
};
use serde::Serialize;
use tokio::time::timeout;

/// How often a stream without entries says how things are: its reader notices a runner that is gone.
const STATUS_INTERVAL: Duration = Duration::from_secs(2);

/// The first frame of an answer.
pub(super) fn head<T: Serialize>(head: &Result<T, RunnerError>) -> Frame {
    Frame::json(FrameKind::Reply, 0, head)
}

fn status(reader: &dyn EntryReader) -> StreamStatus {
    let (through, turn_in_progress) = (reader.position(), reader.turn_in_progress());
    StreamStatus { through, turn_in_progress, over: false, unwritten: None, unread: None }
}

fn status_frame(status: &StreamStatus) -> Frame {
    Frame::json(FrameKind::Status, 0, status)
}

/// Writes a reader's entries until they end, or nobody takes them.
pub(super) async fn pump(head: Frame, mut reader: Box<dyn EntryReader>, outgoing: Outgoing) {
    let mut frames = vec![head, status_frame(&status(&*reader))];
    loop {
        for piece in ash_link::frames(frames) {
            if !outgoing.send(piece).await {
                return;
            }
        }
        let next = tokio::select! {
            next = timeout(STATUS_INTERVAL, reader.next()) => next,
            () = outgoing.closed() => return,
        };
        frames = match next {
            Ok(Ok(Some(batch))) => {
                let mut frames: Vec<Frame> = batch.iter().map(|logged| Frame::event(&logged.entry)).collect();
                frames.push(status_frame(&status(&*reader)));
                frames
            }
            Err(_) => vec![status_frame(&status(&*reader))],
            Ok(end) => {
                let mut last = status(&*reader);
                match end {
                    Err(ReadError::Unwritten(reason) | ReadError::NotBegun(reason)) => last.unwritten = Some(reason),
                    Err(ReadError::Store(error)) => last.unread = Some(error.to_string()),
                    Ok(_) => last.over = true,
                }
                for piece in ash_link::frames([status_frame(&last)]) {
                    outgoing.send(piece).await;
                }
                return;
            }
        };
    }
}
