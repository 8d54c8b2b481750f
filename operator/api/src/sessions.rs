//! Sessions: create, list, get, end, interrupt, pause, stop, resume.

use std::collections::BTreeMap;

use ash_core::{
    agent::AgentVersion,
    environment,
    id::SessionId,
    ports::{NewSession, ResourceError, RunnerError, SessionFilter, SessionRequest, StoreError},
    session::{Closing, Session, SessionState},
};
use ash_protocol::options::SessionOptions;
use axum::{
    Extension, Json,
    extract::State,
    response::{IntoResponse, Response},
};
use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};

use crate::{
    agents::{self, MAX_MODEL_BYTES},
    auth::Caller,
    body::{BoundedBody, MAX_BODY_BYTES},
    credentials,
    error::ApiError,
    fields::{Fields, Parameters, Path, invalid},
    idempotency, model_options,
    state::{ApiState, to_the_end},
    views::SessionView,
};

/// Entries of `metadata`.
const MAX_METADATA_ENTRIES: usize = 64;
/// The longest key of an entry.
const MAX_METADATA_KEY_BYTES: usize = 128;
/// The longest value of an entry.
const MAX_METADATA_VALUE_BYTES: usize = 1024;
/// Tools, beta flags, servers or sub-agents in one option.
const MAX_LIST_ENTRIES: usize = 256;
/// The longest option that is a list or an object, as JSON: 1 MiB.
const MAX_OPTION_BYTES: usize = 1 << 20;
/// What a request for a session can have.
const FIELDS: [&str; 13] = [
    "agent",
    "credentialId",
    "extraEnv",
    "model",
    "mcpServers",
    "systemPrompt",
    "permissionMode",
    "allowedTools",
    "disallowedTools",
    "betas",
    "subagents",
    "initialAgent",
    "metadata",
];
/// Sessions on a page of a listing where the request says nothing.
const DEFAULT_PAGE: u32 = 100;
/// Sessions on a page at the most.
const MAX_PAGE: u32 = 1000;

/// `POST /api/sessions`: durable when it answers; its sandbox may still be starting.
pub(crate) async fn create(
    State(state): State<ApiState>,
    Extension(Caller(tenant)): Extension<Caller>,
    headers: HeaderMap,
    body: BoundedBody<MAX_BODY_BYTES>,
) -> Result<Response, ApiError> {
    let fields = Fields::parse(&body.bytes)?;
    fields.check_spelling(&FIELDS)?;
    let agent_name: String = fields.required("agent")?;
    let mut options = session_options(&fields)?;
    let metadata = metadata(&fields)?;
    let extra: BTreeMap<String, String> = fields.get("extraEnv")?.unwrap_or_default();
    environment::check(&extra).map_err(|error| ApiError::bad_request(format!("extraEnv: {error}")))?;
    let taken = credentials::take(&state, &tenant, fields.get("credentialId")?).await?;
    let idempotency_key = idempotency::key(&headers)?.map(ToOwned::to_owned);
    let agent = state.store.agent(&tenant, &agent_name).await?.ok_or_else(agents::unknown)?;
    model_options::check_name(options.model.as_deref())?;
    if options.model.is_none() && agent.version.settings.model.is_none() {
        options.model = model_options::of_initial_agent(&options);
    }
    let mut own = taken.variables;
    own.extend(extra);
    let request = SessionRequest {
        tenant: tenant.clone(),
        agent: agent.name.clone(),
        version: agent.version.number,
        options: SessionOptions { environment: own.clone(), ..options.clone() },
        metadata: metadata.clone(),
        credential: taken.model,
        idempotency_key: idempotency_key.clone(),
    };
    options.environment = agent.version.settings.env.clone();
    options.environment.extend(own);
    let new = NewSession {
        id: SessionId::new(),
        tenant,
        agent: agent.id,
        agent_name: agent.name,
        agent_version: agent.version.number,
        options,
        metadata,
        credential: taken.model,
        idempotency_key,
    };
    to_the_end(async move {
        let agent = new.agent_name.clone();
        let (session, created) = match of_key(&state, &new).await? {
            Some(session) => (session, false),
            None => make(&state, new, request).await?,
        };
        if session.agent_name != agent {
            let text = format!(
                "Idempotency-Key: it made a session of the agent {:?}: take another one",
                session.agent_name.as_str()
            );
            return Err(ApiError::new(StatusCode::CONFLICT, text));
        }
        tracing::Span::current().record("session", tracing::field::display(session.id));
        let version = state.version_of(&session).await?;
        // A repeat finds a session that is placed, unless the first request's server died in between.
        let is_waiting = session.state == SessionState::Starting
            || (session.state == SessionState::Active && session.sandbox.is_none());
        let session = if created || is_waiting { state.runner.place(session, version.clone()).await? } else { session };
        Ok((StatusCode::CREATED, single(&session, &version)).into_response())
    })
    .await?
}

