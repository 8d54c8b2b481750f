//! Frames out of batches of entries, for one reader: which it has not seen, which it wants, in chunks of a good size. No I/O.

use std::{sync::Arc, vec};

use ash_core::{
    EntryFlags, EntryKind,
    id::{SessionId, TurnId},
    opening::Opening,
    ports::{Batch, LoggedEntry},
    sse::{self, Position, Rendered},
};
use bytes::{Bytes, BytesMut};

/// Frames are joined into chunks up to this size: 64 KiB, as much as a socket takes at once.
const CHUNK_BYTES: usize = 64 << 10;

/// Frames of an entry from this size on are passed on as they are: copying them would cost more than a chunk of their own.
const DIRECT_BYTES: usize = 16 << 10;

/// What a reader still has to get, and what it has seen.
#[derive(Debug)]
pub(crate) struct Frames {
    session: SessionId,
    partials: bool,
    turn: Option<TurnId>,
    /// How far entries were taken.
    taken: Position,
    /// The last entry of which the reader got a frame: partials that were left out are not seen.
    seen: Position,
    pending: vec::IntoIter<Arc<LoggedEntry>>,
    held: Option<Bytes>,
    over: bool,
    after_done: bool,
    count: u64,
}

impl Frames {
    /// The frames of one turn, from its beginning to its `done`.
    pub(crate) fn of_turn(session: SessionId, turn: TurnId, partials: bool) -> Self {
        Self { turn: Some(turn), ..Self::after(session, Position::START, partials) }
    }

    /// The frames of a session behind a position.
    pub(crate) fn after(session: SessionId, position: Position, partials: bool) -> Self {
        Self {
            session,
            partials,
            turn: None,
            taken: position,
            seen: position,
            pending: Vec::new().into_iter(),
            held: None,
            over: false,
            after_done: false,
            count: 0,
        }
    }

    /// Gives it the next batch. Only when [`Self::chunk`] gave nothing: one batch at a time is what bounds a reader's memory.
    pub(crate) fn feed(&mut self, batch: Batch) {
        debug_assert!(self.pending.len() == 0 && self.held.is_none());
        self.pending = batch.into_iter();
    }

    /// Whether the turn that this is about is over: nothing more comes once there is no chunk left.
    pub(crate) fn over(&self) -> bool {
        self.over
    }

    /// Whether the last frame was a `done`.
    pub(crate) fn after_done(&self) -> bool {
        self.after_done
    }

    /// How many frames there were in all.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// The next frames: one entry's as they are, or several small ones' joined; `None` when the batch is used up.
    pub(crate) fn chunk(&mut self) -> Option<Bytes> {
        let mut chunk = self.held.take().or_else(|| self.next_frames())?;
        if chunk.len() >= DIRECT_BYTES {
            return Some(chunk);
        }
        let mut joined = BytesMut::new();
        while let Some(frames) = self.next_frames() {
            let length = joined.len().max(chunk.len()) + frames.len();
            if frames.len() >= DIRECT_BYTES || length > CHUNK_BYTES {
                self.held = Some(frames);
                break;
            }
            if joined.is_empty() {
                joined.reserve((self.pending.len() + 2).saturating_mul(frames.len().max(chunk.len())).min(CHUNK_BYTES));
                joined.extend_from_slice(&chunk);
                chunk.clear();
            }
            joined.extend_from_slice(&frames);
        }
        Some(if joined.is_empty() { chunk } else { joined.freeze() })
    }

    /// The frames of the next entry that has any for this reader.
    fn next_frames(&mut self) -> Option<Bytes> {
        while !self.over {
            let logged = self.pending.next()?;
            let frames = self.take(&logged);
            if !frames.is_empty() {
                return Some(frames);
            }
        }
        self.pending = Vec::new().into_iter();
        None
    }

    fn take(&mut self, logged: &LoggedEntry) -> Bytes {
        let entry = &logged.entry;
        let Some(first) = self.taken.first_unseen(entry.sequence) else { return Bytes::new() };
        self.taken = Position::after(entry.sequence);
        let opening;
        let rendered: &Rendered = match entry.kind {
            EntryKind::Partial if !self.partials => return Bytes::new(),
            _ if entry.flags.contains(EntryFlags::FOR_PARTIALS) && !self.partials => return Bytes::new(),
            EntryKind::Opening if self.is_of_another_turn(&entry.body) => return Bytes::new(),
            EntryKind::Opening => {
                opening = sse::render_opening(self.session, entry, self.seen);
                &opening
            }
            _ => logged.rendered(self.session),
        };
        self.over = self.turn.is_some() && entry.ends_turn();
        let frames = rendered.from(first);
        if !frames.is_empty() {
            self.seen = Position::after(entry.sequence);
            self.after_done = entry.ends_turn();
            self.count += rendered.len() as u64 - u64::from(first);
        }
        frames
    }

    /// Whether an opening interrupts a turn before the one that this is about.
    fn is_of_another_turn(&self, body: &[u8]) -> bool {
        let Some(turn) = self.turn else { return false };
        Opening::read(body).is_ok_and(|opening| opening.interrupted.is_some_and(|interrupted| interrupted != turn.0))
    }
}

/// The `done` of a stream whose session has nothing to wait for. It has no id: no entry stands behind it.
pub(crate) fn done(session: SessionId) -> Bytes {
    Bytes::from(format!("event: done\ndata: {{\"sessionId\":\"{session}\"}}\n\n"))
}

/// The end of a turn that failed because its log cannot be written: for the same reason its frames have no ids.
pub(crate) fn failed(session: SessionId, reason: &str) -> Bytes {
    not_begun(session, &format!("the turn failed: {reason}"))
}

/// The end of a stream whose turn does not begin. No entry stands behind it.
pub(crate) fn not_begun(session: SessionId, reason: &str) -> Bytes {
    let data = serde_json::json!({ "error": reason });
    let mut frames = format!("event: error\ndata: {data}\n\n").into_bytes();
    frames.extend_from_slice(&done(session));
    frames.into()
}

#[cfg(test)]
#[path = "stream_tests.rs"]
mod tests;
