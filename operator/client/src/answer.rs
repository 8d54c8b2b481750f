//! Reading an answer: bounded, and a refusal as the server's own sentence.

use std::time::Duration;

use ash_core::sse::Position;
use reqwest::{
    Response,
    header::{HeaderName, RETRY_AFTER},
};
use serde::{Deserialize, de::DeserializeOwned};

use crate::Error;

/// The most bytes of an answer that is no stream: 64 MiB. A longer one is an error.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// What is shown of an error's body that is no error of Ash.
const SHOWN_CHARACTERS: usize = 200;

/// The body of an error.
#[derive(Deserialize)]
struct Refusal {
    error: String,
}

/// The header that says behind which position a stream begins.
const STREAM_AFTER: HeaderName = HeaderName::from_static("ash-stream-after");

/// Behind which position a stream begins, where the server says so.
pub(crate) fn position(response: &Response) -> Option<Position> {
    response.headers().get(STREAM_AFTER)?.to_str().ok()?.parse().ok()
}

/// Reads an answer as JSON.
pub(crate) async fn json<T: DeserializeOwned>(response: Response) -> Result<T, Error> {
    let what = response.url().path().to_owned();
    let body = body(response).await?;
    serde_json::from_slice(&body).map_err(|error| Error::InvalidAnswer { what, reason: error.to_string() })
}

/// Passes an answer with a status of success, and turns every other one into its error.
pub(crate) async fn accepted(response: Response) -> Result<Response, Error> {
    let status = response.status();
    if status.is_success() {
        return Ok(response);
    }
    let retry_after = response
        .headers()
        .get(RETRY_AFTER)
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.trim().parse().ok())
        .map(Duration::from_secs);
    let body = body(response).await.unwrap_or_default();
    let message = if let Ok(refusal) = serde_json::from_slice::<Refusal>(&body) {
        refusal.error
    } else {
        let text: String = String::from_utf8_lossy(&body).trim().chars().take(SHOWN_CHARACTERS).collect();
        let separator = if text.is_empty() { "" } else { ": " };
        format!("the server answered {status}{separator}{text}")
    };
    Err(Error::Refused { status: status.as_u16(), message, retry_after })
}

async fn body(mut response: Response) -> Result<Vec<u8>, Error> {
    let url = response.url().clone();
    let mut body = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(|error| transport(&url, &error))? {
        if body.len() + piece.len() > MAX_ANSWER_BYTES {
            let reason = format!("it is longer than {MAX_ANSWER_BYTES} bytes");
            return Err(Error::InvalidAnswer { what: url.path().to_owned(), reason });
        }
        body.extend_from_slice(&piece);
    }
    Ok(body)
}

/// The error of a connection: nobody there, or cut on the way.
pub(crate) fn transport(url: &url::Url, error: &reqwest::Error) -> Error {
    let url = url.origin().ascii_serialization();
    let reason = root(error);
    if error.is_connect() { Error::Unreachable { url, reason } } else { Error::Cut { url, reason } }
}

/// The innermost cause: what the system said, without what every layer adds to it.
fn root(error: &reqwest::Error) -> String {
    if error.is_timeout() {
        return "it did not answer in time".to_owned();
    }
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
