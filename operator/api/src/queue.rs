//! Messages that wait for their turn: a message that may wait, the listing, taking one back.
//!
//! What happens to an entry is decided by `ash_core::queue`; [`dispatch`] does it, [`follow`] reads what comes of it.

mod dispatch;
mod follow;
mod known;

use std::sync::Arc;

use ash_core::{
    id::{SessionId, TurnId},
    ports::{Enqueued, EntryChange, EntryReader, NewEntry, QueueStore},
    queue::{EntryEvent, EntryState, MAX_QUEUED, MAX_QUEUED_BYTES, QueueEntry, QueuedMessage},
    session::{Session, SessionEvent},
};
use axum::{
    Extension, Json,
    extract::State,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, StatusCode};
use serde::Serialize;
use serde_json::json;

pub use self::dispatch::keep_queues;
pub(crate) use self::{dispatch::advance_soon, known::Queues};
use crate::{
    auth::Caller,
    error::{ApiError, RETRY_SOON_SECONDS},
    fields::{Path, invalid},
    state::{ApiState, to_the_end},
    turn::Message,
    views::Time,
};

/// The header by which a client asks for an answer at once (RFC 7240, section 4.1).
const PREFER: &str = "prefer";
/// What a message's JSON has beside its content and its options, at the most.
const ENVELOPE_BYTES: usize = 64;
/// Tries to take back an entry that others change at the same time.
const TAKE_BACK_TRIES: u32 = 8;

/// An entry, as the API shows it.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct EntryView<'a> {
    id: TurnId,
    session_id: SessionId,
    status: EntryState,
    position: u64,
    attempt: u32,
    retries: u32,
    preview: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<&'a str>,
    created_at: Time,
}

impl<'a> EntryView<'a> {
    fn of(entry: &'a QueueEntry) -> Self {
        Self {
            id: entry.id,
            session_id: entry.session,
            status: entry.state,
            position: entry.position,
            attempt: entry.attempt,
            retries: entry.retries,
            preview: &entry.preview,
            error: entry.error.as_deref(),
            created_at: Time(entry.created_at),
        }
    }
}

fn port(state: &ApiState) -> Result<Arc<dyn QueueStore>, ApiError> {
    let queue = state.optional.queue.clone();
    queue.ok_or_else(|| invalid("queue", "this server keeps no queue: send the message when the turn has ended"))
}

/// What a message that may wait came to.
pub(crate) enum Queued {
    /// It is in the queue, or was: this reads its turn, once that begins.
    Follows(Box<dyn EntryReader>),
    /// The client did not want to wait for it.
    Accepted(Response),
}

/// Puts a message into its session's queue, unless it is there already, and has its turn begun as soon as that can be.
pub(crate) async fn send(
    state: &ApiState,
    session: Session,
    message: Message,
    headers: &HeaderMap,
) -> Result<Queued, ApiError> {
    let queue = port(state)?;
    let (id, turn) = (session.id, message.message.turn);
    let entry = if let Some(known) = queue.queue_entry(id, turn).await? {
        known
    } else {
        session.state.after(SessionEvent::Queue)?;
        let new = NewEntry {
            id: turn,
            session: id,
            tenant: session.tenant.clone(),
            retries: message.retries,
            message: QueuedMessage { content: message.message.content, options: message.message.options },
        };
        add(state, queue, new).await?
    };
    if wants_no_answer(headers) {
        let body = Json(json!({ "entry": EntryView::of(&entry) }));
        return Ok(Queued::Accepted((StatusCode::ACCEPTED, body).into_response()));
    }
    Ok(Queued::Follows(follow::reader(state, session, &entry).await?))
}

async fn add(state: &ApiState, queue: Arc<dyn QueueStore>, new: NewEntry) -> Result<QueueEntry, ApiError> {
    let options = serde_json::to_vec(&new.message.options).map_or(0, |options| options.len());
    if new.message.content.get().len() + options + ENVELOPE_BYTES > MAX_QUEUED_BYTES {
        let text =
            format!("a message that waits has at most {} MiB: send it when the turn has ended", MAX_QUEUED_BYTES >> 20);
        return Err(ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, text));
    }
    let session = new.session;
    // Noted before it is there: whoever ends a turn meanwhile looks for it.
    state.queues.note(session);
    match to_the_end(async move { queue.enqueue(new).await }).await?? {
        Enqueued::Added(entry) => {
            state.metrics.queue_added.inc();
            advance_soon(state, session);
            Ok(entry)
        }
        Enqueued::Known(entry) => Ok(entry),
        Enqueued::Full => {
            state.metrics.queue_full.inc();
            let text = format!(
                "{MAX_QUEUED} messages, or {} MiB of them, wait already: take some back, or try again when their turns have come",
                MAX_QUEUED_BYTES >> 20
            );
            Err(ApiError::new(StatusCode::TOO_MANY_REQUESTS, text).retry_after(RETRY_SOON_SECONDS))
        }
    }
}

