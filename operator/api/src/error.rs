//! What a request that fails is answered: `{"error": "<sentence>", "statusCode": <int>}`.

use ash_bundle::BundleError;
use ash_core::{
    ports::{ReadError, ResourceError, RunnerError, StoreError},
    session::Impossible,
};
use axum::{
    Json,
    extract::State,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, HeaderValue, StatusCode, Uri, header};
use serde::Serialize;

use crate::{auth, model_options, spelling::Misspelt, state::ApiState};

/// Seconds after which a client may try again what found no room.
const RETRY_CAPACITY_SECONDS: u64 = 5;
/// Seconds after which a client may try again what met a restart or a database that did not answer.
pub(crate) const RETRY_SOON_SECONDS: u64 = 2;
/// Seconds after which a client may try again what met a full disk: a person has to act.
const RETRY_FULL_SECONDS: u64 = 60;

/// A refusal or failure, as the client sees it.
#[derive(Debug)]
pub(crate) struct ApiError {
    status: StatusCode,
    message: String,
    retry_after_seconds: Option<u64>,
    close: bool,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ErrorBody<'a> {
    error: &'a str,
    status_code: u16,
}

impl ApiError {
    pub(crate) fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self { status, message: message.into(), retry_after_seconds: None, close: false }
    }

    pub(crate) fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    pub(crate) fn internal() -> Self {
        Self::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "the server failed on this request: its log says more, under the request's id",
        )
    }

    pub(crate) fn retry_after(mut self, seconds: u64) -> Self {
        self.retry_after_seconds = Some(seconds);
        self
    }

    /// The connection cannot be used for another request: the body of this one was not read.
    pub(crate) fn closing(mut self) -> Self {
        self.close = true;
        self
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let body = ErrorBody { error: &self.message, status_code: self.status.as_u16() };
        let mut response = (self.status, Json(body)).into_response();
        let headers = response.headers_mut();
        if let Some(seconds) = self.retry_after_seconds {
            headers.insert(header::RETRY_AFTER, seconds.into());
        }
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if self.close {
            headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response
    }
}

impl From<StoreError> for ApiError {
    fn from(error: StoreError) -> Self {
        // What a database says about itself may name files of the server: it goes to the log only.
        match error {
            StoreError::Conflict(message) => Self::new(StatusCode::CONFLICT, message),
            StoreError::NotFound(message) => Self::not_found(message),
            StoreError::Overtaken { .. } => {
                tracing::warn!(%error, "a session has another owner");
                Self::new(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "the session is moving to another place: try again in a moment",
                )
                .retry_after(RETRY_SOON_SECONDS)
            }
            StoreError::Full => {
                tracing::error!(%error, "the store is full");
                Self::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string()).retry_after(RETRY_FULL_SECONDS)
            }
            StoreError::Unavailable(_) => {
                tracing::error!(%error, "the store does not answer");
                Self::new(StatusCode::SERVICE_UNAVAILABLE, "the database is unavailable: try again in a moment")
                    .retry_after(RETRY_SOON_SECONDS)
            }
            StoreError::Damaged(_) => {
                tracing::error!(%error, "the store is damaged");
                Self::internal()
            }
        }
    }
}

impl From<RunnerError> for ApiError {
    fn from(error: RunnerError) -> Self {
        let status = match &error {
            RunnerError::Store(store) => return store.clone().into(),
            RunnerError::TurnInProgress | RunnerError::PermissionClosed | RunnerError::LogFull { .. } => {
                StatusCode::CONFLICT
            }
            RunnerError::State(_) | RunnerError::OptionRefused(_) => StatusCode::BAD_REQUEST,
            RunnerError::UnknownPermission => StatusCode::NOT_FOUND,
            RunnerError::NoCapacity { .. } => {
                return Self::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string())
                    .retry_after(RETRY_CAPACITY_SECONDS);
            }
            RunnerError::ShuttingDown
            | RunnerError::Unreachable(_)
            | RunnerError::Untrusted
            | RunnerError::Incompatible => {
                return Self::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string()).retry_after(RETRY_SOON_SECONDS);
            }
            RunnerError::Internal(_) => {
                tracing::error!(%error, "the runner failed");
                StatusCode::INTERNAL_SERVER_ERROR
            }
        };
        Self::new(status, error.to_string())
    }
}

impl From<ResourceError> for ApiError {
    fn from(error: ResourceError) -> Self {
        let status = match &error {
            ResourceError::Unavailable(reason) => {
                tracing::warn!(reason, "the API server does not answer");
                let text = "the Kubernetes API server does not answer: running sessions go on, try again in a moment";
                return Self::new(StatusCode::SERVICE_UNAVAILABLE, text).retry_after(RETRY_SOON_SECONDS);
            }
            ResourceError::Conflict(_) => StatusCode::CONFLICT,
            ResourceError::Refused(_) => StatusCode::BAD_REQUEST,
            ResourceError::NotFound(_) => StatusCode::NOT_FOUND,
        };
        Self::new(status, error.to_string())
    }
}

impl From<ReadError> for ApiError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Store(store) => store.into(),
            ReadError::NotBegun(reason) => Self::new(StatusCode::CONFLICT, reason),
            ReadError::Unwritten(_) => {
                Self::new(StatusCode::SERVICE_UNAVAILABLE, error.to_string()).retry_after(RETRY_FULL_SECONDS)
            }
        }
    }
}

impl From<model_options::Refused> for ApiError {
    fn from(error: model_options::Refused) -> Self {
        Self::bad_request(error.to_string())
    }
}

impl From<Misspelt> for ApiError {
    fn from(error: Misspelt) -> Self {
        Self::bad_request(error.to_string())
    }
}

impl From<Impossible> for ApiError {
    fn from(error: Impossible) -> Self {
        Self::bad_request(error.to_string())
    }
}

impl From<BundleError> for ApiError {
    fn from(error: BundleError) -> Self {
        match error {
            BundleError::TooLarge | BundleError::TooManyFiles => {
                Self::new(StatusCode::PAYLOAD_TOO_LARGE, error.to_string())
            }
            _ => Self::bad_request(error.to_string()),
        }
    }
}

/// Answers what no route takes. Below `/api/` only those with a key learn that there is nothing.
pub(crate) async fn unknown_route(State(state): State<ApiState>, uri: Uri, headers: HeaderMap) -> ApiError {
    if uri.path().starts_with("/api")
        && let Err(error) = auth::authenticate(&state, &headers).await
    {
        return error;
    }
    ApiError::not_found("there is nothing at this address")
}

/// Answers a method that a route does not take.
pub(crate) async fn wrong_method() -> ApiError {
    ApiError::new(StatusCode::METHOD_NOT_ALLOWED, "this address does not take this method")
}
