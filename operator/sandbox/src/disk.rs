//! Measures how much disk a directory uses, without trusting what is in it.
//!
//! When to measure is the caller's decision. Between two measurements a sandbox can exceed its quota by what it writes
//! in the interval; one file alone never exceeds it (`RLIMIT_FSIZE`).

use std::collections::HashSet;
use std::ffi::{CStr, CString};
use std::os::fd::OwnedFd;
use std::path::Path;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, openat, statat};

use crate::error::{SandboxError, blocking};

/// Entries looked at in one step on a blocking thread; between steps the measurement can be dropped.
const ENTRIES_PER_STEP: usize = 10_000;
/// Entries after which a measurement gives up and reports the directory as over its bound.
pub(crate) const LARGEST_ENTRIES: u64 = 2_000_000;
/// Depth after which a measurement gives up: each level holds one open file.
pub(crate) const LARGEST_DEPTH: usize = 200;
/// What an entry costs at least: an empty file still takes an inode and a name.
const ENTRY_BYTES: u64 = 256;
/// Unit of `st_blocks`.
const BLOCK_BYTES: u64 = 512;

/// Result of a measurement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DiskUse {
    /// Bytes found until the end or until the bound was passed.
    pub bytes: u64,
    /// Entries found.
    pub entries: u64,
    /// More than the bound, or too many (2,000,000) or too deeply nested (200) entries to count.
    pub over_bound: bool,
}

/// Adds up what the directory at `path` occupies on its disk, in bytes of allocated blocks (a sparse file counts what it
/// holds), and stops as soon as that is more than `bound`.
///
/// Symbolic links are not followed, other file systems are not entered, a file with several names counts once. Works
/// in steps of 10,000 entries on blocking threads; dropping the future ends it after the current step.
pub async fn measure_disk(path: &Path, bound: u64) -> Result<DiskUse, SandboxError> {
    let path = path.to_owned();
    let mut walk = blocking(move || Walk::new(&path, bound)).await??;
    loop {
        let (next, finished) = blocking(move || {
            let finished = walk.step(ENTRIES_PER_STEP);
            (walk, finished)
        })
        .await?;
        walk = next;
        if finished {
            return Ok(walk.found);
        }
    }
}

/// An unfinished measurement: the open directories from the top down to the current one.
struct Walk {
    levels: Vec<Dir>,
    device: u64,
    several_names: HashSet<u64>,
    found: DiskUse,
    bound: u64,
}

impl Walk {
    fn new(path: &Path, bound: u64) -> Result<Self, SandboxError> {
        let failed = |error: rustix::io::Errno| SandboxError::file("measure", path)(error.into());
        let top = rustix::fs::open(path, DIRECTORY, Mode::empty()).map_err(failed)?;
        let device = rustix::fs::fstat(&top).map_err(failed)?.st_dev;
        Ok(Self {
            levels: vec![Dir::new(top).map_err(failed)?],
            device,
            several_names: HashSet::new(),
            found: DiskUse { bytes: 0, entries: 0, over_bound: false },
            bound,
        })
    }

    /// Looks at no more than `entries` entries; true when there is nothing left to do.
    fn step(&mut self, entries: usize) -> bool {
        for _ in 0..entries {
            let Some(level) = self.levels.last_mut() else { return true };
            // An entry that vanishes or cannot be read while it is looked at does not count.
            match level.read() {
                None | Some(Err(_)) => {
                    self.levels.pop();
                }
                Some(Ok(entry)) => {
                    let name = entry.file_name();
                    if name != c"." && name != c".." {
                        let name: CString = name.to_owned();
                        self.count(&name);
                    }
                }
            }
            if self.found.bytes > self.bound
                || self.found.entries > LARGEST_ENTRIES
                || self.levels.len() > LARGEST_DEPTH
            {
                self.found.over_bound = true;
                return true;
            }
        }
        self.levels.is_empty()
    }

    fn count(&mut self, name: &CStr) {
        let Some(level) = self.levels.last() else { return };
        let Ok(parent) = level.fd() else { return };
        let Ok(status) = statat(parent, name, AtFlags::SYMLINK_NOFOLLOW) else { return };
        if status.st_dev != self.device {
            return;
        }
        let directory = FileType::from_raw_mode(status.st_mode) == FileType::Directory;
        if !directory && status.st_nlink > 1 && !self.several_names.insert(status.st_ino) {
            return;
        }
        let blocks = u64::try_from(status.st_blocks).unwrap_or(0);
        self.found.entries += 1;
        self.found.bytes = self.found.bytes.saturating_add((blocks * BLOCK_BYTES).max(ENTRY_BYTES));
        if directory {
            let opened: Option<OwnedFd> = openat(parent, name, DIRECTORY, Mode::empty()).ok();
            if let Some(below) = opened.and_then(|below| Dir::new(below).ok()) {
                self.levels.push(below);
            }
        }
    }
}

/// `O_NOFOLLOW`: a directory that is replaced by a link in the meantime is not entered.
const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::NOFOLLOW).union(OFlags::CLOEXEC);

#[cfg(test)]
mod tests {
    use super::*;

    fn measure(path: &Path, bound: u64) -> DiskUse {
        let mut walk = Walk::new(path, bound).unwrap();
        while !walk.step(3) {}
        walk.found
    }

    #[test]
    fn counts_files_once_and_follows_no_links() {
        let top = tempfile::tempdir().unwrap();
        let inner = top.path().join("a/b");
        std::fs::create_dir_all(&inner).unwrap();
        let file = inner.join("file");
        std::fs::write(&file, vec![1; 100_000]).unwrap();
        std::fs::hard_link(&file, top.path().join("again")).unwrap();
        std::os::unix::fs::symlink("/usr", top.path().join("link")).unwrap();
        let found = measure(top.path(), u64::MAX);
        assert_eq!(found.entries, 4, "a, b, the file once, the link");
        assert!((100_000..150_000).contains(&found.bytes), "{}", found.bytes);
        assert!(!found.over_bound);
    }

    #[test]
    fn stops_at_the_bound() {
        let top = tempfile::tempdir().unwrap();
        for number in 0..20 {
            std::fs::write(top.path().join(number.to_string()), vec![1; 8192]).unwrap();
        }
        let found = measure(top.path(), 20_000);
        assert!(found.over_bound);
        assert!(found.entries < 20);
    }

    #[test]
    fn gives_up_on_a_bottomless_directory() {
        let top = tempfile::tempdir().unwrap();
        let mut path = top.path().to_owned();
        for _ in 0..=LARGEST_DEPTH {
            path.push("d");
        }
        std::fs::create_dir_all(&path).unwrap();
        assert!(measure(top.path(), u64::MAX).over_bound);
    }
}
