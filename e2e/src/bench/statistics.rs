//! Medians and percentiles.

use std::time::Duration;

/// Measured times.
#[derive(Debug, Clone, Default)]
pub(crate) struct Times(Vec<Duration>);

impl Times {
    pub(crate) fn push(&mut self, time: Duration) {
        self.0.push(time);
    }

    pub(crate) fn len(&self) -> usize {
        self.0.len()
    }

    /// The time that this share of all stays below (nearest rank); zero where nothing was measured.
    pub(crate) fn percentile(&self, percent: usize) -> Duration {
        let mut sorted = self.0.clone();
        sorted.sort_unstable();
        let rank = (sorted.len() * percent).div_ceil(100).max(1);
        sorted.get(rank - 1).copied().unwrap_or_default()
    }

    pub(crate) fn median(&self) -> Duration {
        self.percentile(50)
    }

    /// Median and 99th percentile, for a table.
    pub(crate) fn summary(&self) -> String {
        format!("{} (p99 {})", milliseconds(self.median()), milliseconds(self.percentile(99)))
    }
}

/// A time in milliseconds with three significant places or so.
pub(crate) fn milliseconds(time: Duration) -> String {
    let value = time.as_secs_f64() * 1000.0;
    match value {
        value if value < 10.0 => format!("{value:.2} ms"),
        value if value < 100.0 => format!("{value:.1} ms"),
        value => format!("{value:.0} ms"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_nearest_ranks() {
        let mut times = Times::default();
        for n in (1..=200).rev() {
            times.push(Duration::from_millis(n));
        }
        assert_eq!(times.median(), Duration::from_millis(100));
        assert_eq!(times.percentile(99), Duration::from_millis(198));
        assert_eq!(times.percentile(100), Duration::from_millis(200));
        assert_eq!(Times::default().median(), Duration::ZERO);
    }

    #[test]
    fn times_are_written_in_milliseconds() {
        assert_eq!(milliseconds(Duration::from_micros(437)), "0.44 ms");
        assert_eq!(milliseconds(Duration::from_micros(23_456)), "23.5 ms");
        assert_eq!(milliseconds(Duration::from_millis(1234)), "1234 ms");
    }
}
