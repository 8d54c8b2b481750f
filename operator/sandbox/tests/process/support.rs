//! A place with a back end of its own, and waiting for conditions.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use ash_sandbox::{Limits, ProcessBackend, ProcessConfig, ProcessSandbox, SandboxSpec};
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

/// How long any condition may take on a busy machine.
const DEADLINE: Duration = Duration::from_mins(1);

/// A temporary directory and a back end with control groups of its own.
pub(crate) struct Place {
    pub(crate) top: TempDir,
    pub(crate) backend: Arc<ProcessBackend>,
    /// Name of the control group.
    pub(crate) group: String,
}

/// Bounds that are small enough to be reached.
pub(crate) const SMALL: Limits = Limits {
    memory_bytes: 128 * 1024 * 1024,
    cpu_millis: 2000,
    processes: 64,
    tmp_bytes: 4 * 1024 * 1024,
    workspace_bytes: 1024 * 1024,
    open_files: 256,
};

/// A configuration with a control group that no other test uses.
pub(crate) fn config() -> ProcessConfig {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    ProcessConfig {
        group: format!("ash-test-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed)),
        ..ProcessConfig::default()
    }
}

impl Place {
    pub(crate) async fn new() -> Self {
        let config = config();
        let group = config.group.clone();
        let backend = Arc::new(ProcessBackend::new(config).await.unwrap());
        Self { top: tempfile::tempdir().unwrap(), backend, group }
    }

    /// A sandbox that runs a shell script.
    pub(crate) fn spec(&self, id: &str, script: &str) -> SandboxSpec {
        spec(&self.top.path().join(id), id, script)
    }

    pub(crate) async fn start(&self, id: &str, script: &str) -> ProcessSandbox {
        self.backend.start(self.spec(id, script)).await.unwrap()
    }

    /// Runs a script to its end and returns what it printed.
    pub(crate) async fn run(&self, id: &str, script: &str) -> String {
        self.run_spec(self.spec(id, script)).await
    }

    pub(crate) async fn run_spec(&self, spec: SandboxSpec) -> String {
        let sandbox = self.backend.start(spec).await.unwrap();
        let ended = tokio::time::timeout(DEADLINE, sandbox.exited()).await;
        let output = sandbox.log_tail(usize::MAX).await.unwrap().join("\n");
        sandbox.kill().await.unwrap();
        assert!(ended.is_ok(), "the script did not end: {output}");
        output
    }
}

impl Drop for Place {
    /// Leaves no process and no control group behind, also when the test has failed.
    fn drop(&mut self) {
        let backend = Arc::clone(&self.backend);
        let ended = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                until("everything is gone", || async { backend.remove_orphans(Vec::new()).await.unwrap().is_empty() })
                    .await;
                backend.close().await.unwrap();
            });
        })
        .join();
        assert!(ended.is_ok() || std::thread::panicking(), "the place was left behind");
    }
}

pub(crate) fn spec(directory: &Path, id: &str, script: &str) -> SandboxSpec {
    SandboxSpec {
        id: id.to_owned(),
        directory: directory.to_owned(),
        program: "/bin/sh".into(),
        arguments: vec!["-c".to_owned(), script.to_owned()],
        read_only_binds: Vec::new(),
        environment: vec![
            ("PATH".to_owned(), "/usr/bin:/bin".to_owned()),
            ("HOME".to_owned(), "/home/agent".to_owned()),
        ],
        limits: Limits::default(),
    }
}

/// Waits for a condition.
pub(crate) async fn until<F: Future<Output = bool>>(what: &str, mut condition: impl FnMut() -> F) {
    let deadline = Instant::now() + DEADLINE;
    while !condition().await {
        assert!(Instant::now() < deadline, "did not happen: {what}");
        sleep(Duration::from_millis(2)).await;
    }
}

/// Waits for a file.
pub(crate) async fn until_there(path: &Path) {
    until(&format!("{} is there", path.display()), || async { path.exists() }).await;
}

/// Host processes whose command line contains `marker`.
pub(crate) fn processes_with(marker: &str) -> Vec<PathBuf> {
    std::fs::read_dir("/proc")
        .unwrap()
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| {
            std::fs::read(path.join("cmdline")).is_ok_and(|line| String::from_utf8_lossy(&line).contains(marker))
        })
        .collect()
}
