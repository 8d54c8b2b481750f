//! What is seen of every request: a span, a request id, counters. Never a body, a key or a query.

use std::panic::AssertUnwindSafe;

use axum::{
    extract::{MatchedPath, Request, State},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use futures::FutureExt as _;
use http::{HeaderName, HeaderValue, Method};
use tracing::Instrument as _;
use uuid::Uuid;

use crate::{error::ApiError, metrics::RequestLabels, state::ApiState};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The longest request id that is taken from a client.
const MAX_REQUEST_ID_BYTES: usize = 128;

/// Puts a request into its span, answers with its id, and counts it.
pub(crate) async fn observe(State(state): State<ApiState>, request: Request, next: Next) -> Response {
    let id = request_id(&request, &state);
    let method = method_name(request.method());
    let route = request.extensions().get::<MatchedPath>().map_or(String::new(), |path| path.as_str().to_owned());
    let span = tracing::info_span!(
        "request",
        method,
        route,
        id = id.to_str().unwrap_or_default(),
        session = tracing::field::Empty,
        user = tracing::field::Empty,
        status = tracing::field::Empty,
    );
    let mut response = next.run(request).instrument(span.clone()).await;
    let status = response.status();
    span.record("status", status.as_u16());
    span.in_scope(|| tracing::debug!("answered"));
    response.headers_mut().insert(REQUEST_ID, id);
    let status = match status.as_u16() {
        100..=199 => "1xx",
        200..=299 => "2xx",
        300..=399 => "3xx",
        400..=499 => "4xx",
        _ => "5xx",
    };
    if status == "5xx" && response.extensions().get::<Panicked>().is_some() {
        state.metrics.panics.inc();
    }
    state.metrics.requests.get_or_create(&RequestLabels { method, route, status }).inc();
    response
}

/// Marks the answer to a request that panicked.
#[derive(Clone, Copy)]
struct Panicked;

/// Answers 500 where a handler panicked, without details; the panic hook has logged them.
pub(crate) async fn catch_panic(request: Request, next: Next) -> Response {
    AssertUnwindSafe(next.run(request)).catch_unwind().await.unwrap_or_else(|_| {
        tracing::error!("a request's handler panicked");
        let mut response = ApiError::internal().into_response();
        response.extensions_mut().insert(Panicked);
        response
    })
}

fn request_id(request: &Request, state: &ApiState) -> HeaderValue {
    let sent = request.headers().get(REQUEST_ID);
    let given = sent.filter(|id| {
        let bytes = id.as_bytes();
        (1..=MAX_REQUEST_ID_BYTES).contains(&bytes.len()) && bytes.iter().all(u8::is_ascii_graphic)
    });
    if sent.is_some() && given.is_none() {
        state.metrics.request_ids_replaced.inc();
    }
    given.cloned().unwrap_or_else(|| {
        let mut buffer = Uuid::encode_buffer();
        let text = Uuid::now_v7().hyphenated().encode_lower(&mut buffer);
        HeaderValue::from_str(text).unwrap_or(HeaderValue::from_static("unknown"))
    })
}

fn method_name(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::PATCH => "PATCH",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        _ => "OTHER",
    }
}
