//! The cluster of `e2e/cluster/cluster.sh`: in namespaces of this machine, for as long as this process lives.

use std::{
    env,
    ffi::OsStr,
    fs::{self, File},
    io::{BufRead as _, BufReader},
    net::{IpAddr, Ipv4Addr},
    os::unix::process::CommandExt as _,
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::{script, succeed};

/// A folder of a cluster to use instead of a new one, and to leave running: for whoever works on a journey and does not
/// want to wait for a cluster each time. Started there if it is not yet; `cluster.sh down` ends it.
const FOLDER: &str = "ASH_TEST_CLUSTER";
/// The address of `node1`, in whose network this process listens for pods.
pub(super) const ADDRESS: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 168, 210, 1));

#[derive(Debug)]
pub(super) struct LocalCluster {
    folder: PathBuf,
    /// Its input stays open as long as this process lives; at its end it takes the cluster down.
    keeper: Option<Child>,
}

/// Takes it down, and waits for that. One of a whole program is never dropped: its keeper sees the end of the program.
impl Drop for LocalCluster {
    fn drop(&mut self) {
        if let Some(mut keeper) = self.keeper.take() {
            drop(keeper.stdin.take());
            let _ = keeper.wait();
        }
    }
}

impl LocalCluster {
    /// What this machine lacks for it.
    pub(super) fn check() -> Result<(), String> {
        let output = Command::new(script("cluster.sh")).arg("check").output().map_err(|error| error.to_string())?;
        if output.status.success() {
            return Ok(());
        }
        let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).trim().to_owned());
        Err(said.concat())
    }

    /// Starts two nodes; the API server notes who writes what, or does not.
    pub(super) fn start(audit: bool) -> Result<Self, String> {
        if let Some(folder) = env::var_os(FOLDER).filter(|value| !value.is_empty()) {
            let cluster = Self { folder: PathBuf::from(folder), keeper: None };
            if !cluster.folder.exists() {
                cluster.command(["up", "2"])?;
            }
            return Ok(cluster);
        }
        Self::start_in("", audit)
    }

    /// The same for one test, beside another.
    pub(super) fn of_a_test() -> Result<Self, String> {
        static COUNT: AtomicU32 = AtomicU32::new(1);
        Self::start_in(&format!("-{}", COUNT.fetch_add(1, Ordering::Relaxed)), false)
    }

    fn start_in(ending: &str, audit: bool) -> Result<Self, String> {
        succeed(Command::new(script("cluster.sh")).arg("sweep"))?;
        let id = std::process::id();
        let folder = env::temp_dir().join(format!("ash-cluster-{id}{ending}"));
        let log = folder.with_extension("log");
        let errors = File::create(&log).map_err(|error| format!("{}: {error}", log.display()))?;
        let mut keeper = Command::new(script("cluster.sh"))
            .args(["hold", "2"])
            .env("ASH_CLUSTER_DIR", &folder)
            .env("ASH_CLUSTER_OWNER", id.to_string())
            .env("ASH_CLUSTER_AUDIT", if audit { "yes" } else { "" })
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(errors)
            // Ctrl-C ends the test, and the end of the test ends the cluster, in order.
            .process_group(0)
            .spawn()
            .map_err(|error| format!("cluster.sh: {error}"))?;
        let output = keeper.stdout.take().ok_or("cluster.sh has no output")?;
        let is_up = BufReader::new(output).lines().map_while(Result::ok).any(|line| line.starts_with("cluster up"));
        let said = fs::read_to_string(&log).unwrap_or_default();
        let _ = fs::remove_file(&log);
        if !is_up {
            drop(keeper.stdin.take());
            let _ = keeper.wait();
            return Err(said);
        }
        Ok(Self { folder, keeper: Some(keeper) })
    }

    pub(super) fn kubeconfig(&self) -> PathBuf {
        self.folder.join("pki/admin.kubeconfig")
    }

    pub(super) fn audit_log(&self) -> PathBuf {
        self.folder.join("node1/audit.log")
    }

    /// The processes in its control groups, which are named after its folder.
    pub(super) fn processes(&self) -> Vec<u32> {
        let name = self.folder.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let group = format!("/{name}/");
        let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
        let ids = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
        ids.filter(|pid| fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|text| text.contains(&group)))
            .collect()
    }

    /// Runs a command of `cluster.sh`.
    pub(super) fn command<I: AsRef<OsStr>>(&self, arguments: impl IntoIterator<Item = I>) -> Result<(), String> {
        succeed(Command::new(script("cluster.sh")).args(arguments).env("ASH_CLUSTER_DIR", &self.folder))
    }

    /// A command that runs in the cluster's network, with its kubeconfig.
    pub(super) fn run(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(script("cluster.sh"));
        command.env("ASH_CLUSTER_DIR", &self.folder).arg("run").arg(program);
        command
    }

    pub(super) fn load(&self, archives: &[PathBuf]) -> Result<(), String> {
        self.command([OsStr::new("load")].into_iter().chain(archives.iter().map(|archive| archive.as_os_str())))
    }

    /// Moves this thread, and those that it starts from then on, into the network of `node1`.
    pub(super) fn enter(&self) {
        enter(&self.network());
    }

    /// The network of `node1`.
    pub(super) fn network(&self) -> File {
        let process = fs::read_to_string(self.folder.join("node1/pid1")).expect("the first node runs");
        let pid = process.split_whitespace().next().expect("its first process");
        File::open(format!("/proc/{pid}/ns/net")).expect("its network")
    }

    /// The last lines of what a node's daemons have logged.
    pub(super) fn daemon_logs(&self) -> Vec<PathBuf> {
        let nodes = fs::read_dir(&self.folder).into_iter().flatten().flatten().map(|entry| entry.path());
        let files =
            nodes.filter(|path| path.is_dir()).flat_map(|node| fs::read_dir(node).into_iter().flatten().flatten());
        files.map(|entry| entry.path()).filter(|path| path.extension() == Some(OsStr::new("log"))).collect()
    }
}

/// Moves this thread, and those that it starts from then on, into a network.
pub(super) fn enter(network: &File) {
    move_into_link_name_space(std::os::fd::AsFd::as_fd(network), Some(LinkNameSpaceType::Network))
        .expect("a test that runs as root enters a network");
}
