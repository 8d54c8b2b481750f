//! The API's way to the resources: intent that came over REST is written into them.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex, PoisonError},
};

use ash_core::{
    Epoch,
    agent::AgentSettings,
    id::{SessionId, TenantId},
    name::AgentName,
    ports::{AgentRequest, CredentialKind, CredentialStore, ResourceError, Resources, SessionRequest},
};
use ash_crd::{Agent, Duration, PermissionMode, Session, SessionOptions, names};
use ash_protocol::options::PermissionMode as AskedMode;
use async_trait::async_trait;
use jiff::Timestamp;
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, ListParams, ObjectMeta, Patch, PatchParams, PostParams},
};
use secrecy::SecretBox;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tokio::time::timeout;

use crate::{
    error::{is_conflict, is_gone},
    limits::{API_CALL, MAX_NAMES},
};

/// How long the resource of a session that REST made stays after the session has ended.
const TTL_AFTER_END: &str = "24h";
/// The longest beginning of an agent's name in the name of a session.
const MAX_AGENT_IN_NAME: usize = 40;

/// The resources of a cluster.
pub struct KubeResources {
    client: Client,
    /// Where the default tenant's resources are.
    default_namespace: String,
    /// The namespaces that the operator serves.
    namespaces: Vec<String>,
    credentials: Option<Arc<dyn CredentialStore>>,
    /// The names of sessions by their ids.
    names: Mutex<HashMap<SessionId, String>>,
}

impl std::fmt::Debug for KubeResources {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("KubeResources").field("namespaces", &self.namespaces).finish_non_exhaustive()
    }
}

impl KubeResources {
    /// The resources that a client reaches. With a store of credentials, variables of a request go there rather than into a
    /// resource, where everybody could read them.
    pub fn new(
        client: Client,
        namespaces: Vec<String>,
        default_namespace: String,
        credentials: Option<Arc<dyn CredentialStore>>,
    ) -> Self {
        Self { client, default_namespace, namespaces, credentials, names: Mutex::default() }
    }

    /// The namespace of a tenant: they have the same name. The tenant of a key that names none has the default one.
    fn namespace(&self, tenant: &TenantId) -> Result<String, ResourceError> {
        let name = if *tenant == TenantId::default_tenant() { &self.default_namespace } else { &tenant.0 };
        if self.namespaces.contains(name) {
            return Ok(name.clone());
        }
        Err(ResourceError::Refused(format!(
            "the namespace {name:?} is not served by this installation: add it to its values (namespaces)"
        )))
    }

    fn sessions(&self, tenant: &TenantId) -> Result<Api<Session>, ResourceError> {
        Ok(Api::namespaced(self.client.clone(), &self.namespace(tenant)?))
    }

    fn agents(&self, tenant: &TenantId) -> Result<Api<Agent>, ResourceError> {
        Ok(Api::namespaced(self.client.clone(), &self.namespace(tenant)?))
    }

    fn remember(&self, id: SessionId, name: String) {
        let mut names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        if names.len() >= MAX_NAMES {
            names.clear();
        }
        names.insert(id, name);
    }

    /// The name of a session's resource. The operator labels each with its uid; one that it has not seen yet is found in a full
    /// listing.
    async fn name_of(&self, sessions: &Api<Session>, id: SessionId) -> Result<String, ResourceError> {
        if let Some(name) = self.names.lock().unwrap_or_else(PoisonError::into_inner).get(&id) {
            return Ok(name.clone());
        }
        let uid = id.to_string();
        let labelled = ListParams::default().labels(&format!("{}={uid}", names::SESSION_UID));
        for parameters in [labelled, ListParams::default()] {
            let found = call(sessions.list_metadata(&parameters)).await?;
            if let Some(found) = found.items.into_iter().find(|found| found.uid().as_deref() == Some(uid.as_str())) {
                self.remember(id, found.name_any());
                return Ok(found.name_any());
            }
        }
        Err(ResourceError::NotFound("the session has no Session resource any more".to_owned()))
    }

