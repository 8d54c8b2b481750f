//! What an operator shows to whoever watches it: `GET /metrics` and `GET /health`. One that waits for the lease is well, too.

use std::sync::{Arc, Mutex, PoisonError};

use axum::{Json, Router, http::StatusCode, routing::get};
use prometheus_client::{encoding::text::encode, registry::Registry};
use tokio::net::TcpListener;

/// The media type of the text format: <https://prometheus.io/docs/specs/om/open_metrics_spec/>.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Serves until the process ends.
pub(super) async fn serve(listener: TcpListener, registry: Arc<Mutex<Registry>>) {
    let metrics = async move || {
        let mut text = String::new();
        match encode(&mut text, &registry.lock().unwrap_or_else(PoisonError::into_inner)) {
            Ok(()) => (StatusCode::OK, [("content-type", OPEN_METRICS)], text),
            Err(_) => (StatusCode::INTERNAL_SERVER_ERROR, [("content-type", "text/plain")], String::new()),
        }
    };
    let health = async || Json(serde_json::json!({ "status": "ok" }));
    let router = Router::new().route("/metrics", get(metrics)).route("/health", get(health));
    if let Err(error) = axum::serve(listener, router).await {
        tracing::error!(%error, "metrics are not served any more");
    }
}
