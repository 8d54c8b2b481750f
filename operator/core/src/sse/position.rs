//! A reader's position in a stream: the id of the last frame that it saw.

use std::{fmt, str::FromStr};

use ash_protocol::Sequence;

/// The last frame that a reader saw: `<sequence>.<k>`, or a bare sequence for all frames of that entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    /// The entry.
    pub sequence: Sequence,
    /// The frame of the entry, from 0; `u32::MAX` for all of them.
    pub frame: u32,
}

/// A text that is no position.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no position: give the id of a frame (<sequence>.<k>) or a sequence")]
pub struct InvalidPosition(String);

impl Position {
    /// Before everything.
    pub const START: Self = Self::after(Sequence::START);

    /// After all frames of an entry.
    pub const fn after(sequence: Sequence) -> Self {
        Self { sequence, frame: u32::MAX }
    }

    /// The first frame of an entry that a reader at this position has not seen; 0 for entries beyond it, `None` for an entry
    /// that was seen whole.
    pub fn first_unseen(self, entry: Sequence) -> Option<u32> {
        match entry.cmp(&self.sequence) {
            std::cmp::Ordering::Greater => Some(0),
            std::cmp::Ordering::Equal => self.frame.checked_add(1),
            std::cmp::Ordering::Less => None,
        }
    }

    /// The last entry that was seen whole, as far as a reader of entries is concerned: the log is read after this.
    pub fn entries_after(self) -> Sequence {
        if self.frame == u32::MAX { self.sequence } else { Sequence(self.sequence.0.saturating_sub(1)) }
    }
}

impl FromStr for Position {
    type Err = InvalidPosition;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let invalid = || InvalidPosition(text.chars().take(60).collect());
        match text.split_once('.') {
            None => Ok(Self::after(text.parse().map_err(|_| invalid())?)),
            Some((sequence, frame)) => Ok(Self {
                sequence: sequence.parse().map_err(|_| invalid())?,
                frame: frame.parse().map_err(|_| invalid())?,
            }),
        }
    }
}

impl fmt::Display for Position {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}", self.sequence)?;
        if self.frame == u32::MAX { Ok(()) } else { write!(formatter, ".{}", self.frame) }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use ash_protocol::Sequence;

    use super::Position;

    #[test]
    fn a_position_inside_an_entry_asks_for_its_rest() {
        let position: Position = "12.1".parse().unwrap();
        assert_eq!(position.first_unseen(Sequence(12)), Some(2));
        assert_eq!(position.first_unseen(Sequence(13)), Some(0));
        assert_eq!(position.first_unseen(Sequence(11)), None);
        assert_eq!(position.entries_after(), Sequence(11));
        assert_eq!(position.to_string(), "12.1");
    }

    #[test]
    fn a_bare_sequence_means_all_of_the_entry() {
        let position: Position = "12".parse().unwrap();
        assert_eq!(position.first_unseen(Sequence(12)), None);
        assert_eq!(position.entries_after(), Sequence(12));
        assert_eq!(position.to_string(), "12");
    }

    #[test]
    fn what_is_no_position_is_refused() {
        for text in ["", ".", "1.", ".1", "-1", "1.2.3", "a", "99999999999999999999"] {
            assert!(text.parse::<Position>().is_err(), "{text}");
        }
    }
}