    async fn patch(&self, tenant: &TenantId, id: SessionId, patch: &Value) -> Result<(), ResourceError> {
        let sessions = self.sessions(tenant)?;
        let name = self.name_of(&sessions, id).await?;
        let mut patch = patch.clone();
        // Never another session that was given the name since.
        patch["metadata"]["uid"] = id.to_string().into();
        let parameters = PatchParams { field_manager: Some(names::FIELD_MANAGER_API.into()), ..PatchParams::default() };
        let result = call(sessions.patch(&name, &parameters, &Patch::Merge(&patch))).await;
        if matches!(result, Err(ResourceError::NotFound(_) | ResourceError::Conflict(_))) {
            self.names.lock().unwrap_or_else(PoisonError::into_inner).remove(&id);
        }
        result.map(|_| ())
    }
}

/// One call, within its bound.
async fn call<T>(call: impl Future<Output = Result<T, kube::Error>>) -> Result<T, ResourceError> {
    match timeout(API_CALL, call).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(error)) => Err(refused(error)),
        Err(_) => Err(ResourceError::Unavailable(format!("no answer within {} s", API_CALL.as_secs()))),
    }
}

fn refused(error: kube::Error) -> ResourceError {
    let message = error.to_string();
    match error {
        error if is_conflict(&error) => ResourceError::Conflict(message),
        error if is_gone(&error) => ResourceError::NotFound(message),
        // What is throttled, or fails inside, is worth another try.
        kube::Error::Api(status) if status.code == 429 || status.code >= 500 => {
            ResourceError::Unavailable(status.message)
        }
        kube::Error::Api(status) => ResourceError::Refused(status.message),
        error => ResourceError::Unavailable(error.to_string()),
    }
}

/// The name of a session's resource: the same for the same `Idempotency-Key`, else a random one.
fn session_name(request: &SessionRequest) -> String {
    let end = match &request.idempotency_key {
        Some(key) => {
            let mut hash = Sha256::new();
            hash.update(request.tenant.0.as_bytes());
            hash.update([0]);
            hash.update(key.as_bytes());
            hash.finalize().iter().take(10).map(|byte| format!("{byte:02x}")).collect::<String>()
        }
        None => uuid::Uuid::new_v4().simple().to_string()[..12].to_owned(),
    };
    let agent = request.agent.as_str().to_ascii_lowercase().replace(['.', '_'], "-");
    let agent: String = agent.chars().take(MAX_AGENT_IN_NAME).collect();
    format!("{}-{end}", agent.trim_end_matches('-'))
}

fn options(asked: &ash_protocol::options::SessionOptions) -> SessionOptions {
    SessionOptions {
        model: asked.model.clone(),
        system_prompt: asked.system_prompt.clone(),
        permission_mode: match asked.permission_mode {
            AskedMode::BypassPermissions => PermissionMode::BypassPermissions,
            AskedMode::Default => PermissionMode::Default,
            AskedMode::AcceptEdits => PermissionMode::AcceptEdits,
            AskedMode::Plan => PermissionMode::Plan,
        },
        allowed_tools: asked.allowed_tools.clone(),
        disallowed_tools: asked.disallowed_tools.clone(),
        betas: asked.betas.clone(),
        subagents: asked.subagents.clone(),
        initial_agent: asked.initial_agent.clone(),
        mcp_servers: asked.mcp_servers.clone(),
        env: Vec::new(),
    }
}

/// The merge patch that makes one value of another: null takes a field of an object away (RFC 7386).
fn merge_patch(before: &Value, after: Value) -> Value {
    let (Value::Object(before), Value::Object(mut after)) = (before, after.clone()) else { return after };
    for (name, value) in before {
        let changed = after.remove(name).map_or(Value::Null, |after| merge_patch(value, after));
        after.insert(name.clone(), changed);
    }
    Value::Object(after)
}

