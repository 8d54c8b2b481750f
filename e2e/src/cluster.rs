//! A real Kubernetes for journeys: one cluster for all tests of a program, started at the first use.
//!
//! A test asks for it with [`Cluster::shared`], or with [`Cluster::alone`] where it disturbs others, and returns where
//! there is none. The cluster is taken down when the program ends, however it ends; what a machine's failure leaves,
//! the next run removes.

mod authority;
mod dump;
mod install;
mod journey;
mod kubectl;
mod local;
mod namespace;
mod outside;
mod reach;
mod release;

use std::{
    env,
    ffi::OsStr,
    io::{self, Write as _},
    ops::Deref,
    path::{Path, PathBuf},
    process::Command,
    sync::{OnceLock, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard},
    time::{Duration, Instant},
};

pub use authority::{Authority, Certificate};
pub use install::{Installation, MODEL_SERVICE, SYSTEM_NAMESPACE};
use journey::Journey;
use local::LocalCluster;
pub use namespace::Namespace;
pub use outside::Outside;
pub use reach::Endpoint;
pub use release::Release;

use crate::harness::program;

/// The image of the control plane, as `e2e/cluster/images.sh` names it.
pub const ASH_IMAGE: &str = "localhost/ash:dev";
/// The image of sandboxes, as `e2e/cluster/images.sh` names it.
pub const SANDBOX_IMAGE: &str = "localhost/ash-bridge:dev";
/// How long a journey waits for something of the cluster. Far beyond what it takes: reaching it is a failure.
pub const DEADLINE: Duration = Duration::from_secs(120);

/// Set to anything, as CI and `make e2e` do: where no cluster can run, the tests fail instead of saying that they are
/// skipped.
const REQUIRED: &str = "ASH_TEST_REQUIRE_KUBERNETES";
/// The kubeconfig of a cluster to use instead of one of our own; `make e2e` sets it from `KUBECONFIG`. Never
/// `KUBECONFIG` itself: `make test` must not touch the cluster that somebody happens to work with.
const ATTACH: &str = "ASH_TEST_KUBECONFIG";
/// For a cluster that is attached to: a command that is given the archive of an image and brings it onto all nodes.
/// Without it the images have to be there.
const LOAD: &str = "ASH_TEST_LOAD_IMAGE";

/// Read by tests that get along with each other, written by those that do not.
static USES: RwLock<()> = RwLock::new(());

/// A running cluster.
#[derive(Debug)]
pub struct Cluster {
    place: Place,
    installation: OnceLock<Result<Installation, String>>,
}

#[derive(Debug)]
enum Place {
    /// Of `e2e/cluster/cluster.sh`: in namespaces of this machine.
    Local(LocalCluster),
    /// Somebody else's, which this machine reaches over its network.
    Attached { kubeconfig: PathBuf },
}

/// A node without power. It gets it back when this goes out of scope: other tests need the node, also where one failed.
#[derive(Debug)]
pub struct KilledNode<'a> {
    cluster: &'a Cluster,
    node: &'static str,
    boots: bool,
}

impl KilledNode<'_> {
    /// Powers it on again, and waits until it is ready.
    ///
    /// # Panics
    /// When it does not come back.
    pub fn boot(mut self) {
        self.boots = false;
        self.cluster.local().expect("a node of ours").command(["boot", self.node]).expect("the node is started");
        self.cluster.done(&["wait", "--for=condition=Ready", &format!("node/{}", self.node), &kubectl::timeout()]);
    }
}

impl Drop for KilledNode<'_> {
    fn drop(&mut self) {
        if let Some(local) = self.cluster.local().filter(|_| self.boots) {
            let _ = local.command(["boot", self.node]);
        }
    }
}

/// The cluster, used together with other tests.
#[derive(Debug)]
pub struct Shared {
    cluster: &'static Cluster,
    _use: RwLockReadGuard<'static, ()>,
    _journey: Journey,
}

/// The cluster, used by one test alone.
#[derive(Debug)]
pub struct Alone {
    cluster: &'static Cluster,
    _use: RwLockWriteGuard<'static, ()>,
    _journey: Journey,
}

/// A cluster of one test, which no other uses; it goes when this is dropped.
#[derive(Debug)]
pub struct Own {
    cluster: Cluster,
    _use: RwLockWriteGuard<'static, ()>,
    _journey: Journey,
}

impl Deref for Own {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        &self.cluster
    }
}

impl Deref for Shared {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        self.cluster
    }
}