fn wants_no_answer(headers: &HeaderMap) -> bool {
    let values = headers.get_all(PREFER).iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).any(|preference| preference.trim().eq_ignore_ascii_case("respond-async"))
}

/// A message that does not wait may not go before those that do: refused where the first of them is about to begin. A repeat of one
/// that began is none.
pub(crate) async fn check_is_free(state: &ApiState, session: SessionId, turn: TurnId) -> Result<(), ApiError> {
    let Some(queue) = state.optional.queue.as_ref().filter(|_| state.queues.has(session)) else { return Ok(()) };
    let Some(head) = queue.queue_head(session).await? else { return Ok(()) };
    let waits = head.entry.state == EntryState::Pending && !(head.turn_runs && head.has_sandbox);
    if !waits || state.store.turn(session, turn).await?.is_some() {
        return Ok(());
    }
    let text = "messages wait before this one: send it with \"queue\": true, or take them back";
    Err(ApiError::new(StatusCode::CONFLICT, text))
}

/// `GET /api/sessions/{id}/queue`: what waits, in its order, and what is over of late.
pub(crate) async fn list(
    State(state): State<ApiState>,
    Extension(Caller(tenant)): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let session = state.session(&tenant, &id).await?;
    let entries = port(&state)?.queue(session.id).await?;
    Ok(Json(json!({ "entries": entries.iter().map(EntryView::of).collect::<Vec<_>>() })).into_response())
}

/// `DELETE /api/sessions/{id}/queue/{entry}`: takes back what has not begun; fine where that was done before.
pub(crate) async fn take_back(
    State(state): State<ApiState>,
    Extension(Caller(tenant)): Extension<Caller>,
    Path((id, entry)): Path<(String, String)>,
) -> Result<Response, ApiError> {
    let session = state.session(&tenant, &id).await?;
    let unknown = || ApiError::not_found("There is no such message in the session's queue");
    let turn: TurnId = entry.parse().map_err(|_| unknown())?;
    let queue = port(&state)?;
    for _ in 0..TAKE_BACK_TRIES {
        let entry = queue.queue_entry(session.id, turn).await?.ok_or_else(unknown)?;
        if entry.state != EntryState::Cancelled {
            entry
                .state
                .after(EntryEvent::TakeBack)
                .map_err(|refused| ApiError::new(StatusCode::CONFLICT, refused.to_string()))?;
            let change = EntryChange {
                event: EntryEvent::TakeBack,
                fence: None,
                error: Some("It was taken back.".to_owned()),
                pause: std::time::Duration::ZERO,
            };
            let Some(entry) = queue.change_entry(&entry, change).await? else { continue };
            state.metrics.queue_settled(entry.state);
            state.queues.changed();
            // The next one is first now.
            advance_soon(&state, session.id);
            return Ok(Json(json!({ "entry": EntryView::of(&entry) })).into_response());
        }
        return Ok(Json(json!({ "entry": EntryView::of(&entry) })).into_response());
    }
    Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "the message is changed by others: try again in a moment")
        .retry_after(RETRY_SOON_SECONDS))
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue};

    use super::{PREFER, wants_no_answer};

    #[test]
    fn who_prefers_no_answer_gets_none() {
        for (value, none) in [
            ("respond-async", true),
            ("wait=10, Respond-Async", true),
            ("return=minimal", false),
            ("respond-asynchronously", false),
        ] {
            let headers: HeaderMap =
                [(http::HeaderName::from_static(PREFER), HeaderValue::from_static(value))].into_iter().collect();
            assert_eq!(wants_no_answer(&headers), none, "{value}");
        }
        assert!(!wants_no_answer(&HeaderMap::new()));
    }
}
