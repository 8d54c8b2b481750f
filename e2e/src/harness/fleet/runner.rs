//! A runner of the fleet.

use std::{fs, net::SocketAddr, path::PathBuf};

use super::{partition::Partition, process::Process};
use crate::harness::process::{record_pid, signal};

/// A runner under test.
#[derive(Debug)]
pub struct TestRunner {
    pub(super) process: Process,
    pub(super) arguments: Vec<String>,
    pub(super) environment: Vec<(&'static str, String)>,
    pub(super) metrics: SocketAddr,
    pub(super) partition: Option<Partition>,
}

impl TestRunner {
    /// Its data directory.
    pub fn data(&self) -> PathBuf {
        self.process.folder.join("data")
    }

    /// A session's folder on it.
    pub fn session_folder(&self, session: &str) -> PathBuf {
        self.data().join("sandboxes").join(session)
    }

    /// What it logged.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// Its process.
    ///
    /// # Panics
    /// When it does not run.
    pub fn pid(&self) -> u32 {
        self.process.child.as_ref().expect("a runner").id()
    }

    /// Starts it.
    pub fn start(&mut self) {
        self.process.start(&self.arguments, &self.environment);
    }

    /// Kills it, and its sandboxes as the loss of its node would.
    pub fn kill_with_node(&mut self) {
        self.process.kill();
        self.end_sandboxes();
    }

    /// Kills its process; its sandboxes live on.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// Stops it as a person would.
    pub fn stop(&mut self) {
        self.process.stop();
    }

    /// Its metrics.
    pub async fn metrics(&self) -> String {
        crate::http::text(self.metrics, "/metrics").await.unwrap_or_default()
    }

    /// A value of its metrics.
    pub async fn metric(&self, name: &str) -> Option<f64> {
        let text = self.metrics().await;
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
    }

    /// Cuts it off from all coordinators, both ways: what is sent waits.
    ///
    /// # Panics
    /// Where the fleet has no partitions.
    pub fn cut_off(&self) {
        self.partition.as_ref().expect("a fleet with partitions").cut();
    }

    /// Lets it through again, with what waited.
    ///
    /// # Panics
    /// Where the fleet has no partitions.
    pub fn let_through(&self) {
        self.partition.as_ref().expect("a fleet with partitions").heal();
    }

    fn folders(&self) -> Vec<PathBuf> {
        let Ok(folders) = fs::read_dir(self.data().join("sandboxes")) else { return Vec::new() };
        folders.flatten().map(|folder| folder.path()).collect()
    }

    pub(super) fn end_sandboxes(&self) {
        for folder in self.folders() {
            if let Some(pid) = record_pid(&folder) {
                signal(pid, "KILL");
            }
        }
    }
}
