//! `PATCH /api/sessions/{id}/config`: options of a session that change in its life.
//!
//! The store has them first, so that every sandbox that the session gets from now on has them; then the living one is told. What
//! Claude Code refuses there is taken back. A turn that runs keeps the options that it began with.

use ash_core::{
    id::TenantId,
    ports::{ConfigureSession, ConfigureStore, ResourceError, RunnerError},
    session::{Session, SessionEvent},
};
use ash_protocol::options::SessionOptions;
use axum::{
    Extension,
    extract::State,
    response::{IntoResponse, Response},
};
use http::StatusCode;

use crate::{
    agents::MAX_MODEL_BYTES,
    auth::Caller,
    body::{BoundedBody, MAX_BODY_BYTES},
    error::{ApiError, RETRY_SOON_SECONDS},
    fields::{Fields, Path, invalid},
    model_options,
    sessions::{check_lengths, metadata, objects, single, words},
    state::{ApiState, to_the_end},
};

/// What can change.
const FIELDS: [&str; 7] =
    ["model", "allowedTools", "disallowedTools", "betas", "subagents", "initialAgent", "metadata"];
/// What cannot.
const FIXED: [&str; 6] = ["agent", "credentialId", "extraEnv", "mcpServers", "permissionMode", "systemPrompt"];
/// Tries to change a session that changes at the same time: at the beginnings and ends of its turns.
const TRIES: u32 = 20;

/// Changes what the request names; null is as its agent has it.
pub(crate) async fn configure(
    State(state): State<ApiState>,
    Extension(Caller(tenant)): Extension<Caller>,
    Path(id): Path<String>,
    body: BoundedBody<MAX_BODY_BYTES>,
) -> Result<Response, ApiError> {
    let port = state.optional.configure.clone();
    let port = port.ok_or_else(|| ApiError::bad_request("this server cannot change a session's options"))?;
    let changes = Changes::read(&body.bytes)?;
    to_the_end(async move {
        let (before, now) = store(&state, &*port, &tenant, &id, &changes).await?;
        match state.runner.configure(now.id, now.options.clone()).await {
            Ok(()) => {}
            Err(RunnerError::OptionRefused(reason)) => {
                take_back(&state, &*port, &before, &now).await;
                return Err(RunnerError::OptionRefused(reason).into());
            }
            Err(error) => return Err(error.into()),
        }
        let version = state.version_of(&now).await?;
        Ok(single(&now, &version).into_response())
    })
    .await?
}

/// Writes the change; gives the session as it was before and as it is now.
async fn store(
    state: &ApiState,
    port: &dyn ConfigureStore,
    tenant: &TenantId,
    id: &str,
    changes: &Changes,
) -> Result<(Session, Session), ApiError> {
    for _ in 0..TRIES {
        let session = state.session(tenant, id).await?;
        session.state.after(SessionEvent::Configure)?;
        let mut options = changes.options(&session.options);
        let version = state.version_of(&session).await?;
        if options.model.is_none() && version.settings.model.is_none() {
            options.model = model_options::of_initial_agent(&options);
        }
        let metadata = changes.metadata.clone().unwrap_or_else(|| session.metadata.clone());
        if (&options, &metadata) == (&session.options, &session.metadata) {
            return Ok((session.clone(), session));
        }
        declare(state, &session, &session.options, &options).await?;
        let change = ConfigureSession { seen: session.clone(), options, metadata };
        if let Some(now) = port.configure_session(change).await? {
            return Ok((session, now));
        }
    }
    let text = "the session changes all the time: try again in a moment";
    Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, text).retry_after(RETRY_SOON_SECONDS))
}

/// Writes what a person wants into the session's resource, where there are resources.
async fn declare(
    state: &ApiState,
    session: &Session,
    before: &SessionOptions,
    options: &SessionOptions,
) -> Result<(), ApiError> {
    let Some(resources) = &state.optional.resources else { return Ok(()) };
    match resources.configure_session(&session.tenant, session.id, before, options).await {
        Err(ResourceError::NotFound(_)) => Ok(()),
        written => Ok(written?),
    }
}

/// Takes back what Claude Code refused, unless somebody has changed it since. What cannot be written is refused again by the next
/// turn, in the same words.
async fn take_back(state: &ApiState, port: &dyn ConfigureStore, before: &Session, now: &Session) {
    let taken_back = async {
        let session = state.session(&now.tenant, &now.id.to_string()).await?;
        if session.options != now.options {
            return Ok::<_, ApiError>(());
        }
        declare(state, &session, &session.options, &before.options).await?;
        let options = before.options.clone();
        let change = ConfigureSession { seen: session, options: options.clone(), metadata: before.metadata.clone() };
        port.configure_session(change).await?;
        Ok(state.runner.configure(now.id, options).await?)
    };
    if let Err(error) = taken_back.await {
        tracing::warn!(session = %now.id, ?error, "options that were refused stay until they are changed again");
    }
}

