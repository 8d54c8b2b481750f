//! The store's counts as metrics: the store keeps them without knowing who asks.

use std::{path::PathBuf, sync::Arc};

use ash_store::Database;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};

/// Reads the store's counts whenever `GET /metrics` does.
pub(super) struct StoreMetrics {
    pub(super) store: Arc<dyn Database>,
    /// The write-ahead log's file; not there with Postgres.
    pub(super) write_ahead_log: PathBuf,
}

impl std::fmt::Debug for StoreMetrics {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("StoreMetrics").finish_non_exhaustive()
    }
}

impl Collector for StoreMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let statistics = self.store.statistics();
        let sessions = statistics.sessions;
        let mut gauge = |name, help, value: usize| {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            let metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            gauge.encode(metric)
        };
        gauge(
            "ash_store_waiting",
            "Writes that wait for SQLite's writer, or calls for a connection to Postgres.",
            statistics.waiting,
        )?;
        gauge("ash_store_connections", "Connections to Postgres.", statistics.connections)?;
        gauge("ash_store_cached_sessions", "Sessions in the store's cache.", sessions.entries)?;
        gauge(
            "ash_store_cached_others",
            "Agents, versions and keys in the store's caches.",
            statistics.others.entries,
        )?;
        gauge("ash_store_busy_readers", "Connections to the database that read.", statistics.busy_readers)?;
        let written = std::fs::metadata(&self.write_ahead_log).map_or(0, |file| file.len());
        let written = usize::try_from(written).unwrap_or(usize::MAX);
        gauge("ash_store_write_ahead_bytes", "Size of the write-ahead log's file.", written)?;
        let mut counter = |name, help, value: u64| {
            let metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            ConstCounter::new(value).encode(metric)
        };
        counter("ash_store_writes", "Writes that were committed.", statistics.writes)?;
        counter("ash_store_transactions", "Transactions that were committed.", statistics.transactions)?;
        counter("ash_store_failed_transactions", "Transactions that failed.", statistics.failed_transactions)?;
        counter(
            "ash_store_transactions_at_bound",
            "Times that what was queued did not go into one transaction.",
            statistics.transactions_at_bound,
        )?;
        counter(
            "ash_store_other_misses",
            "Agents, versions and keys read from the database.",
            statistics.others.misses,
        )?;
        counter("ash_store_retries", "Transactions that Postgres was given again.", statistics.retries)?;
        counter("ash_store_round_trips", "Times that Postgres was asked.", statistics.round_trips)?;
        counter("ash_store_session_hits", "Sessions found in the store's cache.", sessions.hits)?;
        counter("ash_store_session_misses", "Sessions read from the database.", sessions.misses)
    }
}
