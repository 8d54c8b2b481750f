//! The controller of agents.

mod decide;
mod git;
mod source;

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use ash_bundle::Bundle;
use ash_core::{
    agent::AgentSettings,
    name::AgentName,
    ports::{CredentialKind, DeployAgent, StoreError},
};
use ash_crd::{
    Agent, AgentStatus, ModelCredentialType, Reason, SecretKeyReference, SessionState,
    condition::{self, ConditionType},
    resolve,
};
use bytes::Bytes;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::{Resource as _, ResourceExt as _};
use secrecy::ExposeSecret as _;
use serde_json::Value;

use self::decide::{Decision, Made, Observed, Step, Version};
use crate::{
    error::StepError,
    event::Events,
    limits::{POLL, STEPS},
    namespace::{Counts, Namespace},
    object::{self, Guard},
    reconcile::Kind,
};

impl Kind for Agent {
    const NAME: &'static str = "Agent";

    async fn look(&self, namespace: &Arc<Namespace>) -> Result<Option<Duration>, StepError> {
        look(namespace, self).await
    }

    async fn tell(&self, namespace: &Namespace, reason: Reason, message: &str) -> Result<(), StepError> {
        let mut status = self.status.clone().unwrap_or_default();
        let generation = self.metadata.generation.unwrap_or_default();
        condition::report(&mut status.conditions, reason, message, generation, Timestamp::now());
        write(namespace, self, &status).await
    }
}

async fn look(namespace: &Namespace, agent: &Agent) -> Result<Option<Duration>, StepError> {
    let name = agent.name_any();
    let tenant = namespace.tenant();
    let store = &namespace.ports.store;
    let mut has_finalizer = object::has_finalizer(agent);
    let default = AgentStatus::default();
    // Before anything is asked that may not answer.
    if object::is_held_up(agent) {
        object::set_finalizer(&namespace.api::<Agent>(), agent, false, serde_json::Value::Null).await?;
        return Ok(None);
    }
    for _ in 0..STEPS {
        let mut row = store.agent(&tenant, &name).await?;
        // Another agent may be found by this name as its slug.
        row = row.filter(|row| row.name.as_str() == name);
        let deleting_since = object::deleting_since(agent);
        let (made, bundle) = if deleting_since.is_none() && has_finalizer {
            make(namespace, agent, row.as_ref()).await?
        } else {
            (Made::Not(Reason::FetchingSource, String::new()), None)
        };
        if let (Some(row), Made::Ready(_)) = (&row, &made) {
            let timeout = agent.spec.idle_timeout.to_std();
            namespace.ports.pods.set_idle_timeout(&tenant, row.id, timeout).await?;
        }
        let (counts, trouble, written) = remembered(namespace, &name, row.as_ref());
        let observed = Observed {
            now: Timestamp::now(),
            name: &name,
            generation: agent.metadata.generation.unwrap_or_default(),
            deleting_since,
            has_finalizer,
            spec: &agent.spec,
            before: agent.status.as_ref().unwrap_or(&default),
            row: row.as_ref(),
            made: &made,
            counts,
            asleep: asleep(namespace, &name),
            trouble: trouble.as_ref(),
            written,
            others_version_since: others_version_since(namespace, agent, row.as_ref()),
        };
        let Decision { step, status, again } = decide::decide(&observed);
        if let Some(status) = status {
            write(namespace, agent, &status).await?;
        }
        let Some(step) = step else { return Ok(again) };
        match step {
            Step::AddFinalizer => {
                object::set_finalizer(&namespace.api::<Agent>(), agent, true, Value::Null).await?;
                has_finalizer = true;
            }
            Step::RemoveFinalizer => {
                object::set_finalizer(&namespace.api::<Agent>(), agent, false, Value::Null).await?;
                namespace.pool_wake.soon();
                return Ok(None);
            }
            Step::Forget => {
                store.delete_agent(&tenant, &name).await?;
                if let Some(row) = &row {
                    namespace.ports.runner.forget(&row.version);
                }
            }
            Step::Deploy => {
                let (Made::Ready(version), Some(bundle)) = (&made, bundle) else {
                    return Err(StepError::Internal("a version without files".to_owned()));
                };
                let deployed = deploy(namespace, agent, version, bundle).await;
                if refuse_slug(namespace, agent, &observed, deployed).await? {
                    return Ok(Some(POLL));
                }
            }
            Step::Describe => {
                let described = describe(namespace, agent).await;
                if refuse_slug(namespace, agent, &observed, described).await? {
                    return Ok(Some(POLL));
                }
            }
        }
    }
    Ok(Some(Duration::ZERO))
}

