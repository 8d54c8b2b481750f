//! The control group of one sandbox: its bounds, what it has used, and the last net for killing.

use std::io;
use std::path::{Path, PathBuf};

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};
use serde::{Deserialize, Serialize};

use crate::config::Limits;
use crate::error::SandboxError;
use crate::hierarchy::{Controller, Parent, Version};
use crate::process;

/// Period in which processor time is shared out, in microseconds: the kernel's default.
const CPU_PERIOD: u64 = 100_000;

/// One directory of the group; version 1 has one for each controller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Part {
    directory: PathBuf,
    version: Version,
    controllers: Vec<Controller>,
}

/// The group of one sandbox in all trees in which it has one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ControlGroup {
    parts: Vec<Part>,
}

impl ControlGroup {
    /// Makes the group and sets its bounds; `None` where there are no parents. What an earlier group of this name
    /// still holds is killed.
    pub(crate) fn create(parents: &[Parent], id: &str, limits: &Limits) -> Result<Option<Self>, SandboxError> {
        if parents.is_empty() {
            return Ok(None);
        }
        let parts = parents
            .iter()
            .map(|parent| Part {
                directory: parent.directory.join(id),
                version: parent.version,
                controllers: parent.controllers.clone(),
            })
            .collect();
        let group = Self { parts };
        for part in &group.parts {
            let made = match std::fs::create_dir(&part.directory) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                    part.kill();
                    Ok(())
                }
                made => made,
            }
            .map_err(control_group("create", &part.directory))
            .and_then(|()| part.bound(limits));
            if let Err(error) = made {
                group.remove();
                return Err(error);
            }
        }
        Ok(Some(group))
    }

    /// Groups of `id`s that `keep` does not know, with all processes in them, are removed; their ids are returned.
    pub(crate) fn remove_others(parents: &[Parent], keep: &[String]) -> Vec<String> {
        let mut removed = Vec::new();
        for parent in parents {
            let Ok(entries) = std::fs::read_dir(&parent.directory) else { continue };
            for entry in entries.flatten() {
                let Ok(id) = entry.file_name().into_string() else { continue };
                if !entry.file_type().is_ok_and(|kind| kind.is_dir()) || keep.contains(&id) {
                    continue;
                }
                let part =
                    Part { directory: entry.path(), version: parent.version, controllers: parent.controllers.clone() };
                part.kill();
                part.remove();
                if !removed.contains(&id) {
                    removed.push(id);
                }
            }
        }
        removed
    }

    /// Files to which a process writes `0` to join the group.
    pub(crate) fn entrances(&self) -> impl Iterator<Item = PathBuf> {
        self.parts.iter().map(|part| part.directory.join("cgroup.procs"))
    }

    /// Whether something of the group bounds or does this.
    pub(crate) fn has(&self, controller: Controller) -> bool {
        self.part(controller).is_some()
    }

    /// Whether `pid` is in every part of the group.
    pub(crate) fn contains(&self, pid: i32) -> bool {
        self.parts.iter().all(|part| part.processes().contains(&pid))
    }

    /// Whether the kernel reports the bound of this controller as `limits` has it.
    pub(crate) fn is_bound(&self, controller: Controller, limits: &Limits) -> bool {
        self.part(controller).is_some_and(|part| {
            let Some((file, value)) = part.setting(controller, limits) else { return false };
            let read = std::fs::read_to_string(part.directory.join(file)).unwrap_or_default();
            match (controller, read.trim().parse::<u64>()) {
                // Memory is kept in whole pages.
                (Controller::Memory, Ok(kept)) => kept <= limits.memory_bytes && kept > limits.memory_bytes / 2,
                _ => read.trim() == value,
            }
        })
    }

    /// Memory in use, in bytes.
    pub(crate) fn memory(&self) -> Option<u64> {
        let part = self.part(Controller::Memory)?;
        number(&part.directory.join(match part.version {
            Version::One => "memory.usage_in_bytes",
            Version::Two => "memory.current",
        }))
    }

    /// Processor time used, in microseconds.
    pub(crate) fn cpu_microseconds(&self) -> Option<u64> {
        if let Some(part) = self.parts.iter().find(|part| part.version == Version::Two) {
            return field(&part.directory.join("cpu.stat"), "usage_usec");
        }
        let part = self.part(Controller::CpuAccounting)?;
        number(&part.directory.join("cpuacct.usage")).map(|nanoseconds| nanoseconds / 1000)
    }

    /// Number of processes and threads.
    pub(crate) fn processes(&self) -> Option<u64> {
        number(&self.part(Controller::Processes)?.directory.join("pids.current"))
    }

    /// How often the kernel has killed a process of the group for lack of memory.
    pub(crate) fn memory_kills(&self) -> Option<u64> {
        let part = self.part(Controller::Memory)?;
        field(
            &part.directory.join(match part.version {
                Version::One => "memory.oom_control",
                Version::Two => "memory.events",
            }),
            "oom_kill",
        )
    }

    /// In how many periods processes of the group had to wait for processor time.
    pub(crate) fn throttled_periods(&self) -> Option<u64> {
        field(&self.part(Controller::Cpu)?.directory.join("cpu.stat"), "nr_throttled")
    }

    /// How many processes and threads the kernel has refused to the group.
    pub(crate) fn refused_processes(&self) -> Option<u64> {
        field(&self.part(Controller::Processes)?.directory.join("pids.events"), "max")
    }

    /// The processes of the group.
    pub(crate) fn members(&self) -> Vec<i32> {
        self.parts.first().map(Part::processes).unwrap_or_default()
    }

    /// Stops all processes, or has them go on; false where nothing can.
    pub(crate) fn freeze(&self, frozen: bool) -> Result<bool, SandboxError> {
        let (path, value) = if let Some(part) = self.parts.iter().find(|part| part.version == Version::Two) {
            (part.directory.join("cgroup.freeze"), if frozen { "1" } else { "0" })
        } else if let Some(part) = self.part(Controller::Freezer) {
            (part.directory.join("freezer.state"), if frozen { "FROZEN" } else { "THAWED" })
        } else {
            return Ok(false);
        };
        std::fs::write(&path, value).map_err(control_group("freeze or thaw", path))?;
        Ok(true)
    }

    /// Sends SIGKILL to every process of the group.
    pub(crate) fn kill(&self) {
        for part in &self.parts {
            part.kill();
        }
    }

    /// Whether no process is left in it.
    pub(crate) fn is_empty(&self) -> bool {
        self.parts.iter().all(|part| part.processes().is_empty())
    }

    /// Removes the group; false while something is still in it.
    pub(crate) fn remove(&self) -> bool {
        // Every part is tried, also after one that is still in use.
        let left = self.parts.iter().filter(|part| !part.remove()).count();
        left == 0
    }

    fn part(&self, controller: Controller) -> Option<&Part> {
        self.parts.iter().find(|part| part.controllers.contains(&controller))
    }
}

