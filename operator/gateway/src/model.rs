//! The model API: which requests are passed on, and how.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::{Bytes, BytesMut};
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE, HeaderMap};
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use hyper::body::{Body as _, Incoming};

use crate::answer::{Body, Problem, full, problem};
use crate::body::{AnswerBody, RequestBody, Running};
use crate::headers::{to_sandbox, to_upstream};
use crate::metrics::{Held, ModelOutcome};
use crate::registry::{Bound, Slots};
use crate::serve::{Shared, drain, frozen};
use crate::upstream::{IDLE_CONNECTIONS, UpstreamTarget, innermost};
use crate::usage::{Scanner, Shape};

/// Longest model id in a path, in bytes.
const MAX_MODEL_ID: usize = 256;

/// What a sandbox may ask of the model API. Nothing else is passed on, so that the key is good for
/// model calls only, not for files, batches or administration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Route {
    /// Claude's probe of its base address, answered here.
    Hello,
    /// A model call.
    Messages,
    /// Counting tokens before a call.
    CountTokens,
    /// The list of models, or one of them.
    Models,
    /// Everything else.
    Refused,
}

/// Decides by method and path. Paths are compared exactly, so none of them needs normalising.
pub(crate) fn route(method: &Method, path: &str) -> Route {
    match (method, path) {
        (&Method::HEAD | &Method::GET, "/api/hello") => Route::Hello,
        (&Method::POST, "/v1/messages") => Route::Messages,
        (&Method::POST, "/v1/messages/count_tokens") => Route::CountTokens,
        (&Method::GET, "/v1/models") => Route::Models,
        (&Method::GET, _) => match path.strip_prefix("/v1/models/") {
            Some(id) if is_model_id(id) => Route::Models,
            _ => Route::Refused,
        },
        _ => Route::Refused,
    }
}

fn is_model_id(id: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:@".contains(&byte);
    !id.is_empty() && id.len() <= MAX_MODEL_ID && !id.contains("..") && id.bytes().all(plain)
}

/// Passes one request on and its answer back.
pub(crate) async fn forward(
    shared: &Shared,
    bound: Arc<Bound>,
    slots: &Slots,
    route: Route,
    request: Request<Incoming>,
) -> Response<Body> {
    let metrics = &shared.metrics;
    let target = bound.upstream.clone();
    if !target.has_key {
        metrics.model(ModelOutcome::NoKey);
        drain(request.into_body(), shared.limits.rehearsal_body).await;
        return problem(
            Problem::Permission,
            "Ash has no key for the model API: start the server with ANTHROPIC_API_KEY or \
             ANTHROPIC_AUTH_TOKEN.",
        );
    }
    let Ok(permit) = slots.model_calls.clone().try_acquire_owned() else {
        metrics.model(ModelOutcome::Busy);
        drain(request.into_body(), shared.limits.rehearsal_body).await;
        return problem(Problem::Overloaded, "This sandbox has as many model calls running as Ash permits at once.");
    };
    let bound_bytes = shared.limits.request_body;
    if request.body().size_hint().lower() > bound_bytes {
        return too_large(shared, bound_bytes);
    }
    let (head, body) = request.into_parts();
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
    let Some(url) = target.url(path) else {
        metrics.model(ModelOutcome::PathRefused);
        return problem(Problem::InvalidRequest, "Ash cannot read this address.");
    };
    let headers = to_upstream(&head.headers, &target.headers);
    let mut outgoing = target.client.request(head.method, url).headers(headers);
    let (body, exceeded) = RequestBody::new(body, bound_bytes, metrics.clone());
    if !body.is_end_stream() {
        outgoing = outgoing.body(reqwest::Body::wrap(body));
    }
    let running_call = Held::new(&metrics.model_calls);
    if usize::try_from(metrics.model_calls.get()).is_ok_and(|running| running > IDLE_CONNECTIONS) {
        metrics.calls_beyond_idle.inc();
    }
    let answer = tokio::select! {
        biased;
        () = bound.cut.cancelled() => {
            metrics.model(ModelOutcome::Cut);
            return cut(shared);
        }
        answer = outgoing.send() => answer,
    };
    let answer = match answer {
        Ok(answer) => http::Response::<reqwest::Body>::from(answer),
        Err(_) if exceeded.load(Ordering::Relaxed) => return too_large(shared, bound_bytes),
        Err(error) => return unreachable(shared, &bound, &target, error),
    };
    if answer.status().is_client_error() || answer.status().is_server_error() {
        metrics.model(ModelOutcome::UpstreamError);
        return tokio::select! {
            biased;
            () = bound.cut.cancelled() => cut(shared),
            response = error_answer(shared, &target, answer) => response,
        };
    }
    metrics.model(ModelOutcome::Answered);
    let (head, body) = answer.into_parts();
    let scanner = scanner(route, head.status, &head.headers);
    let running =
        Running { bound, sink: shared.usage.clone(), metrics: metrics.clone(), _place: (permit, running_call) };
    let headers = to_sandbox(&head.headers, |value| target.redact(value).is_some());
    let mut response = Response::new(AnswerBody::new(body, scanner, running).boxed_unsync());
    *response.status_mut() = head.status;
    *response.headers_mut() = headers;
    response
}

