//! A fleet under test: coordinators and runners as processes of their own, before the scripted model.

use std::{
    fs,
    net::SocketAddr,
    ops::{Deref, DerefMut},
    path::PathBuf,
    process::Command,
};

use ash_client::{Client, CreateSession, Message, Session};
use serde_json::json;
use tempfile::TempDir;

use super::{
    MODEL_KEY, Turn, eventually,
    process::{program, record_pid},
    real_claude,
};
use crate::{
    fleet::{Fleet, Keys, Settings, free_port, metric},
    model::{Script, ScriptedModel},
};

const API_KEY: &str = "ash_test_key";
const LOG: &str = "info,ash_runner=debug,ash_coordinator=debug,ash_link=debug";
/// `You are a simple agent.` and a newline, in base64.
const SIMPLE_AGENT: &str = "WW91IGFyZSBhIHNpbXBsZSBhZ2VudC4K";
/// Places among the coordinators.
const FIRST: usize = 0;
const OTHER: usize = 1;

/// What of a fleet is not as tests have it.
#[derive(Debug, Clone, Default)]
pub struct FleetOptions {
    /// The database; without one, `SQLite`.
    pub database: Option<String>,
    /// Whether there is a second coordinator on the database.
    pub second_coordinator: bool,
    /// Whether there is a load balancer before both.
    pub balancer: bool,
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
    fleet: Fleet,
    /// The model behind the runners.
    pub model: ScriptedModel,
    /// A client of the coordinator.
    pub client: Client,
    other: Option<Client>,
    balanced: Option<Client>,
    _folder: TempDir,
}

