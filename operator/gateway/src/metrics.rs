//! Counters and gauges of the gateway; one at least for every line of the limits page.

use prometheus_client::encoding::{EncodeLabelSet, EncodeLabelValue};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// How a request to the model API ended, as far as the gateway decided it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(crate) enum ModelOutcome {
    Answered,
    UpstreamError,
    Unreachable,
    Timeout,
    Cut,
    Rehearsed,
    Unauthorized,
    Unknown,
    Released,
    PathRefused,
    BodyTooLarge,
    Busy,
    NoKey,
    Frozen,
}

/// How a CONNECT request ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(crate) enum TunnelOutcome {
    Opened,
    Refused,
    Unauthorized,
    Unknown,
    Busy,
    NotResolved,
    Unreachable,
    Timeout,
    Cut,
    Idle,
    Frozen,
}

const MODEL_OUTCOMES: [ModelOutcome; 14] = [
    ModelOutcome::Answered,
    ModelOutcome::UpstreamError,
    ModelOutcome::Unreachable,
    ModelOutcome::Timeout,
    ModelOutcome::Cut,
    ModelOutcome::Rehearsed,
    ModelOutcome::Unauthorized,
    ModelOutcome::Unknown,
    ModelOutcome::Released,
    ModelOutcome::PathRefused,
    ModelOutcome::BodyTooLarge,
    ModelOutcome::Busy,
    ModelOutcome::NoKey,
    ModelOutcome::Frozen,
];

const TUNNEL_OUTCOMES: [TunnelOutcome; 11] = [
    TunnelOutcome::Opened,
    TunnelOutcome::Refused,
    TunnelOutcome::Unauthorized,
    TunnelOutcome::Unknown,
    TunnelOutcome::Busy,
    TunnelOutcome::NotResolved,
    TunnelOutcome::Unreachable,
    TunnelOutcome::Timeout,
    TunnelOutcome::Cut,
    TunnelOutcome::Idle,
    TunnelOutcome::Frozen,
];

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ModelLabels {
    outcome: ModelOutcome,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct TunnelLabels {
    outcome: TunnelOutcome,
}

/// Every metric; cheap to clone, all clones share the values.
#[derive(Clone, Default)]
pub(crate) struct Metrics {
    pub(crate) connections: Gauge,
    pub(crate) connections_at_bound: Counter,
    pub(crate) accept_errors: Counter,
    pub(crate) sandboxes: Gauge,
    model: Family<ModelLabels, Counter>,
    pub(crate) model_calls: Gauge,
    pub(crate) request_bytes: Counter,
    pub(crate) response_bytes: Counter,
    pub(crate) input_tokens: Counter,
    pub(crate) output_tokens: Counter,
    pub(crate) cache_read_tokens: Counter,
    pub(crate) cache_creation_tokens: Counter,
    pub(crate) usage_skipped: Counter,
    pub(crate) error_bodies_truncated: Counter,
    tunnel: Family<TunnelLabels, Counter>,
    pub(crate) tunnels: Gauge,
    pub(crate) tunnel_sent: Counter,
    pub(crate) tunnel_received: Counter,
    pub(crate) lookups: Gauge,
    pub(crate) refusals_unreported: Counter,
    pub(crate) addresses_untried: Counter,
    pub(crate) targets_shortened: Counter,
    pub(crate) heads_too_long: Counter,
    pub(crate) calls_beyond_idle: Counter,
    pub(crate) unproven_at_bound: Counter,
    pub(crate) unproven_refused: Counter,
    pub(crate) unproven_too_long: Counter,
}

impl Metrics {
    pub(crate) fn model(&self, outcome: ModelOutcome) {
        self.model.get_or_create(&ModelLabels { outcome }).inc();
    }

    pub(crate) fn tunnel(&self, outcome: TunnelOutcome) {
        self.tunnel.get_or_create(&TunnelLabels { outcome }).inc();
    }

    /// Registers everything under `ash_gateway_`; counters get `_total` when they are rendered.
    pub(crate) fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("ash_gateway");
        for (name, help, gauge) in [
            ("connections", "Open connections from sandboxes", &self.connections),
            ("sandboxes", "Sandboxes that the gateway knows", &self.sandboxes),
            ("model_calls", "Model calls that are running", &self.model_calls),
            ("tunnels", "Open CONNECT tunnels", &self.tunnels),
            ("lookups", "Host name lookups that are running", &self.lookups),
        ] {
            registry.register(name, help, gauge.clone());
        }
        for (name, help, counter) in [
            (
                "connections_at_bound",
                "Times a sandbox had to wait because it had its bound of connections open",
                &self.connections_at_bound,
            ),
            ("accept_errors", "Failed accepts on sandbox listeners", &self.accept_errors),
            ("model_request_bytes", "Bytes of request bodies sent to the model", &self.request_bytes),
            ("model_response_bytes", "Bytes of answers received from the model", &self.response_bytes),
            ("input_tokens", "Input tokens counted in answers", &self.input_tokens),
            ("output_tokens", "Output tokens counted in answers", &self.output_tokens),
            ("cache_read_tokens", "Tokens read from the model's cache", &self.cache_read_tokens),
            ("cache_creation_tokens", "Tokens written to the model's cache", &self.cache_creation_tokens),
            ("usage_skipped", "Lines or documents too long to be looked at for counts", &self.usage_skipped),
            (
                "error_bodies_truncated",
                "Error answers of the model that were longer than the bound",
                &self.error_bodies_truncated,
            ),
            ("tunnel_sent_bytes", "Bytes sent from sandboxes through tunnels", &self.tunnel_sent),
            ("tunnel_received_bytes", "Bytes received for sandboxes through tunnels", &self.tunnel_received),
            (
                "refusals_unreported",
                "Refused hosts beyond the number that a session's log is told",
                &self.refusals_unreported,
            ),
            ("addresses_untried", "Addresses of hosts that were not tried", &self.addresses_untried),
            ("targets_shortened", "Targets of tunnels that are too long to be shown", &self.targets_shortened),
            ("heads_too_long", "Connections of sandboxes with too long a request head", &self.heads_too_long),
            (
                "unproven_at_bound",
                "Times nothing was accepted because too many connections of the network had shown no token",
                &self.unproven_at_bound,
            ),
            (
                "unproven_refused",
                "Connections of an address with too many others that had shown no token",
                &self.unproven_refused,
            ),
            ("unproven_too_long", "Connections of the network that showed no token in time", &self.unproven_too_long),
            (
                "model_calls_beyond_idle",
                "Model calls beside more others than there are idle connections kept",
                &self.calls_beyond_idle,
            ),
        ] {
            registry.register(name, help, counter.clone());
        }
        // Every label is there from the start, at zero.
        for outcome in MODEL_OUTCOMES {
            drop(self.model.get_or_create(&ModelLabels { outcome }));
        }
        for outcome in TUNNEL_OUTCOMES {
            drop(self.tunnel.get_or_create(&TunnelLabels { outcome }));
        }
        registry.register("model_requests", "Requests to the model API", self.model.clone());
        registry.register("tunnel_requests", "CONNECT requests", self.tunnel.clone());
    }
}

/// Counts one up for as long as it lives.
pub(crate) struct Held(Gauge);

impl Held {
    pub(crate) fn new(gauge: &Gauge) -> Self {
        gauge.inc();
        Self(gauge.clone())
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.0.dec();
    }
}
