//! The answers that the gateway makes itself, in the model API's own error shape.

use bytes::Bytes;
use http::header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER};
use http::{Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full};
use serde_json::{Value, json};
use thiserror::Error;

/// Why a body ended before its end. Nobody reads it: it makes hyper close the connection.
#[derive(Debug, Error)]
pub(crate) enum BodyError {
    /// The binding that the answer belongs to is over.
    #[error("the sandbox was released")]
    Released,
    /// The model's side failed.
    #[error("the model's answer was cut")]
    AnswerCut,
    /// More than the bound.
    #[error("the request body is too large")]
    RequestTooLarge,
    /// The sandbox's side failed.
    #[error("the request was cut")]
    RequestCut,
}

/// The body of every answer.
pub(crate) type Body = UnsyncBoxBody<Bytes, BodyError>;

/// 529, which Claude takes as "overloaded" and retries.
const OVERLOADED: u16 = 529;

/// Seconds after which an overloaded answer may be retried.
const RETRY_SECONDS: u64 = 1;

/// What went wrong, with the status and the type name that the model API uses for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Problem {
    Authentication,
    Permission,
    TooLarge,
    MethodNotAllowed,
    InvalidRequest,
    BadGateway,
    Timeout,
    Overloaded,
}

impl Problem {
    fn status(self) -> StatusCode {
        match self {
            Self::Authentication => StatusCode::UNAUTHORIZED,
            Self::Permission => StatusCode::FORBIDDEN,
            Self::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::InvalidRequest => StatusCode::BAD_REQUEST,
            Self::BadGateway => StatusCode::BAD_GATEWAY,
            Self::Timeout => StatusCode::GATEWAY_TIMEOUT,
            Self::Overloaded => StatusCode::from_u16(OVERLOADED).unwrap_or(StatusCode::SERVICE_UNAVAILABLE),
        }
    }

    fn name(self) -> &'static str {
        match self {
            Self::Authentication => "authentication_error",
            Self::Permission => "permission_error",
            Self::TooLarge => "request_too_large",
            Self::MethodNotAllowed | Self::InvalidRequest => "invalid_request_error",
            Self::BadGateway => "api_error",
            Self::Timeout => "timeout_error",
            Self::Overloaded => "overloaded_error",
        }
    }
}

/// An error answer of the model API.
pub(crate) fn problem(problem: Problem, message: &str) -> Response<Body> {
    let mut response = json(&json!({
        "type": "error",
        "error": { "type": problem.name(), "message": message },
    }));
    *response.status_mut() = problem.status();
    if problem == Problem::Overloaded {
        let seconds = HeaderValue::from(RETRY_SECONDS);
        response.headers_mut().insert(RETRY_AFTER, seconds);
    }
    response
}

/// 200 with a JSON document.
pub(crate) fn json(value: &Value) -> Response<Body> {
    let mut response = Response::new(full(value.to_string()));
    let json = HeaderValue::from_static("application/json");
    response.headers_mut().insert(CONTENT_TYPE, json);
    response
}

/// A body that is there already.
pub(crate) fn full(content: impl Into<Bytes>) -> Body {
    Full::new(content.into()).map_err(|never| match never {}).boxed_unsync()
}
