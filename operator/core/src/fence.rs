//! What every write of a session's log is compared with, so that it has one writer. Pure: stores carry it out by compare-and-set.

use ash_protocol::{Epoch, Sequence};

/// How far a session's log is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Fence {
    /// The epoch that is open.
    pub epoch: Epoch,
    /// The last committed entry.
    pub last: Sequence,
}

/// What becomes of an append.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Appends {
    /// It is written.
    Now,
    /// It was written: numbers of an epoch have no gaps and one writer, so what is not beyond the log's end is in it.
    Before,
    /// The log went on without whoever appends.
    Overtaken,
}

impl Fence {
    /// Whether the log is as somebody expects who opens the next epoch.
    pub fn opens(self, expected: Epoch, last_committed: Sequence) -> bool {
        (self.epoch, self.last) == (expected, last_committed)
    }

    /// What becomes of entries that follow `after` and end with `last`.
    pub fn appends(self, after: Sequence, last: Sequence) -> Appends {
        if self.epoch != last.epoch() {
            Appends::Overtaken
        } else if self.last == after {
            Appends::Now
        } else if last <= self.last {
            Appends::Before
        } else {
            Appends::Overtaken
        }
    }
}

#[cfg(test)]
mod model;
