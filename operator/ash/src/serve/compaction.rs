//! The sweep that drops partial messages of turns that ended some time ago. Any process with the store may run it, and several at
//! once share the turns.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use ash_core::{
    id::SessionId,
    ports::{CompactableTurn, CompactionStore, StoreError},
};
use prometheus_client::{metrics::counter::Counter, registry::Registry};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

/// Turns that one look takes; the next look takes the others. As many may begin and end in one append.
const TURNS_AT_ONCE: u32 = 128;
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

async fn compact(store: &dyn CompactionStore, turns: &[CompactableTurn], metrics: &Metrics) -> Result<(), StoreError> {
    let bytes = store.compact(turns).await?;
    metrics.turns.inc_by(turns.len() as u64);
    metrics.bytes.inc_by(bytes);
    Ok(())
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
    let mut of_session: BTreeMap<SessionId, Vec<CompactableTurn>> = BTreeMap::new();
    for turn in turns {
        of_session.entry(turn.session).or_default().push(turn);
    }
    for turns in of_session.into_values() {
        if stop.is_cancelled() {
            return false;
        }
        let Err(error) = compact(store, &turns, metrics).await else { continue };
        // One that cannot be compacted keeps no other from it.
        let others = if turns.len() > 1 { &turns[..] } else { &[] };
        let mut failed = usize::from(others.is_empty());
        for turn in others {
            failed += usize::from(compact(store, std::slice::from_ref(turn), metrics).await.is_err());
        }
        if failed > 0 {
            metrics.failures.inc_by(failed as u64);
            tracing::warn!(session = %turns[0].session, failed, %error, "finished turns are compacted later");
        }
    }
    is_more
}