fn client(address: SocketAddr) -> Client {
    Client::new(&format!("http://{address}"), Some(&API_KEY.into())).expect("a client")
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

    /// The same behind a load balancer.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn start_balanced(database: &str, runners: usize, arguments: &[&str]) -> Self {
        let database = Some(database.to_owned());
        let options = FleetOptions { database, second_coordinator: true, balancer: true, ..FleetOptions::default() };
        Self::start_with(runners, arguments, options).await
    }

    /// The same with what is not as tests have it.
    ///
    /// # Panics
    /// When it does not start.
    pub async fn start_with(runners: usize, arguments: &[&str], options: FleetOptions) -> Self {
        let folder = TempDir::new().expect("a temporary folder");
        let model = ScriptedModel::start(Script::directives()).expect("the scripted model");
        let mut runner_environment = vec![("ANTHROPIC_BASE_URL", model.base_url().into())];
        runner_environment.extend(options.runner_environment.into_iter().map(|(name, value)| (name, value.into())));
        let settings = Settings {
            folder: folder.path().to_owned(),
            keys: Keys::make(&folder.path().join("keys"), Some(API_KEY)).expect("keys"),
            database: options.database.map(Into::into),
            log: options.log.unwrap_or(LOG).to_owned(),
            coordinator_arguments: options.coordinator_arguments,
            coordinator_environment: vec![("ANTHROPIC_API_KEY", MODEL_KEY.into())],
            runner_environment,
            claude: Some(options.claude.unwrap_or_else(real_claude)),
            partitions: options.partitions,
            apart: false,
        };
        let mut fleet = Fleet::new(settings, if options.second_coordinator { 2 } else { 1 });
        fleet.start_coordinator(FIRST).await.expect("a coordinator");
        if options.second_coordinator {
            fleet.start_coordinator(OTHER).await.expect("a second coordinator");
        }
        for _ in 0..runners {
            fleet.add_runner(arguments);
        }
        fleet.wait_runners(runners).await.expect("runners");
        if options.balancer {
            fleet.start_balancer(free_port()).await.expect("a load balancer");
        }
        Self {
            model,
            client: client(fleet.coordinators[FIRST].address),
            other: fleet.coordinators.get(OTHER).map(|other| client(other.address)),
            balanced: fleet.balancer.as_ref().map(|balancer| client(balancer.address)),
            fleet,
            _folder: folder,
        }
    }

    /// The file with the shared secret.
    pub fn secret_file(&self) -> PathBuf {
        self.fleet.keys().fleet_secret()
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
        self.fleet.coordinators[FIRST].fleet_address
    }

    /// Starts the coordinator, and waits until it answers.
    ///
    /// # Panics
    /// When it does not.
    pub async fn start_coordinator(&mut self) {
        self.fleet.start_coordinator(FIRST).await.expect("the coordinator answers");
    }

    /// Starts the second coordinator, and waits until it answers.
    ///
    /// # Panics
    /// When there is none, or it does not answer.
    pub async fn start_other(&mut self) {
        self.fleet.start_coordinator(OTHER).await.expect("the second coordinator answers");
    }

    /// A client of the second coordinator.
    ///
    /// # Panics
    /// When there is none.
    pub fn other(&self) -> &Client {
        self.other.as_ref().expect("a second coordinator")
    }

    /// A client of the load balancer.
    ///
    /// # Panics
    /// When there is none.
    pub fn balanced(&self) -> &Client {
        self.balanced.as_ref().expect("a load balancer")
    }

    /// The second coordinator's process.
    ///
    /// # Panics
    /// When it does not run.
    pub fn other_pid(&self) -> u32 {
        self.fleet.coordinators[OTHER].pid()
    }

    /// Kills the second coordinator.
    ///
    /// # Panics
    /// When it does not run.
    pub fn kill_other(&mut self) {
        self.fleet.coordinators[OTHER].kill();
    }

    /// Runs the command-line client against the first coordinator, and gives what it printed.
    ///
    /// # Panics
    /// When it fails.
    pub fn ash(&self, arguments: &[&str]) -> String {
        let output = Command::new(program("ash"))
            .args(arguments)
            .env_clear()
            .env("ASH_URL", format!("http://{}", self.address()))
            .env("ASH_API_KEY", API_KEY)
            .output()
            .expect("the client runs");
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Where clients reach the coordinator.
    pub fn address(&self) -> SocketAddr {
        self.fleet.coordinators[FIRST].address
    }

    /// The key that clients need.
    pub fn api_key(&self) -> &'static str {
        API_KEY
    }

    /// Kills the coordinator.
    pub fn kill_coordinator(&mut self) {
        self.fleet.coordinators[FIRST].kill();
    }

    /// What the coordinator logged.
    pub fn coordinator_log(&self) -> String {
        self.fleet.coordinators[FIRST].log()
    }

    /// Waits until so many runners can be given sessions.
    pub async fn wait_runners(&self, count: usize) {
        eventually("the runners are there", async || {
            let ready = self.fleet.runners_ready().await?;
            (ready >= count).then_some(())
        })
        .await;
    }

    /// The coordinator's metrics.
    pub async fn metrics(&self) -> String {
        crate::http::text(self.address(), "/metrics").await.unwrap_or_default()
    }

    /// A value of the coordinator's metrics.
    pub async fn metric(&self, name: &str) -> Option<f64> {
        metric(self.address(), name).await
    }

    /// Deploys a simple agent.
    ///
    /// # Panics
    /// When the coordinator refuses it.
    pub async fn deploy(&self, name: &str) {
        let files = json!([{ "path": "CLAUDE.md", "content": SIMPLE_AGENT }]);
        let body = json!({ "name": name, "files": files });
        let answer = crate::http::json(self.address(), "POST", "/api/agents", Some(API_KEY), Some(body)).await;
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
            self.fleet.runners.iter().position(|runner| {
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
        crate::http::json(self.address(), method, path, Some(API_KEY), body).await.expect("an answer")
    }
}

impl Deref for TestFleet {
    type Target = Fleet;

    fn deref(&self) -> &Fleet {
        &self.fleet
    }
}

impl DerefMut for TestFleet {
    fn deref_mut(&mut self) -> &mut Fleet {
        &mut self.fleet
    }
}