#[async_trait]
impl Resources for KubeResources {
    async fn create_session(&self, request: SessionRequest) -> Result<SessionId, ResourceError> {
        let sessions = self.sessions(&request.tenant)?;
        let name = session_name(&request);
        let mut annotations = BTreeMap::new();
        if !request.options.environment.is_empty() {
            let Some(credentials) = &self.credentials else {
                return Err(ResourceError::Refused(
                    "extraEnv: this server has no key to store variables with".to_owned(),
                ));
            };
            let stored = names::variables_of_session(&name);
            let text = serde_json::to_vec(&request.options.environment)
                .map_err(|error| ResourceError::Refused(format!("extraEnv: {error}")))?;
            let secret = SecretBox::new(text.into_boxed_slice());
            let put = credentials.put_credential(&request.tenant, &stored, CredentialKind::Custom, &secret).await;
            put.map_err(|error| ResourceError::Unavailable(error.to_string()))?;
            annotations.insert(names::ENVIRONMENT.to_owned(), stored);
        }
        let labels = [(names::ORIGIN, names::ORIGIN_REST), (names::AGENT, request.agent.as_str())];
        let mut session = Session::new(
            &name,
            ash_crd::SessionSpec {
                agent: request.agent.as_str().to_owned(),
                version: Some(request.version),
                message: None,
                suspend: false,
                end: false,
                options: options(&request.options),
                credential_id: request.credential.map(|id| id.to_string()),
                metadata: request.metadata,
                ttl_after_end: TTL_AFTER_END.parse::<Duration>().ok(),
            },
        );
        session.metadata = ObjectMeta {
            name: Some(name.clone()),
            labels: Some(labels.map(|(name, value)| (name.to_owned(), value.to_owned())).into()),
            annotations: Some(annotations).filter(|annotations| !annotations.is_empty()),
            finalizers: Some(vec![names::FINALIZER.to_owned()]),
            ..ObjectMeta::default()
        };
        let parameters = PostParams { field_manager: Some(names::FIELD_MANAGER_API.into()), ..PostParams::default() };
        let made = match call(sessions.create(&parameters, &session)).await {
            // A repeat of the same request: its session is there.
            Err(ResourceError::Conflict(_)) if request.idempotency_key.is_some() => call(sessions.get(&name)).await?,
            made => made?,
        };
        let id = made.uid().and_then(|uid| uid.parse().ok());
        let id = id.ok_or_else(|| ResourceError::Unavailable("the API server gave the session no uid".to_owned()))?;
        self.remember(id, name);
        Ok(id)
    }

    async fn suspend_session(
        &self,
        tenant: &TenantId,
        id: SessionId,
        suspend: bool,
        stop: bool,
    ) -> Result<(), ResourceError> {
        let stopped = if suspend && stop { json!("true") } else { Value::Null };
        let patch = json!({
            "metadata": { "annotations": { names::STOPPED: stopped } },
            "spec": { "suspend": suspend },
        });
        self.patch(tenant, id, &patch).await
    }

    async fn configure_session(
        &self,
        tenant: &TenantId,
        id: SessionId,
        before: &ash_protocol::options::SessionOptions,
        options: &ash_protocol::options::SessionOptions,
    ) -> Result<(), ResourceError> {
        let changing = |options: &ash_protocol::options::SessionOptions| {
            json!({
                "model": options.model,
                "allowedTools": options.allowed_tools,
                "disallowedTools": options.disallowed_tools,
                "betas": options.betas,
                "subagents": options.subagents,
                "initialAgent": options.initial_agent,
            })
        };
        let options = merge_patch(&changing(before), changing(options));
        self.patch(tenant, id, &json!({ "metadata": {}, "spec": { "options": options } })).await
    }

    async fn end_session(&self, tenant: &TenantId, id: SessionId) -> Result<(), ResourceError> {
        self.patch(tenant, id, &json!({ "metadata": {}, "spec": { "end": true } })).await
    }

    async fn wake_session(&self, tenant: &TenantId, id: SessionId, epoch: Epoch) -> Result<(), ResourceError> {
        let annotations = json!({
            names::WAKE_REQUESTED: epoch.0.to_string(),
            names::WAKE_REQUESTED_AT: Timestamp::now().to_string(),
        });
        self.patch(tenant, id, &json!({ "metadata": { "annotations": annotations } })).await
    }

    async fn check_agent(&self, request: &AgentRequest) -> Result<AgentSettings, ResourceError> {
        let applied = self.apply(request, true).await?;
        let settings = applied.spec.settings(request.name.as_str());
        // What is known of the files is not in the resource.
        let model = settings.model.clone().or_else(|| request.settings.model.clone());
        Ok(AgentSettings { model, has_hooks: request.settings.has_hooks, ..settings })
    }

