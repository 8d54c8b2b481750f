//! Why no runner of a node pool serves: what the pods of its DaemonSet say.

use ash_core::exit;
use ash_crd::Reason;
use k8s_openapi::api::core::v1::{ContainerState, Pod};

/// The end of a runner's last words that goes into a condition.
const MAX_WORDS_BYTES: usize = 512;

/// Why no runner serves, by the pods that should be one: pure.
pub(super) fn absence(pool: &str, pods: &[Pod]) -> (Reason, String) {
    if pods.is_empty() {
        let text = format!(
            "no runner runs for node pool {pool}: no node has its label ash.dev/node-pool={pool}, or none takes the pods \
             of DaemonSet ash-runner-{pool}"
        );
        return (Reason::NoRunner, text);
    }
    let mut found = pods.iter().filter_map(of_pod);
    found.next().unwrap_or_else(|| {
        let text = format!(
            "{} runner pods of node pool {pool} are there, and none is registered with a coordinator, or all are cordoned",
            pods.len()
        );
        (Reason::NoRunner, text)
    })
}

fn of_pod(pod: &Pod) -> Option<(Reason, String)> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let status = pod.status.as_ref()?;
    let unscheduled = status
        .conditions
        .iter()
        .flatten()
        .find(|condition| condition.type_ == "PodScheduled" && condition.status == "False");
    if let Some(message) = unscheduled.and_then(|condition| condition.message.as_deref()) {
        return Some((Reason::NoRunner, format!("runner pod {name} has no node: {message}")));
    }
    let init = status.init_container_statuses.iter().flatten();
    init.chain(status.container_statuses.iter().flatten()).find_map(|container| {
        let states = [container.state.as_ref(), container.last_state.as_ref()];
        let of = |state: &ContainerState| {
            if let Some(ended) = &state.terminated {
                // An init container that did its work.
                if ended.exit_code == 0 {
                    return None;
                }
                let reason = match ended.exit_code {
                    exit::SECRET_REFUSED => Reason::RunnerSecretRefused,
                    exit::INCOMPATIBLE => Reason::RunnerIncompatible,
                    _ => Reason::NoRunner,
                };
                let words = end_of(ended.message.as_deref().unwrap_or_default());
                return Some((reason, format!("runner pod {name} ended with code {}: {words}", ended.exit_code)));
            }
            let waiting = state.waiting.as_ref()?;
            let why =
                waiting.reason.as_deref().filter(|reason| !reason.contains("BackOff") || reason.contains("Image"))?;
            let is_starting = ["ContainerCreating", "PodInitializing"].contains(&why);
            let message = waiting.message.as_deref().unwrap_or_default();
            (!is_starting).then(|| (Reason::NoRunner, format!("runner pod {name} does not start: {why}: {message}")))
        };
        states.into_iter().flatten().find_map(of)
    })
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
            (container(&back_off, &ended(77)), Reason::RunnerSecretRefused, "ended with code 77: last words"),
            (container(&back_off, &ended(76)), Reason::RunnerIncompatible, "last words"),
            (container(&ended(1), &none), Reason::NoRunner, "ended with code 1: last words"),
            (container(&running, &ended(77)), Reason::RunnerSecretRefused, "last words"),
            (container(&running, &none), Reason::NoRunner, "none is registered"),
            (
                container(&json!({ "waiting": { "reason": "ImagePullBackOff", "message": "denied" } }), &none),
                Reason::NoRunner,
                "ImagePullBackOff: denied",
            ),
            (
                container(&json!({ "waiting": { "reason": "ContainerCreating" } }), &none),
                Reason::NoRunner,
                "none is registered",
            ),
            (
                json!({ "conditions": [
                    { "type": "PodScheduled", "status": "False", "message": "0/2 nodes: taint" }] }),
                Reason::NoRunner,
                "has no node: 0/2 nodes: taint",
            ),
        ];
        for (status, reason, text) in rows {
            let found = absence("default", &[pod(&status)]);
            assert_eq!(found.0, reason, "{status}");
            assert!(found.1.contains(text), "{}", found.1);
        }
        assert!(absence("gpu", &[]).1.contains("ash.dev/node-pool=gpu"));
    }

    proptest! {
        #[test]
        fn the_end_of_last_words_is_text(words in ".*") {
            prop_assert!(end_of(&words).len() <= MAX_WORDS_BYTES);
        }
    }
}