/// What a request changes: each `None` where it does not name it, `Some(None)` where it takes it away.
#[allow(clippy::option_option, reason = "absent, null and a value are three things")]
#[derive(Debug, Default)]
struct Changes {
    model: Option<Option<String>>,
    allowed_tools: Option<Option<Vec<String>>>,
    disallowed_tools: Option<Option<Vec<String>>>,
    betas: Option<Option<Vec<String>>>,
    subagents: Option<Option<serde_json::Map<String, serde_json::Value>>>,
    initial_agent: Option<Option<String>>,
    metadata: Option<std::collections::BTreeMap<String, String>>,
}

impl Changes {
    fn read(body: &[u8]) -> Result<Self, ApiError> {
        let fields = Fields::parse(body)?;
        let known: Vec<&str> = FIELDS.into_iter().chain(FIXED).collect();
        fields.check_spelling(&known)?;
        if let Some(name) = FIXED.into_iter().find(|name| fields.raw(name).is_some()) {
            return Err(invalid(name, "it cannot change in a session's life: create another session"));
        }
        check_lengths(&fields)?;
        let model = fields.word("model", MAX_MODEL_BYTES)?;
        model_options::check_name(model.as_deref())?;
        Ok(Self {
            model: changed(&fields, "model", model),
            allowed_tools: changed(&fields, "allowedTools", words(&fields, "allowedTools")?),
            disallowed_tools: changed(&fields, "disallowedTools", words(&fields, "disallowedTools")?),
            betas: changed(&fields, "betas", words(&fields, "betas")?),
            subagents: changed(&fields, "subagents", objects(&fields, "subagents")?),
            initial_agent: changed(&fields, "initialAgent", fields.word("initialAgent", MAX_MODEL_BYTES)?),
            metadata: (fields.raw("metadata").is_some() || fields.is_null("metadata"))
                .then(|| metadata(&fields))
                .transpose()?,
        })
    }

    /// A session's options after the change.
    fn options(&self, before: &SessionOptions) -> SessionOptions {
        let mut after = before.clone();
        replace(&mut after.model, self.model.as_ref());
        replace(&mut after.allowed_tools, self.allowed_tools.as_ref());
        replace(&mut after.disallowed_tools, self.disallowed_tools.as_ref());
        replace(&mut after.betas, self.betas.as_ref());
        replace(&mut after.subagents, self.subagents.as_ref());
        replace(&mut after.initial_agent, self.initial_agent.as_ref());
        after
    }
}

/// `None` where the request does not name it.
#[allow(clippy::option_option, reason = "absent, null and a value are three things")]
fn changed<T>(fields: &Fields<'_>, name: &str, value: Option<T>) -> Option<Option<T>> {
    (value.is_some() || fields.is_null(name)).then_some(value)
}

fn replace<T: Clone>(option: &mut Option<T>, change: Option<&Option<T>>) {
    if let Some(change) = change {
        option.clone_from(change);
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use ash_protocol::options::SessionOptions;

    use super::Changes;

    #[test]
    fn what_is_named_changes_and_null_takes_away() {
        let before = SessionOptions {
            model: Some("a".to_owned()),
            allowed_tools: Some(vec!["Bash".to_owned()]),
            betas: Some(vec!["b".to_owned()]),
            ..SessionOptions::default()
        };
        let changes = Changes::read(br#"{"model":null,"disallowedTools":["Read"],"betas":["c"],"new":1}"#).unwrap();
        let after = changes.options(&before);
        assert_eq!((after.model, after.allowed_tools), (None, before.allowed_tools.clone()));
        assert_eq!(after.disallowed_tools, Some(vec!["Read".to_owned()]));
        assert_eq!(after.betas, Some(vec!["c".to_owned()]));
        assert!(changes.metadata.is_none());
        assert_eq!(Changes::read(b"").unwrap().options(&before), before);
        assert!(Changes::read(br#"{"metadata":{"a":"b"}}"#).unwrap().metadata.is_some());
    }

    #[test]
    fn what_is_fixed_is_refused_by_name() {
        for (body, name) in [
            (r#"{"systemPrompt":"x"}"#, "systemPrompt is not valid: it cannot change"),
            (r#"{"permissionMode":"plan"}"#, "permissionMode"),
            (r#"{"extraEnv":{"A":"b"}}"#, "extraEnv"),
            (r#"{"mcpServers":{}}"#, "mcpServers"),
            (r#"{"allowed_tools":[]}"#, "allowed_tools is not a field: did you mean allowedTools?"),
            (r#"{"allowedTools":[""]}"#, "allowedTools"),
            (r#"{"model":""}"#, "model"),
        ] {
            let error = format!("{:?}", Changes::read(body.as_bytes()).unwrap_err());
            assert!(error.contains(&format!("\"{name}")), "{body}: {error}");
        }
    }
}
