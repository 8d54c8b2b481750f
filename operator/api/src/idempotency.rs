//! The `Idempotency-Key` header.

use http::HeaderMap;

use crate::{error::ApiError, fields::invalid};

/// The header's name.
const HEADER: &str = "idempotency-key";

/// The longest key.
const MAX_KEY_BYTES: usize = 255;

/// The key of a request, where it has one.
pub(crate) fn key(headers: &HeaderMap) -> Result<Option<&str>, ApiError> {
    let Some(value) = headers.get(HEADER) else { return Ok(None) };
    value
        .to_str()
        .ok()
        .filter(|key| !key.is_empty() && key.len() <= MAX_KEY_BYTES)
        .map(Some)
        .ok_or_else(|| invalid("Idempotency-Key", &format!("it has 1 to {MAX_KEY_BYTES} visible ASCII characters")))
}
