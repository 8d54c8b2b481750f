//! A fleet on one machine: coordinators, runners and a load balancer as processes of their own. This is the only description of
//! one: the tests' harness, the benchmarks and `make fleet` start theirs from it.

mod balancer;
mod keys;
mod members;
mod partition;
mod port;
mod process;

use std::{
    fmt,
    net::SocketAddr,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::bail;
use secrecy::{ExposeSecret as _, SecretString};

use self::partition::Partition;
pub(crate) use self::process::command;
pub use self::{
    balancer::Balancer,
    keys::Keys,
    members::{Coordinator, Runner},
    port::{free_port, free_port_of},
};
use crate::http;

/// How long something may take to start. Far beyond what it takes: reaching it is a failure.
pub const START: Duration = Duration::from_secs(60);
/// How often it is looked at meanwhile.
const INTERVAL: Duration = Duration::from_millis(10);
/// How long turns may go on when a process of the fleet is told to stop.
const SHUTDOWN_TIMEOUT: &str = "--shutdown-timeout=5s";

/// What a fleet is made of.
#[derive(Debug)]
pub struct Settings {
    /// Where each process has its folder.
    pub folder: PathBuf,
    /// What its processes share.
    pub keys: Keys,
    /// The database; without one a coordinator has `SQLite`, and there can be only one.
    pub database: Option<SecretString>,
    /// What is logged.
    pub log: String,
    /// More arguments of the coordinators.
    pub coordinator_arguments: Vec<String>,
    /// More variables of the coordinators: the key of the model API.
    pub coordinator_environment: Vec<(&'static str, SecretString)>,
    /// More variables of the runners: where the model API is.
    pub runner_environment: Vec<(&'static str, SecretString)>,
    /// Claude Code; without it, the one that `ash` finds.
    pub claude: Option<PathBuf>,
    /// Whether runners can be cut off from the coordinators.
    pub partitions: bool,
    /// Whether its processes are in groups of their own, so that Ctrl-C reaches only who started them, and end with that process
    /// when it is killed. Only for who starts them from its first thread.
    pub apart: bool,
}

/// A fleet. Dropped, all is stopped.
#[derive(Debug)]
pub struct Fleet {
    settings: Settings,
    /// The coordinators.
    pub coordinators: Vec<Coordinator>,
    /// The runners.
    pub runners: Vec<Runner>,
    /// What is before the coordinators.
    pub balancer: Option<Balancer>,
}

/// What a process is started with.
pub(crate) struct Call {
    arguments: Vec<String>,
    environment: Vec<(&'static str, SecretString)>,
}

impl fmt::Debug for Call {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Call").field("arguments", &self.arguments).finish_non_exhaustive()
    }
}

impl Fleet {
    /// A fleet of which nothing runs yet, with so many coordinators.
    pub fn new(settings: Settings, coordinators: usize) -> Self {
        let made = (1..=coordinators).map(|number| Coordinator::new(&settings, number)).collect();
        Self { settings, coordinators: made, runners: Vec::new(), balancer: None }
    }

    /// What its processes share.
    pub fn keys(&self) -> &Keys {
        &self.settings.keys
    }

    /// Starts a coordinator, and waits until it answers.
    pub async fn start_coordinator(&mut self, number: usize) -> anyhow::Result<()> {
        let call = self.coordinator_call(&self.coordinators[number]);
        let coordinator = &mut self.coordinators[number];
        coordinator.process.start(&crate::harness::program("ash"), &call);
        let address = coordinator.address;
        coordinator.process.until("it answers", async || is_healthy(address).await).await
    }

    fn coordinator_call(&self, coordinator: &Coordinator) -> Call {
        let Settings { keys, log, coordinator_arguments, coordinator_environment, database, .. } = &self.settings;
        let mut arguments = vec![
            "serve".to_owned(),
            "--mode=coordinator".to_owned(),
            format!("--listen={}", coordinator.address),
            format!("--fleet-listen={}", coordinator.fleet_address),
            format!("--data-dir={}", coordinator.process.folder.join("data").display()),
            format!("--fleet-secret-file={}", keys.fleet_secret().display()),
            format!("--token-key-file={}", keys.token_key().display()),
            format!("--credential-key-file={}", keys.credential_key().display()),
            format!("--api-key-file={}", keys.api_key().display()),
            format!("--log={log}"),
            SHUTDOWN_TIMEOUT.to_owned(),
        ];
        arguments.extend(coordinator_arguments.iter().cloned());
        let mut environment = coordinator_environment.clone();
        environment.extend(database.clone().map(|url| ("ASH_DATABASE_URL", url)));
        Call { arguments, environment }
    }

    /// Starts one more runner, which knows every coordinator. It is there when a coordinator counts it.
    pub fn add_runner(&mut self, more: &[&str]) {
        let name = format!("runner-{}", self.runners.len());
        let mut runner = Runner::new(&self.settings, &name);
        let Settings { keys, log, claude, runner_environment, partitions, .. } = &self.settings;
        let listen = free_port();
        let partition = partitions.then(Partition::new);
        let way = |to: SocketAddr| partition.as_ref().map_or(to, |partition| partition.way_to(to));
        let mut arguments = vec![
            "runner".to_owned(),
            format!("--name={name}"),
            format!("--listen={listen}"),
            format!("--advertise=http://{}", way(listen)),
            format!("--metrics-listen={}", runner.metrics),
            format!("--data-dir={}", runner.data().display()),
            format!("--fleet-secret-file={}", keys.fleet_secret().display()),
            format!("--log={log}"),
            SHUTDOWN_TIMEOUT.to_owned(),
        ];
        arguments
            .extend(self.coordinators.iter().map(|one| format!("--coordinator=http://{}", way(one.fleet_address))));
        arguments.extend(claude.iter().map(|claude| format!("--claude={}", claude.display())));
        arguments.extend(more.iter().map(|argument| (*argument).to_owned()));
        runner.partition = partition;
        runner.call = Call { arguments, environment: runner_environment.clone() };
        runner.start();
        self.runners.push(runner);
    }

    /// Waits until so many runners can be given sessions, as the first coordinator counts them.
    pub async fn wait_runners(&self, count: usize) -> anyhow::Result<()> {
        until("the runners are there", async || Ok(self.runners_ready().await.is_some_and(|ready| ready >= count)))
            .await
    }

    /// How many runners can be given sessions; `None` where the first coordinator does not answer.
    pub(crate) async fn runners_ready(&self) -> Option<usize> {
        metric(self.coordinators.first()?.address, "ash_coordinator_runners_ready").await.map(whole)
    }

    /// Starts the load balancer on an address, and waits until it has a coordinator that is ready. There have to be two.
    pub async fn start_balancer(&mut self, address: SocketAddr) -> anyhow::Result<()> {
        let [one, two] = &self.coordinators[..] else { bail!("the balancer's configuration is for two coordinators") };
        let mut balancer = Balancer::new(&self.settings, address, [one.address, two.address])?;
        balancer.start().await?;
        self.balancer = Some(balancer);
        Ok(())
    }

    /// The coordinator that has the most streams open, and how many all of them have.
    pub async fn busiest(&self) -> (usize, u64) {
        let mut open = Vec::new();
        for coordinator in &self.coordinators {
            open.push(coordinator.open_streams().await.unwrap_or(0));
        }
        let busiest = (0..open.len()).max_by_key(|number| open[*number]).unwrap_or(0);
        (busiest, open.iter().sum())
    }

    /// Stops everything: clients are cut off first, runners end their sandboxes while they have coordinators that write it down.
    pub fn stop(&mut self) {
        if let Some(balancer) = &mut self.balancer {
            balancer.process.stop();
        }
        for runner in &mut self.runners {
            runner.process.tell_to_stop();
        }
        for runner in &mut self.runners {
            runner.stop();
        }
        for coordinator in &mut self.coordinators {
            coordinator.process.tell_to_stop();
        }
        for coordinator in &mut self.coordinators {
            coordinator.process.stop();
        }
        // What a killed runner left behind is ended by its record.
        for runner in &self.runners {
            runner.end_sandboxes();
        }
    }

    /// Starts again what ended without being told to; gives what was said about each.
    pub fn restart_ended(&mut self) -> Vec<String> {
        let mut said = Vec::new();
        for number in 0..self.coordinators.len() {
            let call = self.coordinator_call(&self.coordinators[number]);
            said.extend(self.coordinators[number].process.restart_if_ended(&crate::harness::program("ash"), &call));
        }
        for runner in &mut self.runners {
            said.extend(runner.process.restart_if_ended(&crate::harness::program("ash"), &runner.call));
        }
        said.extend(self.balancer.as_mut().and_then(Balancer::restart_if_ended));
        said
    }

    /// Prints what its processes logged last.
    pub fn dump(&self) {
        self.coordinators.iter().for_each(|coordinator| coordinator.process.dump());
        self.runners.iter().for_each(|runner| runner.process.dump());
        self.balancer.iter().for_each(|balancer| balancer.process.dump());
    }
}

impl Drop for Fleet {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.dump();
        }
        self.stop();
    }
}

/// Whether a server answers, and has its database.
async fn is_healthy(address: SocketAddr) -> bool {
    http::json(address, "GET", "/health", None, None).await.is_ok_and(|(status, _)| status == 200)
}

/// A value of a server's metrics.
pub(crate) async fn metric(address: SocketAddr, name: &str) -> Option<f64> {
    let text = http::text(address, "/metrics").await.ok()?;
    text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

/// A count among the metrics.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a small count")]
fn whole(value: f64) -> usize {
    value as usize
}

/// Waits until a condition holds, [`START`] at the most.
pub(crate) async fn until(what: &str, mut condition: impl AsyncFnMut() -> anyhow::Result<bool>) -> anyhow::Result<()> {
    let start = Instant::now();
    while !condition().await? {
        if start.elapsed() >= START {
            bail!("waited {} s in vain until {what}", START.as_secs());
        }
        tokio::time::sleep(INTERVAL).await;
    }
    Ok(())
}

impl Call {
    /// Nothing.
    const EMPTY: Self = Self { arguments: Vec::new(), environment: Vec::new() };

    /// The variables, as a process gets them.
    fn variables(&self) -> impl Iterator<Item = (&'static str, &str)> {
        self.environment.iter().map(|(name, value)| (*name, value.expose_secret()))
    }
}
