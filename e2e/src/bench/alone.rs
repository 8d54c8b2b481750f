//! Claude Code with no Ash: one process that is driven over stream-json with the arguments and the environment that the bridge
//! gives it, in no sandbox. The limit of what Ash can reach.

use std::{
    io::{Read, Write},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};
use memchr::memmem;
use tempfile::TempDir;
use uuid::Uuid;

/// The arguments of the bridge (`ash-bridge`, `options::Launch`).
const ARGUMENTS: [&str; 10] = [
    "-p",
    "--input-format=stream-json",
    "--output-format=stream-json",
    "--verbose",
    "--include-partial-messages",
    "--setting-sources=project",
    "--allow-dangerously-skip-permissions",
    "--permission-prompt-tool=stdio",
    "--system-prompt-snapshot=off",
    "--permission-mode=bypassPermissions",
];

/// Rehearsals, as the bridge does.
const REHEARSALS: usize = 3;

/// Bytes of one read, and of the pipe where the system allows it, as the bridge has.
const PIPE_BYTES: usize = 1 << 20;

/// A running process; killed when dropped.
#[derive(Debug)]
pub(crate) struct Alone {
    child: Child,
    input: ChildStdin,
    output: ChildStdout,
    piece: Vec<u8>,
    _folder: TempDir,
}

/// What was seen of a turn, since its message was written.
#[derive(Debug, Clone)]
pub(crate) struct Turn {
    /// When a marker had come.
    pub(crate) seen: Option<Duration>,
    /// When its result had come.
    pub(crate) whole: Duration,
}

impl Alone {
    /// Starts and initialises it.
    pub(crate) fn start(program: &Path, model: &str) -> anyhow::Result<Self> {
        let folder = TempDir::new()?;
        let (home, workspace) = (folder.path().join("home"), folder.path().join("workspace"));
        for folder in [&home, &workspace] {
            std::fs::create_dir(folder)?;
        }
        std::fs::write(workspace.join("CLAUDE.md"), "You are a simple agent.\n")?;
        let mut child = Command::new(program)
            .args(ARGUMENTS)
            .current_dir(&workspace)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", &home)
            .env("IS_SANDBOX", "1")
            .env("ANTHROPIC_BASE_URL", model)
            .env("ANTHROPIC_API_KEY", "key")
            .env("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1")
            .env("DISABLE_AUTOUPDATER", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .with_context(|| format!("{} does not start", program.display()))?;
        let input = child.stdin.take().context("a pipe to it")?;
        let output = child.stdout.take().context("a pipe from it")?;
        // A smaller pipe works, too.
        let _ = rustix::pipe::fcntl_setpipe_size(&output, PIPE_BYTES);
        let mut alone = Self { child, input, output, piece: vec![0; PIPE_BYTES], _folder: folder };
        let initialize = r#"{"type":"control_request","request_id":"r1","request":{"subtype":"initialize"}}"#;
        alone.exchange(initialize, b"\"stream_event\"", b"\"type\":\"control_response\"")?;
        Ok(alone)
    }

    /// Starts, initialises and rehearses it, as the bridge does before a session claims it.
    pub(crate) fn start_rehearsed(program: &Path, model: &str) -> anyhow::Result<Self> {
        let mut alone = Self::start(program, model)?;
        for _ in 0..REHEARSALS {
            alone.say("rehearsal", b"\"stream_event\"")?;
            alone.say("/clear", b"\"stream_event\"")?;
        }
        Ok(alone)
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Says something and reads to the result of the turn; `marker` is looked for on the way.
    pub(crate) fn say(&mut self, text: &str, marker: &[u8]) -> anyhow::Result<Turn> {
        let message = serde_json::json!({
            "type": "user", "message": { "role": "user", "content": text }, "parent_tool_use_id": null, "session_id": "",
            "uuid": Uuid::new_v4(),
        });
        self.exchange(&message.to_string(), marker, b"\"type\":\"result\"")
    }

    fn exchange(&mut self, line: &str, marker: &[u8], end: &[u8]) -> anyhow::Result<Turn> {
        let mut buffer: Vec<u8> = Vec::new();
        let (mut seen, mut ended) = (None, false);
        let start = Instant::now();
        self.input.write_all(format!("{line}\n").as_bytes())?;
        loop {
            let count = self.output.read(&mut self.piece)?;
            let now = start.elapsed();
            ensure!(count > 0, "Claude Code ended: {}", String::from_utf8_lossy(&buffer));
            let before = buffer.len();
            buffer.extend_from_slice(&self.piece[..count]);
            let came = |bytes: &[u8]| memmem::find(&buffer[before.saturating_sub(bytes.len())..], bytes).is_some();
            if seen.is_none() && came(marker) {
                seen = Some(now);
            }
            ended = ended || came(end);
            if ended && buffer.ends_with(b"\n") {
                return Ok(Turn { seen, whole: now });
            }
        }
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        // One that has ended already cannot be killed; either way it is waited for.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