/// Says so where another agent has the slug; whether that is so.
async fn refuse_slug(
    namespace: &Namespace,
    agent: &Agent,
    observed: &Observed<'_>,
    result: Result<(), StepError>,
) -> Result<bool, StepError> {
    let Err(StepError::Store(StoreError::Conflict(message))) = result else { return result.map(|()| false) };
    let mut status = observed.before.clone();
    if let Some(row) = observed.row {
        status.version = Some(row.version.number);
        status.digest = Some(row.version.digest.clone());
    }
    let reason = Reason::OptionRefused;
    condition::report(&mut status.conditions, reason, &message, observed.generation, observed.now);
    write(namespace, agent, &status).await?;
    Ok(true)
}

/// What the agent is called beside its name.
async fn describe(namespace: &Namespace, agent: &Agent) -> Result<(), StepError> {
    let (slug, description) = (agent.spec.slug.clone(), agent.spec.description.clone());
    namespace.ports.store.describe_agent(&namespace.tenant(), &name(agent)?, slug, description).await?;
    Ok(())
}

fn name(agent: &Agent) -> Result<AgentName, StepError> {
    agent.name_any().parse().map_err(|error| StepError::Internal(format!("{error}")))
}

/// What is known about its sandboxes since the last look at them.
fn remembered(
    namespace: &Namespace,
    name: &str,
    row: Option<&ash_core::agent::Agent>,
) -> (Option<Counts>, Option<crate::failure::Failure>, Option<Timestamp>) {
    let memory = namespace.memory();
    let counts = row.and_then(|row| memory.counts.get(&row.id)).copied();
    let trouble = row.and_then(|row| memory.of_agents.get(&row.id)).map(|trouble| trouble.failure.clone());
    (counts, trouble, memory.status_written.get(name).copied())
}

/// Since when the newest version is one that the status does not name, though nobody has changed the resource since.
fn others_version_since(
    namespace: &Namespace,
    agent: &Agent,
    row: Option<&ash_core::agent::Agent>,
) -> Option<Timestamp> {
    let (name, number) = (agent.name_any(), row?.version.number);
    let mut memory = namespace.memory();
    let status = agent.status.as_ref().filter(|status| status.observed_generation == agent.metadata.generation);
    if status.is_none_or(|status| status.version == Some(number)) {
        memory.others_version.remove(&name);
        return None;
    }
    let known = memory.others_version.get(&name).filter(|(known, _)| *known == number).copied();
    let (_, since) = known.unwrap_or((number, Timestamp::now()));
    memory.others_version.insert(name, (number, since));
    Some(since)
}

/// Sessions of an agent that sleep, as their status says.
fn asleep(namespace: &Namespace, name: &str) -> u32 {
    let sessions = namespace.sessions.state();
    let is_asleep = |session: &&Arc<Guard<ash_crd::Session>>| {
        let Ok(session) = &session.0 else { return false };
        let state = session.status.as_ref().and_then(|status| status.state);
        session.spec.agent == name && !session.spec.suspend && state == Some(SessionState::Paused)
    };
    u32::try_from(sessions.iter().filter(is_asleep).count()).unwrap_or(u32::MAX)
}