impl Part {
    /// File and value that bound a controller.
    fn setting(&self, controller: Controller, limits: &Limits) -> Option<(&'static str, String)> {
        let quota = (u64::from(limits.cpu_millis) * CPU_PERIOD / 1000).max(1000);
        Some(match (controller, self.version) {
            (Controller::Memory, Version::One) => ("memory.limit_in_bytes", limits.memory_bytes.to_string()),
            (Controller::Memory, Version::Two) => ("memory.max", limits.memory_bytes.to_string()),
            (Controller::Cpu, Version::One) => ("cpu.cfs_quota_us", quota.to_string()),
            (Controller::Cpu, Version::Two) => ("cpu.max", format!("{quota} {CPU_PERIOD}")),
            (Controller::Processes, _) => ("pids.max", limits.processes.to_string()),
            (Controller::CpuAccounting | Controller::Freezer, _) => return None,
        })
    }

    fn bound(&self, limits: &Limits) -> Result<(), SandboxError> {
        for &controller in &self.controllers {
            let Some((file, value)) = self.setting(controller, limits) else { continue };
            let path = self.directory.join(file);
            if controller == Controller::Cpu && self.version == Version::One {
                let period = self.directory.join("cpu.cfs_period_us");
                std::fs::write(&period, CPU_PERIOD.to_string()).map_err(control_group("bound", period))?;
            }
            std::fs::write(&path, value).map_err(control_group("bound", path))?;
            if controller == Controller::Memory {
                // Swap must not stretch the bound. Kernels without swap accounting lack the file.
                let (file, value) = match self.version {
                    Version::One => ("memory.memsw.limit_in_bytes", limits.memory_bytes.to_string()),
                    Version::Two => ("memory.swap.max", "0".to_owned()),
                };
                if let Err(error) = std::fs::write(self.directory.join(file), value) {
                    tracing::debug!(%error, file, "swap of sandboxes is not bounded");
                }
            }
        }
        Ok(())
    }

