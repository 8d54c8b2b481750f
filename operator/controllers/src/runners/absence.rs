//! Why no runner of a node pool serves: what the pods of its DaemonSet say. Tenants read a sentence of our own in their conditions;
//! a runner's words and a registry's, which name what is none of theirs, go to the operator's log.

use ash_core::exit;
use ash_crd::Reason;
use k8s_openapi::api::core::v1::{ContainerState, Pod};

/// The end of a runner's last words that goes into the log.
const MAX_WORDS_BYTES: usize = 512;

/// Why no runner serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Absence {
    /// The reason for conditions.
    pub(super) reason: Reason,
    /// What stands beside it.
    pub(super) message: String,
    /// What the runner or the cluster said, for the log.
    pub(super) words: String,
}

impl Absence {
    fn new(reason: Reason, message: String, words: &str) -> Self {
        Self { reason, message, words: end_of(words).to_owned() }
    }
}

/// Why no runner serves, by the pods that should be one: pure.
pub(super) fn absence(pool: &str, pods: &[Pod]) -> Absence {
    if pods.is_empty() {
        let text = format!(
            "no runner runs for node pool {pool}: no node has its label ash.dev/node-pool={pool}, or none takes the pods \
             of DaemonSet ash-runner-{pool}"
        );
        return Absence::new(Reason::NoRunner, text, "");
    }
    let mut found = pods.iter().filter_map(of_pod);
    found.next().unwrap_or_else(|| {
        let text = format!(
            "{} runner pods of node pool {pool} are there, and none is registered with a coordinator, or all are cordoned",
            pods.len()
        );
        Absence::new(Reason::NoRunner, text, "")
    })
}

fn of_pod(pod: &Pod) -> Option<Absence> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let status = pod.status.as_ref()?;
    let unscheduled = status
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == "PodScheduled" && condition.status == "False");
    if let Some(words) = unscheduled.and_then(|condition| condition.message.as_deref()) {
        return Some(Absence::new(Reason::NoRunner, format!("runner pod {name} has no node"), words));
    }
    let init = status.init_container_statuses.iter().flatten();
    init.chain(status.container_statuses.iter().flatten()).find_map(|container| {
        let states = [container.state.as_ref(), container.last_state.as_ref()];
        states.into_iter().flatten().find_map(|state| of_state(name, state))
    })
}

fn of_state(name: &str, state: &ContainerState) -> Option<Absence> {
    if let Some(ended) = &state.terminated {
        // An init container that did its work.
        if ended.exit_code == 0 {
            return None;
        }
        let (reason, why) = match ended.exit_code {
            exit::SECRET_REFUSED => {
                (Reason::RunnerSecretRefused, "it has another secret than the coordinators".to_owned())
            }
            exit::INCOMPATIBLE => {
                (Reason::RunnerIncompatible, "it speaks another version than the coordinators".to_owned())
            }
            code => (Reason::NoRunner, format!("code {code}")),
        };
        let words = ended.message.as_deref().unwrap_or_default();
        return Some(Absence::new(reason, format!("runner pod {name} has ended: {why}; its log says more"), words));
    }
    let waiting = state.waiting.as_ref()?;
    let why = waiting.reason.as_deref().filter(|reason| !reason.contains("BackOff") || reason.contains("Image"))?;
    let is_starting = ["ContainerCreating", "PodInitializing"].contains(&why);
    let words = waiting.message.as_deref().unwrap_or_default();
    (!is_starting).then(|| Absence::new(Reason::NoRunner, format!("runner pod {name} does not start: {why}"), words))
}

fn end_of(words: &str) -> &str {
    let words = words.trim();
    let mut start = words.len().saturating_sub(MAX_WORDS_BYTES);
    while !words.is_char_boundary(start) {
        start += 1;
    }
    &words[start..]
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use ash_crd::Reason;
    use k8s_openapi::api::core::v1::Pod;
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::{MAX_WORDS_BYTES, absence, end_of};

    fn pod(status: &Value) -> Pod {
        serde_json::from_value(json!({ "metadata": { "name": "ash-runner-default-x" }, "status": status })).unwrap()
    }

    fn container(state: &Value, last: &Value) -> Value {
        json!({ "containerStatuses": [{
            "name": "runner", "image": "i", "imageID": "", "ready": false, "restartCount": 3, "state": state, "lastState": last,
        }] })
    }

    #[test]
    fn what_runner_pods_say() {
        let back_off = json!({ "waiting": { "reason": "CrashLoopBackOff", "message": "back-off 10s" } });
        let ended = |code: i32| json!({ "terminated": { "exitCode": code, "message": "last words\n" } });
        let running = json!({ "running": {} });
        let none = json!({});
        let rows = [
            (
                container(&back_off, &ended(77)),
                Reason::RunnerSecretRefused,
                "has ended: it has another secret",
                "last words",
            ),
            (container(&back_off, &ended(76)), Reason::RunnerIncompatible, "another version", "last words"),
            (container(&ended(1), &none), Reason::NoRunner, "has ended: code 1", "last words"),
            (container(&running, &ended(77)), Reason::RunnerSecretRefused, "another secret", "last words"),
            (container(&running, &none), Reason::NoRunner, "none is registered", ""),
            (
                container(&json!({ "waiting": { "reason": "ImagePullBackOff", "message": "denied" } }), &none),
                Reason::NoRunner,
                "does not start: ImagePullBackOff",
                "denied",
            ),
            (
                container(&json!({ "waiting": { "reason": "ContainerCreating" } }), &none),
                Reason::NoRunner,
                "none is registered",
                "",
            ),
            (
                json!({ "conditions": [
                    { "type": "PodScheduled", "status": "False", "message": "0/2 nodes: taint" }] }),
                Reason::NoRunner,
                "has no node",
                "0/2 nodes: taint",
            ),
        ];
        for (status, reason, text, words) in rows {
            let found = absence("default", &[pod(&status)]);
            assert_eq!((found.reason, &*found.words), (reason, words), "{status}");
            assert!(found.message.contains(text), "{}", found.message);
            assert!(words.is_empty() || !found.message.contains(words), "{}", found.message);
        }
        assert!(absence("gpu", &[]).message.contains("ash.dev/node-pool=gpu"));
    }

    proptest! {
        #[test]
        fn the_end_of_last_words_is_text(words in ".*") {
            prop_assert!(end_of(&words).len() <= MAX_WORDS_BYTES);
        }
    }
}
