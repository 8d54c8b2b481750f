//! One process of Claude Code: its three streams, its end, and the end of all that it started.

use std::{
    collections::{BTreeMap, VecDeque},
    os::unix::process::ExitStatusExt,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use bytes::{Buf, Bytes};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::{Child, ChildStderr, ChildStdin, ChildStdout, Command},
    time::{Instant, sleep_until, timeout},
};

use super::lines::{LineSplitter, Piece};
use crate::{
    descendants::{self, WaitedFor},
    freezer,
    report::report,
};

/// Bytes of standard error that are kept for the message about a failure; older ones are dropped.
const MAX_ERROR_BYTES: usize = 8 << 10;

/// What the pipes are enlarged to, where the system allows it, so that a burst does not wait for the bridge.
const PIPE_BYTES: usize = 1 << 20;

/// Between two reads of a burst. A process that prints thousands of lines per second is read once per millisecond: every read
/// wakes this process, the host and the client, on the processors that Claude Code could use.
const READ_PACE: Duration = Duration::from_millis(1);

/// Reads that may follow each other at once before they are paced: a turn's first lines are never held back.
const FREE_READS: u32 = 16;

/// Reads that bring more than this are not counted: they are few for what they bring.
const SMALL_READ_BYTES: usize = 16 << 10;

/// How long the output of a process that has ended is read, in case something that it started holds the pipe open.
const DRAIN: Duration = Duration::from_millis(200);

/// How long a process may take to end after its input was closed, before it is killed.
const CLOSE: Duration = Duration::from_secs(3);

/// How Claude Code is started.
#[derive(Debug, Clone, Default)]
pub struct Start {
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<String>,
    /// Its whole environment. Values may be secrets.
    pub environment: BTreeMap<String, String>,
    /// Its working directory.
    pub directory: PathBuf,
}

/// Claude Code could not be started.
#[derive(Debug, thiserror::Error)]
#[error("{program} cannot be started: {error}; install Claude Code in the sandbox or correct its path")]
pub struct StartError {
    program: String,
    error: std::io::Error,
}

/// What a process did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Progress {
    /// There may be new lines.
    Output,
    /// It has ended and everything it printed was read.
    Ended,
}

/// How often the bounds of a process were met.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Met {
    /// Reads of a burst that were put off.
    pub reads_put_off: u32,
    /// Times that older bytes of its standard error were dropped.
    pub errors_dropped: u32,
}

/// A process of Claude Code. Dropping it kills it and what it started.
#[derive(Debug)]
pub struct Process {
    child: Child,
    /// The process group, which is the child's id; it stays taken as long as the child was not waited for.
    id: u32,
    _waited_for: WaitedFor,
    input: Option<ChildStdin>,
    unwritten: VecDeque<Bytes>,
    output: Option<ChildStdout>,
    lines: LineSplitter,
    pace: Pace,
    errors: Option<ChildStderr>,
    error_tail: VecDeque<u8>,
    met: Met,
    ended: Option<(ExitStatus, Instant)>,
}

impl Process {
    /// Starts it in a process group of its own.
    pub fn start(start: &Start) -> Result<Self, StartError> {
        let failed = |error| StartError { program: start.program.display().to_string(), error };
        let mut child = Command::new(&start.program)
            .args(&start.arguments)
            .env_clear()
            .envs(&start.environment)
            .current_dir(&start.directory)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()
            .map_err(failed)?;
        let (input, output, errors) = (child.stdin.take(), child.stdout.take(), child.stderr.take());
        for pipe in [output.as_ref().map(std::os::fd::AsFd::as_fd), input.as_ref().map(std::os::fd::AsFd::as_fd)] {
            // A user with many pipes may not enlarge more of them; the size that they have works, too.
            let _ = pipe.map(|pipe| rustix::pipe::fcntl_setpipe_size(pipe, PIPE_BYTES));
        }
        let id = child.id().unwrap_or_default();
        freezer::started(id);
        Ok(Self {
            child,
            id,
            _waited_for: WaitedFor::new(id),
            input,
            unwritten: VecDeque::new(),
            output,
            lines: LineSplitter::default(),
            pace: Pace::new(Instant::now()),
            errors,
            error_tail: VecDeque::new(),
            met: Met::default(),
            ended: None,
        })
    }

