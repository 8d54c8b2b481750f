//! Runs a shell command for the host.

use std::{os::unix::process::ExitStatusExt, path::Path, process::Stdio, time::Duration};

use ash_protocol::{
    frame::DATA_STANDARD_ERROR,
    message::{ExecDone, Refusal, RefusalCategory},
};
use bytes::Bytes;
use tokio::{
    io::{AsyncRead, AsyncReadExt},
    process::{Child, Command},
    time::{Instant, sleep_until},
};

use crate::{
    descendants::{self, WaitedFor},
    freezer,
    shared::{Caller, refusal},
    work::SLICE_BYTES,
};

/// The longest time that a command may take, whatever the host says: a day.
const MAX_TIMEOUT_MS: u64 = 86_400_000;

/// How long output is read after the command has ended: something that it left behind may hold the pipe open.
const DRAIN: Duration = Duration::from_millis(200);

/// The exit code of a command that was killed because its time was up.
const KILLED: i32 = 128 + 9;

/// A command.
#[derive(Debug)]
pub(crate) struct Exec {
    pub(crate) command: String,
    pub(crate) timeout_ms: u64,
    pub(crate) max_output_bytes: u64,
}

/// Kills a command with what it started when the host goes away or its time is up.
struct Running {
    child: Child,
    id: Option<u32>,
    _waited_for: Option<WaitedFor>,
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(id) = self.id {
            descendants::kill_with_descendants(id);
        }
    }
}

impl Exec {
    /// Runs it in the workspace with the bridge's own environment, and sends its output as the host grants it.
    pub(crate) async fn run(self, workspace: &Path, caller: &Caller) -> Result<ExecDone, Refusal> {
        let child = Command::new("/bin/sh")
            .arg("-c")
            .arg(&self.command)
            .current_dir(workspace)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(|error| refusal(RefusalCategory::Io, format!("the command cannot be started: {error}")))?;
        child.id().into_iter().for_each(freezer::started);
        let mut running = Running { id: child.id(), _waited_for: child.id().map(WaitedFor::new), child };
        let (mut output, mut errors) = (running.child.stdout.take(), running.child.stderr.take());
        let mut left = self.max_output_bytes;
        let mut truncated = false;
        let mut ended = None;
        let mut until = Instant::now() + Duration::from_millis(self.timeout_ms.min(MAX_TIMEOUT_MS));
        let work = async {
            while ended.is_none() || output.is_some() || errors.is_some() {
                let (flags, bytes) = tokio::select! {
                    bytes = read(&mut output) => (0, bytes),
                    bytes = read(&mut errors) => (DATA_STANDARD_ERROR, bytes),
                    status = running.child.wait(), if ended.is_none() => {
                        ended = Some(status);
                        until = until.min(Instant::now() + DRAIN);
                        continue;
                    }
                    () = sleep_until(until) => break,
                };
                let allowed = bytes.len().min(usize::try_from(left).unwrap_or(usize::MAX));
                truncated |= allowed < bytes.len();
                left -= allowed as u64;
                tokio::select! {
                    () = caller.data(flags, bytes.slice(..allowed)) => {}
                    () = sleep_until(until) => truncated = true,
                }
            }
        };
        work.await;
        caller.end_data();
        let (exit_code, timed_out) = match ended {
            Some(Ok(status)) => (status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0)), false),
            Some(Err(error)) => return Err(refusal(RefusalCategory::Io, error.to_string())),
            None => (KILLED, true),
        };
        if !timed_out {
            // What it left running in the background is not ours to end.
            running.id = None;
        }
        Ok(ExecDone { exit_code, timed_out, truncated })
    }
}

/// The next bytes of a stream; never, once it has ended.
async fn read(stream: &mut Option<impl AsyncRead + Unpin>) -> Bytes {
    let Some(open) = stream else { return std::future::pending().await };
    let mut bytes = Vec::with_capacity(SLICE_BYTES);
    match open.read_buf(&mut bytes).await {
        Ok(1..) => {}
        Ok(0) | Err(_) => *stream = None,
    }
    bytes.into()
}
