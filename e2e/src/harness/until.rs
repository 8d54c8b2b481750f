//! Waiting for a condition, with a deadline, never for a time.

use std::time::{Duration, Instant};

/// How long a test waits for something that has to happen. Far beyond what it takes: reaching it is a failure.
pub const DEADLINE: Duration = Duration::from_secs(60);

/// How often a condition is looked at.
const INTERVAL: Duration = Duration::from_millis(10);

/// Waits until a condition gives a value.
///
/// # Panics
/// When it has not within [`DEADLINE`]; says what was waited for.
pub async fn eventually<T>(what: &str, mut condition: impl AsyncFnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = condition().await {
            return value;
        }
        assert!(start.elapsed() < DEADLINE, "waited {} s in vain: {what}", DEADLINE.as_secs());
        tokio::time::sleep(INTERVAL).await;
    }
}
