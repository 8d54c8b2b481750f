//! The row of a session: what the store has of what the resource says.

use std::collections::BTreeMap;

use ash_core::{
    agent::AgentVersion,
    environment,
    id::SessionId,
    ports::{ConfigureSession, CredentialKind, NewSession, RunnerError, StoreError},
    session::Session as Row,
};
use ash_crd::{Reason, Session, names, resolve};
use kube::ResourceExt as _;
use secrecy::ExposeSecret as _;

use uuid::Uuid;

use super::Outcome;
use crate::{agent::Secrets, error::StepError, limits::MAX_REMEMBERED, namespace::Namespace};

/// The version that a session has.
pub(super) async fn version(namespace: &Namespace, row: &Row) -> Result<AgentVersion, StepError> {
    let version = namespace.ports.store.agent_version(&row.tenant, row.agent, row.agent_version).await?;
    version.ok_or_else(|| StepError::Internal("the version of the session's agent is gone from the store".to_owned()))
}

/// Adds the row. The same resource always makes the same row, whoever is first.
pub(super) async fn create(namespace: &Namespace, session: &Session, id: SessionId) -> Result<Outcome, StepError> {
    let blocked = |reason: Reason, text: String| Ok(Outcome::Blocked(reason, text));
    let spec = &session.spec;
    if namespace.agent(&spec.agent).is_none() {
        return blocked(Reason::AgentNotFound, format!("there is no Agent {:?} in this namespace", spec.agent));
    }
    let tenant = namespace.tenant();
    let store = &namespace.ports.store;
    let found = store.agent(&tenant, &spec.agent).await?.filter(|agent| agent.name.as_str() == spec.agent);
    let Some(agent) = found else {
        return blocked(Reason::AgentNotReady, format!("the Agent {:?} has no version yet", spec.agent));
    };
    let version = match spec.version {
        None => agent.version,
        Some(number) => match store.agent_version(&tenant, agent.id, number).await? {
            Some(version) => version,
            None => {
                let newest = agent.version.number;
                let text = format!("the Agent {:?} has no version {number}; its newest is {newest}", spec.agent);
                return blocked(Reason::VersionNotFound, text);
            }
        },
    };
    let mut secrets = Secrets::new(namespace);
    for key in spec.secret_keys() {
        secrets.read(key).await?;
    }
    let own = match resolve(&spec.options.env, |key| secrets.text(key)) {
        Ok(own) => own,
        Err(wrong) => return blocked(wrong.reason(), wrong.to_string()),
    };
    let taken = match credential(namespace, spec.credential_id.as_deref()).await? {
        Ok(taken) => taken,
        Err(text) => return blocked(Reason::OptionRefused, text),
    };
    let mut own: BTreeMap<_, _> = taken.variables.into_iter().chain(own).collect();
    own.extend(from_rest(namespace, session).await?);
    if let Err(refused) = environment::check(&own) {
        return blocked(Reason::EnvironmentRefused, refused.to_string());
    }
    let new = NewSession {
        id,
        tenant: tenant.clone(),
        agent: version.agent,
        agent_name: agent.name,
        agent_version: version.number,
        options: spec.options(&version.settings, own),
        metadata: spec.metadata.clone(),
        idempotency_key: None,
        credential: taken.model,
    };
    match store.create_session(new).await {
        Ok(_) => Ok(Outcome::Done),
        // The API has made it meanwhile, or this is the answer to a call whose first answer was lost.
        Err(StoreError::Conflict(_)) if store.session(&tenant, id).await?.is_some() => Ok(Outcome::Done),
        Err(error) => Err(error.into()),
    }
}

/// Gives a session the options that its resource has by now. The living Claude Code is asked first, so that what it refuses is not
/// taken; and again once the row has them, for a sandbox that the session was given in between.
pub(super) async fn configure(namespace: &Namespace, session: &Session, row: &Row) -> Result<Outcome, StepError> {
    let Some(options) = session.spec.changed(&row.options) else { return Ok(Outcome::Done) };
    let runner = &namespace.ports.runner;
    match runner.configure(row.id, options.clone()).await {
        Err(RunnerError::OptionRefused(reason)) => return Ok(Outcome::Blocked(Reason::OptionRefused, reason)),
        configured => configured?,
    }
    let change = ConfigureSession { seen: row.clone(), options: options.clone(), metadata: row.metadata.clone() };
    // One that has changed meanwhile is looked at again.
    if namespace.ports.configure.configure_session(change).await?.is_some() {
        runner.configure(row.id, options).await?;
    }
    Ok(Outcome::Done)
}

