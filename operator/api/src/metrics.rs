//! Counters and gauges of the API.

use ash_core::queue::EntryState;
use prometheus_client::{
    encoding::{EncodeLabelSet, EncodeLabelValue},
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

/// Labels of a request: bounded by the routes that there are.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct RequestLabels {
    /// The method; `OTHER` for those that HTTP itself does not define.
    pub(crate) method: &'static str,
    /// The template of the route; empty for an address that no route takes.
    pub(crate) route: String,
    /// `2xx`, `4xx`, `5xx`, ...
    pub(crate) status: &'static str,
}

/// How a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(crate) enum StreamEnd {
    /// With `done`, or because its session has ended.
    Complete,
    /// The client went away, or was cut off.
    Abandoned,
    /// The server could not go on: the log could not be read, or the server is shutting down.
    Cut,
}

/// Labels of an ended stream.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct StreamLabels {
    pub(crate) end: StreamEnd,
}

/// Labels of a message that waited and is over.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct SettledLabels {
    /// `completed`, `failed` or `cancelled`.
    pub(crate) status: &'static str,
}

/// How a question to the cluster was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, EncodeLabelValue)]
pub(crate) enum Review {
    Accepted,
    Refused,
    Failed,
}

/// Labels of a question to the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(crate) struct ReviewLabels {
    pub(crate) result: Review,
}

/// Every metric; cheap to clone, all clones share the values.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics {
    pub(crate) requests: Family<RequestLabels, Counter>,
    pub(crate) open_streams: Gauge,
    pub(crate) streams: Family<StreamLabels, Counter>,
    pub(crate) stream_frames: Counter,
    pub(crate) stream_bytes: Counter,
    pub(crate) auth_failures: Counter,
    pub(crate) token_reviews: Family<ReviewLabels, Counter>,
    pub(crate) access_reviews: Family<ReviewLabels, Counter>,
    pub(crate) access_reviews_crowded: Counter,
    pub(crate) access_evictions: Counter,
    pub(crate) bodies_refused: Counter,
    pub(crate) discards_cut_off: Counter,
    pub(crate) deployments_waiting: Gauge,
    pub(crate) keep_alives: Counter,
    pub(crate) pages_cut_off: Counter,
    pub(crate) tail_waits: Counter,
    pub(crate) permission_searches_given_up: Counter,
    pub(crate) request_ids_replaced: Counter,
    pub(crate) panics: Counter,
    pub(crate) connections: Gauge,
    pub(crate) connections_at_bound: Counter,
    pub(crate) connections_cut_off: Counter,
    pub(crate) accept_errors: Counter,
    pub(crate) queued_sessions: Gauge,
    pub(crate) queue_added: Counter,
    pub(crate) queue_full: Counter,
    pub(crate) queue_begun: Counter,
    pub(crate) queue_settled: Family<SettledLabels, Counter>,
}

impl Metrics {
    /// Counts the review of a token.
    pub(crate) fn count_token_review(&self, result: Review) {
        self.token_reviews.get_or_create(&ReviewLabels { result }).inc();
    }

    /// Counts the review of a right.
    pub(crate) fn count_access_review(&self, result: Review) {
        self.access_reviews.get_or_create(&ReviewLabels { result }).inc();
    }

    /// Counts a message that waited and is over.
    pub(crate) fn queue_settled(&self, state: EntryState) {
        self.queue_settled.get_or_create(&SettledLabels { status: state.name() }).inc();
    }

    /// Adds every metric to the registry.
    pub(crate) fn register(&self, registry: &mut Registry) {
        let registry = registry.sub_registry_with_prefix("ash_api");
        registry.register("requests", "Requests by method, route and class of status", self.requests.clone());
        registry.register("open_streams", "Streams of events that are open", self.open_streams.clone());
        // Every label is there from the start, at zero.
        for end in [StreamEnd::Complete, StreamEnd::Abandoned, StreamEnd::Cut] {
            drop(self.streams.get_or_create(&StreamLabels { end }));
        }
        registry.register("streams", "Streams of events that ended, by how", self.streams.clone());
        registry.register("stream_frames", "Frames given to streams", self.stream_frames.clone());
        registry.register("stream_bytes", "Bytes of frames given to streams", self.stream_bytes.clone());
        registry.register("auth_failures", "Requests without a valid key", self.auth_failures.clone());
        for result in [Review::Accepted, Review::Refused, Review::Failed] {
            drop(self.token_reviews.get_or_create(&ReviewLabels { result }));
            drop(self.access_reviews.get_or_create(&ReviewLabels { result }));
        }
        registry.register("token_reviews", "Kubernetes tokens reviewed, by result", self.token_reviews.clone());
        registry.register(
            "access_reviews",
            "Rights of Kubernetes users asked for, by result",
            self.access_reviews.clone(),
        );
        registry.register(
            "access_reviews_crowded",
            "Reviews that were given up because too many others waited",
            self.access_reviews_crowded.clone(),
        );
        registry.register(
            "access_evictions",
            "Reviewed tokens that were forgotten early because too many others came",
            self.access_evictions.clone(),
        );
        registry.register(
            "bodies_refused",
            "Bodies that were too long, too slow, or found no room",
            self.bodies_refused.clone(),
        );
        registry.register(
            "discards_cut_off",
            "Connections closed because too much came behind a refused body",
            self.discards_cut_off.clone(),
        );
        registry.register(
            "deployments_waiting",
            "Deployments that wait for their turn to be packed",
            self.deployments_waiting.clone(),
        );
        registry.register("keep_alives", "Comments sent on silent streams", self.keep_alives.clone());
        registry.register(
            "pages_cut_off",
            "Pages of the history that ended at their bytes",
            self.pages_cut_off.clone(),
        );
        registry.register(
            "tail_waits",
            "Pages of the history that did not wait longer for uncommitted entries",
            self.tail_waits.clone(),
        );
        registry.register(
            "permission_searches_given_up",
            "Searches for an old permission request that ended before the whole log was read",
            self.permission_searches_given_up.clone(),
        );
        registry.register(
            "request_ids_replaced",
            "Request ids of clients that were not taken",
            self.request_ids_replaced.clone(),
        );
        registry.register("panics", "Requests that failed in a defect of the server", self.panics.clone());
        registry.register("connections", "Connections that are open", self.connections.clone());
        registry.register(
            "connections_at_bound",
            "Times that accepting waited because of the bound on connections",
            self.connections_at_bound.clone(),
        );
        registry.register(
            "connections_cut_off",
            "Connections closed because the client did not read",
            self.connections_cut_off.clone(),
        );
        registry.register("accept_errors", "Connections that could not be accepted", self.accept_errors.clone());
        registry.register(
            "queued_sessions",
            "Sessions with messages that wait, as of the last sweep",
            self.queued_sessions.clone(),
        );
        registry.register("queue_added", "Messages that were queued", self.queue_added.clone());
        registry.register("queue_full", "Messages that found the queue full", self.queue_full.clone());
        registry.register("queue_begun", "Queued messages that a runner took", self.queue_begun.clone());
        for state in EntryState::ALL.into_iter().filter(|state| !state.is_open()) {
            drop(self.queue_settled.get_or_create(&SettledLabels { status: state.name() }));
        }
        registry.register("queue_settled", "Queued messages that are over, by status", self.queue_settled.clone());
    }
}
