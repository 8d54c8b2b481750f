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
