//! Which bounds a sandbox met that the kernel keeps: it tells the program that met one, and a counter that can be read.

use std::path::Path;

use rustix::fs::{Mode, OFlags, ResolveFlags, fstatvfs, open, openat2};

use crate::control_group::ControlGroup;
use crate::record::Record;

/// The folders in memory that have a bound each.
const TEMPORARY: [&str; 2] = ["tmp", "dev/shm"];

/// Bounds of a sandbox that the kernel keeps. Without control groups only `temporary_full` and `log_cut` are known; the rest is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct BoundsMet {
    /// Processes that were killed at the bound of memory, since the sandbox's start.
    pub memory_kills: u64,
    /// Periods of 100 ms in which processes had to wait for processor time, since the sandbox's start.
    pub throttled_periods: u64,
    /// Processes and threads that were refused at their bound, since the sandbox's start.
    pub refused_processes: u64,
    /// Whether `/tmp` or `/dev/shm` is full now.
    pub temporary_full: bool,
    /// Processes that have as many files open as they may, now. Linux before 6.2 does not say.
    pub processes_without_files: u64,
    /// Whether the log was over its bound and has just been cut back.
    pub log_cut: bool,
}

/// Reads what the kernel says. Blocks for some microseconds, and as many for each process.
pub(crate) fn read(record: &Record, open_files: u32) -> BoundsMet {
    let group = record.group.as_ref();
    let full = |process: i32| processes_at(process, u64::from(open_files));
    BoundsMet {
        memory_kills: group.and_then(ControlGroup::memory_kills).unwrap_or(0),
        throttled_periods: group.and_then(ControlGroup::throttled_periods).unwrap_or(0),
        refused_processes: group.and_then(ControlGroup::refused_processes).unwrap_or(0),
        temporary_full: TEMPORARY.iter().any(|folder| is_full(record.init.pid, folder)),
        processes_without_files: group
            .map_or(0, |group| group.members().into_iter().filter(|process| full(*process)).count() as u64),
        log_cut: false,
    }
}

/// Whether a process has as many files open as it may. The size of the folder is their number.
fn processes_at(process: i32, open_files: u64) -> bool {
    std::fs::metadata(format!("/proc/{process}/fd")).is_ok_and(|folder| folder.len() >= open_files)
}

/// Whether a folder of the sandbox has no room left. What is looked up is the sandbox's: no link in it is followed.
fn is_full(init: i32, folder: &str) -> bool {
    let look = || {
        let root = open(Path::new(&format!("/proc/{init}/root")), OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        let found = openat2(&root, folder, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)?;
        fstatvfs(found)
    };
    look().is_ok_and(|system| system.f_blocks > 0 && system.f_bfree == 0)
}
