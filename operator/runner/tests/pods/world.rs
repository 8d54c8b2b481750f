//! A node without Kubernetes: pods are bridges in namespaces of their own, which dial a runner; who says what a token or a pod is
//! stands in the test. Everything else is real: the store, the gateway, the bridge, and Claude Code or its stand-in.

#![allow(unreachable_pub, reason = "a part of two tests")]

use std::{
    collections::HashMap,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use ash_bundle::Bundle;
use ash_core::{
    Entry, EntryKind, Sequence,
    agent::{Agent, AgentSettings},
    fleet::{Admitted, Placed},
    id::{SandboxId, SessionId, TenantId, TurnId},
    ports::{
        DeployAgent, EntryReader, NewMessage, NewSession, PodIdentity, PodSandbox, PodState, ReviewError, Runner as _,
        RunnerError, RunnerPods, Store, StoreError, TokenReviews, WholeStore,
    },
    session::{Session, SessionState},
    sse::Position,
};
use ash_e2e::{
    harness::{program, real_claude},
    model::{Script, ScriptedModel},
};
use ash_gateway::{
    Credential, EgressConfig, EgressRefusal, EgressSink, Gateway, GatewayConfig, Limits, TokenSigner, UpstreamConfig,
    UsageReport, UsageSink,
};
use ash_protocol::options::{SessionOptions, TurnOptions};
use ash_runner::{LocalRunner, MIN_LOG_MEMORY_BYTES, ModelKeys, PodsConfig, RunnerConfig};
use ash_store::SqliteStore;
use async_trait::async_trait;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use jiff::Timestamp;
use prometheus_client::registry::Registry;
use secrecy::SecretBox;
use tempfile::TempDir;
use tokio::{runtime::Runtime, sync::watch, time::timeout};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::stoppable::Stoppable;

pub const DEADLINE: Duration = Duration::from_secs(60);
pub const NODE: &str = "n1";

/// Waits until a look finds something.
pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let found = timeout(DEADLINE, async {
        loop {
            if let Some(found) = look().await {
                return found;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    });
    found.await.unwrap_or_else(|_| panic!("it did not happen that {what}"))
}

struct Nowhere;

impl UsageSink for Nowhere {
    fn record(&self, _: UsageReport) {}
}

impl EgressSink for Nowhere {
    fn refused(&self, _: EgressRefusal) {}
}

/// What the tokens of these tests are for.
const AUDIENCE: &str = "ash-runner";
/// What makes one valid.
const SIGNATURE: &str = "valid";

/// Says which pod a token is of: it stands in the token.
#[derive(Default)]
pub struct Reviews {
    pub away: Mutex<bool>,
    /// How often it was asked.
    pub asked: AtomicU64,
}

#[async_trait]
impl TokenReviews for Reviews {
    async fn review(&self, token: &str) -> Result<PodIdentity, ReviewError> {
        self.asked.fetch_add(1, Ordering::SeqCst);
        if *self.away.lock().unwrap() {
            return Err(ReviewError::Unavailable("it is away".to_owned()));
        }
        let refused = || ReviewError::Refused("it is not valid".to_owned());
        let mut parts = token.split('.').skip(1);
        let payload = parts.next().and_then(|part| URL_SAFE_NO_PAD.decode(part).ok()).ok_or_else(refused)?;
        if parts.next() != Some(SIGNATURE) {
            return Err(refused());
        }
        let claims: serde_json::Value = serde_json::from_slice(&payload).map_err(|_| refused())?;
        let of = &claims["kubernetes.io"];
        let word = |value: &serde_json::Value| value.as_str().unwrap_or_default().to_owned();
        Ok(PodIdentity {
            namespace: word(&of["namespace"]),
            pod: word(&of["pod"]["name"]),
            pod_uid: word(&of["pod"]["uid"]),
            node: word(&of["node"]["name"]),
        })
    }
}

/// The rows of pods, as a coordinator has them.
pub struct Rows {
    store: Arc<dyn Store>,
    pub known: Mutex<HashMap<SandboxId, PodSandbox>>,
    pub reasons: Mutex<HashMap<SandboxId, Option<String>>>,
}

#[async_trait]
impl RunnerPods for Rows {
    async fn admit(&self, pod: &PodIdentity) -> Result<Option<Admitted>, StoreError> {
        let row = {
            let mut rows = self.known.lock().unwrap();
            let Some(row) = rows.values_mut().find(|row| row.pod == pod.pod) else { return Ok(None) };
            let is_it = *row.pod_uid.get_or_insert_with(|| pod.pod_uid.clone()) == pod.pod_uid;
            if !is_it || row.state == PodState::Deleting {
                return Ok(None);
            }
            row.clone()
        };
        let agent = self.store.agent_version(&row.tenant, row.agent, row.agent_version).await?.unwrap();
        let placed = match row.session {
            Some(session) => {
                let session = self.store.session(&row.tenant, session).await?;
                session.map(|session| Placed { session, model_key: None })
            }
            None => None,
        };
        Ok(Some(Admitted { pod: row, agent, placed }))
    }

    async fn warm(&self, sandbox: SandboxId) -> Result<bool, StoreError> {
        let mut rows = self.known.lock().unwrap();
        let row = rows.get_mut(&sandbox).filter(|row| row.state == PodState::Starting && row.session.is_none());
        Ok(row.map(|row| row.state = PodState::Warm).is_some())
    }

    async fn over(&self, sandbox: SandboxId, reason: Option<String>) -> Result<bool, StoreError> {
        self.reasons.lock().unwrap().insert(sandbox, reason);
        let mut rows = self.known.lock().unwrap();
        Ok(rows.get_mut(&sandbox).map(|row| row.state = PodState::Deleting).is_some())
    }
}

/// Whether a process was stopped by a signal.
pub fn is_stopped(process: u32) -> bool {
    stat(process, 0).as_deref() == Some("T")
}

/// What `/proc` has of a process, counted from its state on.
fn stat(process: u32, field: usize) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(field).map(str::to_owned)
}

/// A pod: a bridge with a home and a workspace of its own.
pub struct Pod {
    pub sandbox: SandboxId,
    pub bridge: Child,
    pub folder: PathBuf,
}

impl Pod {
    /// The bridge says and hears nothing any more, and does not end by itself.
    pub fn stop(&self) {
        let bridge = rustix::process::Pid::from_child(&self.bridge);
        rustix::process::kill_process(bridge, rustix::process::Signal::STOP).unwrap();
    }

    /// A process in it, by the name of its program.
    pub fn process(&self, name: &str) -> Option<u32> {
        let ids = std::fs::read_dir("/proc").unwrap().flatten();
        let ids = ids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        let parents: HashMap<u32, u32> = ids.filter_map(|id| Some((id, stat(id, 1)?.parse().ok()?))).collect();
        let is_below = |id: &u32| {
            let mut above = std::iter::successors(parents.get(id), |id| parents.get(id));
            above.any(|id| *id == self.bridge.id())
        };
        let is_named = |id: &u32| {
            let exe = std::fs::read_link(format!("/proc/{id}/exe"));
            exe.is_ok_and(|exe| exe.file_name().is_some_and(|file| file == name))
        };
        parents.keys().copied().filter(is_below).find(is_named)
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    pub async fn ended(&mut self) {
        eventually("the bridge ends", async || self.bridge.try_wait().unwrap()).await;
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        let _ = self.bridge.kill();
        let _ = self.bridge.wait();
    }
}

/// One life of a runner, on a runtime of its own: dropped, it is gone like a process that was killed.
pub struct Life {
    pub runner: Arc<LocalRunner>,
    registry: Registry,
    runtime: Option<Runtime>,
}

impl Life {
    /// What a metric without labels shows: a counter's name ends in `_total`.
    pub fn metric(&self, name: &str) -> u64 {
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &self.registry).unwrap();
        let shown = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        shown.unwrap_or_else(|| panic!("no {name}")).parse().unwrap()
    }
}

impl Drop for Life {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

pub struct World {
    folder: TempDir,
    pub store: Arc<dyn Store>,
    pub agent: Agent,
    pub model: ScriptedModel,
    pub reviews: Arc<Reviews>,
    pub rows: Arc<Rows>,
    claude: PathBuf,
    pub bridges: SocketAddr,
    pub gateway: SocketAddr,
    pub idle_timeout: Duration,
    pub max_sandboxes: usize,
    /// Whether appends go on; they wait while they do not.
    pub appends: watch::Sender<bool>,
}

fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

impl World {
    pub async fn with_stand_in() -> Self {
        Self::new(program("stand-in-claude")).await
    }

    pub async fn with_claude() -> Self {
        Self::new(real_claude()).await
    }

    async fn new(claude: PathBuf) -> Self {
        let _ = tracing_subscriber::fmt().with_test_writer().with_env_filter("info,ash_runner=debug").try_init();
        let folder = tempfile::tempdir().unwrap();
        let store: Arc<dyn Store> = Arc::new(SqliteStore::open(&folder.path().join("ash.db")).await.unwrap());
        let bundle = Bundle::from_files([("CLAUDE.md".to_owned(), b"You are a simple agent.\n".to_vec())]).unwrap();
        let deploy = DeployAgent {
            tenant: TenantId::default_tenant(),
            name: "tester".parse().unwrap(),
            slug: None,
            description: None,
            settings: AgentSettings::default(),
            digest: bundle.digest(),
            bundle: bundle.to_tar_zstd().unwrap().into(),
        };
        let agent = store.deploy_agent(deploy).await.unwrap();
        let model = ScriptedModel::start(Script::directives()).unwrap();
        let rows = Rows { store: Arc::clone(&store), known: Mutex::default(), reasons: Mutex::default() };
        Self {
            folder,
            store,
            agent,
            model,
            reviews: Arc::default(),
            rows: Arc::new(rows),
            claude,
            bridges: free_port(),
            gateway: free_port(),
            idle_timeout: Duration::from_secs(3600),
            max_sandboxes: 4,
            appends: watch::Sender::new(true),
        }
    }

    /// Where snapshots are kept.
    pub fn vault(&self) -> PathBuf {
        self.folder.path().join("vault")
    }

    /// Starts a life of the runner.
    pub async fn start(&self) -> Life {
        let runtime = Runtime::new().unwrap();
        let config = RunnerConfig {
            data: self.folder.path().join("data"),
            bridge: PathBuf::new(),
            claude: PathBuf::new(),
            max_sandboxes: self.max_sandboxes,
            warm: 0,
            limits: ash_sandbox::Limits::default(),
            memory_bound_bytes: 1 << 40,
            log_memory_bytes: MIN_LOG_MEMORY_BYTES,
            idle_timeout: self.idle_timeout,
            permission_timeout: Duration::from_secs(60),
            capacity_wait: Duration::from_secs(5),
            snapshot_bytes: 1 << 30,
            vault: Some(ash_snapshot::Vault::in_folder(&self.vault()).unwrap()),
            model_keys: Arc::<ModelKeys>::default(),
            serves_until: None,
        };
        let pods = PodsConfig {
            node: NODE.to_owned(),
            gateway: self.gateway,
            claude: self.claude.to_str().unwrap().to_owned(),
            audience: AUDIENCE.to_owned(),
            reviews: Arc::clone(&self.reviews) as _,
            calls: Arc::clone(&self.rows) as _,
            ticket_key: SecretBox::new(Box::new([9; 32])),
        };
        let upstream = UpstreamConfig {
            base_url: self.model.base_url().parse().unwrap(),
            credential: Some(Credential::ApiKey("sk-ant-real".to_owned().into())),
            proxy: None,
            no_proxy: None,
            extra_ca: None,
            extra_headers: Vec::new(),
        };
        let config_of_gateway = GatewayConfig { upstream, egress: EgressConfig::default(), limits: Limits::default() };
        let store = WholeStore(Arc::clone(&self.store));
        let store = Arc::new(Stoppable { store, goes: self.appends.subscribe() });
        let (bridges, gateway_address) = (self.bridges, self.gateway);
        let started = runtime.spawn(async move {
            let signer = TokenSigner::new(SecretBox::new(Box::new([7; 32])));
            let gateway = Gateway::new(config_of_gateway, signer, Arc::new(Nowhere), Arc::new(Nowhere)).unwrap();
            let mut registry = Registry::default();
            let runner = LocalRunner::start(config, pods.into(), gateway.clone(), store, &mut registry).await.unwrap();
            let runner = Arc::new(runner);
            let listener = tokio::net::TcpListener::bind(gateway_address).await.unwrap();
            tokio::spawn(async move { gateway.serve_network(listener, CancellationToken::new()).await });
            let listener = tokio::net::TcpListener::bind(bridges).await.unwrap();
            let serving = Arc::clone(&runner);
            tokio::spawn(async move { serving.serve_bridges(listener, CancellationToken::new()).await });
            (runner, registry)
        });
        let (runner, registry) = started.await.unwrap();
        Life { runner, registry, runtime: Some(runtime) }
    }

    /// A row for a pod, as the operator makes it before the pod.
    pub fn row(&self, session: Option<SessionId>) -> PodSandbox {
        let id = SandboxId::new();
        let row = PodSandbox {
            id,
            tenant: TenantId::default_tenant(),
            pod: format!("tester-{}", id.0.simple()),
            pod_uid: None,
            agent: self.agent.id,
            agent_version: self.agent.version.number,
            pool: "p".to_owned(),
            session,
            state: PodState::Starting,
            runner: None,
            node: None,
            created_at: Timestamp::UNIX_EPOCH,
            changed_at: Timestamp::UNIX_EPOCH,
        };
        self.rows.known.lock().unwrap().insert(id, row.clone());
        row
    }

    /// Starts the pod of a row: a bridge that sees a file system of its own and the node's network.
    pub fn pod(&self, row: &PodSandbox, token: &str) -> Pod {
        let folder = self.folder.path().join(row.id.to_string());
        for name in ["home", "workspace"] {
            std::fs::create_dir_all(folder.join(name)).unwrap();
        }
        std::fs::write(folder.join("token"), token).unwrap();
        let log = std::fs::File::create(folder.join("log")).unwrap();
        let path = |name: &str| folder.join(name).to_str().unwrap().to_owned();
        let workspace = path("workspace");
        let bridge = Command::new("bwrap")
            .args(["--unshare-user", "--uid", "1000", "--gid", "1000", "--unshare-pid", "--die-with-parent"])
            .args(["--ro-bind", "/", "/", "--dev", "/dev", "--proc", "/proc", "--tmpfs", "/home", "--tmpfs", "/tmp"])
            .args(["--bind", &path("home"), "/home/agent", "--bind", &workspace, &workspace])
            .args(["--ro-bind", &path("token"), &path("token"), "--chdir", &workspace])
            .arg(program("ash-bridge"))
            .arg(format!("--host=tcp:{}", self.bridges))
            .arg(format!("--token-file={}", path("token")))
            .arg(format!("--sandbox={}", row.id))
            .arg(format!("--workspace={workspace}"))
            .arg("--no-gateway")
            .env_clear()
            .env("HOME", "/home/agent")
            .env("PATH", "/usr/local/bin:/usr/bin:/bin")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        Pod { sandbox: row.id, bridge, folder }
    }

    /// A pod of the warm pool, once it is warm.
    pub async fn warm_pod(&self) -> Pod {
        let row = self.row(None);
        let pod = self.pod(&row, &valid(&row, NODE));
        self.wait_state(&pod, PodState::Warm).await;
        pod
    }

    pub async fn wait_state(&self, pod: &Pod, state: PodState) {
        eventually(&format!("the pod is {state:?}: {}", pod.log()), async || {
            (self.rows.known.lock().unwrap()[&pod.sandbox].state == state).then_some(())
        })
        .await;
    }

    pub fn reason(&self, pod: &Pod) -> Option<String> {
        self.rows.reasons.lock().unwrap().get(&pod.sandbox).cloned().flatten()
    }

    pub async fn new_session(&self) -> Session {
        let new = NewSession {
            id: SessionId::new(),
            tenant: TenantId::default_tenant(),
            agent: self.agent.id,
            agent_name: self.agent.name.clone(),
            agent_version: self.agent.version.number,
            options: SessionOptions { model: Some("claude-sonnet-4-5".to_owned()), ..SessionOptions::default() },
            metadata: std::collections::BTreeMap::new(),
            credential: None,
            idempotency_key: None,
        };
        self.store.create_session(new).await.unwrap().0
    }

    pub async fn row_of(&self, session: &Session) -> Session {
        self.store.session(&session.tenant, session.id).await.unwrap().unwrap()
    }

    /// Claims a pod for a session as a coordinator does: in the rows first, then by the call to the runner.
    pub async fn claim(&self, life: &Life, session: &Session, pod: &Pod) -> Result<Session, RunnerError> {
        self.claim_sandbox(life, session, pod.sandbox).await
    }

    /// The same, where the pod is none of these.
    pub async fn claim_sandbox(
        &self,
        life: &Life,
        session: &Session,
        sandbox: SandboxId,
    ) -> Result<Session, RunnerError> {
        {
            let mut rows = self.rows.known.lock().unwrap();
            let row = rows.get_mut(&sandbox).unwrap();
            (row.state, row.session) = (PodState::Claimed, Some(session.id));
        }
        life.runner.claim(session.clone(), sandbox).await
    }

    /// Sends a message.
    pub async fn send(&self, life: &Life, session: &Session, text: &str) -> Result<Turn, RunnerError> {
        let id = TurnId(Uuid::new_v4());
        let message = NewMessage {
            turn: id,
            content: serde_json::value::RawValue::from_string(serde_json::to_string(text).unwrap()).unwrap(),
            options: TurnOptions::default(),
        };
        let row = self.row_of(session).await;
        let sent = life.runner.send(row, self.agent.version.clone(), message).await?;
        Ok(Turn { reader: sent.reader, entries: Vec::new() })
    }

    /// Whether a reader who has everything is told that there is more to come.
    pub async fn is_in_progress(&self, life: &Life, session: &Session) -> bool {
        let row = self.row_of(session).await;
        let after = Position::after(row.last);
        life.runner.read(&row, after).await.unwrap().turn_in_progress()
    }

    /// A turn to its end: the text of its result.
    pub async fn say(&self, life: &Life, session: &Session, text: &str) -> String {
        self.send(life, session, text).await.unwrap().result().await
    }

    pub async fn wait_session(&self, session: &Session, what: &str, is: impl Fn(&Session) -> bool) -> Session {
        eventually(what, async || Some(self.row_of(session).await).filter(&is)).await
    }

    /// The whole log of a session.
    pub async fn log(&self, life: &Life, session: &Session) -> Vec<Entry> {
        let last = self.row_of(session).await.last;
        let mut reader = life.runner.read(&self.row_of(session).await, Position::after(Sequence::START)).await.unwrap();
        let mut entries = Vec::new();
        while reader.position() < last {
            let batch = timeout(DEADLINE, reader.next()).await.unwrap().unwrap().unwrap();
            entries.extend(batch.iter().map(|logged| logged.entry.clone()));
        }
        entries
    }
}

/// A token that the API server calls valid.
pub fn valid(row: &PodSandbox, node: &str) -> String {
    token(&row.pod, &format!("uid-{}", row.id), node, SIGNATURE)
}

/// A token of a pod, with a signature.
pub fn token(pod: &str, pod_uid: &str, node: &str, signature: &str) -> String {
    let of = serde_json::json!({
        "namespace": "default", "node": { "name": node }, "pod": { "name": pod, "uid": pod_uid },
    });
    let end = Timestamp::now().as_second() + 3600;
    let claims = serde_json::json!({ "aud": [AUDIENCE], "exp": end, "kubernetes.io": of });
    format!("e30.{}.{signature}", URL_SAFE_NO_PAD.encode(claims.to_string()))
}

pub struct Turn {
    reader: Box<dyn EntryReader>,
    pub entries: Vec<Entry>,
}

impl Turn {
    /// Reads until an entry is there that is meant.
    pub async fn until(&mut self, is_meant: impl Fn(&Entry) -> bool) {
        while !self.entries.iter().any(&is_meant) {
            let batch = timeout(DEADLINE, self.reader.next()).await.expect("in time").unwrap().expect("more");
            self.entries.extend(batch.iter().map(|logged| logged.entry.clone()));
        }
    }

    pub async fn result(mut self) -> String {
        self.until(Entry::ends_turn).await;
        result_of(self.entries.iter().find(|entry| entry.ends_turn()).unwrap())
    }
}

/// What the entry that ends a turn says.
pub fn result_of(entry: &Entry) -> String {
    let body: serde_json::Value = serde_json::from_slice(&entry.body).unwrap();
    match entry.kind {
        EntryKind::Claude => body["result"].as_str().unwrap_or_default().to_owned(),
        _ => format!("{:?}: {body}", entry.kind),
    }
}

/// Whether the sequences of the entries of each epoch follow each other, transcripts (which readers are not given) aside.
pub fn is_ordered(entries: &[Entry]) -> bool {
    entries.windows(2).all(|pair| pair[0].sequence < pair[1].sequence)
}

pub fn is_active(session: &Session) -> bool {
    session.state == SessionState::Active
}

pub fn exists(path: &Path) -> bool {
    path.exists()
}
