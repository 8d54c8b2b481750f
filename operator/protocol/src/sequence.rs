//! Sequence numbers of a session's event log: `epoch × 2³² + n`.

use std::{fmt, num::ParseIntError, str::FromStr};

use serde::{Deserialize, Serialize};

/// A term of a session's log. Every claim of a sandbox, restart of a bridge and departure from a sandbox takes the next one.
///
/// Bounded by [`Epoch::MAX`], so that every sequence is an integer that JSON numbers (IEEE 754 doubles) hold exactly.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Epoch(pub u32);

impl Epoch {
    /// The epoch of a session that never had a sandbox. No entry carries it.
    pub const NONE: Self = Self(0);
    /// The last epoch: 2²¹ − 1, because 2²¹ × 2³² = 2⁵³.
    pub const MAX: Self = Self((1 << 21) - 1);

    /// The epoch after this one; `None` at the bound.
    pub fn next(self) -> Option<Self> {
        (self < Self::MAX).then_some(Self(self.0 + 1))
    }

    /// The sequence of the `n`th entry of this epoch (from 1).
    pub fn sequence(self, n: u32) -> Sequence {
        Sequence((u64::from(self.0) << 32) | u64::from(n))
    }

    /// The sequence of the event that opens this epoch (n = 1). The store writes it; a bridge numbers from 2.
    pub fn opening(self) -> Sequence {
        self.sequence(1)
    }
}

impl fmt::Display for Epoch {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

/// The position of one entry in a session's event log. Positions grow; within an epoch they have no gaps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Sequence(pub u64);

impl Sequence {
    /// Before every entry.
    pub const START: Self = Self(0);

    /// The epoch that the entry belongs to. Values beyond [`Epoch::MAX`] belong to no session.
    pub fn epoch(self) -> Epoch {
        Epoch(u32::try_from(self.0 >> 32).unwrap_or(u32::MAX))
    }

    /// The number within the epoch, from 1.
    #[allow(clippy::cast_possible_truncation, reason = "the lower half is what is asked for")]
    pub fn n(self) -> u32 {
        (self.0 & u64::from(u32::MAX)) as u32
    }

    /// The position right after this one in the same epoch; `None` where the epoch is full.
    pub fn next(self) -> Option<Self> {
        (self.n() < u32::MAX).then_some(Self(self.0 + 1))
    }
}

impl fmt::Display for Sequence {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

impl FromStr for Sequence {
    type Err = ParseIntError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self)
    }
}

#[cfg(test)]
mod tests {
    use super::{Epoch, Sequence};

    #[test]
    fn a_sequence_names_its_epoch_and_number() {
        let sequence = Epoch(7).sequence(3);
        assert_eq!(sequence, Sequence(7 * (1 << 32) + 3));
        assert_eq!((sequence.epoch(), sequence.n()), (Epoch(7), 3));
        assert_eq!(sequence.next(), Some(Epoch(7).sequence(4)));
        assert_eq!(Epoch(7).sequence(u32::MAX).next(), None);
    }

    #[test]
    fn the_last_sequence_is_exact_as_a_double() {
        let last = Epoch::MAX.sequence(u32::MAX).0;
        assert_eq!(last, (1 << 53) - 1);
        assert_eq!(Epoch::MAX.next(), None);
    }
}
