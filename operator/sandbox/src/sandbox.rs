//! A running sandbox: observe it, stop it for a while, kill it, whoever started it.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rustix::process::Signal;
use tokio::time::{Instant, sleep, timeout, timeout_at};

use crate::bounds_met::{self, BoundsMet};
use crate::control_group::ControlGroup;
use crate::error::{SandboxError, blocking};
use crate::launch::STATUS;
use crate::log_file;
use crate::process;
use crate::record::Record;
use crate::watched::WatchedProcess;

/// How long killed processes may take to go away. It takes milliseconds; at the bound `kill` fails and can be repeated.
const KILL_BOUND: Duration = Duration::from_secs(10);
/// How long bubblewrap may take to write the exit status after the sandbox has ended; at the bound it is unknown.
const STATUS_BOUND: Duration = Duration::from_secs(1);
/// How often a control group is looked at until it is empty: it has no event that version 1 could deliver.
const EMPTY_INTERVAL: Duration = Duration::from_millis(2);

/// How a sandbox ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    /// Exit status of the program; 128 and the number of the signal when it was killed by one; `None` when the whole
    /// sandbox was killed from outside.
    pub status: Option<i32>,
}

/// What a sandbox uses and has used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Memory in bytes, with its temporary files. Without control groups the sum of what is resident in each process,
    /// which counts shared pages several times.
    pub memory_bytes: u64,
    /// Processor time of all processes since the start, in microseconds. Without control groups that of the living
    /// processes and their waited-for children.
    pub cpu_microseconds: u64,
    /// Processes and threads.
    pub processes: u64,
    /// How often the kernel has killed a process of it at the memory bound; 0 without control groups.
    pub memory_kills: u64,
}

/// A sandbox with its processes. Dropping it leaves the sandbox running.
#[derive(Debug)]
pub struct ProcessSandbox {
    record: Record,
    directory: Mutex<PathBuf>,
    /// First process of the PID namespace: with it the whole namespace is gone.
    init: WatchedProcess,
    killed: AtomicBool,
}

impl ProcessSandbox {
    /// The sandbox of a record; `None` when its first process is gone.
    pub(crate) fn from_record(record: Record, directory: &Path) -> Result<Option<Self>, SandboxError> {
        let failed = |source| SandboxError::System {
            action: "observe the first process",
            source,
            remedy: "raise the limit of open files (`ulimit -n`)",
        };
        let Some(init) = WatchedProcess::open(record.init).map_err(failed)? else { return Ok(None) };
        Ok(Some(Self { record, directory: Mutex::new(directory.to_owned()), init, killed: AtomicBool::new(false) }))
    }

    /// Finds the sandbox that runs in `directory`; clears up after one that is gone.
    pub(crate) async fn adopt(directory: &Path) -> Result<Option<Self>, SandboxError> {
        let path = directory.to_owned();
        let Some(record) = blocking(move || Record::read(&path)).await?? else { return Ok(None) };
        if !record.is_of_an_earlier_boot() {
            if let Some(sandbox) = Self::from_record(record.clone(), directory)?
                && sandbox.is_alive()
            {
                return Ok(Some(sandbox));
            }
            clear_group(&record, Instant::now() + KILL_BOUND).await?;
        }
        Record::remove(directory)?;
        Ok(None)
    }

    /// Id from the specification; a renamed directory does not change it.
    pub fn id(&self) -> &str {
        &self.record.id
    }

