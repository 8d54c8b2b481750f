//! Reads a request's body: bounded in bytes, in time, and in memory over all requests.

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::{FromRequest, Request},
};
use bytes::{Bytes, BytesMut};
use http::{HeaderMap, StatusCode, header};
use http_body_util::BodyExt as _;
use tokio::{
    sync::{OwnedSemaphorePermit, Semaphore},
    time::timeout,
};

use crate::{error::ApiError, metrics::Metrics, state::ApiState};

/// The longest body of a message, and of everything that has no bound of its own: 50 MB, as the contract says.
pub(crate) const MAX_BODY_BYTES: usize = 50_000_000;

/// The longest body of a deployment: 100 MiB of files in base64 (4/3), their paths and escapes.
pub(crate) const MAX_DEPLOYMENT_BYTES: usize = 150 << 20;

/// Silence in the middle of a body after which it is given up with 408.
const STALL: Duration = Duration::from_secs(30);

/// Bodies up to this size are not counted: 1 MiB. Bound by the number of connections.
const SMALL_BYTES: usize = 1 << 20;

/// MiB that larger bodies may take in all requests together. At the bound: 503 with `Retry-After`.
const LARGE_BODIES_MIB: usize = 1024;

/// Bytes that are read and dropped behind a body that is too long, so that its sender gets to read the answer.
const MAX_DISCARDED_BYTES: usize = 256 << 20;

/// For how long they are.
const DISCARD: Duration = Duration::from_secs(10);

/// The room for large bodies.
pub(crate) struct LargeBodies(Arc<Semaphore>);

impl Default for LargeBodies {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(LARGE_BODIES_MIB)))
    }
}

/// A body of at most `LIMIT` bytes. Holds its share of the room for large bodies until it is dropped.
pub(crate) struct BoundedBody<const LIMIT: usize> {
    pub(crate) bytes: Bytes,
    /// Given back when the body is dropped.
    _room: Option<OwnedSemaphorePermit>,
}

impl<const LIMIT: usize> FromRequest<ApiState> for BoundedBody<LIMIT> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &ApiState) -> Result<Self, ApiError> {
        let (parts, body) = request.into_parts();
        let result = read(&parts.headers, body, LIMIT, state).await;
        if result.is_err() {
            state.metrics.bodies_refused.inc();
        }
        let (bytes, room) = result?;
        Ok(Self { bytes, _room: room })
    }
}

async fn read(
    headers: &HeaderMap,
    mut body: Body,
    limit: usize,
    state: &ApiState,
) -> Result<(Bytes, Option<OwnedSemaphorePermit>), ApiError> {
    let large = &state.large_bodies;
    let announced: Option<usize> =
        headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
    let mut room = None;
    if announced.is_some_and(|length| length > limit) {
        if !headers.contains_key(header::EXPECT) {
            discard(body, &state.metrics).await;
        }
        return Err(too_large(limit));
    }
    if announced.is_some_and(|length| length > SMALL_BYTES) {
        room = Some(large.take(announced.unwrap_or(limit))?);
    }
    // The usual body is one piece, and is not copied.
    let mut whole = None;
    let mut joined = BytesMut::new();
    let mut length = 0;
    loop {
        let data = match timeout(STALL, body.frame()).await {
            Ok(Some(Ok(frame))) => frame.into_data().unwrap_or_default(),
            Ok(None) => break,
            Ok(Some(Err(_))) => return Err(ApiError::bad_request("the body ended early").closing()),
            Err(_) => {
                return Err(ApiError::new(StatusCode::REQUEST_TIMEOUT, "the body did not arrive in time").closing());
            }
        };
        length += data.len();
        if length > limit {
            drop((whole, joined));
            discard(body, &state.metrics).await;
            return Err(too_large(limit));
        }
        if room.is_none() && length > SMALL_BYTES {
            room = Some(large.take(limit)?);
        }
        if length == data.len() {
            whole = Some(data);
        } else {
            if let Some(first) = whole.take() {
                joined.reserve(announced.unwrap_or_default().max(length));
                joined.extend_from_slice(&first);
            }
            joined.extend_from_slice(&data);
        }
    }
    Ok((whole.unwrap_or_else(|| joined.freeze()), room))
}

fn too_large(limit: usize) -> ApiError {
    let megabytes = limit / 1_000_000;
    ApiError::new(StatusCode::PAYLOAD_TOO_LARGE, format!("the body has more than {megabytes} MB: send less")).closing()
}

/// Reads and drops the rest of a body, within bounds: a client that still writes when its connection is closed would never see
/// why.
async fn discard(mut body: Body, metrics: &Metrics) {
    let read = async {
        let mut discarded = 0;
        while let Some(Ok(frame)) = body.frame().await {
            discarded += frame.data_ref().map_or(0, Bytes::len);
            if discarded > MAX_DISCARDED_BYTES {
                return false;
            }
        }
        true
    };
    if !timeout(DISCARD, read).await.unwrap_or(false) {
        metrics.discards_cut_off.inc();
    }
}

impl LargeBodies {
    fn take(&self, bytes: usize) -> Result<OwnedSemaphorePermit, ApiError> {
        let mebibytes = u32::try_from(bytes.div_ceil(1 << 20)).unwrap_or(u32::MAX);
        self.0.clone().try_acquire_many_owned(mebibytes).map_err(|_| {
            ApiError::new(StatusCode::SERVICE_UNAVAILABLE, "too many large requests at once: try again in a moment")
                .retry_after(1)
                .closing()
        })
    }
}
