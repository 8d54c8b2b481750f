//! Files out of a Git repository, cloned in a pod of the agent's namespace: neither the credential nor Git's own code is ever in
//! the operator.
//!
//! The pod prints a compressed archive in base64 into its log and says digest and commit in its termination message, so the
//! operator knows whether it read the whole of it. A node keeps 10 MiB of a log, hence [`git::MAX_ARCHIVE_BYTES`].

use std::sync::Arc;

use ash_bundle::{Bundle, BundleError};
use ash_crd::{
    Agent, GitSource, Reason,
    condition::{self, ConditionType},
    names,
};
use ash_pods::git;
use base64::{Engine as _, engine::general_purpose::STANDARD};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::{
    ResourceExt as _,
    api::{DeleteParams, LogParams, PostParams},
};
use sha2::{Digest as _, Sha256};

use super::source::{Files, Wrong, wrong};
use crate::{
    error::{StepError, is_conflict, unless_gone},
    failure,
    namespace::Namespace,
    object::{created_at, owner},
};

/// The longest log that is read: the archive in base64.
const MAX_LOG_BYTES: i64 = 9 << 20;
/// A clone that gave no agent is tried again after a quarter of the time for which that has been so, but not before this, at
/// the next look at its agent ([`crate::limits::POLL`]) ...
const FIRST_RETRY: SignedDuration = SignedDuration::from_secs(30);
/// ... and not after this.
const LAST_RETRY: SignedDuration = SignedDuration::from_secs(300);
/// Why a clone gave no agent.
const OUTCOMES: [Reason; 5] = [
    Reason::GitAccessDenied,
    Reason::GitRevisionNotFound,
    Reason::GitUnreachable,
    Reason::BundleInvalid,
    Reason::ClaudeMdMissing,
];
/// On a clone's pod: the version of the Secret that it has.
const SECRET_VERSION: &str = "ash.dev/secret-version";

/// Whether the repository was cloned for the spec as it is.
pub(super) fn is_cloned(agent: &Agent) -> bool {
    let Some(status) = &agent.status else { return false };
    agent.spec.source.git.is_some()
        && status.observed_generation == agent.metadata.generation
        && status.commit.is_some()
        && condition::is_true(&status.conditions, ConditionType::SourceReady)
}

/// Deletes pods that have done their work.
pub(super) async fn clear(namespace: &Namespace, agent: &Agent) -> Result<(), StepError> {
    for pod in clones(namespace, agent) {
        delete(namespace, &pod.name_any()).await?;
    }
    Ok(())
}

/// The pods that clone for an agent, as the watch has them.
fn clones(namespace: &Namespace, agent: &Agent) -> Vec<Arc<Pod>> {
    let label = |pod: &Pod, name: &str| pod.labels().get(name).cloned().unwrap_or_default();
    let is_clone = |pod: &Arc<Pod>| {
        label(pod, names::COMPONENT) == names::GIT_CLONE
            && label(pod, names::AGENT) == agent.name_any()
            && is_own(agent, pod)
            && pod.metadata.deletion_timestamp.is_none()
    };
    namespace.pods.state().into_iter().filter(is_clone).collect()
}

/// Whether a pod was made for this agent: a name is anybody's to give.
fn is_own(agent: &Agent, pod: &Pod) -> bool {
    let uid = agent.uid();
    uid.is_some() && pod.owner_references().iter().any(|owner| Some(&owner.uid) == uid.as_ref())
}

async fn delete(namespace: &Namespace, name: &str) -> Result<(), StepError> {
    unless_gone(namespace.api::<Pod>().delete(name, &DeleteParams::default()).await)?;
    Ok(())
}

/// Reads the files, once they are there.
pub(super) async fn read(
    namespace: &Namespace,
    agent: &Agent,
    source: &GitSource,
) -> Result<Result<Files, Wrong>, StepError> {
    let generation = agent.metadata.generation.unwrap_or_default();
    let name = git::pod_name(&agent.name_any(), &agent.uid().unwrap_or_default(), generation);
    for pod in clones(namespace, agent) {
        if pod.name_any() != name {
            delete(namespace, &pod.name_any()).await?;
        }
    }
    let pods = namespace.api::<Pod>();
    let Some(pod) = pods.get_opt(&name).await? else {
        return start(namespace, agent, source, &name).await.map(Err);
    };
    if !is_own(agent, &pod) {
        let text = format!("there is another pod {name}, which Ash did not make for this Agent: delete it");
        return Ok(Err((Reason::GitUnreachable, text)));
    }
    let waiting = fetching(agent, source, &name);
    if pod.metadata.deletion_timestamp.is_some() {
        return Ok(Err(waiting));
    }
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default();
    let said = termination(&pod).unwrap_or_default();
    match phase {
        "Succeeded" => {
            let parameters = LogParams { limit_bytes: Some(MAX_LOG_BYTES), ..LogParams::default() };
            let log = pods.logs(&name, &parameters).await?;
            let unpacked = tokio::task::spawn_blocking(move || unpack(&log, &said)).await;
            let unpacked = unpacked.map_err(|_| StepError::Internal("a clone could not be unpacked".to_owned()))?;
            if unpacked.is_err() {
                try_again(namespace, agent, source, &pod).await?;
            }
            Ok(unpacked)
        }
        "Failed" => {
            try_again(namespace, agent, source, &pod).await?;
            Ok(Err(refusal(&said, &pod)))
        }
        _ => Ok(Err(failure::of_pod(&pod).map_or(waiting, |failure| (failure.reason, failure.message)))),
    }
}