impl Deref for Alone {
    type Target = Cluster;

    fn deref(&self) -> &Cluster {
        self.cluster
    }
}

impl Cluster {
    /// The cluster of this program with the images of this repository on its nodes; `None`, said on the terminal, where
    /// none can run and none is required.
    ///
    /// # Panics
    /// When it does not start, or cannot and is required.
    pub fn shared() -> Option<Shared> {
        let cluster = Self::of_this_program()?;
        Some(Shared { cluster, _use: USES.read().unwrap_or_else(PoisonError::into_inner), _journey: Journey::begin() })
    }

    /// The same for a test that kills nodes or takes parts of the control plane away: no other test runs meanwhile.
    ///
    /// # Panics
    /// As [`Cluster::shared`] does.
    pub fn alone() -> Option<Alone> {
        let cluster = Self::of_this_program()?;
        Some(Alone { cluster, _use: USES.write().unwrap_or_else(PoisonError::into_inner), _journey: Journey::begin() })
    }

    /// A new cluster for a test that leaves nothing of one as it was, such as the definitions; once it is there, no other
    /// test runs. `None`, said on the terminal, where none can run, and where the tests have somebody else's: that is not
    /// taken apart.
    ///
    /// # Panics
    /// When it does not start, or cannot and is required.
    pub fn own() -> Option<Own> {
        if env::var_os(ATTACH).is_some_and(|value| !value.is_empty()) {
            skipped("one of the journeys did not run: it takes a cluster of its own, which it can spoil");
            return None;
        }
        match Self::start_local(LocalCluster::of_a_test) {
            Ok(cluster) => cluster.map(|cluster| Own {
                cluster,
                _use: USES.write().unwrap_or_else(PoisonError::into_inner),
                _journey: Journey::begin(),
            }),
            Err(error) => panic!("there is no cluster: {error}"),
        }
    }

    /// The same for a program that measures: the API server notes who writes what, in [`Cluster::audit_log`]. Asked for
    /// before any other use.
    ///
    /// # Panics
    /// As [`Cluster::shared`] does.
    pub fn audited() -> Option<Shared> {
        let cluster = Self::started(true)?;
        Some(Shared { cluster, _use: USES.read().unwrap_or_else(PoisonError::into_inner), _journey: Journey::begin() })
    }

