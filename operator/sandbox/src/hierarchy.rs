//! Finds where on this machine control groups can be made: version 2, version 1, or a mixture of both.
//!
//! Each of memory, processor and number of processes is looked for in version 2 first, under the server's own group
//! (a delegated one, as systemd gives it with `Delegate=yes`), then, as root, at the top; then in version 1. A machine
//! in transition has some in one and some in the other. Version 2 is used for freezing and killing even where it has
//! none of the three.

use std::io;
use std::path::{Component, Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Group that the server itself moves to, so that its own group may hand controllers on: version 2 wants processes in
/// leaves only.
const SERVER_GROUP: &str = "ash-server";

/// What a control group can bound or do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Controller {
    /// Memory and swap.
    Memory,
    /// Share of the processors.
    Cpu,
    /// Number of processes and threads.
    Processes,
    /// Counts processor time (version 1; version 2 always counts).
    CpuAccounting,
    /// Stops all processes at once (version 1; version 2 always can).
    Freezer,
}

impl Controller {
    /// Those that bound something.
    pub(crate) const BOUNDS: [Self; 3] = [Self::Memory, Self::Cpu, Self::Processes];

    /// The kernel's name.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Memory => "memory",
            Self::Cpu => "cpu",
            Self::Processes => "pids",
            Self::CpuAccounting => "cpuacct",
            Self::Freezer => "freezer",
        }
    }
}

/// Version of the interface of a control group's files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Version {
    /// One tree for each controller.
    One,
    /// One tree for all.
    Two,
}

/// A directory in which groups for sandboxes can be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Parent {
    /// The directory.
    pub(crate) directory: PathBuf,
    /// Interface of its files.
    pub(crate) version: Version,
    /// What groups in it can do.
    pub(crate) controllers: Vec<Controller>,
}

/// A mounted tree of control groups.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Tree {
    /// Where it is mounted.
    mount: PathBuf,
    /// Which of its groups is at the mount point.
    root: PathBuf,
    version: Version,
    /// Options, among them the controllers of version 1.
    options: Vec<String>,
}

/// All directories in which groups can be made, each controller in one of them; empty where none can be written.
pub(crate) fn find(group: &str) -> Vec<Parent> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let trees = trees(&mounts);
    let mut parents = Vec::new();
    if let Some(tree) = trees.iter().find(|tree| tree.version == Version::Two) {
        parents.extend(prepare_version_two(tree, own_directory(tree, &own), group));
    }
    let mut wanted: Vec<Controller> = Controller::BOUNDS
        .into_iter()
        .filter(|controller| !parents.iter().any(|parent: &Parent| parent.controllers.contains(controller)))
        .collect();
    if parents.is_empty() {
        wanted.extend([Controller::CpuAccounting, Controller::Freezer]);
    }
    for tree in trees.iter().filter(|tree| tree.version == Version::One) {
        let controllers: Vec<Controller> = wanted
            .iter()
            .copied()
            .filter(|controller| tree.options.iter().any(|option| option == controller.name()))
            .collect();
        if controllers.is_empty() {
            continue;
        }
        let own = own_directory(tree, &own);
        let candidates = own.into_iter().chain(std::iter::once(tree.mount.clone()));
        if let Some(directory) = candidates.map(|above| above.join(group)).find(|directory| usable(directory).is_ok()) {
            wanted.retain(|controller| !controllers.contains(controller));
            parents.push(Parent { directory, version: Version::One, controllers });
        }
    }
    parents
}

/// Directories of the control groups that this process is in and that may bound its memory: its own and those above it, as far as
/// they can be seen.
pub(crate) fn own_groups() -> Vec<(Version, PathBuf)> {
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let own = std::fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    let bounds_memory = |tree: &&Tree| {
        tree.version == Version::Two || tree.options.iter().any(|option| option == Controller::Memory.name())
    };
    let mut groups = Vec::new();
    for tree in trees(&mounts).iter().filter(bounds_memory) {
        let Some(directory) = own_directory(tree, &own) else { continue };
        let above = directory.ancestors().take_while(|above| above.starts_with(&tree.mount));
        groups.extend(above.map(|above| (tree.version, above.to_owned())));
    }
    groups
}

/// Makes the directory and tries that a group can be made in it.
fn usable(directory: &Path) -> io::Result<()> {
    make(directory)?;
    let trial = directory.join(format!("trial-{}", std::process::id()));
    make(&trial)?;
    std::fs::remove_dir(&trial)
}

fn make(directory: &Path) -> io::Result<()> {
    match std::fs::create_dir(directory) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => Err(error),
        _ => Ok(()),
    }
}

