//! A process of the fleet, with its folder and its log.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use crate::harness::process::{program, signal};

/// How long one may take to stop before it is killed.
const STOP: Duration = Duration::from_secs(30);
/// Lines of its log that are printed when a test fails.
const DUMPED_LINES: usize = 120;

/// A process of the fleet.
#[derive(Debug)]
pub(super) struct Process {
    name: String,
    pub(super) folder: PathBuf,
    pub(super) child: Option<Child>,
}

impl Process {
    pub(super) fn new(folder: &Path, name: &str) -> Self {
        let folder = folder.join(name);
        fs::create_dir_all(&folder).expect("a folder");
        Self { name: name.to_owned(), folder, child: None }
    }

    pub(super) fn start(&mut self, arguments: &[String], environment: &[(&str, String)]) {
        let log = File::options().create(true).append(true).open(self.folder.join("process.log")).expect("a log file");
        let mut command = Command::new(program("ash"));
        command
            .args(arguments)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .envs(environment.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a log file"))
            .stderr(log);
        self.child = Some(command.spawn().expect("the process starts"));
    }

    pub(super) fn log(&self) -> String {
        fs::read_to_string(self.folder.join("process.log")).unwrap_or_default()
    }

    pub(super) fn kill(&mut self) {
        let mut child = self.child.take().expect("a process");
        child.kill().expect("a process that runs");
        child.wait().expect("its end");
    }

    pub(super) fn stop(&mut self) {
        let Some(mut child) = self.child.take() else { return };
        signal(child.id(), "TERM");
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

    pub(super) fn dump(&self) {
        let log = self.log();
        let lines: Vec<&str> = log.lines().collect();
        eprintln!("--- {} ---\n{}", self.name, lines[lines.len().saturating_sub(DUMPED_LINES)..].join("\n"));
    }
}