async fn write(namespace: &Namespace, agent: &Agent, status: &AgentStatus) -> Result<(), StepError> {
    let before = agent.status.as_ref();
    if before == Some(status) {
        return Ok(());
    }
    object::write_status(&namespace.api::<Agent>(), agent, status).await?;
    namespace.metrics.wrote_status(Agent::NAME);
    namespace.memory().status_written.insert(agent.name_any(), Timestamp::now());
    let ready = |status: &AgentStatus| condition::find(&status.conditions, ConditionType::Ready).cloned();
    let (was, is) = (before.and_then(ready), ready(status));
    let Some(is) = is else { return Ok(()) };
    let is_new = was.is_none_or(|was| was.reason != is.reason);
    let deployed = before.and_then(|before| before.version) != status.version;
    if let Some(reason) = Reason::ALL.iter().find(|reason| reason.as_str() == is.reason)
        && Events::is_told(*reason)
        && (is_new || deployed)
    {
        let version = status.version.map(|version| format!("Version {version} is what new sessions get."));
        let text = if *reason == Reason::Deployed { version.unwrap_or_default() } else { is.message.clone() };
        namespace.events.tell(&agent.object_ref(&()), *reason, &text).await;
    }
    Ok(())
}

/// What the spec stands for just now, with its files where they have to be deployed.
async fn make(
    namespace: &Namespace,
    agent: &Agent,
    row: Option<&ash_core::agent::Agent>,
) -> Result<(Made, Option<Bundle>), StepError> {
    let not = |(reason, message)| Ok((Made::Not(reason, message), None));
    let mut settings = match settings(namespace, agent).await? {
        Ok(settings) => settings,
        Err(wrong) => return not(wrong),
    };
    // What was uploaded never changes, and a repository is cloned once for each change of the spec.
    let uploaded = agent.spec.source.bundle.as_ref().map(|bundle| &bundle.digest);
    let known = uploaded.or(row.filter(|_| git::is_cloned(agent)).map(|row| &row.version.digest));
    let commit = agent.status.as_ref().and_then(|status| status.commit.clone()).filter(|_| uploaded.is_none());
    if let (Some(digest), Some(row)) = (known, row)
        && *digest == row.version.digest
    {
        settings.has_hooks = row.version.settings.has_hooks;
        let with_model = AgentSettings { model: row.version.settings.model.clone(), ..settings.clone() };
        if settings.model.is_none() && with_model == row.version.settings {
            settings = with_model;
        }
        if settings == row.version.settings {
            git::clear(namespace, agent).await?;
            return Ok((Made::Ready(Box::new(Version { digest: digest.clone(), settings, commit })), None));
        }
    }
    if agent.spec.source.git.is_none() {
        // What cloned for an earlier spec.
        git::clear(namespace, agent).await?;
    }
    let files = match source::read(namespace, agent, &agent.spec.source).await? {
        Ok(files) => files,
        Err(wrong) => return not(wrong),
    };
    if let Err(error) = files.bundle.mcp_servers() {
        return not(source::wrong(&error));
    }
    settings.has_hooks = files.bundle.has_hooks();
    settings.model = settings.model.or_else(|| files.bundle.model());
    let version = Version { digest: files.bundle.digest(), settings, commit: files.commit };
    Ok((Made::Ready(Box::new(version)), Some(files.bundle)))
}

/// The settings of the version, with its secrets copied into the store.
async fn settings(namespace: &Namespace, agent: &Agent) -> Result<Result<AgentSettings, source::Wrong>, StepError> {
    let mut secrets = Secrets::new(namespace);
    for key in agent.spec.secret_keys() {
        secrets.read(key).await?;
    }
    let variables = &agent.spec.sandbox.env;
    let resolved = match resolve(variables, |key| secrets.text(key)) {
        Ok(resolved) => resolved,
        Err(wrong) => return Ok(Err((wrong.reason(), wrong.to_string()))),
    };
    let mut hidden = resolved;
    hidden.retain(|name, _| variables.iter().any(|variable| variable.name == *name && variable.is_hidden()));
    let settings = agent.spec.settings(&agent.name_any());
    if let Some(name) = &settings.secret_environment {
        let text = serde_json::to_vec(&hidden).map_err(|error| StepError::Internal(error.to_string()))?;
        put(namespace, name, CredentialKind::Custom, text).await?;
    }
    if let Some(credential) = &agent.spec.model_credential {
        let key = &credential.secret_key_ref;
        let Some(bytes) = secrets.bytes(key).filter(|bytes| !bytes.is_empty()) else {
            let text = format!(
                "the Secret {:?} with the key {:?}, which has the key for the model, is not in this namespace, or \
                 the installation does not let Ash read it",
                key.name, key.key
            );
            return Ok(Err((Reason::SecretNotFound, text)));
        };
        let kind = match credential.kind {
            ModelCredentialType::ApiKey => CredentialKind::AnthropicKey,
            ModelCredentialType::AuthToken => CredentialKind::AnthropicToken,
        };
        // A line end at the end of a file that a Secret was made from is no part of a key.
        put(namespace, &key.stored_name(), kind, bytes.trim_ascii().to_vec()).await?;
    }
    Ok(Ok(settings))
}

