//! `GET /health` and `GET /metrics`: public, and cheap.

use std::sync::PoisonError;

use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use http::header;
use serde_json::json;

use crate::{error::ApiError, state::ApiState};

/// What Prometheus asks for (`OpenMetrics` 1.0).
const METRICS_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// `GET /health`: 503 while the store does not answer.
pub(crate) async fn health(State(state): State<ApiState>) -> Result<Response, ApiError> {
    let active_sessions = state.store.count_active_sessions().await?;
    let load = state.runner.load();
    let runners = match &state.optional.fleet {
        Some(fleet) => fleet.runners().await?.len(),
        None => 0,
    };
    Ok(Json(json!({
        "status": "ok",
        "version": state.config.version,
        "mode": if state.optional.fleet.is_some() { "coordinator" } else { "standalone" },
        "coordinatorId": state.config.coordinator_id,
        "activeSessions": active_sessions,
        "activeSandboxes": load.total,
        "remoteRunners": runners,
        "uptime": state.started.elapsed().as_secs(),
        "pool": load,
    }))
    .into_response())
}

/// `GET /metrics`.
pub(crate) async fn metrics(State(state): State<ApiState>) -> Result<Response, ApiError> {
    let mut text = String::new();
    {
        let registry = state.registry.lock().unwrap_or_else(PoisonError::into_inner);
        prometheus_client::encoding::text::encode(&mut text, &registry).map_err(|_| ApiError::internal())?;
    }
    Ok(([(header::CONTENT_TYPE, METRICS_TYPE)], text).into_response())
}
