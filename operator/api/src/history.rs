//! A session's history: its messages and its timeline, read from the log in pages.

use std::{sync::Arc, time::Duration};

use ash_core::{Entry, EntryKind, Sequence, id::SessionId, ports::ReadError, session::Session, sse::Position};
use axum::{
    Extension, Json,
    extract::State,
    response::{IntoResponse, Response},
};
use jiff::Timestamp;
use serde::Serialize;
use serde_json::json;
use tokio::time::timeout;
use uuid::Uuid;

use crate::{
    auth::Caller,
    error::ApiError,
    fields::{Parameters, Path, invalid},
    state::ApiState,
    timeline::{self, MCP_STATUS, Role, TYPES},
    views::Time,
};

/// Items on a page at the most.
const MAX_PAGE: u32 = 1000;
/// Messages on a page where the request says nothing.
const DEFAULT_MESSAGES: u32 = 100;
/// Events on a page where the request says nothing.
const DEFAULT_EVENTS: u32 = 200;
/// Bytes of entries that are read at once.
const READ_BYTES: usize = 1 << 20;
/// Bytes of entries after which a page ends before it is full, with `hasMore`.
const PAGE_BYTES: usize = 16 << 20;
/// For how long entries that are not committed yet are waited for: they are in memory, or there are none.
const TAIL_WAIT: Duration = Duration::from_millis(20);

/// `GET /api/sessions/{id}/messages`.
pub(crate) async fn messages(
    State(state): State<ApiState>,
    Extension(Caller(tenant)): Extension<Caller>,
    Path(id): Path<String>,
    parameters: Parameters,
) -> Result<Response, ApiError> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Message {
        id: Uuid,
        session_id: SessionId,
        tenant_id: Arc<str>,
        role: &'static str,
        content: String,
        sequence: u64,
        created_at: Time,
    }

    let (limit, after) = (parameters.number("limit", DEFAULT_MESSAGES, 1, MAX_PAGE)?, after(&parameters)?);
    let session = state.session(&tenant, &id).await?;
    let tenant: Arc<str> = tenant.0.into();
    let page = read(&state, &session, after, limit as usize, |entry, time| {
        let Some(role) = timeline::role(entry) else { return Vec::new() };
        let id = timeline::head(&entry.body).uuid;
        vec![Message {
            id: id.unwrap_or_else(|| timeline::stable_id(session.id.0, entry.sequence, 0)),
            session_id: session.id,
            tenant_id: tenant.clone(),
            role: if role == Role::User { "user" } else { "assistant" },
            content: String::from_utf8_lossy(&entry.body).into_owned(),
            sequence: entry.sequence.0,
            created_at: Time(time),
        }]
    })
    .await?;
    Ok(Json(json!({ "messages": page.items, "hasMore": page.more })).into_response())
}

/// `GET /api/sessions/{id}/events`.
pub(crate) async fn events(
    State(state): State<ApiState>,
    Extension(Caller(tenant)): Extension<Caller>,
    Path(id): Path<String>,
    parameters: Parameters,
) -> Result<Response, ApiError> {
    #[derive(Serialize)]
    #[serde(rename_all = "camelCase")]
    struct Event {
        id: Uuid,
        session_id: SessionId,
        tenant_id: Arc<str>,
        #[serde(rename = "type")]
        kind: &'static str,
        data: String,
        sequence: u64,
        created_at: Time,
    }

    let (limit, after) = (parameters.number("limit", DEFAULT_EVENTS, 1, MAX_PAGE)?, after(&parameters)?);
    let wanted = parameters.text("type");
    if wanted.is_some_and(|wanted| !TYPES.contains(&wanted)) {
        return Err(invalid("type", &format!("it is one of {}", TYPES.join(", "))));
    }
    let session = state.session(&tenant, &id).await?;
    let tenant: Arc<str> = tenant.0.into();
    let page = read(&state, &session, after, limit as usize, |entry, time| {
        let events = timeline::events(entry).into_iter().enumerate();
        let wanted = events.filter(|(_, (kind, _))| wanted.map_or(*kind != MCP_STATUS, |wanted| wanted == *kind));
        wanted
            .map(|(index, (kind, data))| Event {
                id: timeline::stable_id(session.id.0, entry.sequence, index),
                session_id: session.id,
                tenant_id: tenant.clone(),
                kind,
                data: data.to_string(),
                sequence: entry.sequence.0,
                created_at: Time(time),
            })
            .collect()
    })
    .await?;
    Ok(Json(json!({ "events": page.items, "hasMore": page.more })).into_response())
}

fn after(parameters: &Parameters) -> Result<Sequence, ApiError> {
    let Some(text) = parameters.text("after") else { return Ok(Sequence::START) };
    text.parse().map_err(|_| invalid("after", "it is a sequence"))
}

struct Page<T> {
    items: Vec<T>,
    more: bool,
}

/// Collects items from entries behind a position: committed ones first, then those that the runner still keeps. An entry's
/// items are never split over two pages, so a page may have a few more than `limit`.
async fn read<T>(
    state: &ApiState,
    session: &Session,
    after: Sequence,
    limit: usize,
    mut items_of: impl FnMut(&Entry, Timestamp) -> Vec<T>,
) -> Result<Page<T>, ApiError> {
    let mut page = Page { items: Vec::new(), more: false };
    let mut time = session.created_at;
    let mut bytes = 0;
    let mut take = |entry: &Entry, page: &mut Page<T>| {
        // An entry tells its time or was written right after the one before it.
        if entry.kind != EntryKind::Partial {
            time = timeline::time(entry).unwrap_or(time);
            bytes += entry.body.len();
            page.items.extend(items_of(entry, time));
        }
        let cut_off = page.items.len() < limit && bytes >= PAGE_BYTES;
        if cut_off {
            state.metrics.pages_cut_off.inc();
        }
        cut_off || page.items.len() >= limit
    };
    let mut position = after;
    loop {
        let read = state.store.read(session.id, position, READ_BYTES).await?;
        for (index, entry) in read.entries.iter().enumerate() {
            if take(entry, &mut page) {
                page.more = index + 1 < read.entries.len() || !read.end;
                return Ok(page);
            }
        }
        position = position.max(read.through);
        if read.end {
            break;
        }
    }
    let mut reader = state.runner.read(session, Position::after(position)).await?;
    while reader.turn_in_progress() {
        let Ok(batch) = timeout(TAIL_WAIT, reader.next()).await else {
            state.metrics.tail_waits.inc();
            break;
        };
        let batch = match batch {
            Ok(Some(batch)) => batch,
            // What is in the log is there to be read, also where nothing can be added to it.
            Ok(None) | Err(ReadError::Unwritten(_) | ReadError::NotBegun(_)) => break,
            Err(error) => return Err(error.into()),
        };
        for logged in &batch {
            if take(&logged.entry, &mut page) {
                page.more = true;
                return Ok(page);
            }
        }
    }
    Ok(page)
}
