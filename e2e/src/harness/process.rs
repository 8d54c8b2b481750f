//! Programs of this repository, and processes that a test started.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

/// A program that cargo built beside this test.
///
/// # Panics
/// When it is not there: `make test` builds all of them first.
pub fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("a process has a program");
    let folder = test.ancestors().find(|folder| folder.join(name).is_file());
    let Some(folder) = folder else {
        panic!("{name} is not built: run `cargo build --workspace --bins` first (`make test` does)");
    };
    folder.join(name)
}

/// Sends a signal to a process that the test started.
pub fn signal(pid: u32, name: &str) {
    let _ = Command::new("kill").arg(format!("-{name}")).arg(pid.to_string()).status();
}

/// Whether a process stands still: stopped by a signal, or by its control group.
pub fn stands_still(pid: u32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let stopped = stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('T'));
    stopped || freezers(pid).iter().any(Freezer::is_frozen)
}

/// Has the processes of a sandbox go on whatever its server thinks of it, as a program could that is not kept from it. `pid` is one
/// of them.
pub fn let_go_on(pid: u32) {
    freezers(pid).iter().for_each(Freezer::thaw);
    let namespace = fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(one) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else { continue };
        if fs::read_link(format!("/proc/{one}/ns/pid")).ok() == namespace {
            signal(one, "CONT");
        }
    }
}

/// What stops a control group.
struct Freezer {
    /// Where it says whether it is stopped, and how.
    state: (PathBuf, &'static str),
    /// Where one writes what, to have it go on.
    switch: (PathBuf, &'static str),
}

impl Freezer {
    fn is_frozen(&self) -> bool {
        fs::read_to_string(&self.state.0).is_ok_and(|text| text.lines().any(|line| line == self.state.1))
    }

    fn thaw(&self) {
        let _ = fs::write(&self.switch.0, self.switch.1);
    }
}

/// The freezers of the control groups of a process, of either version, as far as they are mounted where everybody mounts them.
fn freezers(pid: u32) -> Vec<Freezer> {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    let mut found = Vec::new();
    for line in groups.lines() {
        let mut parts = line.splitn(3, ':').skip(1);
        let (Some(controllers), Some(path)) = (parts.next(), parts.next()) else { continue };
        let group = |mount: &str| PathBuf::from(format!("/sys/fs/cgroup{mount}{path}"));
        if controllers == "freezer" {
            let state = group("/freezer").join("freezer.state");
            found.push(Freezer { state: (state.clone(), "FROZEN"), switch: (state, "THAWED") });
        }
        if controllers.is_empty() {
            for mount in ["", "/unified"] {
                let group = group(mount);
                let (state, switch) = (group.join("cgroup.events"), group.join("cgroup.freeze"));
                found.push(Freezer { state: (state, "frozen 1"), switch: (switch, "0") });
            }
        }
    }
    found
}

/// The process of a sandbox with this name (`/proc/<pid>/comm`), among all processes whose cgroup or record names the sandbox's
/// folder; `None` when there is none.
pub fn pid_of(sandbox_folder: &Path, comm: &str) -> Option<u32> {
    let init = record_pid(sandbox_folder)?;
    let namespace = fs::read_link(format!("/proc/{init}/ns/pid")).ok()?;
    fs::read_dir("/proc").ok()?.flatten().find_map(|entry| {
        let pid: u32 = entry.file_name().to_str()?.parse().ok()?;
        let same = fs::read_link(format!("/proc/{pid}/ns/pid")).ok()? == namespace;
        let named = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?.trim() == comm;
        (same && named).then_some(pid)
    })
}

/// The first process of a sandbox, from its record, if it is still that one.
pub(crate) fn record_pid(sandbox_folder: &Path) -> Option<u32> {
    let record = fs::read(sandbox_folder.join("sandbox.json")).ok()?;
    let record: serde_json::Value = serde_json::from_slice(&record).ok()?;
    let init = record.get("init")?;
    let pid = u32::try_from(init.get("pid")?.as_u64()?).ok()?;
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let start = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse::<u64>().ok()?;
    (Some(start) == init.get("start_time").or(init.get("startTime"))?.as_u64()).then_some(pid)
}
