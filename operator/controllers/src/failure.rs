//! What a pod's status, or the API server's refusal of a pod, says about why its sandbox is not there.

use ash_crd::Reason;
use ash_pods::manifest::{CHECK_CONTAINER, COPY_CONTAINER};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, Event, Pod};

/// The end of a log that goes into a condition.
const MAX_LOG_BYTES: usize = 1024;

/// Events of the kubelet and the volumes' controller that say why nothing of a pod is started.
const NOT_STARTING: [&str; 6] = [
    "FailedCreatePodSandBox",
    "FailedMount",
    "FailedMapVolume",
    "FailedAttachVolume",
    "NetworkNotReady",
    "FailedCreatePodContainer",
];

/// Why a sandbox is not there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The reason for conditions.
    pub reason: Reason,
    /// What the cluster says.
    pub message: String,
    /// The pod never becomes a sandbox again: it is replaced. Otherwise the cluster tries on.
    pub is_final: bool,
}

impl Failure {
    fn new(reason: Reason, is_final: bool, message: impl Into<String>) -> Self {
        Self { reason, is_final, message: message.into() }
    }
}

/// What is wrong with a pod, if anything is.
pub fn of_pod(pod: &Pod) -> Option<Failure> {
    let status = pod.status.as_ref()?;
    let phase = status.phase.as_deref().unwrap_or_default();
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    match status.reason.as_deref() {
        Some("Evicted" | "Preempting" | "Preempted") => {
            return Some(Failure::new(Reason::PodEvicted, true, text(&status.message)));
        }
        Some("NodeLost" | "NodeShutdown" | "Terminated" | "Shutdown") => {
            return Some(Failure::new(Reason::NodeLost, true, text(&status.message)));
        }
        // The kubelet's own admission: the scheduler and it disagree for a moment.
        Some(reason) if phase == "Failed" => {
            return Some(Failure::new(Reason::SandboxFailed, true, format!("{reason}: {}", text(&status.message))));
        }
        _ => {}
    }
    let init = status.init_container_statuses.iter().flatten();
    let mut containers = init.chain(status.container_statuses.iter().flatten());
    if let Some(failure) = containers.find_map(of_container) {
        return Some(failure);
    }
    match phase {
        "Failed" => return Some(Failure::new(Reason::SandboxFailed, true, text(&status.message))),
        "Succeeded" => return Some(Failure::new(Reason::SandboxFailed, true, "the sandbox has ended")),
        _ => {}
    }
    let unschedulable = status.conditions.iter().flatten().find(|condition| {
        condition.type_ == "PodScheduled"
            && condition.status == "False"
            && condition.reason.as_deref() == Some("Unschedulable")
    })?;
    Some(Failure::new(Reason::PodUnschedulable, false, text(&unschedulable.message)))
}

fn of_container(container: &ContainerStatus) -> Option<Failure> {
    let ContainerState { waiting, terminated, .. } = container.state.as_ref()?;
    if let Some(waiting) = waiting {
        let reason = waiting.reason.as_deref().unwrap_or_default();
        let message = waiting.message.clone().unwrap_or_default();
        return match reason {
            "ImagePullBackOff"
            | "ErrImagePull"
            | "InvalidImageName"
            | "ErrImageNeverPull"
            | "RegistryUnavailable"
            | "ImageInspectError"
            | "SignatureValidationFailed" => {
                Some(Failure::new(Reason::ImagePullFailed, false, format!("{}: {message}", container.image)))
            }
            "CreateContainerConfigError" | "CreateContainerError" => {
                Some(Failure::new(Reason::PodNotStarting, false, format!("{reason}: {message}")))
            }
            "RunContainerError" | "StartError" => Some(started_not(container, &message)),
            "CrashLoopBackOff" => Some(Failure::new(Reason::SandboxFailed, true, message)),
            _ => None,
        };
    }
    let terminated = terminated.as_ref()?;
    let is_init = [COPY_CONTAINER, CHECK_CONTAINER].contains(&container.name.as_str());
    if is_init && terminated.exit_code == 0 {
        return None;
    }
    let log = end_of(terminated.message.as_deref().unwrap_or_default());
    let message = format!("{} ended with code {}: {log}", container.name, terminated.exit_code);
    Some(match terminated.reason.as_deref() {
        Some("OOMKilled") => Failure::new(Reason::PodOutOfMemory, true, message),
        Some("StartError" | "ContainerCannotRun") => started_not(container, log),
        _ if container.name == CHECK_CONTAINER => Failure::new(Reason::ImageIncompatible, true, message),
        _ => Failure::new(Reason::SandboxFailed, true, message),
    })
}

