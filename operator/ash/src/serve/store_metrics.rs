//! The store's counts as metrics: the store keeps them without knowing who asks.

use std::sync::Arc;

use ash_store::SqliteStore;
use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, EncodeMetric},
    metrics::{MetricType, counter::ConstCounter, gauge::ConstGauge},
};

/// Reads the store's counts whenever `GET /metrics` does.
pub(super) struct StoreMetrics(pub(super) Arc<SqliteStore>);

impl std::fmt::Debug for StoreMetrics {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_tuple("StoreMetrics").finish()
    }
}

impl Collector for StoreMetrics {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), std::fmt::Error> {
        let statistics = self.0.statistics();
        let sessions = statistics.sessions;
        let mut gauge = |name, help, value: usize| {
            let gauge = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            let metric = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            gauge.encode(metric)
        };
        gauge("ash_store_queued_writes", "Writes that wait for the writer.", statistics.queued_writes)?;
        gauge("ash_store_cached_sessions", "Sessions in the store's cache.", sessions.entries)?;
        let mut counter = |name, help, value: u64| {
            let metric = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
            ConstCounter::new(value).encode(metric)
        };
        counter("ash_store_writes", "Writes that were committed.", statistics.writes)?;
        counter("ash_store_transactions", "Transactions that were committed.", statistics.transactions)?;
        counter("ash_store_failed_transactions", "Transactions that failed.", statistics.failed_transactions)?;
        counter("ash_store_session_hits", "Sessions found in the store's cache.", sessions.hits)?;
        counter("ash_store_session_misses", "Sessions read from the database.", sessions.misses)
    }
}
