//! The REST and SSE surface of Ash: axum routers over the ports [`Store`](ash_core::ports::Store) and
//! [`Runner`](ash_core::ports::Runner), keys, streams, and the HTTP server that bounds its connections.
//!
//! Source: the REST and SSE contract. A handler reads a request, asks a port, shapes an answer; the rules are in `ash-core`.

mod access;
mod agents;
mod answer;
mod auth;
mod body;
mod configure;
mod credentials;
mod descriptors;
mod error;
mod fields;
mod health;
mod history;
mod idempotency;
mod messages;
mod metrics;
mod model_options;
mod network;
mod observe;
mod permissions;
mod queue;
mod runners;
mod serve;
mod sessions;
mod spelling;
mod state;
mod stream;
mod timeline;
mod turn;
mod views;

use axum::{
    Router,
    extract::DefaultBodyLimit,
    middleware::{from_fn, from_fn_with_state},
    routing::{delete, get, patch, post},
};

pub use access::AccessConfig;
pub use auth::{InitialKeyError, ensure_initial_key, hash_key};
pub use descriptors::connections_within_descriptors;
pub use queue::keep_queues;
pub use serve::{ServeLimits, serve};
pub use state::{ApiConfig, ApiState, OptionalPorts};

/// Every route of the API, ready to be served, or to be merged with others (a web page).
///
/// `/health` and `/metrics` are public; everything below `/api/` needs a key. Whatever is refused, by a handler or on the way to
/// one, is `{"error", "statusCode"}`.
pub fn router(state: ApiState) -> Router {
    let api = Router::new()
        .route("/api/agents", post(agents::deploy).get(agents::list))
        .route("/api/agents/{name}", get(agents::get).delete(agents::delete))
        .route("/api/sessions", post(sessions::create).get(sessions::list))
        .route("/api/sessions/{id}", get(sessions::get).delete(sessions::delete))
        .route("/api/sessions/{id}/messages", post(messages::send).get(history::messages))
        .route("/api/sessions/{id}/config", patch(configure::configure))
        .route("/api/sessions/{id}/queue", get(queue::list))
        .route("/api/sessions/{id}/queue/{entry}", delete(queue::take_back))
        .route("/api/sessions/{id}/events", get(history::events))
        .route("/api/sessions/{id}/stream", get(messages::stream))
        .route("/api/sessions/{id}/interrupt", post(sessions::interrupt))
        .route("/api/sessions/{id}/pause", post(sessions::pause))
        .route("/api/sessions/{id}/resume", post(sessions::resume))
        .route("/api/sessions/{id}/stop", post(sessions::stop))
        .route("/api/sessions/{id}/permissions/{request}", post(permissions::answer))
        .route("/api/credentials", post(credentials::create).get(credentials::list))
        .route("/api/credentials/{id}", delete(credentials::delete))
        .route("/api/runners", get(runners::list))
        .route("/api/runners/{name}/cordon", post(runners::cordon))
        .route("/api/runners/{name}/uncordon", post(runners::uncordon))
        .route_layer(from_fn_with_state(state.clone(), auth::require_key));
    Router::new()
        .route("/health", get(health::health))
        .route("/metrics", get(health::metrics))
        .merge(api)
        .fallback(error::unknown_route)
        .method_not_allowed_fallback(error::wrong_method)
        // Bodies are bounded by `body`, which says how much is allowed.
        .layer(DefaultBodyLimit::disable())
        .layer(from_fn(observe::catch_panic))
        .layer(from_fn_with_state(state.clone(), observe::observe))
        .with_state(state)
}
