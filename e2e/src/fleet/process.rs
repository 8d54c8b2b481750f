//! A process of the fleet, with its folder and its log.

use std::{
    fs::{self, File},
    os::unix::process::CommandExt as _,
    path::{Path, PathBuf},
    process::{Child, Command, ExitStatus, Stdio},
    time::{Duration, Instant},
};

use anyhow::bail;

use super::{Call, Settings, until};
use crate::harness::signal;

/// How long one may take to stop before it is killed.
const STOP: Duration = Duration::from_secs(30);
/// Lines of its log that are printed when something fails.
const DUMPED_LINES: usize = 120;

/// A process of the fleet.
#[derive(Debug)]
pub(crate) struct Process {
    name: String,
    apart: bool,
    /// It was told to stop: a second time would end it at once.
    told: bool,
    pub(crate) folder: PathBuf,
    pub(crate) child: Option<Child>,
}

/// A program to be started; `apart`, it is in a group of its own, and ends with the thread that started it.
pub(crate) fn command(program: &Path, apart: bool) -> Command {
    if !apart {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig=TERM", "--"]).arg(program).process_group(0);
    command
}

impl Process {
    /// One that does not run yet.
    ///
    /// # Panics
    /// When its folder cannot be made.
    pub(super) fn new(settings: &Settings, name: &str) -> Self {
        let folder = settings.folder.join(name);
        fs::create_dir_all(&folder).expect("a folder");
        Self { name: name.to_owned(), apart: settings.apart, told: false, folder, child: None }
    }

    /// Its name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The file that it logs into.
    pub(crate) fn log_file(&self) -> PathBuf {
        self.folder.join("process.log")
    }

    /// Starts it.
    ///
    /// # Panics
    /// When the program cannot be started, or nothing can be written.
    pub(super) fn start(&mut self, program: &Path, call: &Call) {
        let log = File::options().create(true).append(true).open(self.log_file()).expect("a log file");
        let child = command(program, self.apart)
            .args(&call.arguments)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .envs(call.variables())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log file"))
            .stderr(log)
            .spawn();
        self.child = Some(child.expect("the process starts"));
        self.told = false;
    }

    /// How it ended, where it did so without being told to.
    fn ended(&mut self) -> Option<ExitStatus> {
        self.child.as_mut()?.try_wait().ok().flatten()
    }

    /// Waits until a condition holds; an error where the process ends before.
    pub(super) async fn until(&mut self, what: &str, mut condition: impl AsyncFnMut() -> bool) -> anyhow::Result<()> {
        let holds = async || {
            if let Some(status) = self.ended() {
                bail!("{} ended with {status}:\n{}", self.name, self.tail());
            }
            Ok(condition().await)
        };
        until(what, holds).await
    }

    /// Starts it again where it ended without being told to; what is to be said then.
    pub(super) fn restart_if_ended(&mut self, program: &Path, call: &Call) -> Option<String> {
        let status = self.ended()?;
        self.start(program, call);
        Some(format!("{} ended ({status}) and was started again", self.name))
    }

    /// Everything that it logged.
    pub(crate) fn log(&self) -> String {
        fs::read_to_string(self.log_file()).unwrap_or_default()
    }

    /// Kills it.
    ///
    /// # Panics
    /// When it does not run.
    pub(crate) fn kill(&mut self) {
        let mut child = self.child.take().expect("a process");
        child.kill().expect("a process that runs");
        child.wait().expect("its end");
    }

    /// Tells it to stop, and does not wait.
    pub(super) fn tell_to_stop(&mut self) {
        if let Some(child) = self.child.as_ref().filter(|_| !self.told) {
            signal(child.id(), "TERM");
            self.told = true;
        }
    }

    /// Stops it as a person would, and waits for its end.
    pub(crate) fn stop(&mut self) {
        self.tell_to_stop();
        let Some(mut child) = self.child.take() else { return };
        let start = Instant::now();
        while start.elapsed() < STOP {
            if matches!(child.try_wait(), Ok(Some(_)) | Err(_)) {
                return;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        let _ = child.kill();
        let _ = child.wait();
    }

    fn tail(&self) -> String {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(DUMPED_LINES)..].join("\n")
    }

    /// Prints what it logged last.
    pub(super) fn dump(&self) {
        eprintln!("--- {} ---\n{}", self.name, self.tail());
    }
}
