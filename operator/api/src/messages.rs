//! Messages and streams: the hot path. A message becomes a turn; its entries become the body of the answer.

use std::time::Duration;

use ash_core::{
    id::SessionId,
    ports::{EntryReader, ReadError},
    session::SessionEvent,
    sse::{self, Position},
};
use axum::{
    Extension,
    body::Body,
    extract::State,
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use futures::stream;
use http::{HeaderMap, HeaderName, HeaderValue, header};
use tokio::{
    sync::watch,
    time::{Instant, timeout_at},
};

use crate::{
    answer,
    auth::Caller,
    body::{BoundedBody, MAX_BODY_BYTES},
    error::ApiError,
    fields::{Parameters, Path},
    idempotency,
    metrics::{Metrics, StreamEnd, StreamLabels},
    model_options, queue,
    serve::closed,
    state::{ApiState, to_the_end},
    stream::{Frames, done, failed, not_begun},
    turn,
};

/// The comment that keeps a silent stream open.
const KEEP_ALIVE: Bytes = Bytes::from_static(b": keep-alive\n\n");

const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// Says behind which position a session's stream begins: a client that asked for one from now on, and is cut before its first frame,
/// goes on from there.
const STREAM_AFTER: HeaderName = HeaderName::from_static("ash-stream-after");

/// `POST /api/sessions/{id}/messages`: begins a turn and streams it, or answers with its result where the client accepts
/// nothing but JSON. A place for the session's sandbox, or in its queue, is reserved before the headers go out. The turn goes on
/// when its client goes away.
pub(crate) async fn send(
    State(state): State<ApiState>,
    Extension(Caller(tenant)): Extension<Caller>,
    Path(id): Path<String>,
    headers: HeaderMap,
    body: BoundedBody<MAX_BODY_BYTES>,
) -> Result<Response, ApiError> {
    let session = state.session(&tenant, &id).await?;
    let id = session.id;
    let message = turn::read(&body.bytes, id, idempotency::key(&headers)?)?;
    if !message.queue {
        session.state.after(SessionEvent::Message)?;
        queue::check_is_free(&state, id, message.message.turn).await?;
    }
    let version = state.version_of(&session).await?;
    model_options::check_turn(&session.options, version.settings.model.as_deref(), &message.message.options)?;
    let (turn, partials) = (message.message.turn, message.partials);
    drop(body);
    let reader = if message.queue {
        match queue::send(&state, session, message, &headers).await? {
            queue::Queued::Follows(reader) => reader,
            queue::Queued::Accepted(response) => return Ok(response),
        }
    } else {
        let runner = state.runner.clone();
        let begin = async move { runner.send(session, version, message.message).await };
        to_the_end(begin).await??.reader
    };
    let frames = Frames::of_turn(id, turn, partials);
    if wants_json(&headers) {
        return answer::whole(id, turn, reader).await;
    }
    Ok(respond(&state, id, reader, frames, Until::Turn))
}

/// `GET /api/sessions/{id}/stream`: from a position, or from now on; through the turn in progress, or on and on.
pub(crate) async fn stream(
    State(state): State<ApiState>,
    Extension(Caller(tenant)): Extension<Caller>,
    Path(id): Path<String>,
    parameters: Parameters,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let partials = parameters.flag("includePartialMessages")?;
    let until = if parameters.flag("follow")? { Until::SessionEnds } else { Until::NoTurnRuns };
    let position = position(&parameters, &headers)?;
    let session = state.session(&tenant, &id).await?;
    let position = position.unwrap_or(Position::after(session.last));
    let reader = state.runner.read(&session, position).await?;
    let mut response = respond(&state, session.id, reader, Frames::after(session.id, position, partials), until);
    if let Ok(after) = HeaderValue::from_str(&position.to_string()) {
        response.headers_mut().insert(STREAM_AFTER, after);
    }
    Ok(response)
}

/// What the client has seen. The header wins over the parameter: a client that reconnects by itself repeats the address.
fn position(parameters: &Parameters, headers: &HeaderMap) -> Result<Option<Position>, ApiError> {
    let header = match headers.get(LAST_EVENT_ID) {
        Some(value) => Some(value.to_str().map_err(|_| ApiError::bad_request("Last-Event-ID is no position"))?.trim()),
        None => None,
    };
    header
        .filter(|text| !text.is_empty())
        .or_else(|| parameters.text("after"))
        .map(|text| text.parse().map_err(|error| ApiError::bad_request(format!("{error}"))))
        .transpose()
}

/// Whether a client takes JSON and neither a stream nor anything.
fn wants_json(headers: &HeaderMap) -> bool {
    let accepts = |wanted: &str| {
        let values = headers.get_all(header::ACCEPT).iter().filter_map(|value| value.to_str().ok());
        let mut types = values.flat_map(|value| value.split(',')).map(|range| range.split(';').next().unwrap_or(range));
        types.any(|kind| kind.trim().eq_ignore_ascii_case(wanted))
    };
    accepts("application/json") && !accepts("text/event-stream") && !accepts("*/*")
}

/// Until when a stream goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Until {
    /// Through the `done` of its turn.
    Turn,
    /// Until everything was given and no turn is in progress.
    NoTurnRuns,
    /// On and on.
    SessionEnds,
}

