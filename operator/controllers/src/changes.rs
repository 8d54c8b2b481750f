//! Has sessions looked at whose row changed: by the API, by a runner, by another coordinator.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use ash_core::{
    id::SessionId,
    ports::{ChangeStore, ChangedSession},
};
use jiff::{SignedDuration, Timestamp};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::{
    limits::{CHANGES, CHANGES_AT_ONCE, CHANGES_OVERLAP},
    namespace::Namespace,
    pool,
};

/// Which changes are new: pure.
#[derive(Debug)]
struct Seen {
    /// Where the next look begins.
    from: Timestamp,
    /// Changes that the next look gives again.
    known: HashMap<SessionId, Timestamp>,
}

impl Seen {
    fn new(from: Timestamp) -> Self {
        Self { from, known: HashMap::new() }
    }

    /// The changes that were not there before.
    ///
    /// The time of a change is that of whoever made it. One whose clock is ahead must not have the next look begin there: it
    /// would miss what the others do until then.
    fn take(&mut self, found: Vec<ChangedSession>, now: Timestamp) -> Vec<ChangedSession> {
        let is_full = found.len() >= CHANGES_AT_ONCE as usize;
        let newest = found.iter().map(|change| change.at.min(now)).max();
        let fresh: Vec<_> =
            found.into_iter().filter(|change| self.known.insert(change.id, change.at) != Some(change.at)).collect();
        if let Some(newest) = newest {
            let overlap = SignedDuration::try_from(CHANGES_OVERLAP).unwrap_or_default();
            let from = newest.checked_sub(overlap).unwrap_or(newest);
            // A look that was full of one moment goes on behind it, or it would never go on.
            self.from = if is_full && fresh.is_empty() { newest } else { from.max(self.from) };
            let kept = self.from;
            self.known.retain(|_, at| *at >= kept);
        }
        fresh
    }
}

/// Looks until told to stop.
pub(crate) async fn watch(store: Arc<dyn ChangeStore>, namespaces: Vec<Arc<Namespace>>, stop: CancellationToken) {
    // What changed before is in the first look at every object.
    let mut seen = Seen::new(Timestamp::now().checked_sub(SignedDuration::from_mins(1)).unwrap_or_default());
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(CHANGES) => {}
        }
        let found = match store.changed_sessions(seen.from, CHANGES_AT_ONCE).await {
            Ok(found) => found,
            Err(error) => {
                tracing::warn!(%error, "changed sessions could not be asked for");
                continue;
            }
        };
        let fresh = seen.take(found, Timestamp::now());
        for namespace in &namespaces {
            let tenant = namespace.tenant();
            let ids: HashSet<SessionId> =
                fresh.iter().filter(|change| change.tenant == tenant).map(|change| change.id).collect();
            pool::trigger(namespace, &ids);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use ash_core::{
        id::{SessionId, TenantId},
        ports::ChangedSession,
    };
    use jiff::Timestamp;
    use uuid::Uuid;

    use super::Seen;

    fn change(id: u128, second: i64) -> ChangedSession {
        let at = Timestamp::from_second(second).unwrap();
        ChangedSession { id: SessionId(Uuid::from_u128(id)), tenant: TenantId("t".into()), at }
    }

    #[test]
    fn each_change_is_taken_once_and_a_late_clock_is_no_loss() {
        let mut seen = Seen::new(Timestamp::from_second(0).unwrap());
        let now = Timestamp::from_second(100).unwrap();
        assert_eq!(seen.take(vec![change(1, 10), change(2, 20)], now).len(), 2);
        assert_eq!(seen.from.as_second(), 15);
        assert_eq!(seen.take(vec![change(2, 20)], now).len(), 0);
        // Somebody whose clock is behind.
        assert_eq!(seen.take(vec![change(3, 16), change(2, 20)], now), vec![change(3, 16)]);
        assert_eq!(seen.take(vec![change(2, 21)], now), vec![change(2, 21)]);
        assert_eq!(seen.take(Vec::new(), now), Vec::new());
    }

    #[test]
    fn a_clock_that_is_ahead_hides_no_change_of_others() {
        let mut seen = Seen::new(Timestamp::from_second(0).unwrap());
        let now = Timestamp::from_second(100).unwrap();
        assert_eq!(seen.take(vec![change(1, 9_000)], now).len(), 1);
        assert_eq!(seen.from.as_second(), 95);
        assert_eq!(seen.take(vec![change(2, 101), change(1, 9_000)], now), vec![change(2, 101)]);
    }
}
