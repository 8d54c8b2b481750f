//! Turns of starting sandboxes: starting Claude Code takes a processor for a second, so only a few start at once.
//!
//! A start that takes long does not use a processor: it waits for something of the agent's own (its hooks, its MCP servers). It
//! goes on, but lets the next one begin, so that no agent holds up the others.

use tokio::{sync::Semaphore, time::timeout};

use crate::limits::START_TURN;

/// Runs a start when it is its turn, which it has for [`START_TURN`] at the most. `None` when there are no more turns.
pub(crate) async fn in_turn<T>(turns: &Semaphore, start: impl Future<Output = T>) -> Option<T> {
    let turn = turns.acquire().await.ok()?;
    tokio::pin!(start);
    if let Ok(started) = timeout(START_TURN, &mut start).await {
        return Some(started);
    }
    drop(turn);
    Some(start.await)
}

#[cfg(test)]
mod tests {
    use std::future::{pending, ready};

    use tokio::{sync::Semaphore, time::timeout};

    use super::in_turn;
    use crate::limits::START_TURN;

    #[tokio::test(start_paused = true)]
    async fn slow_starts_do_not_hold_up_the_others_for_good() {
        let turns = Semaphore::new(2);
        let slow = async { tokio::join!(in_turn(&turns, pending::<()>()), in_turn(&turns, pending::<()>())) };
        let next = async {
            assert!(timeout(START_TURN / 2, in_turn(&turns, ready(()))).await.is_err(), "both turns are taken");
            in_turn(&turns, ready(7)).await
        };
        tokio::select! {
            biased;
            _ = slow => unreachable!("they never end"),
            started = next => assert_eq!(started, Some(7)),
        }
        assert_eq!(turns.available_permits(), 2);
    }

    #[tokio::test]
    async fn there_are_no_turns_when_it_is_over() {
        let turns = Semaphore::new(1);
        turns.close();
        assert_eq!(in_turn(&turns, ready(())).await, None);
    }
}