/// Deletes a pod whose clone gave no agent, once another may do better: after a while, or since its Secret is another now.
async fn try_again(namespace: &Namespace, agent: &Agent, source: &GitSource, pod: &Pod) -> Result<(), StepError> {
    let now = Timestamp::now();
    let since = agent.status.as_ref().and_then(|status| condition::find(&status.conditions, ConditionType::Ready));
    let since = since.filter(|ready| ready.status == condition::ConditionStatus::False.as_str());
    let broken = since.map_or(SignedDuration::ZERO, |ready| now.duration_since(ready.last_transition_time.0));
    let is_due = now.duration_since(created_at(pod)) >= retry_after(broken);
    let had = pod.annotations().get(SECRET_VERSION);
    let is_other = || async {
        Ok::<_, StepError>(match secret_version(namespace, source).await? {
            Credential::Version(version) => had != Some(&version),
            Credential::Missing(_) | Credential::Unknown => false,
        })
    };
    if is_due || is_other().await? {
        delete(namespace, &pod.name_any()).await?;
    }
    Ok(())
}

/// How old a clone has to be that is tried again, where none has given an agent for some time.
fn retry_after(broken: SignedDuration) -> SignedDuration {
    (broken / 4).clamp(FIRST_RETRY, LAST_RETRY)
}

/// What is known of the Secret with the credential.
enum Credential {
    /// There is none, by this name.
    Missing(String),
    /// None is named, or the installation does not let the operator read it: only the pod has to.
    Unknown,
    /// It is there, in this version.
    Version(String),
}

async fn secret_version(namespace: &Namespace, source: &GitSource) -> Result<Credential, StepError> {
    let Some(secret) = &source.secret_ref else { return Ok(Credential::Unknown) };
    match namespace.api::<Secret>().get_metadata_opt(&secret.name).await {
        Ok(Some(found)) => Ok(Credential::Version(found.metadata.resource_version.unwrap_or_default())),
        Ok(None) => Ok(Credential::Missing(secret.name.clone())),
        Err(kube::Error::Api(status)) if status.code == 403 => Ok(Credential::Unknown),
        Err(error) => Err(error.into()),
    }
}

async fn start(namespace: &Namespace, agent: &Agent, source: &GitSource, name: &str) -> Result<Wrong, StepError> {
    let version = match secret_version(namespace, source).await? {
        Credential::Missing(secret) => {
            let text = format!("the Secret {secret:?} of spec.source.git.secretRef is not in this namespace");
            return Ok((Reason::SecretNotFound, text));
        }
        Credential::Unknown => None,
        Credential::Version(version) => Some(version),
    };
    let way = namespace.config.clones.way().await;
    let installation = &namespace.config.installation;
    let mut pod = git::pod(installation, &namespace.name, name, &agent.name_any(), owner(agent), source, &way);
    pod.metadata.annotations = version.map(|version| [(SECRET_VERSION.to_owned(), version)].into());
    match namespace.api::<Pod>().create(&PostParams::default(), &pod).await {
        Ok(_) => {}
        Err(error) if is_conflict(&error) => {}
        Err(error) => match failure::of_refusal(&error) {
            Some(failure) => return Ok((failure.reason, failure.message)),
            None => return Err(error.into()),
        },
    }
    Ok(fetching(agent, source, name))
}

/// What is said while a clone runs; where an earlier one of the same spec gave no agent, that stands until it is otherwise.
fn fetching(agent: &Agent, source: &GitSource, name: &str) -> Wrong {
    let status = agent.status.as_ref().filter(|status| status.observed_generation == agent.metadata.generation);
    let ready = status.and_then(|status| condition::find(&status.conditions, ConditionType::Ready));
    let before = ready.and_then(|ready| {
        let reason = OUTCOMES.into_iter().find(|reason| reason.as_str() == ready.reason)?;
        Some((reason, ready.message.clone()))
    });
    before.unwrap_or_else(|| (Reason::FetchingSource, format!("the pod {name} clones {}", source.url)))
}

