//! How many sandboxes an agent should have warm: as many as sessions asked for lately, within the bounds of its manifest.

use std::{collections::VecDeque, ops::RangeInclusive, time::Duration};

use jiff::{SignedDuration, Timestamp};

use crate::limits::MAX_CLAIMS;

/// When sessions of one agent asked for a sandbox.
#[derive(Debug, Clone, Default)]
pub(crate) struct Demand {
    asked: VecDeque<Timestamp>,
}

impl Demand {
    /// A session took a warm sandbox, or found none.
    pub(crate) fn note(&mut self, at: Timestamp) {
        if self.asked.len() == MAX_CLAIMS {
            self.asked.pop_front();
        }
        self.asked.push_back(at);
    }

    /// Warm sandboxes that there should be now. A burst of n counts fully for half of the window, then less and less: a pool
    /// grows at once and shrinks slowly.
    pub(crate) fn target(&mut self, bounds: &RangeInclusive<u32>, window: Duration, now: Timestamp) -> u32 {
        let window = window.as_secs_f64();
        let age = |at: &Timestamp| now.duration_since(*at).max(SignedDuration::ZERO).as_secs_f64();
        while self.asked.front().is_some_and(|at| age(at) >= window) {
            self.asked.pop_front();
        }
        let weight: f64 = self.asked.iter().map(|at| (2.0 * (1.0 - age(at) / window)).clamp(0.0, 1.0)).sum();
        // At most MAX_CLAIMS, and never negative.
        #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 1,000")]
        let demand = weight.ceil() as u32;
        bounds.start().saturating_add(demand).min(*bounds.end())
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use jiff::Timestamp;
    use proptest::prelude::*;

    use super::Demand;

    const WINDOW: Duration = Duration::from_secs(120);

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_000_000 + second).unwrap()
    }

    #[test]
    fn a_burst_makes_the_pool_grow_and_its_end_makes_it_shrink() {
        let mut demand = Demand::default();
        assert_eq!(demand.target(&(2..=10), WINDOW, at(0)), 2);
        (0..5).for_each(|second| demand.note(at(second)));
        assert_eq!(demand.target(&(2..=10), WINDOW, at(5)), 7);
        assert_eq!(demand.target(&(2..=4), WINDOW, at(5)), 4);
        assert_eq!(demand.target(&(2..=10), WINDOW, at(60)), 7);
        assert_eq!(demand.target(&(2..=10), WINDOW, at(92)), 5);
        assert_eq!(demand.target(&(2..=10), WINDOW, at(125)), 2);
    }

    #[test]
    fn a_shorter_window_is_over_sooner() {
        let asked = || {
            let mut demand = Demand::default();
            (0..3).for_each(|_| demand.note(at(0)));
            demand
        };
        let after =
            |seconds: i64| [20, 40].map(|window| asked().target(&(0..=10), Duration::from_secs(window), at(seconds)));
        assert_eq!(after(10), [3, 3]);
        assert_eq!(after(15), [2, 3]);
        assert_eq!(after(20), [0, 3]);
        assert_eq!(after(40), [0, 0]);
    }

    proptest! {
        #[test]
        fn it_keeps_within_its_bounds_and_only_shrinks_without_demand(
            asked in prop::collection::vec(0_i64..200, 0..50), min in 0_u32..20, more in 0_u32..20,
        ) {
            let mut asked = asked;
            asked.sort_unstable();
            let mut demand = Demand::default();
            for second in &asked {
                demand.note(at(*second));
            }
            let bounds = min..=min + more;
            let mut before = u32::MAX;
            for second in 200..400 {
                let target = demand.target(&bounds, WINDOW, at(second));
                prop_assert!(bounds.contains(&target));
                prop_assert!(target <= before);
                before = target;
            }
            prop_assert_eq!(before, min);
        }
    }
}