    /// Queues a line (without its newline) for its standard input. The queue is bounded by what the bridge writes: one user
    /// message at a time and answers to what Claude Code asked.
    pub fn write(&mut self, line: Bytes) {
        if self.input.is_some() {
            self.unwritten.push_back(line);
            self.unwritten.push_back(Bytes::from_static(b"\n"));
        }
    }

    /// The next line that was read already.
    pub fn next_piece(&mut self) -> Option<Piece> {
        self.lines.next_piece()
    }

    /// What is left of the output when it has ended.
    pub fn last_piece(&mut self) -> Option<Piece> {
        self.lines.finish()
    }

    /// Gives back memory that is only needed while it prints.
    pub fn release(&mut self) {
        self.lines.release();
    }

    /// Writes what is queued, and reads where `read` says so, until something happened. Dropping the future loses nothing.
    pub async fn progress(&mut self, read: bool) -> Progress {
        let mut chunk = [0; 1024];
        loop {
            let ended = self.ended.map(|(_, at)| at + DRAIN);
            tokio::select! {
                biased;
                written = write_some(&mut self.input, &self.unwritten), if !self.unwritten.is_empty() => self.written(written),
                count = read_some(&mut self.output, &mut self.lines, self.pace.ready()), if read && self.output.is_some() => {
                    if count < SMALL_READ_BYTES {
                        self.met.reads_put_off += u32::from(self.pace.take(Instant::now()));
                    }
                    if count == 0 {
                        self.output = None;
                    } else {
                        return Progress::Output;
                    }
                }
                count = read_errors(&mut self.errors, &mut chunk), if self.errors.is_some() => {
                    if count == 0 {
                        self.errors = None;
                    }
                    self.keep_errors(&chunk[..count]);
                }
                status = self.child.wait(), if self.ended.is_none() => {
                    // Waiting for a child of ours fails only when somebody else took its status.
                    self.ended = Some((status.unwrap_or_else(|_| ExitStatus::from_raw(0)), Instant::now()));
                }
                () = sleep_until(ended.unwrap_or_else(Instant::now)), if read && ended.is_some() => return Progress::Ended,
            }
            if self.ended.is_some() && self.output.is_none() && self.errors.is_none() {
                return Progress::Ended;
            }
        }
    }

    fn written(&mut self, written: Option<usize>) {
        let Some(mut count) = written else {
            // It closed its input, so it is ending: its exit says the rest.
            return self.close_input();
        };
        while let Some(front) = self.unwritten.front_mut() {
            if count < front.len() {
                front.advance(count);
                return;
            }
            count -= front.len();
            self.unwritten.pop_front();
        }
    }

    fn keep_errors(&mut self, bytes: &[u8]) {
        self.error_tail.extend(bytes);
        let excess = self.error_tail.len().saturating_sub(MAX_ERROR_BYTES);
        self.error_tail.drain(..excess);
        self.met.errors_dropped += u32::from(excess > 0);
    }

    /// The last lines of its standard error, for a person.
    pub fn error_text(&self) -> String {
        let bytes: Vec<u8> = self.error_tail.iter().copied().collect();
        String::from_utf8_lossy(&bytes).trim().to_owned()
    }

    /// How it ended and what it said last, for a person.
    pub fn obituary(&self) -> String {
        let how = match self.ended {
            Some((status, _)) => status.to_string(),
            None => "it still runs".to_owned(),
        };
        match self.error_text() {
            text if text.is_empty() => how,
            text => format!("{how}; it said last: {text}"),
        }
    }