/// What the pod said at its end.
fn termination(pod: &Pod) -> Option<String> {
    let containers = pod.status.as_ref()?.container_statuses.as_ref()?;
    containers.first()?.state.as_ref()?.terminated.as_ref()?.message.clone()
}

/// Why a clone failed: `word: text`; what the kubelet says of one that was ended before it said anything.
fn refusal(said: &str, pod: &Pod) -> Wrong {
    if said.trim().is_empty() {
        let status = pod.status.clone().unwrap_or_default();
        let why = status.message.or(status.reason).unwrap_or_else(|| "it ended without a word".to_owned());
        return (Reason::GitUnreachable, format!("the pod that cloned was ended: {why}"));
    }
    let (word, text) = said.split_once(": ").unwrap_or(("", said));
    let reason = match word {
        "denied" => Reason::GitAccessDenied,
        "not-found" => Reason::GitRevisionNotFound,
        "invalid" => Reason::BundleInvalid,
        _ => Reason::GitUnreachable,
    };
    (reason, text.trim().to_owned())
}

/// The files of a log. `said` is `ok COMMIT SHA256`.
fn unpack(log: &str, said: &str) -> Result<Files, Wrong> {
    let damaged = |what: &str| (Reason::GitUnreachable, format!("what the clone printed is damaged: {what}"));
    let mut words = said.split_whitespace();
    let (Some("ok"), Some(commit), Some(digest)) = (words.next(), words.next(), words.next()) else {
        return Err(damaged("it did not say what it printed"));
    };
    let text: String = log.split_ascii_whitespace().collect();
    let archive = STANDARD.decode(text).map_err(|_| damaged("it is not base64"))?;
    let found: String = Sha256::digest(&archive).iter().map(|byte| format!("{byte:02x}")).collect();
    if found != digest {
        return Err(damaged("its digest is another"));
    }
    let bundle = Bundle::from_tar_zstd(&archive).map_err(|error| match error {
        BundleError::Archive(error) => damaged(&error.to_string()),
        error => wrong(&error),
    })?;
    Ok(Files { bundle, commit: Some(commit.to_owned()) })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use ash_bundle::BundleBuilder;

    use super::*;

    #[test]
    fn what_a_clone_prints_is_checked() {
        let mut builder = BundleBuilder::new();
        builder.add("CLAUDE.md", None, b"hi".to_vec()).unwrap();
        builder.add("hooks/run", Some(true), b"hi".to_vec()).unwrap();
        let archive = builder.finish().unwrap().to_tar_zstd().unwrap();
        let digest: String = Sha256::digest(&archive).iter().map(|byte| format!("{byte:02x}")).collect();
        let log = STANDARD.encode(&archive);
        let files = unpack(&format!("{}\n{}\n", &log[..40], &log[40..]), &format!("ok abc {digest}")).ok().unwrap();
        assert_eq!(files.commit.as_deref(), Some("abc"));
        assert!(files.bundle.file("hooks/run").unwrap().executable);
        assert!(unpack(&log[..log.len() - 4], &format!("ok abc {digest}")).is_err());
        assert!(unpack(&log, "").is_err());
        assert_eq!(refusal("denied: no", &Pod::default()).0, Reason::GitAccessDenied);
        let (reason, message) = refusal("", &Pod::default());
        assert!(reason == Reason::GitUnreachable && message.contains("without a word"), "{message}");
    }

    #[test]
    fn a_pod_of_the_right_name_is_not_believed_for_it() {
        let source = serde_json::json!({ "bundle": { "digest": "a" } });
        let mut agent = Agent::new("helper", serde_json::from_value(serde_json::json!({ "source": source })).unwrap());
        let pod = |owner: Option<_>| {
            let mut pod = Pod::default();
            pod.metadata.owner_references = owner.map(|owner| vec![owner]);
            pod
        };
        assert!(!is_own(&agent, &pod(None)));
        agent.metadata.uid = Some("one".to_owned());
        let own = owner(&agent).unwrap();
        assert!(is_own(&agent, &pod(Some(own.clone()))));
        assert!(!is_own(&agent, &pod(None)));
        agent.metadata.uid = Some("another".to_owned());
        assert!(!is_own(&agent, &pod(Some(own))), "of an agent that had the name before");
    }

    #[test]
    fn clones_that_give_no_agent_are_tried_less_and_less_often() {
        let seconds = SignedDuration::from_secs;
        let rows = [(0, 30), (120, 30), (121 * 4, 121), (1200, 300), (1_000_000, 300)];
        for (broken, after) in rows {
            assert_eq!(retry_after(seconds(broken)), seconds(after));
        }
    }
}
