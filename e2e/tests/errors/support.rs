//! What the tests here share: requests that no client should send, servers that may refuse to start, programs that fail.

use std::{
    fs::{self, File},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
};

use ash_client::{Message, Session};
use ash_e2e::{
    harness::{TestApp, Turn, eventually, program, signal},
    http,
};
use bytes::Bytes;
use http_body_util::Full;
use hyper::Request;
use serde_json::Value;
use tempfile::TempDir;

/// A tool call that lasts until [`go`] is called.
pub(crate) const WAITS_FOR_GO: &str =
    r#"[[tool: Bash {"command":"until [ -e go ]; do sleep 0.02; done; rm go; echo went"}]]"#;

/// Lets a turn of [`WAITS_FOR_GO`] go on.
pub(crate) fn go(app: &TestApp, session: &Session) {
    fs::write(app.session_folder(&session.id).join("workspace/go"), "").expect("a file in the workspace");
}

/// A turn that runs until [`go`] is called, seen until its tool runs.
pub(crate) async fn waiting_turn(app: &TestApp, session: &Session) -> (ash_client::FrameStream, Turn) {
    let message = Message::text(format!("{WAITS_FOR_GO} [[result]]"));
    let mut stream = app.client.send_message(&session.id, &message).await.expect("a message that is taken");
    let mut turn = Turn::default();
    turn.read_until(&mut stream, "tool_use").await;
    (stream, turn)
}

/// A refusal: the status, the sentence, and the headers.
#[derive(Debug)]
pub(crate) struct Refused {
    pub(crate) status: u16,
    pub(crate) sentence: String,
    pub(crate) retry_after: Option<u64>,
}

/// Sends any body with any key and reads a refusal. Panics where the answer is none of the contract.
pub(crate) async fn refused(app: &TestApp, method: &str, path: &str, key: Option<&str>, body: Bytes) -> Refused {
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        .header("host", app.address().to_string())
        .header("content-type", "application/json");
    if let Some(key) = key {
        request = request.header("authorization", key);
    }
    let response =
        http::send(app.address(), request.body(Full::new(body)).expect("a request")).await.expect("an answer");
    let status = response.status().as_u16();
    let body: Value = serde_json::from_slice(response.body()).unwrap_or_else(|_| panic!("{status}: {response:?}"));
    assert_eq!(body["statusCode"], status, "{body}");
    let sentence = body["error"].as_str().unwrap_or_else(|| panic!("{status}: {body}")).to_owned();
    let data = app.data();
    assert!(!sentence.contains(data.to_str().expect("a path")), "names a path of the server: {sentence}");
    let retry_after = response.headers().get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok());
    Refused { status, sentence, retry_after }
}

/// As [`refused`], with the right key.
pub(crate) async fn refused_with_key(app: &TestApp, method: &str, path: &str, body: impl Into<Bytes>) -> Refused {
    refused(app, method, path, Some(&format!("Bearer {}", app.api_key())), body.into()).await
}

/// Whether the session takes a message and answers it.
pub(crate) async fn goes_on(app: &TestApp, session: &Session) {
    let turn = app.say(session, "[[text: it goes on]]").await;
    assert_eq!((turn.result().as_deref(), turn.error()), (Some("it goes on"), None), "{:?}", turn.names());
}

/// Writes a script that everybody may run.
pub(crate) fn script(path: &Path, text: &str) {
    // A program that runs cannot be written over; another one can take its place.
    let new = path.with_extension("new");
    fs::write(&new, text).expect("a script");
    fs::set_permissions(&new, fs::Permissions::from_mode(0o755)).expect("permissions");
    fs::rename(new, path).expect("a script in its place");
}

/// A folder that sandboxes may look into.
pub(crate) fn open_folder() -> TempDir {
    let folder = TempDir::new().expect("a temporary folder");
    fs::set_permissions(folder.path(), fs::Permissions::from_mode(0o755)).expect("permissions");
    folder
}

/// Whether the tests run as root.
pub(crate) fn is_root() -> bool {
    let status = fs::read_to_string("/proc/self/status").expect("/proc");
    status.lines().any(|line| line.starts_with("Uid:") && line.split_whitespace().nth(2) == Some("0"))
}