/// Only answers to model calls carry counts that cost something.
fn scanner(route: Route, status: StatusCode, headers: &HeaderMap) -> Option<Scanner> {
    if route != Route::Messages || !status.is_success() || headers.contains_key(CONTENT_ENCODING) {
        return None;
    }
    let kind = headers.get(CONTENT_TYPE)?.to_str().ok()?;
    if kind.starts_with("text/event-stream") {
        Some(Scanner::new(Shape::Events))
    } else if kind.starts_with("application/json") {
        Some(Scanner::new(Shape::Document))
    } else {
        None
    }
}

/// Passes an error on as it came, but for secrets: some servers repeat the key that they refuse.
async fn error_answer(shared: &Shared, target: &UpstreamTarget, answer: Response<reqwest::Body>) -> Response<Body> {
    let (head, mut body) = answer.into_parts();
    let bound = shared.limits.error_body;
    let mut content = BytesMut::new();
    while let Some(Ok(frame)) = body.frame().await {
        let Ok(data) = frame.into_data() else {
            continue;
        };
        let taken = data.len().min(bound - content.len());
        content.extend_from_slice(&data[..taken]);
        if taken < data.len() {
            shared.metrics.error_bodies_truncated.inc();
            break;
        }
    }
    let content = match target.redact(&content) {
        Some(clean) => Bytes::from(clean),
        None => content.freeze(),
    };
    let mut headers = to_sandbox(&head.headers, |value| target.redact(value).is_some());
    headers.remove(CONTENT_LENGTH);
    let mut response = Response::new(full(content));
    *response.status_mut() = head.status;
    *response.headers_mut() = headers;
    response
}

fn unreachable(shared: &Shared, bound: &Bound, target: &UpstreamTarget, error: reqwest::Error) -> Response<Body> {
    let (outcome, kind, what) = if error.is_timeout() {
        let timeout = (ModelOutcome::Timeout, Problem::Timeout);
        (timeout.0, timeout.1, "did not answer in time")
    } else if error.is_connect() {
        let what = "could not be reached";
        (ModelOutcome::Unreachable, Problem::BadGateway, what)
    } else {
        let what = "closed the connection without an answer";
        (ModelOutcome::Unreachable, Problem::BadGateway, what)
    };
    shared.metrics.model(outcome);
    let cause = innermost(&error.without_url());
    let cause = match target.redact(cause.as_bytes()) {
        Some(clean) => String::from_utf8_lossy(&clean).into_owned(),
        None => cause,
    };
    tracing::warn!(
        sandbox = %bound.sandbox,
        session = %bound.holder.session,
        cause,
        "the model API {what}"
    );
    problem(kind, &format!("Ash: the model API {what}. The server's log has the cause."))
}

fn too_large(shared: &Shared, bound: u64) -> Response<Body> {
    shared.metrics.model(ModelOutcome::BodyTooLarge);
    let mebibytes = bound >> 20;
    problem(Problem::TooLarge, &format!("Ash passes requests of at most {mebibytes} MiB to the model."))
}

/// The answer to a call that is cut before the model has answered.
fn cut(shared: &Shared) -> Response<Body> {
    if shared.lease.is_over() { frozen() } else { released() }
}

/// The answer to everything that a released sandbox asks.
pub(crate) fn released() -> Response<Body> {
    problem(Problem::Permission, "This sandbox no longer belongs to a session.")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_model_calls_are_passed_on() {
        for (method, path, expected) in [
            (Method::HEAD, "/api/hello", Route::Hello),
            (Method::GET, "/api/hello", Route::Hello),
            (Method::POST, "/v1/messages", Route::Messages),
            (Method::POST, "/v1/messages/count_tokens", Route::CountTokens),
            (Method::GET, "/v1/models", Route::Models),
            (Method::GET, "/v1/models/claude-x-4@20260101", Route::Models),
            (Method::GET, "/v1/messages", Route::Refused),
            (Method::POST, "/v1/messages/", Route::Refused),
            (Method::POST, "/v1/messages/batches", Route::Refused),
            (Method::POST, "//v1/messages", Route::Refused),
            (Method::POST, "/v1/files", Route::Refused),
            (Method::GET, "/v1/files", Route::Refused),
            (Method::GET, "/v1/organizations/api_keys", Route::Refused),
            (Method::GET, "/v1/models/../files", Route::Refused),
            (Method::GET, "/v1/models/%2e%2e/files", Route::Refused),
            (Method::GET, "/v1/models/..", Route::Refused),
            (Method::GET, "/v1/models/", Route::Refused),
            (Method::DELETE, "/v1/models/x", Route::Refused),
            (Method::POST, "/v1/messages/../files", Route::Refused),
            (Method::POST, "/v1/complete", Route::Refused),
        ] {
            assert_eq!(route(&method, path), expected, "{method} {path}");
        }
    }
}
