//! Answers to permission requests.

use ash_protocol::message::{Behavior, Decision};
use axum::{
    Extension, Json,
    extract::State,
    response::{IntoResponse, Response},
};
use serde_json::json;

use crate::{
    auth::Caller,
    body::{BoundedBody, MAX_BODY_BYTES},
    error::ApiError,
    fields::{Fields, Path, invalid},
    state::ApiState,
};

/// The longest message that an agent is told with a refusal.
const MAX_MESSAGE_BYTES: usize = 64 << 10;

/// `POST /api/sessions/{id}/permissions/{requestId}`: the first answer wins.
pub(crate) async fn answer(
    State(state): State<ApiState>,
    Extension(Caller(tenant)): Extension<Caller>,
    Path((id, request)): Path<(String, String)>,
    body: BoundedBody<MAX_BODY_BYTES>,
) -> Result<Response, ApiError> {
    let session = state.session(&tenant, &id).await?;
    let decision = read(&body.bytes)?;
    state.runner.answer(session.id, &request, decision).await?;
    Ok(Json(json!({ "ok": true })).into_response())
}

fn read(body: &[u8]) -> Result<Decision, ApiError> {
    let fields = Fields::parse(body)?;
    let behavior: Behavior = fields.required("behavior")?;
    let decision = Decision {
        behavior,
        updated_input: fields.object("updatedInput")?,
        answers: fields.object("answers")?,
        message: fields.get("message")?,
    };
    if decision.message.as_ref().is_some_and(|message| message.len() > MAX_MESSAGE_BYTES) {
        return Err(invalid("message", &format!("it has more than {MAX_MESSAGE_BYTES} bytes")));
    }
    if behavior == Behavior::Deny && (decision.updated_input.is_some() || decision.answers.is_some()) {
        return Err(invalid("behavior", "updatedInput and answers are for \"allow\""));
    }
    Ok(decision)
}
