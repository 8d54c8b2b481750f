//! Processes that may be gone: identity that survives the reuse of process ids, signals through pidfds, and the
//! members of a PID namespace.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;

use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

/// Unit of the times in `/proc/<pid>/stat`: fixed at 100 per second in the interface of Linux to programs.
const TICKS_PER_SECOND: u64 = 100;

/// A process, so described that another one that gets its number later is not taken for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// Process id in the server's PID namespace.
    pub pid: i32,
    /// Start time in clock ticks since the machine started (field 22 of `/proc/<pid>/stat`).
    pub start_time: u64,
}

impl Identity {
    /// The process that has this id now; `None` when there is none.
    pub(crate) fn of(pid: i32) -> Option<Self> {
        Some(Self { pid, start_time: Status::read(pid)?.start_time })
    }

    /// A pidfd of the process; `None` when it is gone, also when its id belongs to another process by now.
    pub(crate) fn open(self) -> io::Result<Option<OwnedFd>> {
        let Some(pid) = Pid::from_raw(self.pid) else { return Ok(None) };
        match pidfd_open(pid, PidfdFlags::empty()) {
            // Checked after opening: from now on the descriptor means one process only.
            Ok(descriptor) => Ok((Self::of(self.pid) == Some(self)).then_some(descriptor)),
            Err(rustix::io::Errno::SRCH | rustix::io::Errno::INVAL) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// Sends `signal`; a process that is gone is none to worry about.
pub(crate) fn signal(process: &OwnedFd, signal: Signal) -> io::Result<()> {
    match pidfd_send_signal(process, signal) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// What `/proc/<pid>/stat` says of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Status {
    /// Start time in clock ticks since the machine started.
    pub(crate) start_time: u64,
    /// Processor time of the process and of its ended, waited-for children, in microseconds.
    pub(crate) cpu_microseconds: u64,
    /// Number of threads.
    pub(crate) threads: u64,
}

impl Status {
    fn read(pid: i32) -> Option<Self> {
        Self::parse(&std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
    }

    /// Fields are counted from the last `)`: the name before it may contain anything.
    pub(crate) fn parse(line: &str) -> Option<Self> {
        let fields: Vec<&str> = line.rsplit_once(')')?.1.split_ascii_whitespace().collect();
        // The first field here is number 3 of proc(5), the state.
        let number = |field: usize| fields.get(field - 3)?.parse::<u64>().ok();
        let ticks = number(14)? + number(15)? + number(16)? + number(17)?;
        Some(Self {
            start_time: number(22)?,
            cpu_microseconds: ticks * (1_000_000 / TICKS_PER_SECOND),
            threads: number(20)?,
        })
    }
}

/// Inode of the PID namespace that a process is in: the name of the namespace.
pub(crate) fn pid_namespace(pid: i32) -> Option<u64> {
    std::fs::metadata(format!("/proc/{pid}/ns/pid")).ok().map(|metadata| metadata.ino())
}

/// All processes in a PID namespace, as far as this user may look at them. Reads all of `/proc`: only for machines
/// without control groups.
pub(crate) fn members(namespace: u64) -> Vec<i32> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    entries
        .flatten()
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|&pid| pid_namespace(pid) == Some(namespace))
        .collect()
}

/// Sends `signal` to every process of a PID namespace, until no new one appears. Used to stop and to continue where
/// there is no freezer; a process that the namespace makes while it is being stopped is caught by the next round.
pub(crate) fn signal_members(namespace: u64, send: Signal) {
    /// A namespace that still makes processes after so many rounds has them stopped one by one anyway.
    const ROUNDS: usize = 10;
    let mut seen = std::collections::HashSet::new();
    for _ in 0..ROUNDS {
        let new: Vec<i32> = members(namespace).into_iter().filter(|pid| seen.insert(*pid)).collect();
        if new.is_empty() {
            return;
        }
        for pid in new {
            let Some(raw) = Pid::from_raw(pid) else { continue };
            if let Ok(descriptor) = pidfd_open(raw, PidfdFlags::empty())
                && pid_namespace(pid) == Some(namespace)
                && let Err(error) = signal(&descriptor, send)
            {
                tracing::warn!(pid, %error, "a process of a sandbox could not be signalled");
            }
        }
    }
}

/// Memory, processor time and number of threads of all processes in a PID namespace, from `/proc`.
pub(crate) fn usage_of_members(namespace: u64) -> (u64, u64, u64) {
    // The unit of `/proc/<pid>/statm`.
    let page = u64::try_from(rustix::param::page_size()).unwrap_or(0);
    members(namespace).into_iter().fold((0, 0, 0), |(memory, cpu, count), pid| {
        let resident = std::fs::read_to_string(format!("/proc/{pid}/statm"))
            .ok()
            .and_then(|text| text.split_ascii_whitespace().nth(1)?.parse::<u64>().ok())
            .unwrap_or(0);
        let status = Status::read(pid);
        (
            memory + resident * page,
            cpu + status.map_or(0, |status| status.cpu_microseconds),
            count + status.map_or(1, |status| status.threads),
        )
    })
}

/// Identity of this run of the machine: after a restart of it no recorded process can be alive.
pub(crate) fn boot_id() -> String {
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id").map_or_else(|_| String::new(), |id| id.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_and_spaces_does_not_shift_the_fields() {
        let line = "42 (a) b (c)) S 1 42 42 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 9 0 12345 1 2 3";
        let status = Status::parse(line).unwrap();
        assert_eq!(status.start_time, 12_345);
        assert_eq!(status.threads, 9);
        assert_eq!(status.cpu_microseconds, (5 + 6 + 7 + 8) * 10_000);
        assert!(Status::parse("42 (cut").is_none());
    }

    #[test]
    fn a_process_with_another_start_time_is_another_process() {
        let own = i32::try_from(std::process::id()).unwrap();
        let identity = Identity::of(own).unwrap();
        assert!(identity.open().unwrap().is_some());
        let other = Identity { start_time: identity.start_time + 1, ..identity };
        assert!(other.open().unwrap().is_none());
    }
}
