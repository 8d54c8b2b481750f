//! A fleet under test: a coordinator and runners as processes of their own, before the scripted model.

mod partition;
mod process;
mod runner;

use std::{
    fs,
    net::{SocketAddr, TcpListener},
    path::PathBuf,
    process::Command,
};

use ash_client::{Client, CreateSession, Message, Session};
use serde_json::json;
use tempfile::TempDir;

pub use self::runner::TestRunner;
use self::{partition::Partition, process::Process};
use super::{
    MODEL_KEY, Turn, eventually,
    process::{program, record_pid},
    real_claude,
};
use crate::model::{Script, ScriptedModel};

const API_KEY: &str = "ash_test_key";
const LOG: &str = "info,ash_runner=debug,ash_coordinator=debug,ash_link=debug";
/// `You are a simple agent.` and a newline, in base64.
const SIMPLE_AGENT: &str = "WW91IGFyZSBhIHNpbXBsZSBhZ2VudC4K";

/// A second coordinator on the same database.
#[derive(Debug)]
struct Other {
    process: Process,
    address: SocketAddr,
    fleet_address: SocketAddr,
    client: Client,
}

/// What of a fleet is not as tests have it.
#[derive(Debug, Clone, Default)]
pub struct FleetOptions {
    /// The database; without one, `SQLite`.
    pub database: Option<String>,
    /// Whether there is a second coordinator on the database.
    pub second_coordinator: bool,
    /// More arguments of the coordinators.
    pub coordinator_arguments: Vec<String>,
    /// More variables of the runners.
    pub runner_environment: Vec<(&'static str, String)>,
    /// A stand-in for Claude Code.
    pub claude: Option<PathBuf>,
    /// What is logged.
    pub log: Option<&'static str>,
    /// Whether a test may cut runners off from the coordinators.
    pub partitions: bool,
}

/// A coordinator, or two, and their runners. Dropped, all is stopped and nothing left behind.
#[derive(Debug)]
pub struct TestFleet {
    folder: TempDir,
    /// The model behind the runners.
    pub model: ScriptedModel,
    address: SocketAddr,
    fleet_address: SocketAddr,
    /// A client of the coordinator.
    pub client: Client,
    coordinator: Process,
    options: FleetOptions,
    other: Option<Other>,
    /// The runners.
    pub runners: Vec<TestRunner>,
}

pub(crate) fn free_port() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port")
}

