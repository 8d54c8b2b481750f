//! One namespace with one operator, and whoever plays kubelet and runner there.

use std::{
    cell::RefCell,
    sync::Arc,
    time::{Duration, Instant},
};

use ash_bundle::Bundle;
use ash_controllers::{Metrics, OperatorConfig, Ports, resources::KubeResources};
use ash_core::{
    Entry, EntryFlags, EntryKind,
    agent::{AgentSettings, AgentVersion},
    id::{SandboxId, TenantId},
    opening::OpeningReason,
    ports::{
        AgentRequest, Append, CredentialKind, CredentialStore as _, DeployAgent, EventLog as _, PodIdentity, PodState,
        PodStore as _, Store,
    },
    session::{Session, SessionEvent},
};
use ash_pods::manifest::Installation;
use ash_store::SqliteStore;
use ash_test_kubernetes::Server;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;
use kube::{Api, Client, ResourceExt as _, api::ListParams, client::ClientBuilder};
use serde_json::{Value, json};
use tokio::{sync::watch, task::JoinHandle};
use tokio_util::sync::CancellationToken;

use crate::{
    fakes::{FakeRunner, OneRunner, Rows, Secrets, runner_id},
    faults::Faults,
    look::look,
};

/// How long anything may take, on a busy machine.
const DEADLINE: Duration = Duration::from_secs(60);
/// Between two looks at something that is awaited.
const PAUSE: Duration = Duration::from_millis(100);
/// Nothing happens any more when nothing happened for so long: longer than every pause of an operator without work but the idle ones.
const QUIET: Duration = Duration::from_millis(2500);

pub struct World<'a> {
    server: &'a Server,
    /// The test's own.
    client: Client,
    pub namespace: String,
    folder: Arc<tempfile::TempDir>,
    store: Arc<SqliteStore>,
    pub rows: Arc<Rows>,
    secrets: Arc<Secrets>,
    pub runner: Arc<FakeRunner>,
    pub faults: Faults,
    /// Whether pods become sandboxes.
    pub kubelet: watch::Sender<bool>,
    stop: CancellationToken,
    operator: RefCell<Option<JoinHandle<()>>>,
    kubelet_task: JoinHandle<()>,
}

pub fn client(server: &Server, faults: &Faults) -> Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut config = kube::Config::new(server.url().parse().unwrap());
    config.accept_invalid_certs = true;
    config.auth_info.token = Some("admin".to_owned().into());
    ClientBuilder::try_from(config).unwrap().with_layer(faults).build()
}

impl<'a> World<'a> {
    pub async fn new(server: &'a Server, namespace: &str, faults: Faults) -> Self {
        let folder = Arc::new(tempfile::tempdir().unwrap());
        let store = Arc::new(SqliteStore::open(&folder.path().join("ash.db")).await.unwrap());
        let rows = Arc::new(Rows::default());
        let port: Arc<dyn Store> = store.clone();
        let runner = Arc::new(FakeRunner { store: port, rows: Arc::clone(&rows), sent: std::sync::Mutex::default() });
        server.done(&["create", "namespace", namespace], None);
        let service = json!({
            "apiVersion": "v1", "kind": "Service", "metadata": { "name": "ash-runner-default" },
            "spec": { "ports": [{ "port": 4310 }], "internalTrafficPolicy": "Local" },
        });
        server.done(&["apply", "-n", namespace, "-f", "-"], Some(&service.to_string()));
        Self::begin(server, namespace.to_owned(), folder, store, rows, Arc::default(), runner, faults)
    }

    #[allow(clippy::too_many_arguments)]
    fn begin(
        server: &'a Server,
        namespace: String,
        folder: Arc<tempfile::TempDir>,
        store: Arc<SqliteStore>,
        rows: Arc<Rows>,
        secrets: Arc<Secrets>,
        runner: Arc<FakeRunner>,
        faults: Faults,
    ) -> Self {
        let stop = CancellationToken::new();
        let (kubelet, running) = watch::channel(true);
        let playing = play(client(server, &Faults::default()), namespace.clone(), Arc::clone(&runner), running);
        let kubelet_task = tokio::spawn(playing);
        let world = Self {
            server,
            client: client(server, &Faults::default()),
            namespace,
            folder,
            store,
            rows,
            secrets,
            runner,
            faults,
            kubelet,
            stop,
            operator: RefCell::new(None),
            kubelet_task,
        };
        *world.operator.borrow_mut() = Some(world.run("one", world.stop.clone()));
        world
    }