/// `ash serve` with nothing but what is given: for servers that refuse to start, or have no key yet.
pub(crate) struct Bare {
    folder: TempDir,
    arguments: Vec<String>,
    environment: Vec<(String, String)>,
    before: Vec<String>,
    process: Option<Child>,
}

impl Bare {
    /// A server in a folder of its own, with a stand-in for Claude Code, on any free port.
    pub(crate) fn new() -> Self {
        Self {
            folder: open_folder(),
            arguments: Vec::new(),
            environment: vec![("PATH".to_owned(), std::env::var("PATH").expect("a PATH"))],
            before: Vec::new(),
            process: None,
        }
        .argument(format!("--claude={}", program("stand-in-claude").display()))
        .argument("--listen=127.0.0.1:0")
        .argument("--anthropic-base-url=http://127.0.0.1:1")
    }

    /// One more argument. It stands over an earlier one of its name.
    pub(crate) fn argument(mut self, argument: impl Into<String>) -> Self {
        let argument = argument.into();
        let name = argument.split('=').next().unwrap_or_default().to_owned();
        self.arguments.retain(|earlier| earlier.split('=').next() != Some(&name));
        self.arguments.push(argument);
        self
    }

    /// Without an argument that was given.
    pub(crate) fn without(mut self, name: &str) -> Self {
        self.arguments.retain(|earlier| earlier.split('=').next() != Some(name));
        self
    }

    /// One more variable.
    pub(crate) fn variable(mut self, name: &str, value: &str) -> Self {
        self.environment.push((name.to_owned(), value.to_owned()));
        self
    }

    /// The command that runs the server, such as one that changes its mounts first.
    pub(crate) fn behind(mut self, command: Vec<String>) -> Self {
        self.before = command;
        self
    }

    /// The folder that the server runs in.
    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn spawn(&mut self) {
        let log = File::create(self.path("log")).expect("a log file");
        let ash = program("ash").display().to_string();
        let line: Vec<String> = self.before.iter().cloned().chain([ash, "serve".to_owned()]).collect();
        let process = Command::new(&line[0])
            .args(&line[1..])
            .args(&self.arguments)
            .env_clear()
            .envs(self.environment.iter().cloned())
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log file"))
            .stderr(log)
            .spawn()
            .expect("a server that starts");
        self.process = Some(process);
    }

    /// What the server of the last start wrote so far, on standard output and standard error.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.path("log")).unwrap_or_default()
    }

    /// Starts the server and gives its address as soon as it listens.
    pub(crate) async fn start(&mut self) -> std::net::SocketAddr {
        self.spawn();
        eventually("the server listens", async || {
            if let Some(status) = self.process.as_mut().expect("a server").try_wait().expect("its state") {
                panic!("the server ended with {status}: {}", self.log());
            }
            let log = self.log();
            let after = log.lines().rev().find(|line| line.contains("listening"))?.split("address=").nth(1)?;
            after.split_whitespace().next()?.parse().ok()
        })
        .await
    }

    /// Starts the server, which has to end by itself with code 1: what it says as its error.
    pub(crate) async fn refuses(&mut self) -> String {
        self.spawn();
        let status = self.wait_end().await;
        let log = self.log();
        assert_eq!(status.code(), Some(1), "{log}");
        let (_, error) = log.split_once("error: ").unwrap_or_else(|| panic!("no error is said: {log}"));
        assert!(!error.contains("panicked") && !error.contains("RUST_BACKTRACE"), "{error}");
        error.to_owned()
    }

    async fn wait_end(&mut self) -> ExitStatus {
        let process = self.process.as_mut().expect("a server");
        eventually("the server ends", async || process.try_wait().expect("its state")).await
    }

    /// Stops the server and waits for its end.
    pub(crate) async fn stop(&mut self) -> ExitStatus {
        signal(self.process.as_ref().expect("a server").id(), "TERM");
        self.wait_end().await
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- the server's log ---\n{}", self.log());
        }
        if let Some(process) = &mut self.process
            && matches!(process.try_wait(), Ok(None))
        {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}