    fn of_this_program() -> Option<&'static Self> {
        Self::started(false)
    }

    fn started(audit: bool) -> Option<&'static Self> {
        static CLUSTER: OnceLock<Result<Option<Cluster>, String>> = OnceLock::new();
        // The outcome is kept: what failed for one test is not tried again for each.
        match CLUSTER.get_or_init(|| Self::start(audit)) {
            Ok(cluster) => cluster.as_ref(),
            Err(error) => panic!("there is no cluster: {error}"),
        }
    }

    fn start(audit: bool) -> Result<Option<Self>, String> {
        let Some(kubeconfig) = env::var_os(ATTACH).filter(|value| !value.is_empty()) else {
            return Self::start_local(|| LocalCluster::start(audit));
        };
        if let Some(load) = env::var_os(LOAD) {
            build_images()?.iter().try_for_each(|archive| load_by(&load, archive))?;
        }
        let place = Place::Attached { kubeconfig: PathBuf::from(kubeconfig) };
        Ok(Some(Self { place, installation: OnceLock::new() }))
    }

    fn start_local(start: impl FnOnce() -> Result<LocalCluster, String>) -> Result<Option<Self>, String> {
        if let Err(missing) = LocalCluster::check() {
            if env::var_os(REQUIRED).is_some() {
                return Err(missing);
            }
            skipped(&format!("the journeys on a Kubernetes cluster did not run: {missing}"));
            return Ok(None);
        }
        let begun = Instant::now();
        // Both take some seconds.
        let (archives, local) = std::thread::scope(|scope| {
            let archives = scope.spawn(build_images);
            let local = start();
            (archives.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)), local)
        });
        let local = local?;
        local.load(&archives?)?;
        journey::said("a cluster with its images", begun);
        Ok(Some(Self { place: Place::Local(local), installation: OnceLock::new() }))
    }

    /// Brings an image of a test's own onto all nodes: an OCI archive.
    ///
    /// # Panics
    /// When it cannot be loaded; on a cluster that is attached to, without a command for it in `ASH_TEST_LOAD_IMAGE`.
    pub fn load_image(&self, archive: &Path) {
        let done = match &self.place {
            Place::Local(local) => local.load(&[archive.to_owned()]),
            Place::Attached { .. } => {
                let load = env::var_os(LOAD).expect("ASH_TEST_LOAD_IMAGE says how images get onto the nodes");
                load_by(&load, archive)
            }
        };
        done.expect("the image is loaded");
    }

    /// Powers a node off, hard. Not `node1`, which has the control plane. `None` on a cluster whose nodes are not ours.
    ///
    /// # Panics
    /// When it does not run.
    #[must_use]
    pub fn kill_node(&self, node: &'static str) -> Option<KilledNode<'_>> {
        self.local()?.command(["kill", node]).expect("the node is killed");
        Some(KilledNode { cluster: self, node, boots: true })
    }

    /// Kills the first process of a pod's container, as the kernel would that is short of memory. The kubelet starts it
    /// again in the same pod. `None` on a cluster whose nodes are not ours.
    ///
    /// # Panics
    /// When there is no such container.
    #[must_use]
    pub fn kill_container(&self, namespace: &str, pod: &str, container: &str) -> Option<()> {
        let local = self.local()?;
        let pod = self.json(&["get", "pod", pod, "-n", namespace]);
        let containers = pod["status"]["containerStatuses"].as_array().expect("a pod that runs");
        let status = containers.iter().find(|status| status["name"] == container).expect("its container");
        let id = status["containerID"].as_str().expect("a container that runs").trim_start_matches("containerd://");
        let node = pod["spec"]["nodeName"].as_str().expect("its node");
        local.command(["kill-container", node, id]).expect("the container is killed");
        Some(())
    }

    /// Takes the API server away; what runs goes on. For [`Cluster::alone`]. `None` on a cluster whose control plane is
    /// not ours.
    ///
    /// # Panics
    /// When it does not run.
    #[must_use]
    pub fn stop_api_server(&self) -> Option<()> {
        self.local()?.command(["stop-api"]).expect("the API server is stopped");
        Some(())
    }

    /// Brings the API server back, and waits until it is ready.
    ///
    /// # Panics
    /// When it does not come back.
    pub fn start_api_server(&self) {
        self.local().expect("a control plane of ours").command(["start-api"]).expect("the API server is started");
    }

    /// The kubeconfig of its administrator; it works in the cluster's network.
    pub fn kubeconfig(&self) -> PathBuf {
        match &self.place {
            Place::Local(local) => local.kubeconfig(),
            Place::Attached { kubeconfig } => kubeconfig.clone(),
        }
    }

    /// Where the API server notes who writes what; `None` on a cluster whose control plane is not ours.
    pub fn audit_log(&self) -> Option<PathBuf> {
        self.local().map(LocalCluster::audit_log)
    }

    /// The processes of this machine that run in the cluster's containers; `None` on a cluster that is not ours.
    pub fn processes(&self) -> Option<Vec<u32>> {
        self.local().map(LocalCluster::processes)
    }

    /// Where the cluster of our own is; `None` for one that is attached to.
    fn local(&self) -> Option<&LocalCluster> {
        match &self.place {
            Place::Local(local) => Some(local),
            Place::Attached { .. } => None,
        }
    }
}

/// Says that something did not run, past the capture of the test runner: a skip has to be seen.
fn skipped(what: &str) {
    let _ = io::stderr().write_all(format!("\nSKIPPED: {what}.\n\n").as_bytes());
}

/// Builds the images of this repository from the programs beside this test; their archives.
fn build_images() -> Result<[PathBuf; 2], String> {
    let program = program("ash");
    let programs = program.parent().ok_or("the program has no folder")?;
    let folder = programs.join("images");
    succeed(Command::new(script("images.sh")).arg(&folder).arg(programs))?;
    Ok(["ash.tar", "ash-bridge.tar"].map(|name| folder.join(name)))
}

/// Brings an image onto the nodes of somebody else's cluster, with the command for it.
fn load_by(command: &OsStr, archive: &Path) -> Result<(), String> {
    succeed(Command::new("sh").arg("-c").arg(format!("{} \"$0\"", command.to_string_lossy())).arg(archive))
}

/// A script of `e2e/cluster`.
fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("cluster").join(name)
}

/// Runs a command that has to succeed; what it said otherwise.
fn succeed(command: &mut Command) -> Result<(), String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    if output.status.success() {
        return Ok(());
    }
    let said = [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    Err(format!("{command:?} failed: {said}"))
}
