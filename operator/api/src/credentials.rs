//! Stored credentials: added, listed without their secrets, deleted, and what a session takes from one.

use std::{collections::BTreeMap, sync::Arc};

use ash_core::{
    environment,
    id::TenantId,
    ports::{Clear, Credential, CredentialKind, CredentialStore},
};
use axum::{
    Extension, Json,
    extract::State,
    response::{IntoResponse, Response},
};
use http::StatusCode;
use secrecy::ExposeSecret as _;
use serde::Serialize;
use serde_json::json;
use uuid::Uuid;

use crate::{
    auth::Caller,
    body::{BoundedBody, MAX_BODY_BYTES},
    error::ApiError,
    fields::{Fields, Path, invalid},
    state::ApiState,
    views::Time,
};

/// What a request for a credential can have.
const FIELDS: [&str; 3] = ["type", "key", "label"];
/// The longest label.
const MAX_LABEL_BYTES: usize = 128;
/// The longest secret.
const MAX_KEY_BYTES: usize = 64 << 10;
/// How the tokens of the model API begin that are sent as `Authorization: Bearer`.
const TOKEN_PREFIX: &str = "sk-ant-oat";
/// What the name of one that was added here begins with; its id and its label follow. Several may have one label.
const ADDED_HERE: &str = "api/";

/// A credential, without its secret.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct CredentialView<'a> {
    id: Uuid,
    #[serde(rename = "type")]
    kind: &'static str,
    label: &'a str,
    active: bool,
    created_at: Time,
    last_used_at: Option<Time>,
}

impl<'a> From<&'a Credential> for CredentialView<'a> {
    fn from(credential: &'a Credential) -> Self {
        let added_here = credential.name.strip_prefix(ADDED_HERE).and_then(|rest| rest.split_once('/'));
        Self {
            id: credential.id,
            kind: match credential.kind {
                CredentialKind::AnthropicKey | CredentialKind::AnthropicToken => "anthropic",
                CredentialKind::Custom => "custom",
            },
            label: added_here.map_or(&credential.name, |(_, label)| label),
            active: true,
            created_at: Time(credential.created_at),
            last_used_at: None,
        }
    }
}

fn port(state: &ApiState) -> Result<&Arc<dyn CredentialStore>, ApiError> {
    state.optional.credentials.as_ref().ok_or_else(|| ApiError::not_found("this server keeps no credentials"))
}

fn unknown() -> ApiError {
    ApiError::not_found("Credential not found")
}

/// `POST /api/credentials`: encrypted before it is stored; its secret never comes back.
pub(crate) async fn create(
    State(state): State<ApiState>,
    Extension(Caller(tenant)): Extension<Caller>,
    body: BoundedBody<MAX_BODY_BYTES>,
) -> Result<Response, ApiError> {
    let fields = Fields::parse(&body.bytes)?;
    fields.check_spelling(&FIELDS)?;
    let kind: String = fields.required("type")?;
    let key: String = fields.required("key")?;
    let label = fields.word("label", MAX_LABEL_BYTES)?.unwrap_or_else(|| "default".to_owned());
    let secret = Clear::new(key.trim().as_bytes().into());
    if secret.expose_secret().is_empty() || secret.expose_secret().len() > MAX_KEY_BYTES {
        return Err(invalid("key", &format!("it must be a text of 1 to {MAX_KEY_BYTES} bytes")));
    }
    let kind = match &*kind {
        "anthropic" if key.trim().chars().any(|character| !character.is_ascii_graphic()) => {
            return Err(invalid("key", "a key of the model API has no spaces and only ASCII characters"));
        }
        "anthropic" if key.trim().starts_with(TOKEN_PREFIX) => CredentialKind::AnthropicToken,
        "anthropic" => CredentialKind::AnthropicKey,
        "custom" => {
            let variables = variables(&secret)?;
            environment::check(&variables).map_err(|error| ApiError::bad_request(format!("key: {error}")))?;
            CredentialKind::Custom
        }
        "openai" | "bedrock" => {
            return Err(invalid("type", "agents run Claude Code on the Anthropic API: use `anthropic`, or `custom`"));
        }
        _ => return Err(invalid("type", "it must be `anthropic` or `custom`")),
    };
    let name = format!("{ADDED_HERE}{}/{label}", Uuid::now_v7());
    let credential = port(&state)?.put_credential(&tenant, &name, kind, &secret).await?;
    let view = CredentialView::from(&credential);
    Ok((StatusCode::CREATED, Json(json!({ "credential": view }))).into_response())
}

/// `GET /api/credentials`: the newest first.
pub(crate) async fn list(
    State(state): State<ApiState>,
    Extension(Caller(tenant)): Extension<Caller>,
) -> Result<Response, ApiError> {
    let credentials = port(&state)?.credentials(&tenant).await?;
    let views: Vec<CredentialView<'_>> = credentials.iter().map(CredentialView::from).collect();
    Ok(Json(json!({ "credentials": views })).into_response())
}

/// `DELETE /api/credentials/{id}`: sessions that have it are refused their next message.
pub(crate) async fn delete(
    State(state): State<ApiState>,
    Extension(Caller(tenant)): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let id: Uuid = id.parse().map_err(|_| unknown())?;
    if !port(&state)?.delete_credential(&tenant, id).await? {
        return Err(unknown());
    }
    Ok(Json(json!({})).into_response())
}

/// The variables of a custom credential.
fn variables(secret: &Clear) -> Result<BTreeMap<String, String>, ApiError> {
    serde_json::from_slice(secret.expose_secret())
        .map_err(|_| invalid("key", "that of a custom credential is a JSON object of variables: {\"NAME\": \"value\"}"))
}

/// What a session takes from a credential.
#[derive(Default)]
pub(crate) struct Taken {
    /// The credential that its model calls have.
    pub(crate) model: Option<Uuid>,
    /// Variables that its sandbox has.
    pub(crate) variables: BTreeMap<String, String>,
}

/// Looks a session's credential up: one for the model goes to the gateway, a custom one to the sandbox.
pub(crate) async fn take(state: &ApiState, tenant: &TenantId, id: Option<String>) -> Result<Taken, ApiError> {
    let Some(id) = id else { return Ok(Taken::default()) };
    let missing = || ApiError::not_found("credentialId: there is no such credential");
    let id: Uuid = id.parse().map_err(|_| missing())?;
    let (credential, secret) = port(state)?.reveal_credential(tenant, id).await?.ok_or_else(missing)?;
    if credential.kind != CredentialKind::Custom {
        return Ok(Taken { model: Some(id), variables: BTreeMap::new() });
    }
    Ok(Taken { model: None, variables: variables(&secret)? })
}
