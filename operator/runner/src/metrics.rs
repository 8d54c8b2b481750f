//! The runner's metrics, one for each bound of the limits page that is the runner's.

use ash_protocol::message::Claimed;
use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

/// How a session came to its sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ClaimLabels {
    how: ClaimLabel,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelValue)]
enum ClaimLabel {
    Live,
    Restarted,
    Cold,
}

/// The runner's counters and gauges, all under `ash_runner_`.
#[derive(Debug, Default)]
pub(crate) struct Metrics {
    claims: Family<ClaimLabels, Counter>,
    pub(crate) sandboxes: Gauge,
    pub(crate) sandbox_starts: Counter,
    pub(crate) sandbox_failures: Counter,
    pub(crate) sandboxes_lost: Counter,
    pub(crate) evictions: Counter,
    pub(crate) capacity_refusals: Counter,
    /// Messages that wait for a place.
    pub(crate) messages_waiting: Gauge,
    pub(crate) bridge_violations: Counter,
    pub(crate) bridges_stalled: Counter,
    /// Times a bridge was not read from for a while, because it wrote faster than a session may.
    pub(crate) bridges_paused: Counter,
    pub(crate) logs_full: Counter,
    /// Bridges that left a request without an answer.
    pub(crate) bridges_silent: Counter,
    pub(crate) quota_kills: Counter,
    pub(crate) turns: Counter,
    pub(crate) commit_failures: Counter,
    entries: Counter,
    commits: Counter,
}

impl Metrics {
    pub(crate) fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("ash_runner");
        registry.register("claims", "Sandboxes given to sessions, by how", self.claims.clone());
        registry.register("sandboxes", "Sandboxes with a process", self.sandboxes.clone());
        registry.register("sandbox_starts", "Sandboxes started", self.sandbox_starts.clone());
        registry.register("sandbox_failures", "Sandboxes that could not be started", self.sandbox_failures.clone());
        registry.register("sandboxes_lost", "Sandboxes that ended without being told to", self.sandboxes_lost.clone());
        registry.register("evictions", "Sandboxes ended to make room", self.evictions.clone());
        registry.register(
            "messages_waiting",
            "Messages that wait for a sandbox's place",
            self.messages_waiting.clone(),
        );
        registry.register(
            "capacity_refusals",
            "Messages refused for want of a sandbox",
            self.capacity_refusals.clone(),
        );
        registry.register("bridge_violations", "Bridges cut off for what they sent", self.bridge_violations.clone());
        registry.register(
            "bridges_stalled",
            "Times a bridge stopped reading from Claude Code at the bound of unacknowledged bytes",
            self.bridges_stalled.clone(),
        );
        registry.register(
            "bridges_paused",
            "Times a bridge was not read from at the bound of a log's rate",
            self.bridges_paused.clone(),
        );
        registry.register("logs_full", "Sandboxes ended because their session's log is full", self.logs_full.clone());
        registry.register(
            "bridges_silent",
            "Sandboxes ended because their bridge did not answer",
            self.bridges_silent.clone(),
        );
        registry.register("quota_kills", "Sandboxes ended over their disk quota", self.quota_kills.clone());
        registry.register("turns", "Turns that ended", self.turns.clone());
        registry.register("commit_failures", "Sessions whose log could not be written", self.commit_failures.clone());
        registry.register("entries_committed", "Entries written to the log", self.entries.clone());
        registry.register("commits", "Appends written to the log", self.commits.clone());
    }

    pub(crate) fn claimed(&self, how: Claimed) {
        let how = match how {
            Claimed::Live => ClaimLabel::Live,
            Claimed::Restarted => ClaimLabel::Restarted,
            Claimed::Cold => ClaimLabel::Cold,
        };
        self.claims.get_or_create(&ClaimLabels { how }).inc();
    }

    pub(crate) fn committed(&self, entries: usize) {
        self.commits.inc();
        self.entries.inc_by(entries as u64);
    }
}