/// The session that an earlier request with the same key made. Looked for before there is a resource: that may have ended and
/// gone, or be of another agent, and another one would be nobody's.
async fn of_key(state: &ApiState, new: &NewSession) -> Result<Option<Session>, ApiError> {
    match &new.idempotency_key {
        Some(key) => Ok(state.store.session_of_key(&new.tenant, key).await?),
        None => Ok(None),
    }
}

/// Makes a session, in a cluster by its resource.
async fn make(state: &ApiState, mut new: NewSession, request: SessionRequest) -> Result<(Session, bool), ApiError> {
    let Some(resources) = &state.optional.resources else { return create_row(state, new).await };
    // The resource commits the creation.
    let id = resources.create_session(request).await?;
    new.id = id;
    let tenant = new.tenant.clone();
    let (session, created) = create_row(state, new).await?;
    if session.id != id
        && let Err(error) = resources.end_session(&tenant, id).await
    {
        tracing::warn!(%error, session = %id, "a session that another request was faster than stays until somebody ends it");
    }
    Ok((session, created))
}

/// Adds the row. The operator may have been faster: then that is the session.
async fn create_row(state: &ApiState, new: NewSession) -> Result<(Session, bool), ApiError> {
    let (tenant, id) = (new.tenant.clone(), new.id);
    match state.store.create_session(new).await {
        Err(StoreError::Conflict(message)) => match state.store.session(&tenant, id).await? {
            Some(session) => Ok((session, false)),
            None => Err(StoreError::Conflict(message).into()),
        },
        created => Ok(created?),
    }
}

/// Writes what a person wants into the session's resource, where there are resources. One whose resource is gone is ending: its
/// row is all there is.
async fn declare(state: &ApiState, session: &Session, wanted: Option<Closing>) -> Result<(), ApiError> {
    let Some(resources) = &state.optional.resources else { return Ok(()) };
    let (tenant, id) = (&session.tenant, session.id);
    let written = match wanted {
        Some(Closing::End) => resources.end_session(tenant, id).await,
        Some(closing) => resources.suspend_session(tenant, id, true, closing == Closing::Stop).await,
        None => resources.suspend_session(tenant, id, false, false).await,
    };
    match written {
        Err(ResourceError::NotFound(_)) => Ok(()),
        written => Ok(written?),
    }
}

pub(crate) fn single(session: &Session, version: &AgentVersion) -> Json<Value> {
    Json(json!({ "session": SessionView::single(session, version) }))
}

fn session_options(fields: &Fields<'_>) -> Result<SessionOptions, ApiError> {
    check_lengths(fields)?;
    Ok(SessionOptions {
        model: fields.word("model", MAX_MODEL_BYTES)?,
        system_prompt: agents::system_prompt(fields)?,
        permission_mode: fields.get("permissionMode")?.unwrap_or_default(),
        allowed_tools: words(fields, "allowedTools")?,
        disallowed_tools: words(fields, "disallowedTools")?,
        betas: words(fields, "betas")?,
        subagents: objects(fields, "subagents")?,
        initial_agent: fields.word("initialAgent", MAX_MODEL_BYTES)?,
        mcp_servers: objects(fields, "mcpServers")?,
        environment: BTreeMap::new(),
    })
}

