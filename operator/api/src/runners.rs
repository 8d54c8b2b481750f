//! The runners of a coordinator: who they are, and whether new sessions go there. For the operator's own keys only: runners
//! serve every tenant.

use std::sync::Arc;

use ash_core::{
    fleet::RunnerName,
    id::TenantId,
    loss::LOST_AFTER,
    ports::{Load, MembershipStore, RunnerRow},
};
use axum::{
    Extension, Json,
    extract::State,
    response::{IntoResponse, Response},
};
use http::StatusCode;
use serde::Serialize;
use serde_json::json;

use crate::{auth::Caller, error::ApiError, fields::Path, state::ApiState};

/// A runner.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct RunnerView<'a> {
    name: &'a str,
    status: &'static str,
    address: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    pool: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    node: &'a str,
    #[serde(skip_serializing_if = "str::is_empty")]
    version: &'a str,
    capacity: u32,
    sessions: u32,
    cordoned: bool,
    silent_seconds: u64,
    load: Load,
}

/// What a person wants to know first.
fn status(row: &RunnerRow) -> &'static str {
    match row {
        _ if row.restarting.is_some_and(|left| !left.is_zero()) => "restarting",
        _ if row.silent >= LOST_AFTER => "silent",
        _ if !row.ready => "starting",
        _ if row.cordoned => "cordoned",
        _ => "ready",
    }
}

impl<'a> From<&'a RunnerRow> for RunnerView<'a> {
    fn from(row: &'a RunnerRow) -> Self {
        Self {
            name: row.id.name.as_str(),
            status: status(row),
            address: &row.address,
            pool: &row.pool,
            node: &row.node,
            version: &row.release,
            capacity: row.capacity,
            sessions: row.used,
            cordoned: row.cordoned,
            silent_seconds: row.silent.as_secs(),
            load: row.load,
        }
    }
}

fn allowed(tenant: &TenantId) -> Result<(), ApiError> {
    if *tenant == TenantId::default_tenant() {
        return Ok(());
    }
    Err(ApiError::new(StatusCode::FORBIDDEN, "runners serve every tenant: use a key of the default tenant"))
}

fn fleet(state: &ApiState) -> Result<&Arc<dyn MembershipStore>, ApiError> {
    let standalone = || ApiError::not_found("this server has no runners: it is standalone, its sandboxes are its own");
    state.optional.fleet.as_ref().ok_or_else(standalone)
}

/// `GET /api/runners`: all of them, by name. A standalone server has none.
pub(crate) async fn list(
    State(state): State<ApiState>,
    Extension(Caller(tenant)): Extension<Caller>,
) -> Result<Response, ApiError> {
    allowed(&tenant)?;
    let rows = match &state.optional.fleet {
        Some(fleet) => fleet.runners().await?,
        None => Vec::new(),
    };
    let views: Vec<RunnerView<'_>> = rows.iter().map(RunnerView::from).collect();
    Ok(Json(json!({ "runners": views })).into_response())
}

/// `POST /api/runners/{name}/cordon`: no new sessions go there; those that are there go on.
pub(crate) async fn cordon(
    state: State<ApiState>,
    caller: Extension<Caller>,
    path: Path<String>,
) -> Result<Response, ApiError> {
    set(state, caller, path, true).await
}

/// `POST /api/runners/{name}/uncordon`: new sessions go there again.
pub(crate) async fn uncordon(
    state: State<ApiState>,
    caller: Extension<Caller>,
    path: Path<String>,
) -> Result<Response, ApiError> {
    set(state, caller, path, false).await
}

async fn set(
    State(state): State<ApiState>,
    Extension(Caller(tenant)): Extension<Caller>,
    Path(name): Path<String>,
    cordoned: bool,
) -> Result<Response, ApiError> {
    allowed(&tenant)?;
    let unknown = || ApiError::not_found("Runner not found");
    let name: RunnerName = name.parse().map_err(|_| unknown())?;
    let fleet = fleet(&state)?;
    if !fleet.cordon_runner(&name, cordoned).await? {
        return Err(unknown());
    }
    tracing::info!(runner = %name, cordoned, "a runner was (un)cordoned");
    let rows = fleet.runners().await?;
    let row = rows.iter().find(|row| row.id.name == name).ok_or_else(unknown)?;
    Ok(Json(json!({ "runner": RunnerView::from(row) })).into_response())
}
