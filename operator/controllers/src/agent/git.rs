//! Files out of a Git repository, cloned in a pod of the agent's namespace: neither the credential nor Git's own code is ever in
//! the operator.
//!
//! The pod prints a tar archive in base64 into its log and says digest and commit in its termination message, so the operator
//! knows whether it read the whole of it. A node keeps 10 MiB of a log, hence [`MAX_ARCHIVE_BYTES`].

use std::{io::Read as _, sync::Arc, time::Duration};

use ash_bundle::BundleBuilder;
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

/// The longest archive: 6 MiB of tar.
pub(super) const MAX_ARCHIVE_BYTES: u64 = 6 << 20;
/// The longest log that is read: the archive in base64.
const MAX_LOG_BYTES: i64 = 9 << 20;
/// A clone that failed is tried again after this.
const RETRY: Duration = Duration::from_secs(60);

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
            && pod.metadata.deletion_timestamp.is_none()
    };
    namespace.pods.state().into_iter().filter(is_clone).collect()
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
    let waiting = (Reason::FetchingSource, format!("the pod {name} clones {}", source.url));
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
            unpacked.map_err(|_| StepError::Internal("a clone could not be unpacked".to_owned()))
        }
        "Failed" => {
            let (reason, message) = refusal(&said);
            let retry = SignedDuration::try_from(RETRY).unwrap_or_default();
            if Timestamp::now().duration_since(created_at(&pod)) >= retry {
                delete(namespace, &name).await?;
            }
            Ok(Err((reason, message)))
        }
        _ => Ok(Err(failure::of_pod(&pod).map_or(waiting, |failure| (failure.reason, failure.message)))),
    }
}

async fn start(namespace: &Namespace, agent: &Agent, source: &GitSource, name: &str) -> Result<Wrong, StepError> {
    if let Some(secret) = &source.secret_ref
        && namespace.api::<Secret>().get_opt(&secret.name).await?.is_none()
    {
        let text = format!("the Secret {:?} of spec.source.git.secretRef is not in this namespace", secret.name);
        return Ok((Reason::SecretNotFound, text));
    }
    let pod = git::pod(&namespace.config.installation, &namespace.name, name, &agent.name_any(), owner(agent), source);
    match namespace.api::<Pod>().create(&PostParams::default(), &pod).await {
        Ok(_) => {}
        Err(error) if is_conflict(&error) => {}
        Err(error) => match failure::of_refusal(&error) {
            Some(failure) => return Ok((failure.reason, failure.message)),
            None => return Err(error.into()),
        },
    }
    Ok((Reason::FetchingSource, format!("the pod {name} clones {}", source.url)))
}

/// What the pod said at its end.
fn termination(pod: &Pod) -> Option<String> {
    let containers = pod.status.as_ref()?.container_statuses.as_ref()?;
    containers.first()?.state.as_ref()?.terminated.as_ref()?.message.clone()
}

/// Why a clone failed: `word: text`.
fn refusal(said: &str) -> Wrong {
    let (word, text) = said.split_once(": ").unwrap_or(("", said));
    let reason = match word {
        "denied" => Reason::GitAccessDenied,
        "not-found" => Reason::GitRevisionNotFound,
        "too-large" => Reason::BundleInvalid,
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
    let mut builder = BundleBuilder::new();
    let mut entries = tar::Archive::new(archive.as_slice());
    for entry in entries.entries().map_err(|_| damaged("it is no archive"))? {
        let mut entry = entry.map_err(|_| damaged("it is no archive"))?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let path = String::from_utf8_lossy(&entry.path_bytes()).into_owned();
        let is_executable = entry.header().mode().is_ok_and(|mode| mode & 0o100 != 0);
        let mut bytes = Vec::new();
        entry.by_ref().take(MAX_ARCHIVE_BYTES).read_to_end(&mut bytes).map_err(|_| damaged("it ends too early"))?;
        builder.add(&path, Some(is_executable), bytes).map_err(|error| wrong(&error))?;
    }
    let bundle = builder.finish().map_err(|error| wrong(&error))?;
    Ok(Files { bundle, commit: Some(commit.to_owned()) })
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn what_a_clone_prints_is_checked() {
        let mut archive = tar::Builder::new(Vec::new());
        for (path, mode) in [("./CLAUDE.md", 0o644), ("./hooks/run", 0o755)] {
            let mut header = tar::Header::new_gnu();
            header.set_size(2);
            header.set_mode(mode);
            header.set_cksum();
            archive.append_data(&mut header, path, &b"hi"[..]).unwrap();
        }
        let archive = archive.into_inner().unwrap();
        let digest: String = Sha256::digest(&archive).iter().map(|byte| format!("{byte:02x}")).collect();
        let log = STANDARD.encode(&archive);
        let files = unpack(&format!("{}\n{}\n", &log[..40], &log[40..]), &format!("ok abc {digest}")).ok().unwrap();
        assert_eq!(files.commit.as_deref(), Some("abc"));
        assert!(files.bundle.file("hooks/run").unwrap().executable);
        assert!(unpack(&log[..log.len() - 4], &format!("ok abc {digest}")).is_err());
        assert!(unpack(&log, "").is_err());
        assert_eq!(refusal("denied: no").0, Reason::GitAccessDenied);
        assert_eq!(refusal("").0, Reason::GitUnreachable);
    }
}
