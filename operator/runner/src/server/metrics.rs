//! The metrics of a runner's membership.

use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};

/// Under `ash_runner_`.
#[derive(Debug, Default)]
pub(super) struct Metrics {
    /// 1 while a coordinator answers.
    pub(super) answered: Gauge,
    pub(super) unanswered: Counter,
    pub(super) registrations: Counter,
    pub(super) disowned: Counter,
}

impl Metrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("ash_runner");
        registry.register("coordinator_answers", "Whether a coordinator answers", self.answered.clone());
        registry.register("heartbeats_unanswered", "Heartbeats that no coordinator answered", self.unanswered.clone());
        registry.register("registrations", "Times the runner said who it is", self.registrations.clone());
        registry.register(
            "sessions_disowned",
            "Sandboxes ended because their session is served elsewhere",
            self.disowned.clone(),
        );
    }
}
