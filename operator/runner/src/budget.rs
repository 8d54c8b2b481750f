//! What the sessions of a process may have in memory together that the log has not taken yet, beyond what each has for itself.
//!
//! A session has [`OWN_BYTES`] for itself. What its entries take beyond that is counted here while it is not committed, and so is,
//! as a whole and before it is read, a line that is longer than one read. At the bound bridges are not read: what they have is theirs
//! to keep.
//!
//! Everything is given back: an entry's bytes when it is committed, withdrawn or forgotten with its session, a line's when it is
//! whole, or does not come in time, or its connection ends. For none of that anybody has to be read who waits here: commits go on,
//! lines that were let in are read to their end, and a bridge whose session has no more than is its own is always read. So nobody
//! waits for one that waits.

use std::{
    pin::pin,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::SeqCst},
    },
};

use ash_protocol::frame::{HEADER_BYTES, MAX_BODY_BYTES};
use tokio::sync::{Mutex, Notify};

use crate::{limits::OWN_BYTES, metrics::Metrics};

/// The least that can be common to all: the longest line has to fit.
pub const MIN_LOG_MEMORY_BYTES: u64 = (HEADER_BYTES + MAX_BODY_BYTES) as u64;

/// What all sessions of a process share.
#[derive(Debug)]
pub(crate) struct Budget {
    bound_bytes: usize,
    used_bytes: AtomicUsize,
    /// Lines that wait for room. While there are any, whoever else would have to draw from here waits, too, so that they get it.
    lines: AtomicUsize,
    /// Whoever waits for bytes to be given back.
    sleepers: AtomicUsize,
    freed: Notify,
    /// Held by the line that is next: they come in the order in which they asked.
    turn: Mutex<()>,
    metrics: Arc<Metrics>,
}

/// What somebody holds of it; given back when it is dropped.
#[derive(Debug)]
pub(crate) struct Share {
    budget: Arc<Budget>,
    bytes: usize,
}

/// Counts a line for as long as it waits.
struct Waiting<'a>(&'a Budget);

impl<'a> Waiting<'a> {
    fn new(budget: &'a Budget) -> Self {
        budget.lines.fetch_add(1, SeqCst);
        Self(budget)
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.lines.fetch_sub(1, SeqCst);
        // Those that let lines go first look again.
        self.0.wake();
    }
}

/// Counts a sleeper for as long as it sleeps.
struct Sleeper<'a>(&'a Budget);

impl<'a> Sleeper<'a> {
    fn new(budget: &'a Budget) -> Self {
        budget.sleepers.fetch_add(1, SeqCst);
        Self(budget)
    }
}

impl Drop for Sleeper<'_> {
    fn drop(&mut self) {
        self.0.sleepers.fetch_sub(1, SeqCst);
    }
}

impl Budget {
    /// A budget of so many bytes, or of [`MIN_LOG_MEMORY_BYTES`] where that is more.
    pub(crate) fn new(bound_bytes: u64, metrics: Arc<Metrics>) -> Arc<Self> {
        let bound_bytes = usize::try_from(bound_bytes.max(MIN_LOG_MEMORY_BYTES)).unwrap_or(usize::MAX);
        Arc::new(Self {
            bound_bytes,
            used_bytes: AtomicUsize::new(0),
            lines: AtomicUsize::new(0),
            sleepers: AtomicUsize::new(0),
            freed: Notify::new(),
            turn: Mutex::default(),
            metrics,
        })
    }

    /// A share that holds nothing yet.
    pub(crate) fn share(self: &Arc<Self>) -> Share {
        Share { budget: Arc::clone(self), bytes: 0 }
    }

    /// Whether nobody is read who has more than its own.
    pub(crate) fn is_tight(&self) -> bool {
        self.used_bytes.load(SeqCst) >= self.bound_bytes || self.lines.load(SeqCst) > 0
    }

    /// Whether a bridge may be read whose session has so many bytes that are not committed.
    pub(crate) fn may_read(&self, uncommitted_bytes: usize) -> bool {
        uncommitted_bytes <= OWN_BYTES || !self.is_tight()
    }

    /// Waits until a bridge may be read whose session has so many bytes that are not committed.
    pub(crate) async fn wait_read(&self, uncommitted_bytes: impl Fn() -> usize) {
        self.wait_until(|| self.may_read(uncommitted_bytes()).then_some(())).await;
    }

    /// Draws the room for a line, which has to fit the least budget; `None` where it has to be waited for.
    pub(crate) fn draw(self: &Arc<Self>, line_bytes: usize) -> Option<Share> {
        if self.lines.load(SeqCst) == 0 { self.try_draw(line_bytes) } else { None }
    }

    /// Waits for the room for a line, and draws it.
    pub(crate) async fn wait_draw(self: &Arc<Self>, line_bytes: usize) -> Share {
        let _waiting = Waiting::new(self);
        let _turn = self.turn.lock().await;
        self.wait_until(|| self.try_draw(line_bytes)).await
    }

    fn try_draw(self: &Arc<Self>, bytes: usize) -> Option<Share> {
        let fits = |used: usize| used.checked_add(bytes).filter(|used| *used <= self.bound_bytes);
        self.used_bytes.fetch_update(SeqCst, SeqCst, fits).ok()?;
        self.metrics.unwritten_bytes.inc_by(gauge(bytes));
        Some(Share { budget: Arc::clone(self), bytes })
    }

