//! One server under test: `ash serve` as a process of its own, on a folder of its own, before the scripted model.

use std::{
    collections::BTreeMap,
    ffi::OsString,
    fs::{self, File},
    net::SocketAddr,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use ash_client::{Behavior, Client, CreateSession, Decision, Event, Message, Session};
use tempfile::TempDir;

use super::{
    Turn, eventually,
    process::{program, record_pid, signal},
};
use crate::{
    fleet::free_port,
    model::{Script, ScriptedModel},
};

/// The key with which the server calls the model: looked for where it must not be.
pub const MODEL_KEY: &str = "sk-ant-canary-5f0c2a9e7b";
/// The key with which the client calls the server.
const API_KEY: &str = "ash_test_key";
/// What a server under test logs.
const LOG: &str = "info,ash_runner=debug,ash_api=debug";
/// How long a server may take to stop by itself before it is killed.
const STOP: Duration = Duration::from_secs(30);
/// Lines of the server's log that a failed test prints.
const DUMPED_LINES: usize = 120;

/// How a server is started.
#[derive(Debug, Default)]
pub struct TestAppBuilder {
    arguments: Vec<String>,
    environment: BTreeMap<String, String>,
    claude: Option<PathBuf>,
    model: Option<Script>,
    log: Option<String>,
    behind: Vec<String>,
}

impl TestAppBuilder {
    /// An argument of `ash serve`.
    #[must_use]
    pub fn argument(mut self, argument: impl Into<String>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// A variable of the server's environment.
    #[must_use]
    pub fn variable(mut self, name: &str, value: &str) -> Self {
        self.environment.insert(name.to_owned(), value.to_owned());
        self
    }

    /// Another program than the real Claude Code.
    #[must_use]
    pub fn claude(mut self, program: PathBuf) -> Self {
        self.claude = Some(program);
        self
    }

    /// What the model does; it follows directives in the messages where nothing is said.
    #[must_use]
    pub fn model(mut self, script: Script) -> Self {
        self.model = Some(script);
        self
    }

    /// What the server logs, instead of what helps to understand a failed test.
    #[must_use]
    pub fn log(mut self, filter: &str) -> Self {
        self.log = Some(filter.to_owned());
        self
    }

    /// The command that runs the server, such as one that changes its mounts first: it gets the server's command line as its
    /// last arguments, and the data directory, the user and the group of the test in `ASH_TEST_DATA`, `ASH_TEST_USER` and
    /// `ASH_TEST_GROUP`. It has to become the server (`exec`).
    #[must_use]
    pub fn behind(mut self, command: Vec<String>) -> Self {
        self.behind = command;
        self
    }

    /// Starts the server and waits until it answers.
    ///
    /// # Panics
    /// When it does not.
    pub async fn start(self) -> TestApp {
        let folder = TempDir::new().expect("a temporary folder");
        let model = ScriptedModel::start(self.model.unwrap_or_else(Script::directives)).expect("the scripted model");
        let port = free_port();
        let claude = self.claude.unwrap_or_else(real_claude);
        let client = Client::new(&format!("http://{port}"), Some(&API_KEY.into())).expect("a client");
        let mut app = TestApp {
            folder,
            model,
            address: port,
            client,
            arguments: self.arguments,
            environment: self.environment,
            claude,
            log: self.log.unwrap_or_else(|| LOG.to_owned()),
            behind: self.behind,
            server: None,
        };
        app.launch().await;
        app
    }
}

/// The pinned Claude Code, where `make test` and `make quickstart` put it; `ASH_TEST_CLAUDE` names another.
///
/// # Panics
/// When there is none.
pub fn real_claude() -> PathBuf {
    if let Some(given) = std::env::var_os("ASH_TEST_CLAUDE") {
        return given.into();
    }
    let home = PathBuf::from(std::env::var_os("HOME").expect("HOME is set"));
    let program = home.join(format!(".cache/ash/claude-code-{}/package/claude", ash_protocol::claude::VERSION));
    assert!(program.is_file(), "Claude Code is not installed: run bridge-image/install-claude-code.sh");
    program
}

/// A running server. Dropped, it is stopped and leaves nothing behind; dropped by a panic, it prints what it logged.
#[derive(Debug)]
pub struct TestApp {
    folder: TempDir,
    /// The model behind the server.
    pub model: ScriptedModel,
    address: SocketAddr,
    /// A client of the server.
    pub client: Client,
    arguments: Vec<String>,
    environment: BTreeMap<String, String>,
    claude: PathBuf,
    log: String,
    behind: Vec<String>,
    server: Option<Child>,
}

impl TestApp {
    /// A server with one warm sandbox per agent.
    pub async fn start() -> Self {
        Self::builder().start().await
    }

    /// A server to be.
    pub fn builder() -> TestAppBuilder {
        TestAppBuilder::default()
    }

    /// The data directory.
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// A session's folder.
    pub fn session_folder(&self, session: &str) -> PathBuf {
        self.data().join("sandboxes").join(session)
    }

    /// The server's address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The server's process.
    ///
    /// # Panics
    /// When it does not run.
    pub fn server_pid(&self) -> u32 {
        self.server.as_ref().expect("a server").id()
    }

    /// A request with the client's key, for what the client has no method for.
    pub fn api_key(&self) -> &'static str {
        API_KEY
    }

    async fn launch(&mut self) {
        let log = self.folder.path().join("server.log");
        let log = File::options().create(true).append(true).open(log).expect("a log file");
        let mut command = self.server_command();
        command
            .arg("serve")
            .args(["--listen", &self.address.to_string()])
            .arg("--data-dir")
            .arg(self.data())
            .arg("--claude")
            .arg(&self.claude)
            .args(["--log", &self.log])
            .args(&self.arguments)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("ASH_API_KEY", API_KEY)
            .env("ANTHROPIC_BASE_URL", self.model.base_url())
            .env("ANTHROPIC_API_KEY", MODEL_KEY)
            .envs(&self.environment)
            .envs(self.told_to_behind())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log file"))
            .stderr(log);
        self.server = Some(command.spawn().expect("the server starts"));
        eventually("the server answers", async || {
            if let Ok(Some(status)) = self.server.as_mut().expect("a server").try_wait() {
                panic!("the server ended with {status}:\n{}", self.log_tail());
            }
            self.client.health().await.ok()
        })
        .await;
    }

    fn server_command(&self) -> Command {
        let Some((first, rest)) = self.behind.split_first() else { return Command::new(program("ash")) };
        let mut command = Command::new(first);
        command.args(rest).arg(program("ash"));
        command
    }

    /// What the command that runs the server may need to know.
    fn told_to_behind(&self) -> Vec<(&'static str, OsString)> {
        if self.behind.is_empty() {
            return Vec::new();
        }
        let owner = fs::metadata(self.folder.path()).expect("the folder");
        let (user, group) = (owner.uid().to_string(), owner.gid().to_string());
        vec![("ASH_TEST_DATA", self.data().into()), ("ASH_TEST_USER", user.into()), ("ASH_TEST_GROUP", group.into())]
    }

    /// Kills the server as a power failure of its process would; its sandboxes live on.
    ///
    /// # Panics
    /// When it does not run.
    pub fn kill(&mut self) {
        let mut server = self.server.take().expect("a server");
        server.kill().expect("a server that runs");
        server.wait().expect("its end");
    }

    /// Starts the server again after [`TestApp::kill`] or [`TestApp::stop`], on the same folder and address.
    pub async fn start_again(&mut self) {
        self.launch().await;
    }

    /// Waits until the server, which was told to end, has ended.
    ///
    /// # Panics
    /// When it does not run.
    pub async fn wait_end(&mut self) -> ExitStatus {
        let mut server = self.server.take().expect("a server");
        eventually("the server ends", async || server.try_wait().expect("its state")).await
    }

    /// Stops the server as a person would, and waits for its end.
    pub fn stop(&mut self) {
        let Some(mut server) = self.server.take() else { return };
        signal(server.id(), "TERM");
        let start = Instant::now();
        while start.elapsed() < STOP {
            if matches!(server.try_wait(), Ok(Some(_)) | Err(_)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = server.kill();
        let _ = server.wait();
    }

    /// Deploys an agent of these files.
    ///
    /// # Panics
    /// When the server refuses it.
    pub async fn deploy(&self, name: &str, files: &[(&str, &str)]) {
        let folder = TempDir::new().expect("a temporary folder");
        for (path, text) in files {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().expect("a file is in a folder")).expect("a folder");
            fs::write(path, text).expect("a file");
        }
        let response = self
            .request(
                "POST",
                "/api/agents",
                Some(serde_json::json!({ "name": name, "path": folder.path().to_string_lossy() })),
            )
            .await;
        assert_eq!(response.0, 201, "{}", response.1);
    }

    /// Deploys a simple agent and makes a session of it.
    ///
    /// # Panics
    /// When the server refuses either.
    pub async fn session(&self) -> Session {
        self.deploy("simple", &[("CLAUDE.md", "You are a simple agent.\n")]).await;
        self.session_of("simple").await
    }

    /// Makes a session of an agent.
    ///
    /// # Panics
    /// When the server refuses it.
    pub async fn session_of(&self, agent: &str) -> Session {
        let create = CreateSession { agent: agent.to_owned(), ..CreateSession::default() };
        self.client.create_session(&create).await.expect("a session")
    }

    /// Sends a message with partials and reads its stream to the end.
    ///
    /// # Panics
    /// When the server refuses it or the stream breaks.
    pub async fn say(&self, session: &Session, text: &str) -> Turn {
        let message = Message { include_partial_messages: true, ..Message::text(text) };
        self.send(session, &message).await
    }

    /// Sends a message with partials, permits whatever is asked for, and reads its stream to the end. Observed with Claude Code
    /// 2.1.330 on a busy machine: it may ask about a long command also where everything is permitted.
    ///
    /// # Panics
    /// When the server refuses it or the stream breaks.
    pub async fn say_permitting(&self, session: &Session, text: &str) -> Turn {
        let message = Message { include_partial_messages: true, ..Message::text(text) };
        let mut stream = self.client.send_message(&session.id, &message).await.expect("a message that is taken");
        let mut turn = Turn::default();
        while let Some(frame) = turn.next(&mut stream).await {
            if let Ok(Event::PermissionRequest { id, .. }) = frame.read() {
                let allow = Decision { behavior: Behavior::Allow, updated_input: None, answers: None, message: None };
                self.client.answer_permission(&session.id, &id, &allow).await.expect("the first answer");
            }
            turn.frames.push(frame);
        }
        turn
    }

    /// Sends a message and reads its stream to the end.
    ///
    /// # Panics
    /// When the server refuses it or the stream breaks.
    pub async fn send(&self, session: &Session, message: &Message) -> Turn {
        Turn::read(self.client.send_message(&session.id, message).await.expect("a message that is taken")).await
    }

    /// A request of any kind: the status and the JSON of the answer.
    ///
    /// # Panics
    /// When the server does not answer with JSON.
    pub async fn request(&self, method: &str, path: &str, body: Option<serde_json::Value>) -> (u16, serde_json::Value) {
        crate::http::json(self.address, method, path, Some(API_KEY), body).await.expect("an answer")
    }

    /// What `GET /metrics` says.
    ///
    /// # Panics
    /// When the server does not answer.
    pub async fn metrics(&self) -> String {
        let request = hyper::Request::get("/metrics").header("host", self.address.to_string());
        let request = request.body(http_body_util::Full::default()).expect("a request");
        let response = crate::http::send(self.address, request).await.expect("metrics");
        String::from_utf8(response.body().to_vec()).expect("text")
    }

    /// The value of one metric, named as `GET /metrics` does, with its labels.
    ///
    /// # Panics
    /// When there is no such metric.
    pub async fn metric(&self, name: &str) -> u64 {
        let text = self.metrics().await;
        let found = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.parse().ok());
        found.unwrap_or_else(|| panic!("no {name}:\n{text}"))
    }

    /// What the model was last asked in a turn, as JSON.
    ///
    /// # Panics
    /// When it was asked nothing.
    pub fn last_request(&self) -> serde_json::Value {
        self.model.requests().last().expect("a request of a turn").json()
    }

    /// Waits until everything that was said so far is in the log: what is not would go with a disk or a machine.
    pub async fn wait_written(&self) {
        eventually("all entries are in the log", async || {
            (self.metric("ash_runner_unwritten_sessions").await == 0).then_some(())
        })
        .await;
    }

    /// Waits until so many sandboxes are warm.
    pub async fn wait_warm(&self, count: u64) {
        eventually("warm sandboxes", async || {
            let health = self.client.health().await.ok()?;
            (health.pool.warm >= count).then_some(())
        })
        .await;
    }

    /// The last lines of the server's log.
    pub fn log_tail(&self) -> String {
        let log = fs::read_to_string(self.folder.path().join("server.log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(DUMPED_LINES)..].join("\n")
    }

    fn sandbox_folders(&self) -> Vec<PathBuf> {
        let Ok(folders) = fs::read_dir(self.data().join("sandboxes")) else { return Vec::new() };
        folders.flatten().map(|folder| folder.path()).collect()
    }

    fn dump(&self) {
        eprintln!("--- the server's log ---\n{}", self.log_tail());
        for folder in self.sandbox_folders() {
            dump_log(&folder);
        }
    }
}

fn dump_log(folder: &Path) {
    if let Ok(log) = fs::read_to_string(folder.join("log"))
        && !log.is_empty()
    {
        eprintln!("--- {} ---\n{log}", folder.display());
    }
}

impl Drop for TestApp {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.dump();
        }
        self.stop();
        // What a killed server left behind is ended by its record.
        for folder in self.sandbox_folders() {
            if let Some(pid) = record_pid(&folder) {
                signal(pid, "KILL");
            }
        }
    }
}
