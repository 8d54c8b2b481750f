//! Sessions and pods by the thousand, through a client of Kubernetes.

use std::time::{Duration, Instant};

use anyhow::Context;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api,
    api::{DynamicObject, ListParams, PostParams},
};
use serde_json::{Value, json};
use uuid::Uuid;

use super::site::{Site, is_true};
use crate::cluster::{SANDBOX_IMAGE, SYSTEM_NAMESPACE};

/// Calls at once.
const AT_ONCE: usize = 24;
/// Objects of one page of a listing, as the operator has it.
const PAGE: u32 = 500;
/// The metrics port of the operator.
const METRICS: u16 = 4101;

/// A session and its pod.
#[derive(Debug)]
pub(super) struct Made {
    /// Its uid.
    pub(super) session: String,
    pub(super) sandbox: Uuid,
    pub(super) pod: String,
    pub(super) pod_uid: String,
    pub(super) node: String,
}

impl Site<'_> {
    /// Makes a session with a pod, as the operator would have left them, for each of these sandboxes.
    pub(super) fn make_sessions(
        &self,
        namespace: &str,
        agent: &str,
        sandboxes: &[Uuid],
        node: impl Fn(usize) -> String,
    ) -> anyhow::Result<Vec<Made>> {
        let (sessions, pods) = (self.sessions(namespace), self.pods(namespace));
        let one = async |(number, sandbox): (usize, &Uuid)| {
            let name = format!("{agent}-{number:05}");
            let session: DynamicObject = serde_json::from_value(json!({
                "apiVersion": "ash.dev/v1alpha1",
                "kind": "Session",
                "metadata": {
                    "name": name,
                    "labels": { "ash.dev/agent": agent },
                    "finalizers": ["ash.dev/cleanup"],
                },
                "spec": { "agent": agent },
            }))?;
            let made = sessions.create(&PostParams::default(), &session).await?;
            let session = made.metadata.uid.context("a uid")?;
            let pod = pod(&name, agent, *sandbox, &session, &node(number));
            let pod: Pod = serde_json::from_value(pod)?;
            let made = pods.create(&PostParams::default(), &pod).await?;
            let pod_uid = made.metadata.uid.context("a uid")?;
            anyhow::Ok(Made { session, sandbox: *sandbox, pod: name, pod_uid, node: node(number) })
        };
        let making = stream::iter(sandboxes.iter().enumerate()).map(one).buffer_unordered(AT_ONCE);
        self.block_on(making.try_collect())
    }

    /// How many sessions are `Ready`.
    pub(super) fn ready(&self, namespace: &str) -> anyhow::Result<usize> {
        let sessions = self.block_on(pages(&self.sessions(namespace)))?;
        Ok(sessions.iter().filter(|session| is_true(&session.data["status"], "Ready")).count())
    }

    /// How many pods run.
    pub(super) fn running(&self, namespace: &str) -> anyhow::Result<usize> {
        let pods = self.block_on(pages(&self.pods(namespace)))?;
        let runs = |pod: &&Pod| pod.status.as_ref().is_some_and(|status| status.phase.as_deref() == Some("Running"));
        Ok(pods.iter().filter(runs).count())
    }

    /// How many sessions a namespace has.
    pub(super) fn count(&self, namespace: &str) -> anyhow::Result<usize> {
        Ok(self.block_on(pages(&self.sessions(namespace)))?.len())
    }

    /// How long the API server takes to list sessions and pods, page by page.
    pub(super) fn list_all(&self, namespace: &str) -> anyhow::Result<Duration> {
        let start = Instant::now();
        self.block_on(async {
            pages(&self.sessions(namespace)).await?;
            pages(&self.pods(namespace)).await
        })?;
        Ok(start.elapsed())
    }

    /// The bytes of sessions and pods as JSON.
    pub(super) fn json_bytes(&self, namespace: &str) -> anyhow::Result<u64> {
        let (sessions, pods) = self.block_on(async {
            anyhow::Ok((pages(&self.sessions(namespace)).await?, pages(&self.pods(namespace)).await?))
        })?;
        let bytes = |object: serde_json::Result<String>| object.map_or(0, |text| text.len() as u64);
        let sessions = sessions.iter().map(|session| bytes(serde_json::to_string(session)));
        let pods = pods.iter().map(|pod| bytes(serde_json::to_string(pod)));
        Ok(sessions.chain(pods).sum())
    }

    /// What the operator counts.
    pub(super) fn operator_metrics(&self) -> anyhow::Result<String> {
        let labelled = ListParams::default().labels("app.kubernetes.io/component=operator");
        self.block_on(async {
            let pods = self.pods(SYSTEM_NAMESPACE).list(&labelled).await?;
            let running = pods.items.into_iter().find(|pod| pod.metadata.deletion_timestamp.is_none());
            let address = running.and_then(|pod| pod.status?.pod_ip).context("an operator with an address")?;
            crate::http::text(std::net::SocketAddr::new(address.parse()?, METRICS), "/metrics").await
        })
    }
}

/// Everything of a kind, page by page.
async fn pages<K>(objects: &Api<K>) -> anyhow::Result<Vec<K>>
where
    K: Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    let mut all = Vec::new();
    let mut parameters = ListParams::default().limit(PAGE);
    loop {
        let page = objects.list(&parameters).await?;
        all.extend(page.items);
        match page.metadata.continue_ {
            Some(next) if !next.is_empty() => parameters = parameters.continue_token(&next),
            _ => return Ok(all),
        }
    }
}

/// A session's pod, as small as the API server takes one.
fn pod(name: &str, agent: &str, sandbox: Uuid, session: &str, node: &str) -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "labels": {
                "app.kubernetes.io/managed-by": "ash",
                "app.kubernetes.io/component": "sandbox",
                "ash.dev/agent": agent,
                "ash.dev/agent-version": "1",
                "ash.dev/sandbox-id": sandbox,
                "ash.dev/session": name,
                "ash.dev/session-uid": session,
            },
            "ownerReferences": [{
                "apiVersion": "ash.dev/v1alpha1", "kind": "Session", "name": name, "uid": session, "controller": true,
            }],
        },
        "spec": {
            "nodeName": node,
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "tolerations": [{ "operator": "Exists" }],
            "securityContext": {
                "runAsNonRoot": true, "runAsUser": 1000, "seccompProfile": { "type": "RuntimeDefault" },
            },
            "containers": [{
                "name": "sandbox",
                "image": SANDBOX_IMAGE,
                "imagePullPolicy": "Never",
                "resources": { "requests": { "cpu": "10m", "memory": "64Mi" } },
                "securityContext": { "allowPrivilegeEscalation": false, "capabilities": { "drop": ["ALL"] } },
            }],
        },
    })
}
