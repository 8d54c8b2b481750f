//! Where a reader is in a stream, and what follows from that. Decides, without I/O.

use ash_core::sse::Position;

use crate::Frame;

/// What to do with a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// It is new: the reader gets it.
    New,
    /// The reader has it already.
    Repeated,
}

/// A reader's place in a stream.
#[derive(Debug, Clone, Default)]
pub(crate) struct Cursor {
    last: Option<Position>,
    started: bool,
}

impl Cursor {
    /// A reader that has seen everything up to a position.
    pub(crate) fn after(position: Option<Position>) -> Self {
        Self { last: position, started: false }
    }

    /// The last frame that was seen; `None` before the first one that has an id.
    pub(crate) fn position(&self) -> Option<Position> {
        self.last
    }

    /// Takes note of a frame. Positions only grow, so a frame at or before the last one was seen already, and the one frame
    /// that begins an answer comes once. Frames without a position (or with one of another kind) are always new.
    pub(crate) fn observe(&mut self, frame: &Frame) -> Verdict {
        let position = frame.id.as_deref().and_then(|id| id.parse::<Position>().ok());
        let seen = match position {
            Some(position) => {
                let seen = self.last.is_some_and(|last| position <= last);
                self.last = self.last.max(Some(position));
                seen
            }
            None => frame.event == "session_start" && std::mem::replace(&mut self.started, true),
        };
        if seen { Verdict::Repeated } else { Verdict::New }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Cursor, Verdict};
    use crate::Frame;

    fn frame(event: &str, id: Option<String>) -> Frame {
        Frame { event: event.into(), data: "{}".into(), id }
    }

    #[test]
    fn the_beginning_comes_once() {
        let mut cursor = Cursor::default();
        assert_eq!(cursor.observe(&frame("session_start", None)), Verdict::New);
        assert_eq!(cursor.observe(&frame("session_start", None)), Verdict::Repeated);
        assert_eq!(cursor.observe(&frame("done", None)), Verdict::New);
    }

    proptest! {
        #[test]
        fn overlapping_replays_give_every_frame_once(overlaps in prop::collection::vec((0u32..30, 1u32..30), 1..20)) {
            let mut cursor = Cursor::default();
            let mut seen = Vec::new();
            let mut next = 0;
            for (back, forward) in overlaps {
                for number in next - back.min(next)..next + forward {
                    let id = format!("{}.{}", 4_294_967_296_u64 + u64::from(number / 3), number % 3);
                    if cursor.observe(&frame("message", Some(id))) == Verdict::New {
                        seen.push(number);
                    }
                }
                next += forward;
            }
            prop_assert_eq!(seen, (0..next).collect::<Vec<_>>());
        }
    }
}
