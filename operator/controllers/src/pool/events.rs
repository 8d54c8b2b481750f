//! Asks why nothing of a pod starts: what its status does not say is in its Events.

use std::collections::BTreeMap;

use ash_core::id::SandboxId;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Event;
use kube::api::ListParams;

use super::decide::PodView;
use crate::{
    failure::{self, Failure},
    limits::{EVENTS_AFTER, EVENTS_AGAIN, EVENTS_AT_ONCE, EVENTS_PAGE},
    namespace::Namespace,
};

/// What was asked about a pod last, and when.
#[derive(Debug, Clone)]
pub(crate) struct Asked {
    at: Timestamp,
    failure: Option<Failure>,
}

/// Adds to the pods of which nothing has started for a while what their Events say. Those that were asked about the longest time
/// ago come first; a call that fails says nothing.
pub(super) async fn ask(namespace: &Namespace, pods: &mut BTreeMap<SandboxId, PodView>) {
    let now = Timestamp::now();
    let is_over = |since: Timestamp, bound| {
        now.duration_since(since) >= SignedDuration::try_from(bound).unwrap_or(SignedDuration::MAX)
    };
    let is_stuck =
        |pod: &PodView| pod.failure.is_none() && pod.preparing_since.is_some_and(|since| is_over(since, EVENTS_AFTER));
    let mut asked = std::mem::take(&mut namespace.memory().asked);
    asked.retain(|id, _| pods.get(id).is_some_and(is_stuck));
    let mut due: Vec<(Option<Timestamp>, SandboxId, String)> = pods
        .iter()
        .filter(|(_, pod)| is_stuck(pod))
        .map(|(id, pod)| (asked.get(id).map(|asked| asked.at), *id, pod.uid.clone()))
        .filter(|(at, _, _)| at.is_none_or(|at| is_over(at, EVENTS_AGAIN)))
        .collect();
    due.sort();
    for (_, id, uid) in due.into_iter().take(EVENTS_AT_ONCE) {
        let parameters = ListParams::default().fields(&format!("involvedObject.uid={uid}")).limit(EVENTS_PAGE);
        let failure = match namespace.api::<Event>().list(&parameters).await {
            Ok(events) => failure::of_events(&events.items),
            Err(error) => {
                tracing::debug!(namespace = %namespace.name, sandbox = %id, %error, "its pod's Events are not known");
                asked.get(&id).and_then(|asked| asked.failure.clone())
            }
        };
        asked.insert(id, Asked { at: now, failure });
    }
    for (id, Asked { failure, .. }) in &asked {
        if let Some(pod) = pods.get_mut(id) {
            pod.failure.clone_from(failure);
        }
    }
    namespace.memory().asked = asked;
}
