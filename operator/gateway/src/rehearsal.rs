//! The answers to a sandbox without a session: correct, canned, made here.
//!
//! A warm sandbox has Claude Code go through one whole turn before anybody claims it, so that its
//! lazy work is done by then. No model is called and no tokens are used.

use std::convert::Infallible;

use bytes::Bytes;
use futures::stream;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use http::{Request, Response};
use http_body_util::{BodyExt as _, LengthLimitError, Limited, StreamBody};
use hyper::body::{Frame, Incoming};
use serde::Deserialize;
use serde_json::{Value, json};
use uuid::Uuid;

use crate::answer::{Body, Problem, json, problem};
use crate::metrics::ModelOutcome;
use crate::model::Route;
use crate::serve::Shared;

/// What the rehearsed model says.
const TEXT: &str = "Ready.";

/// What the message id of a rehearsal starts with. Claude merges messages of one id, so each is new.
const MESSAGE_ID: &str = "msg_rehearsal";

/// Named where a request names no model.
const DEFAULT_MODEL: &str = "rehearsal";

/// What the rehearsal has to know of a request.
#[derive(Debug, Default, Deserialize)]
struct Asked {
    #[serde(default)]
    model: Option<String>,
    #[serde(default)]
    stream: bool,
}

/// Answers one request of an unclaimed sandbox.
pub(crate) async fn answer(shared: &Shared, route: Route, request: Request<Incoming>) -> Response<Body> {
    let body = Limited::new(request.into_body(), shared.limits.rehearsal_body);
    let body = match body.collect().await {
        Ok(body) => body.to_bytes(),
        Err(error) if error.is::<LengthLimitError>() => {
            shared.metrics.model(ModelOutcome::BodyTooLarge);
            return problem(
                Problem::TooLarge,
                "Ash rehearses with small requests only; a session's requests may be larger.",
            );
        }
        Err(_) => return problem(Problem::InvalidRequest, "The request ended too early."),
    };
    shared.metrics.model(ModelOutcome::Rehearsed);
    match route {
        Route::Messages => {
            let Ok(asked) = serde_json::from_slice::<Asked>(&body) else {
                return problem(Problem::InvalidRequest, "The request is not JSON.");
            };
            let model = asked.model.as_deref().unwrap_or(DEFAULT_MODEL);
            if asked.stream {
                streamed(model)
            } else {
                json(&message(model, &json!([{"type": "text", "text": TEXT}]), Some("end_turn")))
            }
        }
        Route::CountTokens => json(&json!({"input_tokens": 1})),
        Route::Models | Route::Hello | Route::Refused => json(&json!({
            "data": [], "first_id": null, "has_more": false, "last_id": null,
        })),
    }
}

fn message(model: &str, content: &Value, stop_reason: Option<&str>) -> Value {
    json!({
        "id": format!("{MESSAGE_ID}_{}", Uuid::new_v4().simple()),
        "type": "message",
        "role": "assistant",
        "model": model,
        "content": content,
        "stop_reason": stop_reason,
        "stop_sequence": null,
        "usage": {
            "input_tokens": 0,
            "cache_creation_input_tokens": 0,
            "cache_read_input_tokens": 0,
            "output_tokens": 0,
        },
    })
}

/// One chunk per event, as the model sends them: Claude's stream reader is warmed too.
fn streamed(model: &str) -> Response<Body> {
    let chunks = events(model).map(|(name, data)| {
        let chunk = Bytes::from(format!("event: {name}\ndata: {data}\n\n"));
        Ok::<_, Infallible>(Frame::data(chunk))
    });
    let body = StreamBody::new(stream::iter(chunks)).map_err(|never| match never {}).boxed_unsync();
    let mut response = Response::new(body);
    let headers = response.headers_mut();
    let events = HeaderValue::from_static("text/event-stream; charset=utf-8");
    headers.insert(CONTENT_TYPE, events);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    response
}

fn events(model: &str) -> [(&'static str, Value); 7] {
    [
        ("message_start", json!({"type": "message_start", "message": message(model, &json!([]), None)})),
        (
            "content_block_start",
            json!({
                "type": "content_block_start",
                "index": 0,
                "content_block": {"type": "text", "text": ""},
            }),
        ),
        ("ping", json!({"type": "ping"})),
        (
            "content_block_delta",
            json!({
                "type": "content_block_delta",
                "index": 0,
                "delta": {"type": "text_delta", "text": TEXT},
            }),
        ),
        ("content_block_stop", json!({"type": "content_block_stop", "index": 0})),
        (
            "message_delta",
            json!({
                "type": "message_delta",
                "delta": {"stop_reason": "end_turn", "stop_sequence": null},
                "usage": {"output_tokens": 0},
            }),
        ),
        ("message_stop", json!({"type": "message_stop"})),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_come_in_the_order_of_the_messages_api() {
        for (name, data) in events("m") {
            assert_eq!(data["type"], name);
        }
        let (_, start) = &events("claude-x")[0];
        assert_eq!(start["message"]["model"], "claude-x");
        assert_eq!(start["message"]["content"], json!([]));
    }
}