/// What a session takes from the credential that it names.
#[derive(Default)]
struct Taken {
    /// The credential that its model calls have.
    model: Option<Uuid>,
    /// The variables of a custom one, under the session's own.
    variables: BTreeMap<String, String>,
}

/// Looks a session's credential up. An error says why the session cannot have it.
async fn credential(namespace: &Namespace, id: Option<&str>) -> Result<Result<Taken, String>, StepError> {
    let Some(id) = id else { return Ok(Ok(Taken::default())) };
    let found = match id.parse() {
        Ok(id) => namespace.ports.credentials.reveal_credential(&namespace.tenant(), id).await?,
        Err(_) => None,
    };
    let Some((credential, secret)) = found else {
        return Ok(Err(format!("there is no credential {id}: take an id that POST /api/credentials answered with")));
    };
    if credential.kind != CredentialKind::Custom {
        return Ok(Ok(Taken { model: Some(credential.id), variables: BTreeMap::new() }));
    }
    let variables = serde_json::from_slice(secret.expose_secret());
    Ok(match variables {
        Ok(variables) => Ok(Taken { model: None, variables }),
        Err(_) => Err(format!("the credential {id} has no variables: store it again")),
    })
}

/// Where a REST call left the session's variables. An annotation that names anything else is somebody's who wants what is not
/// theirs: who may make Sessions may not read what others stored.
fn variables_of(session: &Session) -> Option<String> {
    let own = names::variables_of_session(&session.name_any());
    session.annotations().get(names::ENVIRONMENT).filter(|name| **name == own).cloned()
}

/// Deletes what a REST call left for [`from_rest`], once the row has it: encrypted, too, and for as long as there is a history.
pub(super) async fn forget_variables(namespace: &Namespace, session: &Session, id: SessionId) -> Result<(), StepError> {
    let Some(name) = variables_of(session) else { return Ok(()) };
    if namespace.memory().forgotten.contains(&id) {
        return Ok(());
    }
    namespace.ports.credentials.delete_credential_named(&namespace.tenant(), &name).await?;
    let mut memory = namespace.memory();
    if memory.forgotten.len() >= MAX_REMEMBERED {
        memory.forgotten.clear();
    }
    memory.forgotten.insert(id);
    Ok(())
}

/// The variables that a REST call brought: they are in the store, not in the resource, where everybody could read them.
async fn from_rest(namespace: &Namespace, session: &Session) -> Result<BTreeMap<String, String>, StepError> {
    let Some(name) = variables_of(session) else { return Ok(BTreeMap::new()) };
    let found = namespace.ports.credentials.reveal_credential_named(&namespace.tenant(), &name).await?;
    let Some((_, secret)) = found.filter(|(credential, _)| credential.kind == CredentialKind::Custom) else {
        return Ok(BTreeMap::new());
    };
    serde_json::from_slice(secret.expose_secret())
        .map_err(|_| StepError::Internal("the stored variables of the session cannot be read".to_owned()))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use ash_crd::{Session, names};
    use serde_json::json;

    use super::variables_of;

    #[test]
    fn a_session_is_given_no_variables_but_its_own() {
        let session = json!({
            "apiVersion": "ash.dev/v1alpha1", "kind": "Session", "metadata": { "name": "mine" }, "spec": { "agent": "a" },
        });
        let mut session: Session = serde_json::from_value(session).unwrap();
        for (named, is_own) in
            [("session/mine", true), ("session/theirs", false), ("environment/helper", false), ("", false)]
        {
            session.metadata.annotations = Some([(names::ENVIRONMENT.to_owned(), named.to_owned())].into());
            assert_eq!(variables_of(&session).is_some(), is_own, "{named}");
        }
    }
}
