//! The answer to a message in one piece, for clients that want no stream.

use ash_core::{
    Entry, EntryKind,
    id::{SessionId, TurnId},
    opening::Opening,
    ports::EntryReader,
    sse::{INTERRUPTED, was_interrupted},
};
use ash_protocol::message::BridgeEvent;
use axum::{
    Json,
    response::{IntoResponse, Response},
};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use crate::error::ApiError;

/// What a turn came to. Status 200 also for a turn that failed: `isError` says so, `error` says why.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Answer {
    session_id: SessionId,
    turn_id: TurnId,
    /// The id of the last frame's entry: where `GET .../stream?after=` goes on.
    sequence: u64,
    is_error: bool,
    error: Option<String>,
    result: Option<String>,
    subtype: Option<String>,
    num_turns: u64,
    usage: Option<Box<RawValue>>,
    total_cost_usd: Option<Box<RawValue>>,
    duration_ms: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    structured_output: Option<Box<RawValue>>,
}

/// The fields of Claude Code's `result` message that are passed on.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct ResultLine {
    #[serde(rename = "type")]
    kind: String,
    subtype: Option<String>,
    is_error: bool,
    num_turns: u64,
    result: Option<String>,
    errors: Vec<String>,
    terminal_reason: Option<String>,
    usage: Option<Box<RawValue>>,
    total_cost_usd: Option<Box<RawValue>>,
    duration_ms: Option<Box<RawValue>>,
    structured_output: Option<Box<RawValue>>,
}

/// Reads a turn to its end and answers with what it came to.
pub(crate) async fn whole(
    session: SessionId,
    turn: TurnId,
    mut reader: Box<dyn EntryReader>,
) -> Result<Response, ApiError> {
    let mut outcome = Outcome::new(turn);
    while let Some(batch) = reader.next().await? {
        for logged in batch {
            if outcome.take(&logged.entry) {
                return Ok(Json(outcome.answer(session, &logged.entry)).into_response());
            }
        }
    }
    Err(ApiError::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "the server is shutting down: the turn goes on, its events are at GET /api/sessions/{id}/stream",
    )
    .retry_after(2))
}

/// What is known of a turn so far.
#[derive(Debug)]
struct Outcome {
    turn: TurnId,
    result: ResultLine,
    error: Option<String>,
}

impl Outcome {
    fn new(turn: TurnId) -> Self {
        Self { turn, result: ResultLine::default(), error: None }
    }

    /// Takes an entry; true when it ended the turn.
    fn take(&mut self, entry: &Entry) -> bool {
        match entry.kind {
            EntryKind::Claude if entry.ends_turn() => {
                self.result = serde_json::from_slice(&entry.body).unwrap_or_default();
                if self.result.kind != "result" {
                    self.error = Some("Claude Code ended the turn without a result.".to_owned());
                }
            }
            EntryKind::Bridge => {
                if let Ok(BridgeEvent::TurnFailed { message, .. }) = serde_json::from_slice(&entry.body) {
                    self.error = Some(message);
                }
            }
            EntryKind::Opening => {
                let Ok(opening) = Opening::read(&entry.body) else { return false };
                if opening.interrupted != Some(self.turn.0) {
                    return false;
                }
                self.error = Some(opening.message.unwrap_or_else(|| INTERRUPTED.to_owned()));
            }
            _ => {}
        }
        entry.ends_turn()
    }

    fn answer(self, session: SessionId, last: &Entry) -> Answer {
        let line = self.result;
        let failed = line.is_error || line.subtype.as_deref().is_some_and(|subtype| subtype.starts_with("error"));
        let reason = || {
            if line.terminal_reason.as_deref().is_some_and(was_interrupted) {
                return INTERRUPTED.to_owned();
            }
            let errors = (!line.errors.is_empty()).then(|| line.errors.join("; "));
            let text = line.result.clone().filter(|text| !text.is_empty());
            let subtype = line.subtype.as_deref().unwrap_or("an error");
            errors.or(text).unwrap_or_else(|| format!("The turn ended with {subtype}."))
        };
        let error = self.error.or_else(|| failed.then(reason));
        Answer {
            session_id: session,
            turn_id: self.turn,
            sequence: last.sequence.0,
            is_error: error.is_some(),
            error,
            result: line.result,
            subtype: line.subtype,
            num_turns: line.num_turns,
            usage: line.usage,
            total_cost_usd: line.total_cost_usd,
            duration_ms: line.duration_ms,
            structured_output: line.structured_output,
        }
    }
}