/// A program that the kernel or its loader refuses.
fn started_not(container: &ContainerStatus, message: &str) -> Failure {
    let reason = if container.name == CHECK_CONTAINER { Reason::ImageIncompatible } else { Reason::SandboxFailed };
    Failure::new(reason, true, format!("{} could not start: {message}", container.name))
}

/// Since when a node prepares a pod, where it has started nothing of it: what is in the way of network, volumes or runtime is in
/// its Events only.
pub fn preparing_since(pod: &Pod) -> Option<Timestamp> {
    let status = pod.status.as_ref().filter(|status| status.phase.as_deref() == Some("Pending"))?;
    let all = status.init_container_statuses.iter().chain(&status.container_statuses).flatten();
    let has_begun = |container: &ContainerStatus| {
        container.state.as_ref().is_some_and(|state| state.running.is_some() || state.terminated.is_some())
    };
    if all.clone().any(has_begun) {
        return None;
    }
    let scheduled = status.conditions.iter().flatten();
    let mut scheduled = scheduled.filter(|condition| condition.type_ == "PodScheduled" && condition.status == "True");
    scheduled.next()?.last_transition_time.as_ref().map(|time| time.0)
}

/// What a pod's Events say about why its node starts nothing of it: the latest one decides, since the node goes on.
pub fn of_events(events: &[Event]) -> Option<Failure> {
    let at = |event: &Event| {
        let series = event.series.as_ref().and_then(|series| series.last_observed_time.as_ref()).map(|time| time.0);
        let last = event.last_timestamp.as_ref().map(|time| time.0);
        series.or(last).or(event.event_time.as_ref().map(|time| time.0))
    };
    let latest = events.iter().max_by_key(|event| at(event))?;
    let reason = latest.reason.as_deref().unwrap_or_default();
    let message = end_of(latest.message.as_deref().unwrap_or_default());
    NOT_STARTING.contains(&reason).then(|| Failure::new(Reason::PodNotStarting, false, format!("{reason}: {message}")))
}

/// What the API server's refusal to create a pod says.
pub fn of_refusal(error: &kube::Error) -> Option<Failure> {
    let kube::Error::Api(status) = error else { return None };
    let message = &status.message;
    let lower = message.to_lowercase();
    match status.code {
        403 if lower.contains("exceeded quota") || lower.contains("failed quota") => {
            Some(Failure::new(Reason::QuotaExceeded, false, message))
        }
        400 | 403 | 404 | 422 if lower.contains("runtimeclass") && lower.contains("not found") => {
            Some(Failure::new(Reason::RuntimeClassNotFound, false, message))
        }
        // The namespace goes, and everything in it.
        403 if lower.contains("being terminated") => None,
        400 | 403 | 422 => Some(Failure::new(Reason::PodRefused, false, message)),
        _ => None,
    }
}