/// Refuses lists and objects that are too long.
pub(crate) fn check_lengths(fields: &Fields<'_>) -> Result<(), ApiError> {
    for name in ["allowedTools", "disallowedTools", "betas", "subagents", "mcpServers"] {
        if fields.raw(name).is_some_and(|raw| raw.get().len() > MAX_OPTION_BYTES) {
            return Err(invalid(name, "it is longer than 1 MiB"));
        }
    }
    Ok(())
}

/// A list of texts on one line each.
pub(crate) fn words(fields: &Fields<'_>, name: &str) -> Result<Option<Vec<String>>, ApiError> {
    let words: Option<Vec<String>> = fields.get(name)?;
    let fine = |word: &String| !word.is_empty() && !word.chars().any(char::is_control);
    if words.as_ref().is_some_and(|words| words.len() > MAX_LIST_ENTRIES || !words.iter().all(fine)) {
        return Err(invalid(name, &format!("it is a list of at most {MAX_LIST_ENTRIES} texts on one line each")));
    }
    Ok(words)
}

/// Objects by name.
pub(crate) fn objects(fields: &Fields<'_>, name: &str) -> Result<Option<serde_json::Map<String, Value>>, ApiError> {
    let objects: Option<serde_json::Map<String, Value>> = fields.get(name)?;
    if let Some(objects) = &objects {
        if objects.len() > MAX_LIST_ENTRIES {
            return Err(invalid(name, &format!("it has more than {MAX_LIST_ENTRIES} entries")));
        }
        if let Some((key, _)) = objects.iter().find(|(key, value)| key.is_empty() || !value.is_object()) {
            let key: String = key.chars().take(80).collect();
            return Err(invalid(name, &format!("{key:?} must be a name with an object")));
        }
    }
    Ok(objects)
}

pub(crate) fn metadata(fields: &Fields<'_>) -> Result<BTreeMap<String, String>, ApiError> {
    let metadata: BTreeMap<String, String> = fields.get("metadata")?.unwrap_or_default();
    let fine = |(key, value): (&String, &String)| {
        !key.is_empty() && key.len() <= MAX_METADATA_KEY_BYTES && value.len() <= MAX_METADATA_VALUE_BYTES
    };
    if metadata.len() > MAX_METADATA_ENTRIES || !metadata.iter().all(fine) {
        let reason = format!(
            "it has at most {MAX_METADATA_ENTRIES} entries, keys of 1 to {MAX_METADATA_KEY_BYTES} and values of at most \
             {MAX_METADATA_VALUE_BYTES} bytes"
        );
        return Err(invalid("metadata", &reason));
    }
    Ok(metadata)
}

/// `GET /api/sessions`, newest first.
pub(crate) async fn list(
    State(state): State<ApiState>,
    Extension(Caller(tenant)): Extension<Caller>,
    parameters: Parameters,
) -> Result<Response, ApiError> {
    let status = parameters.text("status");
    if let Some(status) = status
        && !SessionState::ALL.iter().any(|state| state.name() == status)
    {
        return Err(invalid("status", "it is starting, active, paused, stopped, ended or error"));
    }
    let with_total = parameters.flag("includeTotal")?;
    let filter = SessionFilter {
        agent: parameters.text("agent").map(ToOwned::to_owned),
        state: status.map(ToOwned::to_owned),
        metadata: parameters.with_prefix("metadata.").map(|(key, value)| (key.to_owned(), value.to_owned())).collect(),
        limit: parameters.number("limit", DEFAULT_PAGE, 1, MAX_PAGE)?,
        offset: parameters.number("offset", 0, 0, u32::MAX)?,
    };
    let page = state.store.sessions(&tenant, &filter).await?;
    let mut body = json!({ "sessions": page.sessions.iter().map(SessionView::listed).collect::<Vec<_>>() });
    if with_total {
        body["total"] = page.total.into();
    }
    Ok(Json(body).into_response())
}

