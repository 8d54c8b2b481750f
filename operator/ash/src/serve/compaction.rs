//! The sweep that drops partial messages of turns that ended some time ago. Any process with the store may run it, and several at
//! once share the turns.

use std::{sync::Arc, time::Duration};

use ash_core::ports::CompactionStore;
use prometheus_client::{metrics::counter::Counter, registry::Registry};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// Turns that one look takes; the next look takes the others.
const TURNS_AT_ONCE: u32 = 32;
/// The pause between two looks that find nothing.
const LOOK: Duration = Duration::from_secs(30);
/// How long a turn that was taken is nobody else's: far longer than the largest takes.
const LEASE: Duration = Duration::from_secs(600);

/// What the sweep has done.
#[derive(Debug, Default, Clone)]
pub(super) struct Metrics {
    turns: Counter,
    bytes: Counter,
    failures: Counter,
}

impl Metrics {
    /// Registers them.
    pub(super) fn register(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let mut add = |name, help, counter: &Counter| registry.register(name, help, counter.clone());
        add("ash_compacted_turns", "Turns whose partial messages were dropped", &metrics.turns);
        add("ash_compacted_bytes", "Bytes of the log that were dropped, before compression", &metrics.bytes);
        add("ash_compaction_failures", "Tries to compact that failed and are made again", &metrics.failures);
        metrics
    }
}

/// Compacts turns that ended `age` ago, until told to stop; that is heard between two turns.
pub(super) async fn keep(store: Arc<dyn CompactionStore>, age: Duration, metrics: Metrics, stop: CancellationToken) {
    let look = LOOK.min(age.max(Duration::from_secs(1)));
    loop {
        if sweep(&*store, age, &metrics, &stop).await {
            continue;
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(look) => {}
        }
    }
}

/// One look; gives whether there may be more.
async fn sweep(store: &dyn CompactionStore, age: Duration, metrics: &Metrics, stop: &CancellationToken) -> bool {
    let turns = match store.take_compactable(age, LEASE, TURNS_AT_ONCE).await {
        Ok(turns) => turns,
        Err(error) => {
            metrics.failures.inc();
            tracing::warn!(%error, "finished turns are compacted later");
            return false;
        }
    };
    let is_more = turns.len() == TURNS_AT_ONCE as usize;
    for turn in turns {
        if stop.is_cancelled() {
            return false;
        }
        match store.compact(&turn).await {
            Ok(bytes) => {
                metrics.turns.inc();
                metrics.bytes.inc_by(bytes);
            }
            Err(error) => {
                metrics.failures.inc();
                tracing::warn!(session = %turn.session, turn = %turn.turn, %error, "a finished turn is compacted later");
            }
        }
    }
    is_more
}