impl TestFleet {
    /// A coordinator and so many runners, each with these arguments too; returns when all of them can be given sessions.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn start(runners: usize, arguments: &[&str]) -> Self {
        Self::start_with(runners, arguments, FleetOptions::default()).await
    }

    /// Two coordinators that share a Postgres database, and so many runners that know both.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn start_on(database: &str, runners: usize, arguments: &[&str]) -> Self {
        let database = Some(database.to_owned());
        let options = FleetOptions { database, second_coordinator: true, ..FleetOptions::default() };
        Self::start_with(runners, arguments, options).await
    }

    /// The same with what is not as tests have it.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn start_with(runners: usize, arguments: &[&str], options: FleetOptions) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let model = ScriptedModel::start(Script::directives()).expect("the scripted model");
        let (address, fleet_address) = (free_port(), free_port());
        let client = Client::new(&format!("http://{address}"), Some(&API_KEY.into())).expect("a client");
        let coordinator = Process::new(folder.path(), "coordinator");
        let other = options.second_coordinator.then(|| {
            let (address, fleet_address) = (free_port(), free_port());
            let client = Client::new(&format!("http://{address}"), Some(&API_KEY.into())).expect("a client");
            Other { process: Process::new(folder.path(), "other-coordinator"), address, fleet_address, client }
        });
        let mut fleet =
            Self { folder, model, address, fleet_address, client, coordinator, options, other, runners: Vec::new() };
        fleet.write_secret(&["s".repeat(40)]);
        fleet.start_coordinator().await;
        if fleet.other.is_some() {
            fleet.start_other().await;
        }
        for _ in 0..runners {
            fleet.add_runner(arguments);
        }
        fleet.wait_runners(runners).await;
        fleet
    }

    /// The file with the shared secret.
    pub fn secret_file(&self) -> PathBuf {
        self.folder.path().join("secret")
    }

    /// Writes the shared secrets.
    ///
    /// # Panics
    /// When the file cannot be written.
    pub fn write_secret(&self, secrets: &[String]) {
        fs::write(self.secret_file(), secrets.join("\n")).expect("a secret file");
    }

    /// Where runners reach the coordinator.
    pub fn fleet_address(&self) -> SocketAddr {
        self.fleet_address
    }

    /// Starts the coordinator, and waits until it answers.
    ///
    /// # Panics
    /// When it does not.
    pub async fn start_coordinator(&mut self) {
        let (arguments, environment) = self.coordinator_call(&self.coordinator, self.address, self.fleet_address);
        self.coordinator.start(&arguments, &environment);
        eventually("the coordinator answers", async || {
            if let Ok(Some(status)) = self.coordinator.child.as_mut().expect("a coordinator").try_wait() {
                panic!("the coordinator ended with {status}:\n{}", self.coordinator.log());
            }
            self.client.health().await.ok()
        })
        .await;
    }

    /// Starts the second coordinator, and waits until it answers.
    ///
    /// # Panics
    /// When there is none, or it does not answer.
    pub async fn start_other(&mut self) {
        let other = self.other.as_ref().expect("a second coordinator");
        let (arguments, environment) = self.coordinator_call(&other.process, other.address, other.fleet_address);
        let other = self.other.as_mut().expect("a second coordinator");
        other.process.start(&arguments, &environment);
        let client = &other.client;
        eventually("the second coordinator answers", async || client.health().await.ok()).await;
    }

    /// A client of the second coordinator.
    ///
    /// # Panics
    /// When there is none.
    pub fn other(&self) -> &Client {
        &self.other.as_ref().expect("a second coordinator").client
    }

    /// The second coordinator's process.
    ///
    /// # Panics
    /// When it does not run.
    pub fn other_pid(&self) -> u32 {
        self.other.as_ref().and_then(|other| other.process.child.as_ref()).expect("a second coordinator").id()
    }

    /// Kills the second coordinator.
    ///
    /// # Panics
    /// When it does not run.
    pub fn kill_other(&mut self) {
        self.other.as_mut().expect("a second coordinator").process.kill();
    }

    /// Runs the command-line client against the first coordinator, and gives what it printed.
    ///
    /// # Panics
    /// When it fails.
    pub fn ash(&self, arguments: &[&str]) -> String {
        let output = Command::new(program("ash"))
            .args(arguments)
            .env_clear()
            .env("ASH_URL", format!("http://{}", self.address))
            .env("ASH_API_KEY", API_KEY)
            .output()
            .expect("the client runs");
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    fn coordinator_call(
        &self,
        process: &Process,
        address: SocketAddr,
        fleet_address: SocketAddr,
    ) -> (Vec<String>, Vec<(&'static str, String)>) {
        let data = process.folder.join("data");
        let mut arguments = vec![
            "serve".to_owned(),
            "--mode=coordinator".to_owned(),
            format!("--listen={address}"),
            format!("--fleet-listen={fleet_address}"),
            format!("--data-dir={}", data.display()),
            format!("--fleet-secret-file={}", self.secret_file().display()),
            format!("--log={}", self.log()),
            "--shutdown-timeout=5s".to_owned(),
        ];
        arguments.extend(self.options.coordinator_arguments.iter().cloned());
        let mut environment = vec![
            ("ASH_API_KEY", API_KEY.to_owned()),
            ("ASH_TOKEN_KEY", "0f".repeat(32)),
            ("ASH_CREDENTIAL_KEY", "1e".repeat(32)),
            ("ANTHROPIC_API_KEY", MODEL_KEY.to_owned()),
        ];
        environment.extend(self.options.database.clone().map(|url| ("ASH_DATABASE_URL", url)));
        (arguments, environment)
    }

    fn log(&self) -> &'static str {
        self.options.log.unwrap_or(LOG)
    }

    /// Where clients reach the coordinator.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// The key that clients need.
    pub fn api_key(&self) -> &'static str {
        API_KEY
    }

    /// Kills the coordinator.
    pub fn kill_coordinator(&mut self) {
        self.coordinator.kill();
    }

    /// What the coordinator logged.
    pub fn coordinator_log(&self) -> String {
        self.coordinator.log()
    }

    /// Starts one more runner.
    pub fn add_runner(&mut self, more: &[&str]) {
        let name = format!("runner-{}", self.runners.len());
        let process = Process::new(self.folder.path(), &name);
        let (listen, metrics) = (free_port(), free_port());
        let partition = self.options.partitions.then(Partition::new);
        let way = |to: SocketAddr| partition.as_ref().map_or(to, |partition| partition.way_to(to));
        let mut arguments = vec![
            "runner".to_owned(),
            format!("--coordinator=http://{}", way(self.fleet_address)),
            format!("--name={name}"),
            format!("--listen={listen}"),
            format!("--advertise=http://{}", way(listen)),
            format!("--metrics-listen={metrics}"),
            format!("--data-dir={}", process.folder.join("data").display()),
            format!("--fleet-secret-file={}", self.secret_file().display()),
            format!("--claude={}", self.options.claude.clone().unwrap_or_else(real_claude).display()),
            format!("--log={}", self.log()),
            "--shutdown-timeout=5s".to_owned(),
        ];
        arguments.extend(self.other.iter().map(|other| format!("--coordinator=http://{}", way(other.fleet_address))));
        arguments.extend(more.iter().map(|argument| (*argument).to_owned()));
        let mut environment = vec![("ANTHROPIC_BASE_URL", self.model.base_url())];
        environment.extend(self.options.runner_environment.iter().cloned());
        let mut runner = TestRunner { process, arguments, environment, metrics, partition };
        runner.start();
        self.runners.push(runner);
    }

    /// Waits until so many runners can be given sessions.
    pub async fn wait_runners(&self, count: usize) {
        eventually("the runners are there", async || {
            let counted = self.metric("ash_coordinator_runners_ready").await?;
            (counted >= f64::from(u32::try_from(count).unwrap_or(u32::MAX))).then_some(())
        })
        .await;
    }

    /// The coordinator's metrics.
    pub async fn metrics(&self) -> String {
        crate::http::text(self.address, "/metrics").await.unwrap_or_default()
    }

    /// A value of the coordinator's metrics.
    pub async fn metric(&self, name: &str) -> Option<f64> {
        let text = crate::http::text(self.address, "/metrics").await.ok()?;
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
    }

    /// Deploys a simple agent.
    ///
    /// # Panics
    /// When the coordinator refuses it.
    pub async fn deploy(&self, name: &str) {
        let files = json!([{ "path": "CLAUDE.md", "content": SIMPLE_AGENT }]);
        let body = json!({ "name": name, "files": files });
        let answer = crate::http::json(self.address, "POST", "/api/agents", Some(API_KEY), Some(body)).await;
        let (status, answer) = answer.expect("an answer");
        assert_eq!(status, 201, "{answer}");
    }

    /// Makes a session of an agent.
    ///
    /// # Panics
    /// When the coordinator refuses it.
    pub async fn session_of(&self, agent: &str) -> Session {
        let create = CreateSession { agent: agent.to_owned(), ..CreateSession::default() };
        self.client.create_session(&create).await.expect("a session")
    }

    /// Sends a message with partials and reads its stream to the end.
    ///
    /// # Panics
    /// When the coordinator refuses it or the stream breaks.
    pub async fn say(&self, session: &Session, text: &str) -> Turn {
        let message = Message { include_partial_messages: true, ..Message::text(text) };
        Turn::read(self.client.send_message(&session.id, &message).await.expect("a message that is taken")).await
    }

    /// Which runner has a session's sandbox.
    pub async fn runner_of(&self, session: &Session) -> usize {
        eventually("the session is on a runner", async || {
            self.runners.iter().position(|runner| {
                runner.process.child.is_some() && record_pid(&runner.session_folder(&session.id)).is_some()
            })
        })
        .await
    }

    /// A request of any kind: the status and the JSON of the answer.
    ///
    /// # Panics
    /// When the coordinator does not answer with JSON.
    pub async fn request(&self, method: &str, path: &str, body: Option<serde_json::Value>) -> (u16, serde_json::Value) {
        crate::http::json(self.address, method, path, Some(API_KEY), body).await.expect("an answer")
    }
}

impl Drop for TestFleet {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.coordinator.dump();
            self.other.iter().for_each(|other| other.process.dump());
            for runner in &self.runners {
                runner.process.dump();
            }
        }
        for runner in &mut self.runners {
            runner.stop();
        }
        self.coordinator.stop();
        self.other.iter_mut().for_each(|other| other.process.stop());
        for runner in &self.runners {
            runner.end_sandboxes();
        }
    }
}