/// `GET /api/sessions/{id}`.
pub(crate) async fn get(
    State(state): State<ApiState>,
    Extension(Caller(tenant)): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let session = state.session(&tenant, &id).await?;
    let version = state.version_of(&session).await?;
    Ok(single(&session, &version).into_response())
}

/// `DELETE /api/sessions/{id}`: ends the session and keeps its history.
pub(crate) async fn delete(
    State(state): State<ApiState>,
    Extension(Caller(tenant)): Extension<Caller>,
    Path(id): Path<String>,
    parameters: Parameters,
) -> Result<Response, ApiError> {
    if parameters.flag("purge")? {
        return Err(invalid("purge", "this release cannot remove a session's history yet"));
    }
    let session = state.session(&tenant, &id).await?;
    let version = state.version_of(&session).await?;
    let session = if session.state == SessionState::Ended {
        session
    } else {
        to_the_end(async move {
            declare(&state, &session, Some(Closing::End)).await?;
            Ok::<_, ApiError>(state.runner.close(session, Closing::End).await?)
        })
        .await??
    };
    Ok(single(&session, &version).into_response())
}

/// `POST /api/sessions/{id}/pause`: gives its sandbox back, and refuses messages until it is resumed.
pub(crate) async fn pause(
    state: State<ApiState>,
    caller: Extension<Caller>,
    id: Path<String>,
) -> Result<Response, ApiError> {
    close(state, caller, id, Closing::Pause).await
}

/// `POST /api/sessions/{id}/stop`: as pause, under the state `stopped`.
pub(crate) async fn stop(
    state: State<ApiState>,
    caller: Extension<Caller>,
    id: Path<String>,
) -> Result<Response, ApiError> {
    close(state, caller, id, Closing::Stop).await
}

async fn close(
    State(state): State<ApiState>,
    Extension(Caller(tenant)): Extension<Caller>,
    Path(id): Path<String>,
    closing: Closing,
) -> Result<Response, ApiError> {
    let session = state.session(&tenant, &id).await?;
    let version = state.version_of(&session).await?;
    let session = to_the_end(async move {
        session.state.after(closing.event()).map_err(|refused| RunnerError::State(refused.0))?;
        declare(&state, &session, Some(closing)).await?;
        Ok::<_, ApiError>(state.runner.close(session, closing).await?)
    })
    .await??;
    Ok(single(&session, &version).into_response())
}

/// `POST /api/sessions/{id}/resume`: lets a session go on that is paused, stopped or in error; fine where it is active. One that
/// has ended is gone: 410.
pub(crate) async fn resume(
    State(state): State<ApiState>,
    Extension(Caller(tenant)): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let session = state.session(&tenant, &id).await?;
    let version = state.version_of(&session).await?;
    let agent = version.clone();
    if session.state != SessionState::Ended {
        declare(&state, &session, None).await?;
    }
    let resumed = to_the_end(async move { state.runner.resume(session, agent).await }).await?;
    let session = resumed.map_err(|error| match error {
        RunnerError::State(SessionState::Ended) => {
            ApiError::new(StatusCode::GONE, "Session is ended: create another one")
        }
        error => error.into(),
    })?;
    Ok(single(&session, &version).into_response())
}

/// `POST /api/sessions/{id}/interrupt`: ends the turn in progress; fine where none runs.
pub(crate) async fn interrupt(
    State(state): State<ApiState>,
    Extension(Caller(tenant)): Extension<Caller>,
    Path(id): Path<String>,
) -> Result<Response, ApiError> {
    let session = state.session(&tenant, &id).await?;
    let version = state.version_of(&session).await?;
    let interrupted = state.runner.interrupt(session.id).await?;
    let view = SessionView::single(&session, &version);
    Ok(Json(json!({ "interrupted": interrupted, "session": view })).into_response())
}
