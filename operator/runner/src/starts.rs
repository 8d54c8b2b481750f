//! Turns of starting sandboxes: starting Claude Code takes a processor for a second, so only a few start at once.
//!
//! A start that takes long does not use a processor: it waits for something of the agent's own (its hooks, its MCP servers). It
//! goes on, but lets the next one begin, so that no agent holds up the others. How many go on so has a bound too: on a machine
//! under load every start takes long, and all at once would take longer still.

use tokio::{sync::Semaphore, time::timeout};

use crate::limits::START_TURN;

/// The turns of starting.
#[derive(Debug)]
pub(crate) struct Starts {
    turns: Semaphore,
    slow: Semaphore,
}

impl Starts {
    /// So many turns, and so many starts beside them that took longer than theirs.
    pub(crate) fn new(turns: usize, slow: usize) -> Self {
        Self { turns: Semaphore::new(turns), slow: Semaphore::new(slow) }
    }

    /// Lets nothing begin any more.
    #[cfg(test)]
    fn close(&self) {
        self.turns.close();
    }

    /// Runs a start when it is its turn, which it has for [`START_TURN`], and longer only where too many slow ones go on
    /// already. `None` when there are no more turns.
    pub(crate) async fn in_turn<T>(&self, start: impl Future<Output = T>) -> Option<T> {
        let turn = self.turns.acquire().await.ok()?;
        tokio::pin!(start);
        if let Ok(started) = timeout(START_TURN, &mut start).await {
            return Some(started);
        }
        let slow = tokio::select! {
            slow = self.slow.acquire() => slow.ok()?,
            started = &mut start => return Some(started),
        };
        drop(turn);
        let started = start.await;
        drop(slow);
        Some(started)
    }
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use tokio::time::timeout;

    use super::Starts;
    use crate::limits::START_TURN;

    #[tokio::test(start_paused = true)]
    async fn slow_starts_do_not_hold_up_the_others_for_good() {
        let starts = Starts::new(2, 2);
        let slow = async { tokio::join!(starts.in_turn(pending::<()>()), starts.in_turn(pending::<()>())) };
        let next = async {
            assert!(timeout(START_TURN / 2, starts.in_turn(ready(()))).await.is_err(), "both turns are taken");
            starts.in_turn(ready(7)).await
        };
        tokio::select! {
            biased;
            _ = slow => unreachable!("they never end"),
            started = next => assert_eq!(started, Some(7)),
        }
        assert_eq!((starts.turns.available_permits(), starts.slow.available_permits()), (2, 2));
    }

    #[tokio::test(start_paused = true)]
    async fn slow_starts_have_a_bound_too() {
        let starts = Starts::new(1, 1);
        let slow = async { tokio::join!(starts.in_turn(pending::<()>()), starts.in_turn(pending::<()>())) };
        let next = async { timeout(START_TURN * 10, starts.in_turn(ready(()))).await };
        tokio::select! {
            biased;
            _ = slow => unreachable!("they never end"),
            started = next => assert!(started.is_err(), "one goes on beside the turns, the other keeps its turn"),
        }
    }

    #[tokio::test]
    async fn there_are_no_turns_when_it_is_over() {
        let starts = Starts::new(1, 1);
        starts.close();
        assert_eq!(starts.in_turn(ready(())).await, None);
    }
}
