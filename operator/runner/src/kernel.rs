//! What the kernel held back in a sandbox: its own counts, as metrics.

use std::sync::PoisonError;

use ash_sandbox::BoundsMet;

use crate::{metrics::Metrics, sandbox::Sandbox, shared::Shared};

/// Counts what a sandbox met since it was last looked at.
pub(crate) async fn count(shared: &Shared, sandbox: &Sandbox) {
    match sandbox.enclosure.bounds_met(shared.config.limits.open_files).await {
        Ok(met) => note(&shared.metrics, sandbox, |_| met),
        Err(error) => tracing::debug!(sandbox = %sandbox.id, %error, "a sandbox's bounds could not be looked at"),
    }
}

/// A sandbox is over: what it is at now, it is not any more.
pub(crate) fn forget(shared: &Shared, sandbox: &Sandbox) {
    let over = |met| BoundsMet { temporary_full: false, processes_without_files: 0, log_cut: false, ..met };
    note(&shared.metrics, sandbox, over);
}

fn note(metrics: &Metrics, sandbox: &Sandbox, now: impl FnOnce(BoundsMet) -> BoundsMet) {
    let mut known = sandbox.met.lock().unwrap_or_else(PoisonError::into_inner);
    let before = *known;
    *known = now(before);
    metrics.memory_kills.inc_by(known.memory_kills.saturating_sub(before.memory_kills));
    metrics.throttled_periods.inc_by(known.throttled_periods.saturating_sub(before.throttled_periods));
    metrics.processes_refused.inc_by(known.refused_processes.saturating_sub(before.refused_processes));
    metrics.program_logs_cut.inc_by(u64::from(known.log_cut));
    metrics.temporary_full.inc_by(i64::from(known.temporary_full) - i64::from(before.temporary_full));
    let files = |met: BoundsMet| i64::try_from(met.processes_without_files).unwrap_or(i64::MAX);
    metrics.processes_without_files.inc_by(files(*known) - files(before));
}
