//! Placement: which runner a session goes to. Pure: nothing is sent.
//!
//! A place is decided on offers that may be old by then, and taken by compare-and-set on the offer's version: who comes second
//! decides again. So a hundred sessions at once spread evenly, also when many decide at the same time.

use std::{cmp::Reverse, collections::BinaryHeap, time::Duration};

use crate::fleet::RunnerId;

/// How often a runner says that it lives.
pub const HEARTBEAT: Duration = Duration::from_secs(5);
/// How long a session may be on its way to a sandbox before its place counts as free again: longer than a start takes.
pub const RESERVED_FOR: Duration = Duration::from_secs(120);

/// What a runner has to offer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Offer {
    /// The runner.
    pub runner: RunnerId,
    /// Sandboxes at the most.
    pub capacity: u32,
    /// Sessions that have one, or are to get one.
    pub used: u32,
    /// Grows with every change that takes places away.
    pub version: u64,
}

impl Offer {
    /// Places that nobody has; negative where more sessions were sent than there are places.
    pub fn free(&self) -> i64 {
        i64::from(self.capacity) - i64::from(self.used)
    }
}

/// Which places are good enough.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Want {
    /// A free one.
    Free,
    /// Any: the runner makes room.
    Any,
}

/// What a runner has of a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// A place, for [`RESERVED_FOR`].
    Reserved,
    /// A sandbox.
    Live,
    /// Its files.
    Home,
}

/// Spreads sessions over runners: each goes to the offer with the most free places as they are by then; of several to that with
/// the fewest sessions, then to the first. Gives, for each wish, which offer it goes to; `None` where nothing is good enough.
pub fn spread(offers: &[Offer], wishes: &[Want]) -> Vec<Option<usize>> {
    // Negative capacities do not fit an offer, so that what grows is counted beside it.
    let entry = |index: usize, more: i64| {
        let offer = offers.get(index)?;
        Some((offer.free() - more, Reverse(i64::from(offer.used) + more), Reverse(index), more))
    };
    let mut best: BinaryHeap<_> = (0..offers.len()).filter_map(|index| entry(index, 0)).collect();
    let mut places = Vec::with_capacity(wishes.len());
    for want in wishes {
        let good = best
            .peek()
            .filter(|(free, ..)| *want == Want::Any || *free > 0)
            .map(|(_, _, index, more)| (index.0, *more));
        if let Some((index, more)) = good {
            best.pop();
            best.extend(entry(index, more + 1));
        }
        places.push(good.map(|(index, _)| index));
    }
    places
}

#[cfg(test)]
mod tests;