    async fn wait_until<T>(&self, look: impl Fn() -> Option<T>) -> T {
        let _sleeper = Sleeper::new(self);
        loop {
            let mut freed = pin!(self.freed.notified());
            freed.as_mut().enable();
            if let Some(found) = look() {
                return found;
            }
            freed.await;
        }
    }

    /// A sleeper counts itself before it looks; what was given back before it is counted is seen by its look.
    fn wake(&self) {
        if self.sleepers.load(SeqCst) > 0 {
            self.freed.notify_waiters();
        }
    }
}

impl Share {
    /// Holds so many bytes from now on. What came already is not refused: the bound is kept by not reading more.
    pub(crate) fn set(&mut self, bytes: usize) {
        if bytes > self.bytes {
            self.budget.used_bytes.fetch_add(bytes - self.bytes, SeqCst);
            self.budget.metrics.unwritten_bytes.inc_by(gauge(bytes - self.bytes));
        } else if bytes < self.bytes {
            self.budget.used_bytes.fetch_sub(self.bytes - bytes, SeqCst);
            self.budget.metrics.unwritten_bytes.dec_by(gauge(self.bytes - bytes));
        }
        let less = bytes < self.bytes;
        self.bytes = bytes;
        // Also a session that holds less of its own may be waited for.
        if less {
            self.budget.wake();
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.set(0);
    }
}

fn gauge(bytes: usize) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::time::Duration;

    use futures::FutureExt as _;
    use proptest::prelude::*;
    use tokio::time::{sleep, timeout};

    use super::*;

    const BOUND: usize = 200 << 20;
    const LONG: Duration = Duration::from_secs(3600);

    fn budget() -> Arc<Budget> {
        Budget::new(BOUND as u64, Arc::default())
    }

    fn used(budget: &Budget) -> usize {
        budget.used_bytes.load(SeqCst)
    }

    #[test]
    fn the_longest_line_fits_whatever_is_wanted() {
        let least = Budget::new(1, Arc::default());
        assert!(least.draw(HEADER_BYTES + MAX_BODY_BYTES).is_some());
    }

    #[test]
    fn who_has_no_more_than_its_own_is_always_read() {
        let budget = budget();
        let mut share = budget.share();
        share.set(BOUND);
        assert!(budget.may_read(OWN_BYTES) && !budget.may_read(OWN_BYTES + 1));
        assert!(budget.draw(1).is_none());
        share.set(BOUND - 1);
        assert!(budget.may_read(OWN_BYTES + 1));
        drop(share);
        assert_eq!((used(&budget), budget.metrics.unwritten_bytes.get()), (0, 0));
    }

    #[tokio::test(start_paused = true)]
    async fn lines_come_in_their_order_and_before_whoever_is_ahead() {
        let budget = budget();
        let first = budget.draw(BOUND - 10).unwrap();
        let mut long = Box::pin(budget.wait_draw(100));
        assert!((&mut long).now_or_never().is_none());
        let mut short = Box::pin(budget.wait_draw(5));
        assert!((&mut short).now_or_never().is_none(), "it would fit, and waits for its turn");
        assert!(budget.draw(5).is_none() && !budget.may_read(OWN_BYTES + 1));
        let mut reading = Box::pin(budget.wait_read(|| OWN_BYTES + 1));
        assert!((&mut reading).now_or_never().is_none());
        drop(first);
        let long = timeout(LONG, long).await.unwrap();
        let short = timeout(LONG, short).await.unwrap();
        timeout(LONG, reading).await.unwrap();
        assert_eq!(used(&budget), 105);
        drop((long, short));
        assert_eq!(used(&budget), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_gives_up_waiting_leaves_nothing_behind() {
        let budget = budget();
        let held = budget.draw(BOUND).unwrap();
        for _ in 0..3 {
            assert!(timeout(Duration::from_secs(1), budget.wait_draw(10)).await.is_err());
        }
        assert!(timeout(Duration::from_secs(1), budget.wait_read(|| usize::MAX)).await.is_err());
        let counts = (budget.lines.load(SeqCst), budget.sleepers.load(SeqCst), used(&budget));
        assert_eq!(counts, (0, 0, BOUND));
        drop(held);
        assert!(budget.draw(BOUND).is_some());
    }

    proptest! {
        #[test]
        fn whatever_is_asked_for_the_bound_is_kept_and_all_come_through(lines in prop::collection::vec((1usize..BOUND, 0u64..50), 1..40)) {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
            let budget = budget();
            runtime.block_on(async {
                let read = lines.into_iter().map(|(bytes, ms)| {
                    let budget = Arc::clone(&budget);
                    async move {
                        let share = match budget.draw(bytes) {
                            Some(share) => share,
                            None => budget.wait_draw(bytes).await,
                        };
                        assert!(used(&budget) <= BOUND);
                        sleep(Duration::from_millis(ms)).await;
                        drop(share);
                    }
                });
                timeout(LONG, futures::future::join_all(read)).await.unwrap();
            });
            prop_assert_eq!(used(&budget), 0);
        }
    }
}
