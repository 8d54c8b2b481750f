//! How much memory this process may use: the least of what its control groups allow and what the machine has.

use std::path::Path;

use crate::hierarchy::{self, Version};

/// Bytes of memory that this process may use; `None` where nothing says it.
///
/// Sources: `memory.max` (version 2) or `memory.limit_in_bytes` (version 1) of the process's control group and of those above it, and
/// `MemTotal` of `/proc/meminfo`.
pub fn memory_limit() -> Option<u64> {
    let groups = hierarchy::own_groups().into_iter().filter_map(|(version, group)| bound(version, &group));
    groups.chain(machine(&std::fs::read_to_string("/proc/meminfo").ok()?)).min()
}

/// The bound of one group, where it has one.
fn bound(version: Version, group: &Path) -> Option<u64> {
    let file = match version {
        Version::One => "memory.limit_in_bytes",
        Version::Two => "memory.max",
    };
    // `max` in version 2 is no number; what version 1 says in its place is more than any machine has.
    std::fs::read_to_string(group.join(file)).ok()?.trim().parse().ok()
}

/// The machine's memory in bytes, from the text of `/proc/meminfo`.
fn machine(text: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    kibibytes.checked_mul(1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_group_says_its_bound_or_none() {
        let group = tempfile::tempdir().unwrap();
        assert_eq!(bound(Version::Two, group.path()), None, "it has no such file");
        for (text, bytes) in [("max\n", None), ("2147483648\n", Some(2 << 30)), ("", None)] {
            std::fs::write(group.path().join("memory.max"), text).unwrap();
            assert_eq!(bound(Version::Two, group.path()), bytes, "{text:?}");
        }
        std::fs::write(group.path().join("memory.limit_in_bytes"), "9223372036854771712\n").unwrap();
        assert_eq!(bound(Version::One, group.path()), Some(9_223_372_036_854_771_712));
    }

    #[test]
    fn the_machine_says_what_it_has() {
        assert_eq!(machine("MemTotal:       16316412 kB\nMemFree: 1 kB\n"), Some(16_316_412 * 1024));
        for text in ["", "MemFree: 1 kB", "MemTotal: much kB", "MemTotal: 1"] {
            assert_eq!(machine(text), None);
        }
        let limit = memory_limit().unwrap();
        assert!(limit <= machine(&std::fs::read_to_string("/proc/meminfo").unwrap()).unwrap());
    }
}
