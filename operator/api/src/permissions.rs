//! Answers to permission requests.

use ash_core::{Entry, EntryKind, Epoch, Sequence, ports::RunnerError, session::Session};
use ash_protocol::message::{Behavior, BridgeEvent, Decision};
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

/// Bytes of entries that are read at once.
const READ_BYTES: usize = 1 << 20;

/// How many times [`READ_BYTES`] are looked through for a request that the runner does not know, from the newest epoch back.
const MAX_READS: usize = 64;

/// `POST /api/sessions/{id}/permissions/{requestId}`: the first answer wins.
pub(crate) async fn answer(
    State(state): State<ApiState>,
    Extension(Caller(tenant)): Extension<Caller>,
    Path((id, request)): Path<(String, String)>,
    body: BoundedBody<MAX_BODY_BYTES>,
) -> Result<Response, ApiError> {
    let session = state.session(&tenant, &id).await?;
    let decision = read(&body.bytes)?;
    match state.runner.answer(session.id, &request, decision).await {
        Ok(()) => Ok(Json(json!({ "ok": true })).into_response()),
        // The runner knows the requests of the turn in progress; one of an earlier turn is in the log.
        Err(RunnerError::UnknownPermission) if was_asked(&state, &session, &request).await? => {
            Err(RunnerError::PermissionClosed.into())
        }
        Err(error) => Err(error.into()),
    }
}

/// Whether the log has a permission request of this id. One that is further back than [`MAX_READS`] is not found.
async fn was_asked(state: &ApiState, session: &Session, id: &str) -> Result<bool, ApiError> {
    let mut end = session.last;
    let mut position = before_epoch(end);
    for _ in 0..MAX_READS {
        let page = state.store.read(session.id, position, READ_BYTES).await?;
        if page.entries.iter().any(|entry| asks(entry, id)) {
            return Ok(true);
        }
        position = position.max(page.through);
        if page.end || position >= end {
            let Some(epoch) = end.epoch().0.checked_sub(1).filter(|epoch| *epoch > 0) else { return Ok(false) };
            end = Epoch(epoch).sequence(u32::MAX);
            position = before_epoch(end);
        }
    }
    state.metrics.permission_searches_given_up.inc();
    Ok(false)
}

fn before_epoch(sequence: Sequence) -> Sequence {
    sequence.epoch().sequence(0)
}

fn asks(entry: &Entry, id: &str) -> bool {
    // Most entries are something else, and most of these do not have the id in them: only what does is parsed.
    entry.kind == EntryKind::Bridge
        && memchr::memmem::find(&entry.body, id.as_bytes()).is_some()
        && matches!(serde_json::from_slice(&entry.body), Ok(BridgeEvent::PermissionRequest { id: asked, .. }) if asked == id)
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
