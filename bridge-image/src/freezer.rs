//! Stops Claude Code and all that was started beside it while the host may serve nobody, and has it go on.
//!
//! The bridge itself goes on: it has to hear that it is over. Whoever disobeys (a program may continue what was stopped) gains
//! nothing: the host answers nobody meanwhile.

use std::{cell::Cell, process, time::Duration};

use tokio::time::Instant;

use crate::descendants;

thread_local! {
    static FROZEN: Cell<bool> = const { Cell::new(false) };
    static THAWED: Cell<Option<Instant>> = const { Cell::new(None) };
}

/// Stops everything that this process started, and what those started. A repeat stops what is new.
pub fn freeze() {
    FROZEN.set(true);
    descendants::stop_all_of(process::id());
}

/// Has it go on; nothing happens where it was not stopped.
pub fn thaw() {
    if FROZEN.replace(false) {
        THAWED.set(Some(Instant::now()));
        descendants::continue_all_of(process::id());
    }
}

/// A child was started: it is stopped where the others are.
pub fn started(child: u32) {
    if FROZEN.get() {
        descendants::stop(child);
    }
}

/// Until when something is to be waited for that could not happen by `until` because it was stopped: `limit` from now, or from when
/// it went on. `None` where it had its time.
pub fn postponed(until: Instant, limit: Duration) -> Option<Instant> {
    if FROZEN.get() {
        return Some(Instant::now() + limit);
    }
    THAWED.get().map(|thawed| thawed + limit).filter(|later| *later > until)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::process::{Child, Command};

    use super::*;

    fn state(child: &Child) -> char {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        stat.rsplit_once(')').unwrap().1.trim_start().chars().next().unwrap()
    }

    /// A stop signal is acted on when the process is next to run.
    fn becomes(child: &Child, wanted: impl Fn(char) -> bool) {
        let start = std::time::Instant::now();
        while !wanted(state(child)) {
            assert!(start.elapsed() < Duration::from_secs(30), "it is {:?}", state(child));
            std::thread::yield_now();
        }
    }

    #[test]
    fn what_was_started_stops_goes_on_and_is_given_its_time_again() {
        let mut child = Command::new("sleep").arg("600").spawn().unwrap();
        let (limit, now) = (Duration::from_secs(5), Instant::now());
        assert_eq!(postponed(now, limit), None);
        // Not `freeze`: tests of this program run side by side, and have children of their own.
        FROZEN.set(true);
        started(child.id());
        becomes(&child, |state| state == 'T');
        assert!(postponed(now, limit).is_some_and(|later| later >= now + limit));
        FROZEN.set(false);
        THAWED.set(Some(Instant::now()));
        assert!(postponed(now, limit).is_some());
        assert_eq!(postponed(now + 2 * limit, limit), None, "it had its time after that");
        descendants::continue_all_of(process::id());
        becomes(&child, |state| state != 'T');
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