    fn run(&self, identity: &str, stop: CancellationToken) -> JoinHandle<()> {
        let ports = Ports {
            store: self.store.clone(),
            changes: self.store.clone(),
            pods: self.rows.clone(),
            fleet: Arc::new(OneRunner),
            credentials: self.secrets.clone(),
            configure: self.store.clone(),
            runner: self.runner.clone(),
        };
        let config = OperatorConfig {
            namespaces: vec![self.namespace.clone()],
            default_namespace: "the-default".to_owned(),
            system_namespace: self.namespace.clone(),
            identity: identity.to_owned(),
            public_url: Some("https://ash.example".to_owned()),
            installation: Installation::new("ash/bridge:1"),
            clones: ash_controllers::Clones::default(),
        };
        let client = client(self.server, &self.faults);
        tokio::spawn(ash_controllers::run(client, config, ports, Metrics::default(), stop))
    }

    /// One more operator, which waits.
    pub fn another(&self, identity: &str) -> CancellationToken {
        let stop = CancellationToken::new();
        self.run(identity, stop.clone());
        stop
    }

    /// Ends the operator without a word.
    pub async fn kill(&self) {
        let task = self.operator.borrow_mut().take().unwrap();
        task.abort();
        let _ = task.await;
    }

    /// Another life of the operator, with the same store; its calls are counted from zero.
    pub async fn restart(self) -> Self {
        self.away(|_| ()).await
    }

    /// The same, with something that happens while no operator is there.
    pub async fn away(self, meanwhile: impl FnOnce(&Self)) -> Self {
        self.stop.cancel();
        let task = self.operator.borrow_mut().take().unwrap();
        task.await.unwrap();
        meanwhile(&self);
        self.kubelet_task.abort();
        let Self { server, namespace, folder, store, rows, secrets, runner, .. } = self;
        Self::begin(server, namespace, folder, store, rows, secrets, runner, Faults::default())
    }

    pub async fn end(self) {
        self.stop.cancel();
        let task = self.operator.borrow_mut().take();
        if let Some(task) = task {
            task.await.unwrap();
        }
        self.kubelet_task.abort();
    }