/// Copies a secret into the store, where it is not there already.
async fn put(namespace: &Namespace, name: &str, kind: CredentialKind, bytes: Vec<u8>) -> Result<(), StepError> {
    let credentials = &namespace.ports.credentials;
    let tenant = namespace.tenant();
    let secret = secrecy::SecretBox::new(bytes.into_boxed_slice());
    let before = credentials.reveal_credential_named(&tenant, name).await?;
    if before.is_some_and(|(before, clear)| before.kind == kind && clear.expose_secret() == secret.expose_secret()) {
        return Ok(());
    }
    credentials.put_credential(&tenant, name, kind, &secret).await?;
    Ok(())
}

/// Secrets that were read, in memory for one look.
pub(crate) struct Secrets<'a> {
    namespace: &'a Namespace,
    read: BTreeMap<String, Option<Secret>>,
}

impl<'a> Secrets<'a> {
    pub(crate) fn new(namespace: &'a Namespace) -> Self {
        Self { namespace, read: BTreeMap::new() }
    }

    /// Reads a Secret, once.
    pub(crate) async fn read(&mut self, key: &SecretKeyReference) -> Result<(), StepError> {
        if !self.read.contains_key(&key.name) {
            let secret = match self.namespace.api::<Secret>().get_opt(&key.name).await {
                // An installation may name the Secrets that Ash is to read: any other is as good as none.
                Err(kube::Error::Api(status)) if status.code == 403 => None,
                secret => secret?,
            };
            self.read.insert(key.name.clone(), secret);
        }
        Ok(())
    }

    fn bytes(&self, key: &SecretKeyReference) -> Option<&[u8]> {
        let secret = self.read.get(&key.name)?.as_ref()?;
        secret.data.as_ref()?.get(&key.key).map(|bytes| bytes.0.as_slice())
    }

    /// A value, as text.
    pub(crate) fn text(&self, key: &SecretKeyReference) -> Option<String> {
        String::from_utf8(self.bytes(key)?.to_vec()).ok()
    }
}

async fn deploy(namespace: &Namespace, agent: &Agent, version: &Version, bundle: Bundle) -> Result<(), StepError> {
    let name = name(agent)?;
    let packed = tokio::task::spawn_blocking(move || bundle.to_tar_zstd()).await;
    let packed = packed.map_err(|_| StepError::Internal("a bundle could not be packed".to_owned()))?;
    let packed = packed.map_err(|error| StepError::Internal(format!("a bundle could not be packed: {error}")))?;
    let deploy = DeployAgent {
        tenant: namespace.tenant(),
        name,
        slug: agent.spec.slug.clone(),
        description: agent.spec.description.clone(),
        settings: version.settings.clone(),
        digest: version.digest.clone(),
        bundle: Bytes::from(packed),
    };
    let deployed = namespace.ports.store.deploy_agent(deploy).await?;
    tracing::info!(namespace = %namespace.name, agent = %deployed.name, version = deployed.version.number, "deployed");
    namespace.ports.runner.prepare(deployed.version);
    namespace.pool_wake.soon();
    let waiting = namespace.sessions.state();
    for session in waiting.iter().filter_map(|session| session.0.as_ref().ok()) {
        let state = session.status.as_ref().and_then(|status| status.state);
        if session.spec.agent == deployed.name.as_str() && matches!(state, None | Some(SessionState::Starting)) {
            namespace.trigger_session(&session.name_any());
        }
    }
    Ok(())
}
