//! The check of Claude Code before the server starts: there, runnable, and of the release that this one was made for.

use std::{path::Path, process::Stdio, time::Duration};

use anyhow::{Context, bail};
use ash_protocol::claude::VERSION;
use tokio::{process::Command, time::timeout};

/// How long `claude --version` may take; it takes 10 ms.
const CHECK: Duration = Duration::from_secs(20);

/// Runs `claude --version` and compares. Its environment is empty but for a `PATH`.
pub(crate) async fn check(program: &Path, any_version: bool) -> anyhow::Result<()> {
    let name = program.display();
    let run = Command::new(program)
        .arg("--version")
        .env_clear()
        .env("PATH", "/usr/local/bin:/usr/bin:/bin")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = timeout(CHECK, run)
        .await
        .with_context(|| format!("{name} --version did not answer within {} s", CHECK.as_secs()))?
        .with_context(|| format!("{name} cannot be run: name Claude Code's program with --claude PATH"))?;
    let printed = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() {
        let errors = String::from_utf8_lossy(&output.stderr);
        let last: Vec<&str> = errors.lines().rev().take(5).collect::<Vec<_>>().into_iter().rev().collect();
        bail!("{name} --version failed ({}): {}", output.status, last.join(" | "));
    }
    let version = printed.split_whitespace().next().unwrap_or_default();
    if version == VERSION {
        return Ok(());
    }
    if any_version {
        tracing::warn!(version, expected = VERSION, "Claude Code is of another release than this server was made for");
        return Ok(());
    }
    bail!(
        "{name} is Claude Code {version:?}, and this server was made for {VERSION}: run `make quickstart` to install that one, \
         name it with --claude PATH, or go on at your own risk with --any-claude-version"
    )
}
