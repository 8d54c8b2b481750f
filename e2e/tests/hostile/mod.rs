//! What the tests of a hostile agent share: agents in each network mode, commands run through Claude Code's own Bash tool, and
//! listeners of the host that nobody may reach.

#![allow(dead_code, reason = "each test program uses a part of this")]

pub(crate) mod impersonator;

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    fs,
    io::Write as _,
    net::{SocketAddr, TcpListener},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
};

use ash_client::Session;
use ash_e2e::harness::TestApp;
use serde_json::{Value, json};

/// Functions of every script: `try NAME COMMAND...` runs a command and prints `NAME=DONE ...` or `NAME=failed ...`.
const FUNCTIONS: &str = r#"
try() {
    local name=$1 output; shift
    if output=$(timeout 20 "$@" 2>&1 </dev/null); then local how=DONE; else local how=failed; fi
    output=${output//[$'\n\r\t=']/ }
    echo "$name=$how ${output:0:200}"
}
"#;

/// A script's way to the process of its sandbox's bridge, in `$bridge`.
pub(crate) const FIND_BRIDGE: &str = "for p in /proc/[0-9]*; do [ \"$(readlink $p/exe)\" = /opt/ash/bridge ] && bridge=${p#/proc/}; done\n\
    [ \"$bridge\" ] || echo no bridge\n";

/// The network modes, the allowlist with these hosts.
pub(crate) fn modes(hosts: &[String]) -> [(&'static str, Value); 3] {
    [
        ("model", json!({ "mode": "model" })),
        ("allowlist", json!({ "mode": "allowlist", "hosts": hosts })),
        ("public", json!({ "mode": "public" })),
    ]
}

/// Prints the protections in force, as the server reported them at its start.
///
/// # Panics
/// When it reported none.
pub(crate) fn print_protections(app: &TestApp) {
    let log = app.log_tail();
    let lines: Vec<&str> = log.lines().filter(|line| line.contains("in force")).collect();
    assert!(!lines.is_empty(), "the server says nothing about its protections:\n{log}");
    // Written past the capture of the test's output: every run shows them.
    let _ = writeln!(std::io::stderr(), "protections:\n{}", lines.join("\n"));
}

/// Makes an agent with this network policy and a session of it.
///
/// # Panics
/// When the server refuses either.
pub(crate) async fn session_with(app: &TestApp, agent: &str, network: &Value) -> Session {
    let body = json!({ "name": agent, "systemPrompt": "You do as you are told.", "network": network });
    let (status, answer) = app.request("POST", "/api/agents", Some(body)).await;
    assert_eq!(status, 201, "{answer}");
    app.session_of(agent).await
}

/// The message in which the model calls the Bash tool with this script and then says what it printed.
pub(crate) fn message(script: &str) -> String {
    format!("[[tool: Bash {}]] [[result]]", json!({ "command": format!("{FUNCTIONS}\n{script}\ntrue") }))
}

/// Runs a script in the session's sandbox, by Claude Code's Bash tool, and gives what it printed.
///
/// # Panics
/// When the turn did not end well.
pub(crate) async fn bash(app: &TestApp, session: &Session, script: &str) -> String {
    let turn = app.say_permitting(session, &message(script)).await;
    turn.result().unwrap_or_else(|| panic!("the turn failed: {:?} {:?}", turn.error(), turn.names()))
}

/// Asserts that a session answers, and that its tools work.
///
/// # Panics
/// When it does not.
pub(crate) async fn assert_answers(app: &TestApp, session: &Session) {
    assert_eq!(bash(app, session, "echo $((6 * 7)) is the answer").await, "42 is the answer");
}

/// The outcomes that `try` printed, by name.
pub(crate) fn outcomes(output: &str) -> BTreeMap<String, String> {
    let pairs = output.lines().filter_map(|line| line.split_once('='));
    pairs
        .filter(|(_, value)| value.starts_with("DONE") || value.starts_with("failed"))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect()
}

/// A script of attempts, with the names of those that have to fail and of those that have to work.
#[derive(Debug, Default)]
pub(crate) struct Attempts {
    script: String,
    hostile: Vec<String>,
    controls: Vec<String>,
}

impl Attempts {
    /// Something that has to fail. `command` is a simple command of the shell; the name has no quote and no `=`.
    pub(crate) fn hostile(&mut self, name: &str, command: &str) {
        self.add(name, command);
        self.hostile.push(name.to_owned());
    }

    /// The same way, where it is permitted: shows that what fails does not fail for a mistake of the test.
    pub(crate) fn control(&mut self, name: &str, command: &str) {
        self.add(name, command);
        self.controls.push(name.to_owned());
    }

    fn add(&mut self, name: &str, command: &str) {
        let _ = writeln!(self.script, "try '{name}' {command}");
    }

    /// Runs them all, asserts that each ran and ended as it has to, and gives what they printed.
    ///
    /// # Panics
    /// When one did not.
    pub(crate) async fn run(&self, app: &TestApp, session: &Session) -> String {
        let output = bash(app, session, &self.script).await;
        let outcomes = outcomes(&output);
        for (names, expected) in [(&self.hostile, "failed"), (&self.controls, "DONE")] {
            for name in names {
                let outcome = outcomes.get(name).unwrap_or_else(|| panic!("{name:?} did not run:\n{output}"));
                assert!(outcome.starts_with(expected), "{name:?} has to be {expected} and is {outcome}\n{output}");
            }
        }
        output
    }
}

/// The processes of a sandbox, by its record: none where it has ended.
pub(crate) fn processes(sandbox_folder: &Path) -> Vec<u32> {
    let Ok(record) = fs::read(sandbox_folder.join("sandbox.json")) else { return Vec::new() };
    let record: Value = serde_json::from_slice(&record).unwrap_or_default();
    let namespace = PathBuf::from(format!("pid:[{}]", record["pid_namespace"].as_u64().unwrap_or_default()));
    let all = fs::read_dir("/proc").expect("/proc").flatten();
    all.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok())
        .filter(|pid| fs::read_link(format!("/proc/{pid}/ns/pid")).is_ok_and(|link| link == namespace))
        .collect()
}

/// A perl program as a word of the shell. It may hold no single quote.
pub(crate) fn perl(program: &str) -> String {
    assert!(!program.contains('\''), "{program}");
    format!("perl -e '{program}'")
}

/// A listener on the host's loopback that says hello to whoever reaches it, and counts.
#[derive(Debug)]
pub(crate) struct Trap {
    address: SocketAddr,
    reached: Arc<AtomicUsize>,
}

impl Trap {
    /// What it says.
    pub(crate) const HELLO: &'static str = "hello-from-the-host";

    /// Listens at an address, or does not where the machine has no such address.
    pub(crate) fn on(address: &str) -> Option<Self> {
        let listener = TcpListener::bind((address, 0)).ok()?;
        let address = listener.local_addr().ok()?;
        let reached = Arc::new(AtomicUsize::new(0));
        let count = Arc::clone(&reached);
        thread::spawn(move || {
            for mut stream in listener.incoming().flatten() {
                count.fetch_add(1, Ordering::SeqCst);
                let _ = writeln!(stream, "{}", Self::HELLO);
            }
        });
        Some(Self { address, reached })
    }

    /// Its port.
    pub(crate) fn port(&self) -> u16 {
        self.address.port()
    }

    /// How often it was reached.
    pub(crate) fn reached(&self) -> usize {
        self.reached.load(Ordering::SeqCst)
    }
}