    /// The sandbox's directory on the host.
    pub fn directory(&self) -> PathBuf {
        self.directory.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Tells that the caller has renamed the directory. The running sandbox does not notice: its mounts hold the
    /// directories themselves and not their names. Fails when `directory` is not that of this sandbox.
    pub fn relocate(&self, directory: &Path) -> Result<(), SandboxError> {
        let found = Record::read(directory)?;
        if found.as_ref() != Some(&self.record) {
            return Err(SandboxError::InvalidSpec {
                what: format!("{} is not the directory of sandbox {}: rename it first", directory.display(), self.id()),
            });
        }
        directory.clone_into(&mut self.directory.lock().unwrap_or_else(PoisonError::into_inner));
        Ok(())
    }

    /// Whether the sandbox still has processes.
    pub fn is_alive(&self) -> bool {
        self.init.is_alive()
    }

    /// Waits until no process of the sandbox is left. Can be called any number of times, also afterwards. The control
    /// group and the record remain until [`kill`](Self::kill) or `adopt` clears them up.
    pub async fn exited(&self) -> Exit {
        self.init.ended().await;
        let status = timeout(STATUS_BOUND, self.monitor_gone()).await.ok().and_then(|()| self.status());
        Exit { status }
    }

    /// Bubblewrap outside of the namespace writes the status and ends.
    async fn monitor_gone(&self) {
        if let Ok(Some(monitor)) = WatchedProcess::open(self.record.monitor) {
            monitor.ended().await;
        }
    }

    fn status(&self) -> Option<i32> {
        #[derive(serde::Deserialize)]
        struct Status {
            #[serde(rename = "exit-code")]
            exit_code: i32,
        }
        let text = std::fs::read_to_string(self.directory().join(STATUS)).ok()?;
        text.lines().find_map(|line| serde_json::from_str::<Status>(line).ok()).map(|status| status.exit_code)
    }

    /// Kills everything in the sandbox, also what has made itself independent, waits until it is gone, and removes its
    /// control group and record. A frozen sandbox can be killed. Repeating it does nothing.
    pub async fn kill(&self) -> Result<(), SandboxError> {
        if self.killed.load(Ordering::Acquire) {
            return Ok(());
        }
        if let Some(group) = &self.record.group
            && self.is_alive()
        {
            group.freeze(false)?;
        }
        self.init.signal(Signal::KILL).map_err(|source| SandboxError::System {
            action: "kill the first process",
            source,
            remedy: "run the server as the user that started the sandbox",
        })?;
        let deadline = Instant::now() + KILL_BOUND;
        if timeout_at(deadline, self.init.ended()).await.is_err() {
            return Err(self.not_gone());
        }
        // Bubblewrap ends by itself; in a group it is killed with whatever else should be there.
        clear_group(&self.record, deadline).await?;
        if timeout_at(deadline, self.monitor_gone()).await.is_err() {
            return Err(self.not_gone());
        }
        let directory = self.directory();
        blocking(move || Record::remove(&directory)).await??;
        self.killed.store(true, Ordering::Release);
        Ok(())
    }

    fn not_gone(&self) -> SandboxError {
        SandboxError::KillTimedOut { id: self.record.id.clone(), seconds: KILL_BOUND.as_secs() }
    }

    /// What it uses now. Also cuts its log back to its bound.
    pub async fn usage(&self) -> Result<Usage, SandboxError> {
        let (record, directory) = (self.record.clone(), self.directory());
        blocking(move || {
            if let Err(error) = log_file::trim(&directory) {
                tracing::warn!(sandbox = record.id, %error, "the log of a sandbox could not be cut back");
            }
            let group = record.group.as_ref();
            let memory = group.and_then(ControlGroup::memory);
            let cpu = group.and_then(ControlGroup::cpu_microseconds);
            let processes = group.and_then(ControlGroup::processes);
            let counted = if memory.is_some() && cpu.is_some() && processes.is_some() {
                (0, 0, 0)
            } else {
                process::usage_of_members(record.pid_namespace)
            };
            Usage {
                memory_bytes: memory.unwrap_or(counted.0),
                cpu_microseconds: cpu.unwrap_or(counted.1),
                processes: processes.unwrap_or(counted.2),
                memory_kills: group.and_then(ControlGroup::memory_kills).unwrap_or(0),
            }
        })
        .await
    }

    /// Which bounds it met that the kernel keeps, where each process may have so many files open. Also cuts its log back to its
    /// bound. Can be asked until [`kill`](Self::kill), also when its processes have ended.
    pub async fn bounds_met(&self, open_files: u32) -> Result<BoundsMet, SandboxError> {
        let (record, directory) = (self.record.clone(), self.directory());
        blocking(move || {
            let log_cut = log_file::trim(&directory).unwrap_or_else(|error| {
                tracing::warn!(sandbox = record.id, %error, "the log of a sandbox could not be cut back");
                false
            });
            BoundsMet { log_cut, ..bounds_met::read(&record, open_files) }
        })
        .await
    }

    /// The last `lines` lines that the program wrote to its standard output and error, of at most the last 64 KiB.
    pub async fn log_tail(&self, lines: usize) -> Result<Vec<String>, SandboxError> {
        let directory = self.directory();
        blocking(move || {
            log_file::trim(&directory)
                .and_then(|_| log_file::tail(&directory, lines))
                .map_err(SandboxError::file("read", directory.join(log_file::NAME)))
        })
        .await?
    }

    /// Stops all processes. Without control groups by SIGSTOP, which a program inside can undo with SIGCONT.
    pub async fn freeze(&self) -> Result<(), SandboxError> {
        self.set_frozen(true).await
    }

    /// Has the processes go on.
    pub async fn thaw(&self) -> Result<(), SandboxError> {
        self.set_frozen(false).await
    }

    async fn set_frozen(&self, frozen: bool) -> Result<(), SandboxError> {
        let record = self.record.clone();
        blocking(move || {
            if record.group.as_ref().map(|group| group.freeze(frozen)).transpose()? != Some(true) {
                process::signal_members(record.pid_namespace, if frozen { Signal::STOP } else { Signal::CONT });
            }
            Ok(())
        })
        .await?
    }

    /// For the probe.
    pub(crate) fn record(&self) -> &Record {
        &self.record
    }
}

/// Kills what is left in the control group of a sandbox and removes it.
async fn clear_group(record: &Record, deadline: Instant) -> Result<(), SandboxError> {
    let Some(group) = &record.group else { return Ok(()) };
    loop {
        group.kill();
        if group.is_empty() && group.remove() {
            return Ok(());
        }
        if Instant::now() >= deadline {
            return Err(SandboxError::KillTimedOut { id: record.id.clone(), seconds: KILL_BOUND.as_secs() });
        }
        sleep(EMPTY_INTERVAL).await;
    }
}