    fn processes(&self) -> Vec<i32> {
        std::fs::read_to_string(self.directory.join("cgroup.procs"))
            .unwrap_or_default()
            .lines()
            .filter_map(|line| line.parse().ok())
            .collect()
    }

    fn kill(&self) {
        // A frozen process of version 1 does not die before it is thawed.
        if self.controllers.contains(&Controller::Freezer) && self.version == Version::One {
            let _ = std::fs::write(self.directory.join("freezer.state"), "THAWED");
        }
        if self.version == Version::Two && std::fs::write(self.directory.join("cgroup.kill"), "1").is_ok() {
            return;
        }
        for pid in self.processes() {
            let Some(descriptor) = Pid::from_raw(pid).and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok()) else {
                continue;
            };
            // Looked up again after opening: the descriptor now means one process, which is in this group.
            if self.processes().contains(&pid)
                && let Err(error) = process::signal(&descriptor, Signal::KILL)
            {
                tracing::warn!(pid, %error, "a process of a sandbox could not be killed");
            }
        }
    }

    fn remove(&self) -> bool {
        match std::fs::remove_dir(&self.directory) {
            Ok(()) => true,
            Err(error) => error.kind() == io::ErrorKind::NotFound,
        }
    }
}

fn number(path: &Path) -> Option<u64> {
    std::fs::read_to_string(path).ok()?.trim().parse().ok()
}

/// Value of `name` in a file of lines `name value`.
fn field(path: &Path, name: &str) -> Option<u64> {
    std::fs::read_to_string(path)
        .ok()?
        .lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')?.trim().parse().ok())
}

fn control_group(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> SandboxError {
    let path = path.into();
    move |source| SandboxError::ControlGroup { action, path, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(version: Version) -> Part {
        Part { directory: "/none".into(), version, controllers: Controller::BOUNDS.to_vec() }
    }

    #[test]
    fn bounds_are_written_in_the_words_of_each_version() {
        let limits = Limits { memory_bytes: 1 << 30, cpu_millis: 1500, processes: 99, ..Limits::default() };
        let one = part(Version::One);
        assert_eq!(one.setting(Controller::Memory, &limits), Some(("memory.limit_in_bytes", "1073741824".to_owned())));
        assert_eq!(one.setting(Controller::Cpu, &limits), Some(("cpu.cfs_quota_us", "150000".to_owned())));
        let two = part(Version::Two);
        assert_eq!(two.setting(Controller::Cpu, &limits), Some(("cpu.max", "150000 100000".to_owned())));
        assert_eq!(two.setting(Controller::Memory, &limits), Some(("memory.max", "1073741824".to_owned())));
        assert_eq!(two.setting(Controller::Processes, &limits), Some(("pids.max", "99".to_owned())));
    }
}
