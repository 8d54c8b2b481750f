//! The cluster with Ash on it, as a measurement uses it: from inside of its network.

use std::{
    net::SocketAddr,
    panic, thread,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use futures::{StreamExt as _, TryStreamExt as _};
use k8s_openapi::api::core::v1::Pod;
use kube::{
    Api, Client, Config,
    api::{
        ApiResource, DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams,
    },
    config::{KubeConfigOptions, Kubeconfig},
};
use secrecy::ExposeSecret as _;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::{
    bench::connection::Connection,
    cluster::{Cluster, Installation},
};

/// The namespace of REST calls with the installation's key.
pub(super) const TENANT: &str = "team-a";
/// A namespace that Ash does not serve: what is made there is the API server's work alone.
const UNSERVED: &str = "unserved";
/// How long anything may take that is not measured.
const DEADLINE: Duration = Duration::from_mins(5);
/// Between two looks at what is awaited.
const LOOK: Duration = Duration::from_millis(200);
/// How long everything rests before a measurement: what the one before left behind is over.
const REST: Duration = Duration::from_millis(700);
/// The name that server-side apply notes.
const MANAGER: &str = "ash-bench";

/// The cluster with Ash on it.
pub(super) struct Site<'cluster> {
    pub(super) cluster: &'cluster Cluster,
    pub(super) ash: &'cluster Installation,
    runtime: Runtime,
    client: Client,
    api: SocketAddr,
}