    async fn apply_agent(&self, request: AgentRequest) -> Result<(), ResourceError> {
        self.apply(&request, false).await.map(|_| ())
    }

    async fn delete_agent(&self, tenant: &TenantId, name: &AgentName) -> Result<bool, ResourceError> {
        let agents = self.agents(tenant)?;
        match call(agents.delete(name.as_str(), &DeleteParams::default())).await {
            Ok(_) => Ok(true),
            Err(ResourceError::NotFound(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl KubeResources {
    /// Applies; gives the agent as it is then, or would be.
    async fn apply(&self, request: &AgentRequest, is_trial: bool) -> Result<Agent, ResourceError> {
        let agents = self.agents(&request.tenant)?;
        let settings = &request.settings;
        let mut sandbox = serde_json::Map::new();
        let variables: Vec<Value> =
            settings.env.iter().map(|(name, value)| json!({ "name": name, "value": value })).collect();
        if !variables.is_empty() {
            sandbox.insert("env".to_owned(), Value::Array(variables));
        }
        sandbox.insert("network".to_owned(), json!(settings.network));
        let mut spec = json!({ "source": { "bundle": { "digest": request.digest } }, "sandbox": sandbox });
        let optional = [
            ("description", json!(request.description)),
            ("slug", json!(request.slug)),
            ("model", json!(settings.model)),
            ("systemPrompt", json!(settings.system_prompt)),
            ("config", json!(settings.config)),
        ];
        for (name, value) in optional {
            if !value.is_null() {
                spec[name] = value;
            }
        }
        let agent = json!({
            "apiVersion": "ash.dev/v1alpha1",
            "kind": "Agent",
            "metadata": { "name": request.name.as_str(), "labels": { names::ORIGIN: names::ORIGIN_REST } },
            "spec": spec,
        });
        // Not forced: what a manifest says is not changed behind its back.
        let parameters = PatchParams { dry_run: is_trial, ..PatchParams::apply(names::FIELD_MANAGER_API) };
        let applied = call(agents.patch(request.name.as_str(), &parameters, &Patch::Apply(&agent))).await;
        applied.map_err(|error| match error {
            ResourceError::Conflict(message) => ResourceError::Conflict(format!(
                "the agent is managed in the cluster ({message}): change its manifest instead, or deploy under another name"
            )),
            error => error,
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use ash_core::{id::TenantId, ports::SessionRequest};
    use ash_protocol::options::SessionOptions;

    use serde_json::json;

    use super::{merge_patch, session_name};

    fn request(key: Option<&str>) -> SessionRequest {
        SessionRequest {
            tenant: TenantId("team".into()),
            agent: "My.Agent".parse().unwrap(),
            version: 1,
            options: SessionOptions::default(),
            metadata: std::collections::BTreeMap::new(),
            credential: None,
            idempotency_key: key.map(Into::into),
        }
    }

    #[test]
    fn what_is_not_there_any_more_is_taken_away() {
        let before =
            json!({ "model": "a", "betas": ["x"], "subagents": { "one": { "prompt": "p", "tools": [] }, "two": {} } });
        let after = json!({ "model": "b", "betas": null, "subagents": { "one": { "prompt": "q" }, "three": {} } });
        let patch = merge_patch(&before, after);
        let expected = json!({ "model": "b", "betas": null,
            "subagents": { "one": { "prompt": "q", "tools": null }, "two": null, "three": {} } });
        assert_eq!(patch, expected);
        assert_eq!(
            merge_patch(&json!({ "subagents": null }), json!({ "subagents": { "a": {} } }))["subagents"],
            json!({ "a": {} })
        );
    }

    #[test]
    fn a_repeat_has_the_same_name_and_others_have_others() {
        assert_eq!(session_name(&request(Some("a"))), session_name(&request(Some("a"))));
        assert_ne!(session_name(&request(Some("a"))), session_name(&request(Some("b"))));
        assert_ne!(session_name(&request(None)), session_name(&request(None)));
        assert!(session_name(&request(None)).starts_with("my-agent-"));
    }
}