fn respond(
    state: &ApiState,
    session: SessionId,
    reader: Box<dyn EntryReader>,
    frames: Frames,
    until: Until,
) -> Response {
    let open = OpenStream::new(&state.metrics);
    let source = Source {
        session,
        reader,
        frames,
        until,
        first: Some(sse::session_start(session)),
        keep_alive: state.config.keep_alive,
        last_sent: Instant::now(),
        open,
        closing: state.closing.subscribe(),
        over: false,
    };
    let body = stream::unfold(source, |mut source| async move {
        let item = source.next().await?;
        Some((item, source))
    });
    let headers = [
        (header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream")),
        (header::CACHE_CONTROL, HeaderValue::from_static("no-cache")),
        (HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no")),
    ];
    (headers, Body::from_stream(body)).into_response()
}

/// The body of a stream. It is polled only when the connection has room: a client that reads slowly holds one batch of entries
/// and a position, and nobody waits for it.
struct Source {
    session: SessionId,
    reader: Box<dyn EntryReader>,
    frames: Frames,
    until: Until,
    first: Option<Bytes>,
    keep_alive: Duration,
    last_sent: Instant,
    open: OpenStream,
    closing: watch::Receiver<bool>,
    over: bool,
}

/// A stream could not go on. The connection is closed in the middle of the answer, so that a client does not take what it got
/// for all there is, and reconnects with the last id that it saw.
#[derive(Debug, thiserror::Error)]
#[error("the stream was cut: reconnect with Last-Event-ID")]
struct Cut;

impl Source {
    async fn next(&mut self) -> Option<Result<Bytes, Cut>> {
        if let Some(first) = self.first.take() {
            return Some(Ok(first));
        }
        while !self.over {
            if let Some(chunk) = self.frames.chunk() {
                self.last_sent = Instant::now();
                self.open.sent(&chunk, self.frames.count());
                return Some(Ok(chunk));
            }
            if self.frames.over() {
                return self.end(None);
            }
            if self.until == Until::NoTurnRuns && !self.reader.turn_in_progress() {
                let last = (!self.frames.after_done()).then(|| done(self.session));
                return self.end(last);
            }
            let next = timeout_at(self.last_sent + self.keep_alive, self.reader.next());
            let next = tokio::select! {
                biased;
                next = next => next,
                () = closed(&mut self.closing), if self.until == Until::SessionEnds => return Some(self.cut()),
            };
            match next {
                Ok(Ok(Some(batch))) => self.frames.feed(batch),
                Ok(Ok(None)) => return self.end_of_entries(),
                Ok(Err(ReadError::Unwritten(reason))) => return self.end(Some(failed(self.session, &reason))),
                Ok(Err(ReadError::NotBegun(reason))) => return self.end(Some(not_begun(self.session, &reason))),
                Ok(Err(error)) => {
                    tracing::warn!(session = %self.session, %error, "a stream was cut");
                    return Some(self.cut());
                }
                Err(_) => {
                    self.last_sent = Instant::now();
                    self.open.metrics.keep_alives.inc();
                    return Some(Ok(KEEP_ALIVE));
                }
            }
        }
        None
    }

    /// The reader has no more: the session has ended, or the server shuts down.
    fn end_of_entries(&mut self) -> Option<Result<Bytes, Cut>> {
        match self.until {
            Until::Turn => Some(self.cut()),
            Until::NoTurnRuns if self.reader.turn_in_progress() => Some(self.cut()),
            Until::NoTurnRuns => {
                let last = (!self.frames.after_done()).then(|| done(self.session));
                self.end(last)
            }
            Until::SessionEnds => self.end(None),
        }
    }

    fn end(&mut self, last: Option<Bytes>) -> Option<Result<Bytes, Cut>> {
        self.over = true;
        self.open.end = StreamEnd::Complete;
        last.map(Ok)
    }

    fn cut(&mut self) -> Result<Bytes, Cut> {
        self.over = true;
        self.open.end = StreamEnd::Cut;
        Err(Cut)
    }
}

/// Counts a stream from its opening to its end, however it ends.
struct OpenStream {
    metrics: Metrics,
    frames: u64,
    end: StreamEnd,
}

impl OpenStream {
    fn new(metrics: &Metrics) -> Self {
        metrics.open_streams.inc();
        Self { metrics: metrics.clone(), frames: 0, end: StreamEnd::Abandoned }
    }

    fn sent(&mut self, chunk: &Bytes, frames: u64) {
        self.metrics.stream_bytes.inc_by(chunk.len() as u64);
        self.metrics.stream_frames.inc_by(frames - self.frames);
        self.frames = frames;
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.metrics.open_streams.dec();
        self.metrics.streams.get_or_create(&StreamLabels { end: self.end }).inc();
    }
}

#[cfg(test)]
mod tests {
    use http::{HeaderMap, HeaderValue, header};

    use super::wants_json;

    #[test]
    fn only_who_takes_nothing_but_json_gets_it() {
        for (accept, json) in [
            ("application/json", true),
            ("Application/JSON; q=0.9, text/plain", true),
            ("application/json, text/event-stream", false),
            ("application/json, text/plain, */*", false),
            ("*/*", false),
            ("text/event-stream", false),
        ] {
            let headers: HeaderMap = [(header::ACCEPT, HeaderValue::from_static(accept))].into_iter().collect();
            assert_eq!(wants_json(&headers), json, "{accept}");
        }
        assert!(!wants_json(&HeaderMap::new()));
    }
}
