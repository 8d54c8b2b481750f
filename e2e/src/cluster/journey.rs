//! How long journeys take: whoever waits for CI sees what it is spent on.

use std::{
    io::{self, Write as _},
    thread,
    time::Instant,
};

/// A journey that has the cluster. Dropped, it says how long it had it.
#[derive(Debug)]
pub(super) struct Journey {
    begun: Instant,
}

impl Journey {
    /// Begins when the cluster is there, and whoever had it before has let go of it.
    pub(super) fn begin() -> Self {
        Self { begun: Instant::now() }
    }
}

impl Drop for Journey {
    fn drop(&mut self) {
        let journey = thread::current().name().unwrap_or("a journey").to_owned();
        said(&journey, self.begun);
    }
}

/// Says how long something took, past the capture of the test runner.
pub(super) fn said(what: &str, begun: Instant) {
    let _ = io::stderr().write_all(format!("took {:.1} s: {what}\n", begun.elapsed().as_secs_f64()).as_bytes());
}