fn end_of(log: &str) -> &str {
    let log = log.trim();
    let mut start = log.len().saturating_sub(MAX_LOG_BYTES);
    while !log.is_char_boundary(start) {
        start += 1;
    }
    &log[start..]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use ash_crd::Reason;
    use k8s_openapi::api::core::v1::{Event, Pod};
    use proptest::prelude::*;
    use serde_json::json;

    use super::{end_of, of_events, of_pod, of_refusal, preparing_since};

    fn pod(status: &serde_json::Value) -> Pod {
        serde_json::from_value(json!({ "metadata": {}, "status": status })).unwrap()
    }

    fn container(name: &str, state: &serde_json::Value) -> serde_json::Value {
        json!({ "name": name, "image": "i", "imageID": "", "ready": false, "restartCount": 0, "state": state })
    }

    #[test]
    fn what_a_pod_says() {
        let waiting = |reason: &str| json!({ "waiting": { "reason": reason, "message": "m" } });
        let ended =
            |reason: &str, code: i32| json!({ "terminated": { "reason": reason, "exitCode": code, "message": "m" } });
        let main = |state| json!({ "phase": "Running", "containerStatuses": [container("sandbox", &state)] });
        let check = |state| json!({ "phase": "Pending", "initContainerStatuses": [container("check-image", &state)] });
        let rows = [
            (main(json!({ "running": {} })), None),
            (main(waiting("ContainerCreating")), None),
            (check(ended("Completed", 0)), None),
            (main(waiting("ImagePullBackOff")), Some((Reason::ImagePullFailed, false))),
            (main(waiting("CreateContainerConfigError")), Some((Reason::PodNotStarting, false))),
            (main(ended("OOMKilled", 137)), Some((Reason::PodOutOfMemory, true))),
            (main(ended("Error", 1)), Some((Reason::SandboxFailed, true))),
            (main(ended("Completed", 0)), Some((Reason::SandboxFailed, true))),
            (check(ended("StartError", 128)), Some((Reason::ImageIncompatible, true))),
            (check(ended("Error", 127)), Some((Reason::ImageIncompatible, true))),
            (json!({ "phase": "Failed", "reason": "Evicted", "message": "disk" }), Some((Reason::PodEvicted, true))),
            (json!({ "phase": "Failed", "reason": "OutOfcpu" }), Some((Reason::SandboxFailed, true))),
            (
                json!({ "phase": "Pending", "conditions": [
                    { "type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/2" }] }),
                Some((Reason::PodUnschedulable, false)),
            ),
        ];
        for (status, expected) in rows {
            let found = of_pod(&pod(&status)).map(|failure| (failure.reason, failure.is_final));
            assert_eq!(found, expected, "{status}");
        }
    }

    #[test]
    fn what_a_refusal_says() {
        let refusal = |code: u16, message: &str| {
            let status = json!({ "status": "Failure", "message": message, "reason": "x", "code": code });
            let status: kube::core::Status = serde_json::from_value(status).unwrap();
            of_refusal(&kube::Error::Api(status.boxed())).map(|failure| failure.reason)
        };
        let quota = "pods \"x\" is forbidden: exceeded quota: small, requested: pods=1";
        assert_eq!(refusal(403, quota), Some(Reason::QuotaExceeded));
        let class = "pods \"x\" is forbidden: pod rejected: RuntimeClass \"kata\" not found";
        assert_eq!(refusal(403, class), Some(Reason::RuntimeClassNotFound));
        assert_eq!(refusal(403, "violates PodSecurity"), Some(Reason::PodRefused));
        assert_eq!(refusal(500, "etcd"), None);
    }

    #[test]
    fn what_its_events_say_of_a_pod_of_which_nothing_starts() {
        let scheduled =
            json!([{ "type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z" }]);
        let waiting = container("sandbox", &json!({ "waiting": { "reason": "ContainerCreating" } }));
        let prepared = json!({ "phase": "Pending", "conditions": scheduled, "containerStatuses": [waiting] });
        assert!(preparing_since(&pod(&prepared)).is_some());
        let copied = container("copy-programs", &json!({ "running": {} }));
        let begun = json!({ "phase": "Pending", "conditions": scheduled, "initContainerStatuses": [copied] });
        assert_eq!(preparing_since(&pod(&begun)), None);
        assert_eq!(preparing_since(&pod(&json!({ "phase": "Pending" }))), None, "no node has it");
        let event = |reason: &str, second: u32| -> Event {
            let time = format!("2026-01-01T00:00:{second:02}Z");
            let event = json!({ "metadata": {}, "involvedObject": {}, "reason": reason, "message": "m", "lastTimestamp": time });
            serde_json::from_value(event).unwrap()
        };
        let sandbox = event("FailedCreatePodSandBox", 5);
        let found = of_events(&[event("Scheduled", 1), sandbox.clone(), event("FailedMount", 2)]).unwrap();
        assert_eq!((found.reason, &*found.message), (Reason::PodNotStarting, "FailedCreatePodSandBox: m"));
        assert!(!found.is_final, "the node tries again");
        assert_eq!(of_events(&[sandbox, event("Pulling", 6)]), None, "the node has gone on");
        assert_eq!(of_events(&[]), None);
    }

    proptest! {
        #[test]
        fn the_end_of_a_log_is_text(log in ".*") {
            prop_assert!(end_of(&log).len() <= super::MAX_LOG_BYTES);
        }
    }
}