    pub async fn until(&self, what: &str, mut holds: impl FnMut() -> bool) {
        let deadline = Instant::now() + DEADLINE;
        while !tokio::task::block_in_place(&mut holds) {
            if Instant::now() > deadline {
                let objects =
                    self.kubectl(&["get", "agents,sessions,pods", "-o", "yaml", "--show-managed-fields=false"]);
                let log = self.faults.log.lock().unwrap().join("\n");
                panic!("{}: {what}: never\n{objects}\n{:#?}\n{log}", self.namespace, self.rows.all());
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// Waits until nothing is written any more.
    pub async fn settle(&self) {
        let deadline = Instant::now() + DEADLINE;
        let (mut calls, mut since) = (self.faults.writes(), Instant::now());
        while since.elapsed() < QUIET {
            assert!(Instant::now() < deadline, "it never settles: {:?}", self.faults.log.lock().unwrap());
            tokio::time::sleep(PAUSE).await;
            if self.faults.writes() != calls {
                (calls, since) = (self.faults.writes(), Instant::now());
            }
        }
    }

    pub fn kubectl(&self, arguments: &[&str]) -> String {
        let mut all = vec!["-n", &self.namespace];
        all.extend(arguments);
        let output = self.server.kubectl(&all, None);
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    pub fn apply(&self, object: &Value) {
        self.server.done(&["apply", "--server-side", "-n", &self.namespace, "-f", "-"], Some(&object.to_string()));
    }

    pub fn patch(&self, kind: &str, name: &str, patch: &Value) {
        self.server.done(&["patch", "-n", &self.namespace, kind, name, "--type=merge", "-p", &patch.to_string()], None);
    }

    /// A part of an object, or of all of these kinds (`-A`); empty where it is not there.
    pub fn get(&self, kind: &str, name: &str, path: &str) -> String {
        look(&self.client, &self.namespace, kind, (name != "-A").then_some(name), path)
    }

    pub fn reason(&self, kind: &str, name: &str) -> String {
        self.get(kind, name, r#"{.status.conditions[?(@.type=="Ready")].reason}"#)
    }

    pub fn names(&self, kind: &str) -> Vec<String> {
        let names = self.get(kind, "-A", "{.items[*].metadata.name}");
        names.split_whitespace().map(ToOwned::to_owned).collect()
    }

    /// Writes what a kubelet would.
    pub fn container(&self, pod: &str, phase: &str, state: &Value) {
        let container = json!({ "name": "sandbox", "image": "i", "imageID": "", "ready": false, "restartCount": 0, "state": state });
        let patch = json!({ "status": { "phase": phase, "containerStatuses": [container] } });
        let arguments = ["patch", "-n", &self.namespace, "pod", pod, "--subresource=status", "--type=merge", "-p"];
        let patch = patch.to_string();
        self.server.done(&arguments.iter().copied().chain([patch.as_str()]).collect::<Vec<_>>(), None);
    }

    /// Writes what a kubelet does of a pod of which it cannot start anything, with the Event that says why.
    pub fn prepared(&self, pod: &str, reason: &str, message: &str) {
        let waiting = json!({ "waiting": { "reason": "ContainerCreating" } });
        self.container(pod, "Pending", &waiting);
        let scheduled =
            json!({ "type": "PodScheduled", "status": "True", "lastTransitionTime": "2026-01-01T00:00:00Z" });
        let patch = json!({ "status": { "conditions": [scheduled] } }).to_string();
        let arguments = ["patch", "-n", &self.namespace, "pod", pod, "--subresource=status", "--type=merge", "-p"];
        self.server.done(&arguments.iter().copied().chain([patch.as_str()]).collect::<Vec<_>>(), None);
        let uid = self.get("pod", pod, "{.metadata.uid}");
        let object = json!({ "apiVersion": "v1", "kind": "Pod", "namespace": self.namespace, "name": pod, "uid": uid });
        let now = Timestamp::now().to_string();
        self.apply(&json!({
            "apiVersion": "v1", "kind": "Event", "metadata": { "name": format!("{pod}.1") }, "involvedObject": object,
            "reason": reason, "message": message, "type": "Warning", "firstTimestamp": now, "lastTimestamp": now,
        }));
    }

    pub async fn session(&self, uid: &str) -> Option<Session> {
        use ash_core::ports::SessionStore as _;
        self.store.session(&TenantId(self.namespace.clone()), uid.parse().unwrap()).await.unwrap()
    }

    /// An agent by its name or slug.
    pub async fn agent(&self, name: &str) -> Option<ash_core::agent::Agent> {
        use ash_core::ports::AgentStore as _;
        self.store.agent(&TenantId(self.namespace.clone()), name).await.unwrap()
    }

    pub async fn version(&self, name: &str) -> AgentVersion {
        use ash_core::ports::AgentStore as _;
        self.store.agent(&TenantId(self.namespace.clone()), name).await.unwrap().unwrap().version
    }

    /// Writes a turn from its message to this result.
    pub async fn take_a_turn(&self, session: &Session, result: &Value) {
        let body = format!(r#"{{"type":"user","message":{{"content":"hi"}},"uuid":"{}"}}"#, uuid::Uuid::new_v4());
        let entry = |n: u32, kind, flags, body: String| Entry {
            sequence: session.epoch.sequence(session.last.n() + n),
            kind,
            flags,
            body: body.into(),
        };
        let begun = entry(1, EntryKind::User, EntryFlags::default(), body);
        let ended = entry(2, EntryKind::Claude, EntryFlags::ENDS_TURN, result.to_string());
        let append = Append { session: session.id, after: session.last, entries: vec![begun, ended] };
        self.store.append(vec![append]).await.pop().unwrap().unwrap();
    }

    /// The API's way to the resources.
    pub fn resources(&self) -> KubeResources {
        let (namespaces, secrets) = (vec![self.namespace.clone()], self.secrets.clone());
        KubeResources::new(client(self.server, &Faults::default()), namespaces, "the-default".to_owned(), Some(secrets))
    }

    /// Makes a version in the store; gives its number.
    pub async fn deploy(&self, request: &AgentRequest, settings: AgentSettings, bundle: &Bundle) -> u32 {
        use ash_core::ports::AgentStore as _;
        let deploy = DeployAgent {
            tenant: request.tenant.clone(),
            name: request.name.clone(),
            slug: None,
            description: None,
            settings,
            digest: request.digest.clone(),
            bundle: bundle.to_tar_zstd().unwrap().into(),
        };
        self.store.deploy_agent(deploy).await.unwrap().version.number
    }

    pub async fn put_credential(&self, kind: CredentialKind, secret: &[u8]) -> uuid::Uuid {
        self.put_credential_named(&uuid::Uuid::new_v4().to_string(), kind, secret).await
    }

    pub async fn put_credential_named(&self, name: &str, kind: CredentialKind, secret: &[u8]) -> uuid::Uuid {
        let secret = secrecy::SecretBox::new(secret.to_vec().into_boxed_slice());
        self.secrets.put_credential(&TenantId(self.namespace.clone()), name, kind, &secret).await.unwrap().id
    }

    pub fn has_secret(&self, name: &str) -> bool {
        self.secrets.stored.lock().unwrap().contains_key(&(TenantId(self.namespace.clone()), name.to_owned()))
    }

    pub fn secret(&self, name: &str) -> Vec<u8> {
        self.secrets.stored.lock().unwrap()[&(TenantId(self.namespace.clone()), name.to_owned())].1.clone()
    }

    /// Makes a row older than it is.
    pub fn age(&self, id: SandboxId, by: Duration) {
        if let Some(row) = self.rows.rows.lock().unwrap().get_mut(&id) {
            let by = SignedDuration::try_from(by).unwrap();
            row.created_at = row.created_at.checked_sub(by).unwrap();
            row.changed_at = row.changed_at.checked_sub(by).unwrap();
        }
    }
}

/// Kubelet and runner: every pod becomes a sandbox that takes the session that it is for.
async fn play(client: Client, namespace: String, runner: Arc<FakeRunner>, running: watch::Receiver<bool>) {
    let pods: Api<Pod> = Api::namespaced(client, &namespace);
    loop {
        tokio::time::sleep(PAUSE).await;
        if !*running.borrow() {
            continue;
        }
        let Ok(found) = pods.list(&ListParams::default().labels("app.kubernetes.io/component=sandbox")).await else {
            continue;
        };
        for pod in found {
            if ash_controllers::failure::of_pod(&pod).is_some() {
                continue;
            }
            let identity = PodIdentity {
                namespace: namespace.clone(),
                pod: pod.name_any(),
                pod_uid: pod.uid().unwrap(),
                node: "node1".into(),
            };
            let Ok(Some(row)) = runner.rows.admit_pod(&identity, &runner_id()).await else { continue };
            match (row.state, row.session) {
                (PodState::Starting, None) => {
                    runner.rows.pod_is_warm(row.id).await.unwrap();
                }
                (PodState::Starting, Some(id)) => {
                    let Some(session) = runner.store.session(&row.tenant, id).await.unwrap() else { continue };
                    if runner.open(&session, SessionEvent::Message, OpeningReason::Claimed, Some(row.id)).await.is_ok()
                        && let Some(row) = runner.rows.rows.lock().unwrap().get_mut(&row.id)
                    {
                        row.state = PodState::Claimed;
                        row.changed_at = Timestamp::now();
                    }
                }
                _ => {}
            }
        }
    }
}