/// The best of the candidates for a parent in version 2: the first that has all that bounds, else the one with most.
fn prepare_version_two(tree: &Tree, own: Option<PathBuf>, group: &str) -> Option<Parent> {
    let mut best: Option<Parent> = None;
    let candidates = own.into_iter().chain(std::iter::once(tree.mount.clone()));
    for above in candidates {
        let directory = above.join(group);
        let controllers = hand_on(&above);
        if usable(&directory).is_err() {
            continue;
        }
        let controllers: Vec<Controller> =
            controllers.into_iter().filter(|controller| enable(&directory, *controller).is_ok()).collect();
        let better = best.as_ref().is_none_or(|best| controllers.len() > best.controllers.len());
        if better {
            // A group that was made for a lesser candidate is empty and goes; failing is harmless.
            if let Some(lesser) = best.take() {
                let _ = std::fs::remove_dir(lesser.directory);
            }
            best = Some(Parent { directory, version: Version::Two, controllers });
        }
        if best.as_ref().is_some_and(|best| best.controllers.len() == Controller::BOUNDS.len()) {
            break;
        }
    }
    best
}

/// Has `above` hand its controllers on to the groups in it, and says which it does.
fn hand_on(above: &Path) -> Vec<Controller> {
    let offered = std::fs::read_to_string(above.join("cgroup.controllers")).unwrap_or_default();
    Controller::BOUNDS
        .into_iter()
        .filter(|controller| offered.split_ascii_whitespace().any(|name| name == controller.name()))
        .filter(|controller| {
            enable(above, *controller).is_ok() || (leave(above).is_ok() && enable(above, *controller).is_ok())
        })
        .collect()
}

fn enable(directory: &Path, controller: Controller) -> io::Result<()> {
    let path = directory.join("cgroup.subtree_control");
    let enabled = std::fs::read_to_string(&path)?;
    if enabled.split_ascii_whitespace().any(|name| name == controller.name()) {
        return Ok(());
    }
    std::fs::write(path, format!("+{}", controller.name()))
}

/// Moves the server from its own group into a leaf of it, when it is alone there: other processes are not ours to move.
fn leave(above: &Path) -> io::Result<()> {
    let own = std::process::id().to_string();
    let present = std::fs::read_to_string(above.join("cgroup.procs"))?;
    if present.split_ascii_whitespace().ne([own.as_str()]) {
        return Err(io::ErrorKind::ResourceBusy.into());
    }
    let leaf = above.join(SERVER_GROUP);
    make(&leaf)?;
    std::fs::write(leaf.join("cgroup.procs"), own)
}

/// Trees of control groups in the text of `/proc/self/mountinfo`.
fn trees(mounts: &str) -> Vec<Tree> {
    mounts
        .lines()
        .filter_map(|line| {
            let (before, after) = line.split_once(" - ")?;
            let mut before = before.split(' ').skip(3);
            let (root, mount) = (before.next()?, before.next()?);
            let mut after = after.split(' ');
            let version = match after.next()? {
                "cgroup" => Version::One,
                "cgroup2" => Version::Two,
                _ => return None,
            };
            let options = after.nth(1)?.split(',').map(str::to_owned).collect();
            Some(Tree { mount: mount.into(), root: root.into(), version, options })
        })
        .collect()
}

/// Directory of the server's own group in a tree, from the text of `/proc/self/cgroup`; `None` when it is not below
/// the mount point.
fn own_directory(tree: &Tree, own: &str) -> Option<PathBuf> {
    let path = own.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        let matches = match tree.version {
            Version::Two => controllers.is_empty(),
            Version::One => controllers
                .split(',')
                .any(|controller| !controller.is_empty() && tree.options.iter().any(|option| option == controller)),
        };
        matches.then(|| PathBuf::from(path))
    })?;
    // Where an earlier start of this process has moved it.
    let path = if path.ends_with(SERVER_GROUP) { path.parent()?.to_owned() } else { path };
    let below = path.strip_prefix(&tree.root).ok()?;
    if below.components().any(|component| component == Component::ParentDir) {
        return None;
    }
    Some(if below.as_os_str().is_empty() { tree.mount.clone() } else { tree.mount.join(below) })
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIXED: &str = "\
24 23 0:22 / /proc rw - proc proc rw
32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:9 - cgroup cgroup rw,cpu,cpuacct
35 31 0:32 /part /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
";

    #[test]
    fn trees_of_both_versions_are_found() {
        let trees = trees(MIXED);
        assert_eq!(trees.len(), 3);
        assert_eq!(trees[0].version, Version::One);
        assert!(trees[0].options.iter().any(|option| option == "cpuacct"));
        assert_eq!(trees[1].root, Path::new("/part"));
        assert_eq!(trees[2].version, Version::Two);
    }

    #[test]
    fn the_own_group_is_found_below_the_mount_point() {
        let trees = trees(MIXED);
        let own = "8:memory:/part/of/it\n2:cpu,cpuacct:/\n0::/user.slice/ash-server\n";
        assert_eq!(own_directory(&trees[0], own), Some("/sys/fs/cgroup/cpu,cpuacct".into()));
        assert_eq!(own_directory(&trees[1], own), Some("/sys/fs/cgroup/memory/of/it".into()));
        assert_eq!(own_directory(&trees[2], own), Some("/sys/fs/cgroup/unified/user.slice".into()));
    }

    #[test]
    fn a_group_outside_the_mount_point_is_not_used() {
        let trees = trees(MIXED);
        assert_eq!(own_directory(&trees[1], "8:memory:/elsewhere\n"), None);
        assert_eq!(own_directory(&trees[2], "0::/../outside\n"), None);
    }
}
