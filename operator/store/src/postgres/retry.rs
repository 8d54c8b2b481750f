//! The one place where a call to Postgres is tried again.

use std::{
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use tokio::time::{sleep, timeout};

use super::pool::{Lease, Pool};
use crate::{
    fault::{Fault, Trouble},
    limits::{ANSWER_TIMEOUT, COLLISION_TRIES, LOST_TRIES, MAX_COLLISION_PAUSE},
};

/// What a call does on a connection.
pub(super) trait Call: Send + Sync {
    /// What the caller gets.
    type Output: Send;

    /// Whether a try whose outcome is unknown can be repeated: the repeat finds what the first try did. Where it does not, only a
    /// transaction that was not committed yet is repeated.
    const MAY_REPEAT: bool;

    /// Does it. `in_doubt` says that an earlier try may have been carried out.
    fn run(&self, lease: &mut Lease<'_>, in_doubt: bool) -> impl Future<Output = Result<Self::Output, Fault>> + Send;
}

/// Carries a call out, with as many tries as it has.
pub(super) async fn carry_out<C: Call>(pool: &Pool, retries: &AtomicU64, call: &C) -> Result<C::Output, Fault> {
    let mut tries = Tries::default();
    loop {
        let Failed { fault, may_repeat } = match attempt(pool, call, tries.losses > 0).await {
            Ok(output) => return Ok(output),
            Err(failed) => failed,
        };
        if fault.trouble == Trouble::Lost {
            pool.forget_idle();
        }
        let Some(pause) = tries.next(fault.trouble, may_repeat) else { return Err(fault) };
        retries.fetch_add(1, Ordering::Relaxed);
        tracing::debug!(error = %fault.error, trouble = ?fault.trouble, "trying again");
        sleep(pause).await;
    }
}

/// A try that failed, and whether a repeat does no harm.
struct Failed {
    fault: Fault,
    may_repeat: bool,
}

async fn attempt<C: Call>(pool: &Pool, call: &C, in_doubt: bool) -> Result<C::Output, Failed> {
    // Without a connection nothing was tried, and the time for it is over.
    let no_connection = |fault: Fault| Failed { fault: fault.error.into(), may_repeat: false };
    let mut lease = pool.lease().await.map_err(no_connection)?;
    let outcome = timeout(ANSWER_TIMEOUT, call.run(&mut lease, in_doubt)).await;
    let may_repeat = C::MAY_REPEAT || lease.is_before_commit();
    let outcome = outcome.unwrap_or_else(|_| Err(Fault::lost("it did not answer in time")));
    if !matches!(&outcome, Err(fault) if fault.trouble == Trouble::Lost) {
        lease.give_back();
    }
    outcome.map_err(|fault| Failed { fault, may_repeat })
}

/// The failed tries of one call.
#[derive(Debug, Default)]
struct Tries {
    collisions: u32,
    losses: u32,
}

impl Tries {
    /// After a failed try: how long to wait before the next, if there is one.
    fn next(&mut self, trouble: Trouble, may_repeat: bool) -> Option<Duration> {
        match trouble {
            Trouble::Other => None,
            Trouble::Collision => {
                self.collisions += 1;
                (self.collisions < COLLISION_TRIES).then(|| pause(self.collisions))
            }
            Trouble::Lost => {
                self.losses += 1;
                (may_repeat && self.losses < LOST_TRIES).then_some(Duration::ZERO)
            }
        }
    }
}

/// A random pause, so that those that met do not meet again.
fn pause(collisions: u32) -> Duration {
    let longest = (MAX_COLLISION_PAUSE / 16).saturating_mul(1 << collisions.min(4)).min(MAX_COLLISION_PAUSE);
    longest.mul_f64(fastrand::f64())
}

#[cfg(test)]
mod tests {
    use super::{Tries, pause};
    use crate::{
        fault::Trouble,
        limits::{COLLISION_TRIES, LOST_TRIES, MAX_COLLISION_PAUSE},
    };

    #[test]
    fn tries_are_bounded() {
        for (trouble, may_repeat, bound) in [
            (Trouble::Other, true, 1),
            (Trouble::Collision, false, COLLISION_TRIES),
            (Trouble::Lost, true, LOST_TRIES),
            (Trouble::Lost, false, 1),
        ] {
            let (mut tries, mut count) = (Tries::default(), 1);
            while tries.next(trouble, may_repeat).is_some() {
                count += 1;
            }
            assert_eq!(count, bound, "{trouble:?}");
        }
    }

    #[test]
    fn pauses_are_bounded() {
        assert!((1..COLLISION_TRIES).all(|collisions| pause(collisions) <= MAX_COLLISION_PAUSE));
    }
}