/// Measures in the cluster's network; the cluster is made at the first use.
pub(super) fn on<T: Send>(work: impl FnOnce(&Site<'_>) -> anyhow::Result<T> + Send) -> anyhow::Result<T> {
    let measured = thread::scope(|scope| {
        // A thread of its own: the caller's is in a runtime.
        let measuring = scope.spawn(|| {
            let cluster = Cluster::audited().context("no cluster can run here: e2e/cluster/cluster.sh check")?;
            let cluster: &Cluster = &cluster;
            let ash = cluster.installation();
            cluster.inside(|| work(&Site::open(cluster, ash)?))
        });
        measuring.join()
    });
    measured.unwrap_or_else(|panic| panic::resume_unwind(panic))
}

impl<'cluster> Site<'cluster> {
    fn open(cluster: &'cluster Cluster, ash: &'cluster Installation) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let kubeconfig = Kubeconfig::read_from(cluster.kubeconfig())?;
        let client = runtime.block_on(async {
            let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
            anyhow::Ok(Client::try_from(config)?)
        })?;
        cluster
            .apply(&json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": UNSERVED } }).to_string());
        Ok(Self { cluster, ash, runtime, client, api: cluster.api().address })
    }

    /// A kept connection to the API.
    pub(super) fn connection(&self) -> anyhow::Result<Connection> {
        Connection::open(self.api, self.ash.api_key.expose_secret())
    }

    /// Where the model is, for what runs beside Ash.
    pub(super) fn model(&self) -> String {
        self.ash.model.base_url()
    }

    /// What Postgres answers.
    pub(super) fn query(&self, statement: &str) -> anyhow::Result<String> {
        let postgres = self.ash.postgres.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        postgres.query("postgres", statement).map_err(anyhow::Error::msg)
    }

    /// An agent with so many warm sandboxes at all times, ready.
    pub(super) fn agent(&self, name: &str, warm: u32) -> anyhow::Result<()> {
        self.agent_in(TENANT, name, warm)
    }

    /// The same of any tenant.
    pub(super) fn agent_in(&self, namespace: &str, name: &str, warm: u32) -> anyhow::Result<()> {
        let agent = json!({
            "apiVersion": "ash.dev/v1alpha1",
            "kind": "Agent",
            "metadata": { "name": name, "namespace": namespace },
            "spec": {
                "source": { "inline": { "files": [{ "path": "CLAUDE.md", "text": "You are a simple agent.\n" }] } },
                "sandbox": {
                    "resources": { "requests": { "cpu": "10m", "memory": "64Mi" }, "limits": { "memory": "1Gi" } },
                    "network": { "mode": "model" },
                },
                "warm": { "min": warm, "max": warm },
            },
        });
        self.cluster.apply(&agent.to_string());
        self.cluster.done(&[
            "wait",
            "-n",
            namespace,
            &format!("agent/{name}"),
            "--for=condition=Ready",
            "--timeout=120s",
        ]);
        self.settled(name, warm)
    }

    /// Takes an agent's pool away.
    pub(super) fn forget(&self, agent: &str) -> anyhow::Result<()> {
        self.cluster.done(&["delete", "agent", agent, "-n", TENANT, "--timeout=120s"]);
        self.settled(agent, 0)
    }

    /// Waits until an agent has its warm sandboxes and no others, and no other pods; then a moment.
    pub(super) fn settled(&self, agent: &str, warm: u32) -> anyhow::Result<()> {
        // The row of a pod that is gone stays for its session to be told.
        let statement = format!(
            "SELECT COUNT(*) FILTER (WHERE sandboxes.state = 'warm'), COUNT(*) FROM sandboxes \
             JOIN agents ON agents.id = sandboxes.agent WHERE agents.name = '{agent}' AND sandboxes.state <> 'deleting'"
        );
        let wanted = format!("{warm}|{warm}");
        let labelled = ListParams::default().labels(&format!("ash.dev/agent={agent}"));
        let start = Instant::now();
        loop {
            let found = self.query(&statement)?;
            let has = found.trim();
            if has == wanted {
                let pods = self.block_on(self.pods(TENANT).list_metadata(&labelled))?;
                if pods.items.len() == warm as usize {
                    thread::sleep(REST);
                    return Ok(());
                }
            }
            ensure!(start.elapsed() < DEADLINE, "{agent} has {has} (warm|all), not {warm}");
            thread::sleep(LOOK);
        }
    }

    pub(super) fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    pub(super) fn pods(&self, namespace: &str) -> Api<Pod> {
        Api::namespaced(self.client.clone(), namespace)
    }

    pub(super) fn sessions(&self, namespace: &str) -> Api<DynamicObject> {
        let kind = ApiResource {
            group: "ash.dev".to_owned(),
            version: "v1alpha1".to_owned(),
            api_version: "ash.dev/v1alpha1".to_owned(),
            kind: "Session".to_owned(),
            plural: "sessions".to_owned(),
        };
        Api::namespaced_with(self.client.clone(), namespace, &kind)
    }

    /// How long the API server takes to create a Session, as Ash's API has it made, that nobody looks at.
    pub(super) fn create_unserved(&self, agent: &str) -> anyhow::Result<Duration> {
        let name = unique("own");
        let session = json!({
            "apiVersion": "ash.dev/v1alpha1",
            "kind": "Session",
            "metadata": { "name": name, "labels": { "ash.dev/origin": "rest", "ash.dev/agent": agent } },
            "spec": { "agent": agent, "version": 1, "ttlAfterEnd": "24h" },
        });
        let session: DynamicObject = serde_json::from_value(session)?;
        let sessions = self.sessions(UNSERVED);
        self.block_on(async {
            let start = Instant::now();
            sessions.create(&PostParams::default(), &session).await?;
            let time = start.elapsed();
            sessions.delete(&name, &DeleteParams::default()).await?;
            Ok(time)
        })
    }

    /// Applies a Session, by server-side apply with a client of Kubernetes: how long until it is `Ready`, and its name.
    pub(super) fn apply_until_ready(&self, agent: &str) -> anyhow::Result<(Duration, String)> {
        let name = unique("applied");
        let session = session(&name, agent);
        let sessions = self.sessions(TENANT);
        let is_ready = |session: &DynamicObject| is_true(&session.data["status"], "Ready");
        let ready = async {
            let (start, mut seen) = applied(&sessions, &name, &session).await?;
            while let Some(event) = seen.try_next().await? {
                match event {
                    WatchEvent::Added(session) | WatchEvent::Modified(session) if is_ready(&session) => {
                        return Ok(start.elapsed());
                    }
                    WatchEvent::Error(error) => bail!("the watch ended: {error:?}"),
                    _ => {}
                }
            }
            bail!("the watch ended")
        };
        let time = self.block_on(async { tokio::time::timeout(DEADLINE, ready).await })?;
        Ok((time.with_context(|| format!("{name} is not ready"))?, name))
    }

    /// The same where nobody looks at it: until the watch has given it.
    pub(super) fn apply_until_seen(&self, agent: &str) -> anyhow::Result<Duration> {
        let name = unique("seen");
        let session = session(&name, agent);
        let sessions = self.sessions(UNSERVED);
        self.block_on(async {
            let (start, mut seen) = applied(&sessions, &name, &session).await?;
            let event = seen.try_next().await?.context("the watch ended")?;
            let time = start.elapsed();
            ensure!(matches!(event, WatchEvent::Added(_)), "{event:?}");
            sessions.delete(&name, &DeleteParams::default()).await?;
            Ok(time)
        })
    }

    /// Deletes a Session as `kubectl delete` does, and waits until it is gone.
    pub(super) fn delete(&self, name: &str) {
        self.cluster.done(&["delete", "session", name, "-n", TENANT, "--timeout=60s"]);
    }

    /// A pod like a sandbox's own, of the same image, that does nothing: how long from its creation until it is `Ready`.
    pub(super) fn pod_ready(&self) -> anyhow::Result<Duration> {
        let name = unique("plain");
        let pods = self.pods(TENANT);
        let pod: Pod = serde_json::from_value(plain_pod(&name))?;
        self.block_on(async {
            let selected = WatchParams::default().fields(&format!("metadata.name={name}"));
            let version = version(&pods).await?;
            let mut seen = pods.watch(&selected, &version).await?.boxed();
            let start = Instant::now();
            pods.create(&PostParams::default(), &pod).await?;
            let time = loop {
                let event = seen.try_next().await?.context("the watch ended")?;
                let (WatchEvent::Added(pod) | WatchEvent::Modified(pod)) = event else { continue };
                let status = serde_json::to_value(pod.status.unwrap_or_default())?;
                if is_true(&status, "Ready") {
                    break start.elapsed();
                }
            };
            pods.delete(&name, &DeleteParams::default().grace_period(0)).await?;
            Ok(time)
        })
    }
}

/// Begins to watch a Session, and applies it.
async fn applied(
    sessions: &Api<DynamicObject>,
    name: &str,
    session: &Value,
) -> anyhow::Result<(Instant, futures::stream::BoxStream<'static, kube::Result<WatchEvent<DynamicObject>>>)> {
    let selected = WatchParams::default().fields(&format!("metadata.name={name}"));
    let version = version(sessions).await?;
    let seen = sessions.watch(&selected, &version).await?.boxed();
    let start = Instant::now();
    sessions.patch(name, &PatchParams::apply(MANAGER), &Patch::Apply(session)).await?;
    Ok((start, seen))
}

/// Where a watch begins that sees what is made from now on.
async fn version<K>(objects: &Api<K>) -> anyhow::Result<String>
where
    K: Clone + serde::de::DeserializeOwned + std::fmt::Debug,
{
    objects.list_metadata(&ListParams::default().limit(1)).await?.metadata.resource_version.context("a version")
}

fn session(name: &str, agent: &str) -> Value {
    json!({
        "apiVersion": "ash.dev/v1alpha1",
        "kind": "Session",
        "metadata": { "name": name },
        "spec": { "agent": agent },
    })
}

/// Whether a condition holds.
pub(super) fn is_true(status: &Value, condition: &str) -> bool {
    let conditions = status["conditions"].as_array();
    conditions.is_some_and(|all| all.iter().any(|one| one["type"] == condition && one["status"] == "True"))
}

/// As `ash-pods` makes a sandbox's pod, without its volumes for tools and token.
fn plain_pod(name: &str) -> Value {
    let workspace = |path: &str, name: &str| json!({ "mountPath": path, "name": name });
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": { "name": name },
        "spec": {
            "automountServiceAccountToken": false,
            "enableServiceLinks": false,
            "restartPolicy": "Never",
            "securityContext": {
                "runAsNonRoot": true, "runAsUser": 1000, "runAsGroup": 1000, "fsGroup": 1000,
                "seccompProfile": { "type": "RuntimeDefault" },
            },
            "containers": [{
                "name": "plain",
                "image": crate::cluster::SANDBOX_IMAGE,
                "imagePullPolicy": "Never",
                "command": ["sleep", "600"],
                "resources": { "requests": { "cpu": "10m", "memory": "64Mi" }, "limits": { "memory": "1Gi" } },
                "securityContext": {
                    "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                    "capabilities": { "drop": ["ALL"] },
                },
                "volumeMounts": [workspace("/workspace", "workspace"), workspace("/home/agent", "home"), workspace("/tmp", "tmp")],
            }],
            "volumes": [
                { "name": "workspace", "emptyDir": {} }, { "name": "home", "emptyDir": {} }, { "name": "tmp", "emptyDir": {} },
            ],
        },
    })
}

fn unique(prefix: &str) -> String {
    format!("{prefix}-{:08x}", fastrand::u32(..))
}
