//! The coordinator's metrics, under `ash_coordinator_`.

use prometheus_client::{
    metrics::{counter::Counter, gauge::Gauge},
    registry::Registry,
};

#[derive(Debug, Default)]
pub(crate) struct Metrics {
    pub(crate) runners: Gauge,
    pub(crate) runners_ready: Gauge,
    pub(crate) registrations: Counter,
    pub(crate) runners_lost: Counter,
    pub(crate) sessions_lost: Counter,
    pub(crate) placements: Counter,
    pub(crate) placements_stale: Counter,
    pub(crate) unanswered: Counter,
    pub(crate) writes_refused: Counter,
    pub(crate) streams: Gauge,
    pub(crate) streams_broken: Counter,
    pub(crate) feeds: Gauge,
    pub(crate) readers_behind: Counter,
    pub(crate) unwritten: Counter,
    pub(crate) heard_unwritten: Counter,
    pub(crate) pods_admitted: Counter,
    pub(crate) pods_refused: Counter,
    pub(crate) pods_claimed: Counter,
    pub(crate) pods_missed: Counter,
    pub(crate) wakes: Counter,
}

impl Metrics {
    pub(crate) fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("ash_coordinator");
        registry.register("runners", "Runners that are registered", self.runners.clone());
        registry.register("runners_ready", "Runners that new sessions may go to", self.runners_ready.clone());
        registry.register("registrations", "Times a runner said who it is", self.registrations.clone());
        registry.register("runners_lost", "Runners that missed 3 heartbeats", self.runners_lost.clone());
        registry.register("sessions_lost", "Sessions whose runner was lost", self.sessions_lost.clone());
        registry.register("placements", "Sessions that were given a place on a runner", self.placements.clone());
        registry.register(
            "placements_stale",
            "Places that somebody else took first: decided again",
            self.placements_stale.clone(),
        );
        registry.register("calls_unanswered", "Calls that a runner did not answer", self.unanswered.clone());
        registry.register(
            "writes_refused",
            "Writes of runners that do not have the session",
            self.writes_refused.clone(),
        );
        registry.register("streams", "Streams of entries from runners", self.streams.clone());
        registry.register(
            "own_writes_failed",
            "Times that this coordinator could not write its own row",
            self.unwritten.clone(),
        );
        registry.register(
            "heartbeats_unwritten",
            "Heartbeats that were answered and could not be written",
            self.heard_unwritten.clone(),
        );
        registry.register("pods_admitted", "Bridges in pods that were admitted", self.pods_admitted.clone());
        registry.register("pods_refused", "Bridges in pods that were not", self.pods_refused.clone());
        registry.register("pods_claimed", "Sessions that found a warm pod", self.pods_claimed.clone());
        registry.register("pods_missed", "Sessions that found none", self.pods_missed.clone());
        registry.register("wakes", "Times that the operator was asked for a pod", self.wakes.clone());
        registry.register("feeds", "Sessions whose stream is shared by several readers", self.feeds.clone());
        registry.register(
            "readers_behind",
            "Times that a reader was too slow for what is shared and read the log",
            self.readers_behind.clone(),
        );
        registry.register("streams_broken", "Streams of entries that broke", self.streams_broken.clone());
    }
}
