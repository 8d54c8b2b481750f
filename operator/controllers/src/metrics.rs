//! What the operator counts. Labels are kinds and categories, never names of objects.

use std::sync::atomic::{AtomicI64, AtomicU64};

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

/// Which objects, and what became of them.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct Labels {
    /// `Agent`, `Session` or `Pool`.
    pub(crate) kind: &'static str,
    /// `ok`, or a category of errors.
    pub(crate) outcome: &'static str,
}

/// Counters and gauges of an operator. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Metrics {
    pub(crate) looks: Family<Labels, Counter<u64, AtomicU64>>,
    pub(crate) status_writes: Family<Labels, Counter<u64, AtomicU64>>,
    pub(crate) malformed: Counter<u64, AtomicU64>,
    pub(crate) pods_created: Counter<u64, AtomicU64>,
    pub(crate) sandboxes_failed: Counter<u64, AtomicU64>,
    pub(crate) orphans: Counter<u64, AtomicU64>,
    pub(crate) is_leader: Gauge<i64, AtomicI64>,
}

impl Metrics {
    /// Adds them to a registry.
    pub fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("ash_operator");
        registry.register("looks", "Looks at objects, by what became of them", self.looks.clone());
        registry.register("status_writes", "Writes of a status", self.status_writes.clone());
        registry.register("malformed_objects", "Objects that could not be read", self.malformed.clone());
        registry.register("pods_created", "Sandbox pods created", self.pods_created.clone());
        registry.register("sandboxes_failed", "Sandboxes whose pod failed or went away", self.sandboxes_failed.clone());
        registry.register(
            "orphans",
            "Rows and pods that belonged to nothing and were cleared up",
            self.orphans.clone(),
        );
        registry.register("is_leader", "1 where this process acts", self.is_leader.clone());
    }

    pub(crate) fn look(&self, kind: &'static str, outcome: &'static str) {
        self.looks.get_or_create(&Labels { kind, outcome }).inc();
    }

    pub(crate) fn wrote_status(&self, kind: &'static str) {
        self.status_writes.get_or_create(&Labels { kind, outcome: "ok" }).inc();
    }
}
