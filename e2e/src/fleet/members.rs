//! A fleet's coordinators and runners.

use std::{fs, net::SocketAddr, path::PathBuf};

use super::{Call, Settings, free_port, partition::Partition, process::Process};
use crate::harness::{program, record_pid, signal};

/// A coordinator.
#[derive(Debug)]
pub struct Coordinator {
    pub(crate) process: Process,
    /// Where clients reach it.
    pub address: SocketAddr,
    /// Where runners reach it.
    pub fleet_address: SocketAddr,
}

impl Coordinator {
    pub(super) fn new(settings: &Settings, number: usize) -> Self {
        let process = Process::new(settings, &format!("coordinator-{number}"));
        Self { process, address: free_port(), fleet_address: free_port() }
    }

    /// Its name, its process's number where it runs, and its log.
    pub fn describe(&self) -> (String, Option<u32>, PathBuf) {
        describe(&self.process)
    }

    /// Its process.
    ///
    /// # Panics
    /// When it does not run.
    pub fn pid(&self) -> u32 {
        self.process.child.as_ref().expect("a coordinator").id()
    }

    /// Kills it.
    pub fn kill(&mut self) {
        self.process.kill();
    }

    /// What it logged.
    pub fn log(&self) -> String {
        self.process.log()
    }

    /// How many streams it has open; `None` where it does not answer.
    pub async fn open_streams(&self) -> Option<u64> {
        let name = "ash_api_open_streams";
        let text = crate::http::text(self.address, "/metrics").await.ok()?;
        text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
    }
}

/// A runner.
#[derive(Debug)]
pub struct Runner {
    pub(crate) process: Process,
    pub(super) call: Call,
    pub(super) metrics: SocketAddr,
    pub(super) partition: Option<Partition>,
}

impl Runner {
    pub(super) fn new(settings: &Settings, name: &str) -> Self {
        Self { process: Process::new(settings, name), call: Call::EMPTY, metrics: free_port(), partition: None }
    }

    /// Its name, its process's number where it runs, and its log.
    pub fn describe(&self) -> (String, Option<u32>, PathBuf) {
        describe(&self.process)
    }

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
        self.process.start(&program("ash"), &self.call);
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
        super::metric(self.metrics, name).await
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

fn describe(process: &Process) -> (String, Option<u32>, PathBuf) {
    (process.name().to_owned(), process.child.as_ref().map(std::process::Child::id), process.log_file())
}
