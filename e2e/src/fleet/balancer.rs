//! `HAProxy` before two coordinators, with the configuration of `config/fleet`.

use std::{fs, net::SocketAddr, path::PathBuf};

use anyhow::Context as _;

use super::{Call, Settings, free_port, is_healthy, process::Process};
use crate::http;

/// What people use, too.
const CONFIGURATION: &str = include_str!("../../../config/fleet/haproxy.cfg");
/// Where Debian puts it, which is not on everybody's `PATH`.
const DEBIAN: &str = "/usr/sbin/haproxy";

/// The load balancer.
#[derive(Debug)]
pub struct Balancer {
    pub(super) process: Process,
    program: PathBuf,
    call: Call,
    /// Where clients reach it.
    pub address: SocketAddr,
    /// Where it says what it knows of the coordinators.
    pub status: SocketAddr,
}

/// `HAProxy`'s program, where there is one.
pub(super) fn program() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .map(|folder| folder.join("haproxy"))
        .chain([PathBuf::from(DEBIAN)])
        .find(|file| file.is_file())
}

impl Balancer {
    pub(super) fn new(settings: &Settings, address: SocketAddr, coordinators: [SocketAddr; 2]) -> anyhow::Result<Self> {
        let program = program().context("HAProxy is not installed: run scripts/install-fleet-tools.sh")?;
        let process = Process::new(settings, "balancer");
        let configuration = process.folder.join("haproxy.cfg");
        fs::write(&configuration, CONFIGURATION)?;
        let status = free_port();
        let [one, two] = coordinators;
        let variables = [
            ("ASH_BALANCER_LISTEN", address),
            ("ASH_BALANCER_STATUS", status),
            ("ASH_COORDINATOR_ONE", one),
            ("ASH_COORDINATOR_TWO", two),
        ];
        let call = Call {
            // In the foreground, without a message about itself.
            arguments: vec!["-db".to_owned(), "-f".to_owned(), configuration.display().to_string()],
            environment: variables.map(|(name, address)| (name, address.to_string().into())).into(),
        };
        Ok(Self { process, program, call, address, status })
    }

    /// Starts it, and waits until a coordinator answers through it.
    pub async fn start(&mut self) -> anyhow::Result<()> {
        self.process.start(&self.program, &self.call);
        let address = self.address;
        self.process.until("a coordinator answers through the balancer", async || is_healthy(address).await).await
    }

    pub(super) fn restart_if_ended(&mut self) -> Option<String> {
        self.process.restart_if_ended(&self.program, &self.call)
    }

    /// Its name, its process's number where it runs, and its log.
    pub fn describe(&self) -> (String, Option<u32>, PathBuf) {
        (
            self.process.name().to_owned(),
            self.process.child.as_ref().map(std::process::Child::id),
            self.process.log_file(),
        )
    }

    /// How many of the coordinators it takes for ready; `None` where it does not answer.
    pub async fn ready(&self) -> Option<usize> {
        let table = http::text(self.status, "/;csv").await.ok()?;
        Some(ready_in(&table))
    }

    /// How many streams and requests each coordinator has through it, in order.
    pub async fn open(&self) -> Option<Vec<u64>> {
        let table = http::text(self.status, "/;csv").await.ok()?;
        Some(coordinators(&table).filter_map(|row| row.get(SESSIONS)?.parse().ok()).collect())
    }
}

/// The columns of `HAProxy`'s table: what is open now, and the state.
const SESSIONS: usize = 4;
const STATE: usize = 17;

fn coordinators(table: &str) -> impl Iterator<Item = Vec<&str>> {
    let rows = table.lines().map(|line| line.split(',').collect::<Vec<_>>());
    rows.filter(|row| row.first() == Some(&"coordinators") && row.get(1).is_some_and(|name| *name != "BACKEND"))
}

fn ready_in(table: &str) -> usize {
    coordinators(table).filter(|row| row.get(STATE).is_some_and(|state| state.starts_with("UP"))).count()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_of_haproxy_is_read() {
        let row = |backend: &str, name: &str, sessions: &str, state: &str| {
            let mut cells = vec![""; 20];
            (cells[0], cells[1], cells[SESSIONS], cells[STATE]) = (backend, name, sessions, state);
            cells.join(",")
        };
        let table = [
            "# pxname,svname,...".to_owned(),
            row("ash", "FRONTEND", "9", "OPEN"),
            row("coordinators", "one", "7", "UP"),
            row("coordinators", "two", "0", "DOWN 1/2"),
            row("coordinators", "BACKEND", "7", "UP"),
        ]
        .join("\n");
        assert_eq!(ready_in(&table), 1);
        let open: Vec<_> = coordinators(&table).map(|row| row[SESSIONS].to_owned()).collect();
        assert_eq!(open, ["7", "0"]);
    }
}