    /// How often its bounds were met since this was last asked.
    pub fn take_met(&mut self) -> Met {
        std::mem::take(&mut self.met)
    }

    /// Closes its input: it finishes what it does and ends.
    pub fn close_input(&mut self) {
        self.input = None;
        self.unwritten.clear();
    }

    /// How long it may take to end by itself.
    pub fn close_time() -> Duration {
        CLOSE
    }

    /// Resident bytes; 0 where it has ended.
    pub fn resident_bytes(&self) -> u64 {
        let statistics = std::fs::read_to_string(Path::new("/proc").join(self.id.to_string()).join("statm"));
        let pages = statistics.ok().and_then(|text| text.split(' ').nth(1)?.parse::<u64>().ok()).unwrap_or(0);
        pages * rustix::param::page_size() as u64
    }

    /// Kills it with everything that it started, and waits until it is gone.
    pub async fn kill(mut self) {
        self.kill_tree();
        // A killed process that does not end hangs in the kernel; the sandbox's own end takes it along.
        if self.ended.is_none() && timeout(CLOSE, self.child.wait()).await.is_err() {
            report("claude_unkillable", "Claude Code does not end after SIGKILL");
        }
    }

    fn kill_tree(&self) {
        // After its end was noticed the number may belong to somebody else; the group may still have members of its own.
        if self.ended.is_none() {
            descendants::kill_with_descendants(self.id);
        } else {
            descendants::kill_group(self.id);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill_tree();
    }
}

/// When the next read may be: at once up to [`FREE_READS`] times, then once per [`READ_PACE`]; a pause gives free reads back.
#[derive(Debug, Clone, Copy)]
struct Pace {
    /// When all free reads are there again.
    full: Instant,
}

impl Pace {
    fn new(now: Instant) -> Self {
        Self { full: now }
    }

    /// When the next read may be; in the past where it may be at once.
    fn ready(self) -> Instant {
        self.full.checked_sub(READ_PACE * FREE_READS).unwrap_or(self.full)
    }

    /// A read was made. True where the next one is put off.
    fn take(&mut self, now: Instant) -> bool {
        self.full = self.full.max(now) + READ_PACE;
        self.ready() > now
    }
}

/// Bytes written; `None` where nothing more can be.
async fn write_some(input: &mut Option<ChildStdin>, queue: &VecDeque<Bytes>) -> Option<usize> {
    let mut slices = [std::io::IoSlice::new(&[]), std::io::IoSlice::new(&[])];
    for (slice, bytes) in slices.iter_mut().zip(queue) {
        *slice = std::io::IoSlice::new(bytes);
    }
    input.as_mut()?.write_vectored(&slices).await.ok()
}

/// Bytes read; 0 at the end, and after an error, which a pipe has only when it is of no use any more.
async fn read_some(output: &mut Option<ChildStdout>, lines: &mut LineSplitter, ready: Instant) -> usize {
    let Some(output) = output else { return std::future::pending().await };
    if ready > Instant::now() {
        sleep_until(ready).await;
    }
    output.read_buf(lines.buffer()).await.unwrap_or(0)
}

async fn read_errors(errors: &mut Option<ChildStderr>, chunk: &mut [u8]) -> usize {
    let Some(errors) = errors else { return std::future::pending().await };
    errors.read(chunk).await.unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::{FREE_READS, Pace, READ_PACE};
    use tokio::time::Instant;

    #[test]
    fn only_a_burst_is_paced() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        for _ in 0..=FREE_READS {
            assert!(pace.ready() <= start, "the first reads are free");
            pace.take(start);
        }
        assert_eq!(pace.ready(), start + READ_PACE, "then one per interval");
        let later = start + READ_PACE * (2 * FREE_READS);
        pace.take(later);
        assert!(pace.ready() < later, "a pause gives them back");
    }
}
