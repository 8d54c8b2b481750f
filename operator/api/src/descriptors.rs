//! The process's bound on open files, and how many connections fit into it.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Open files that are left for everything else: the database, runners, sandboxes, files of agents.
const RESERVED: u64 = 512;

/// As many connections as were asked for, or as this process may have open. Raises its bound to what the system allows: the
/// lower one that most systems begin with is for programs that cannot count beyond it.
pub fn connections_within_descriptors(wanted: usize) -> usize {
    let bound = getrlimit(Resource::Nofile);
    let raised = Rlimit { current: bound.maximum, maximum: bound.maximum };
    let current = match setrlimit(Resource::Nofile, raised) {
        Ok(()) => bound.maximum,
        Err(error) => {
            tracing::debug!(%error, "the bound on open files stays");
            bound.current
        }
    };
    let fitting = fitting(wanted, current);
    if fitting < wanted {
        tracing::warn!(
            wanted,
            fitting,
            "fewer connections than asked for: the system allows this process no more open files (`ulimit -Hn`, LimitNOFILE=)"
        );
    }
    fitting
}

/// How many connections fit under a bound on open files; half of a small one.
fn fitting(wanted: usize, bound: Option<u64>) -> usize {
    let Some(bound) = bound else { return wanted };
    let fitting = bound.saturating_sub(RESERVED).max(bound / 2);
    usize::try_from(fitting).unwrap_or(usize::MAX).min(wanted)
}

#[cfg(test)]
mod tests {
    use super::fitting;

    #[test]
    fn connections_leave_room_for_other_files() {
        assert_eq!(fitting(4096, None), 4096);
        assert_eq!(fitting(4096, Some(1 << 20)), 4096);
        assert_eq!(fitting(20_000, Some(16_384)), 16_384 - 512);
        assert_eq!(fitting(4096, Some(256)), 128);
    }
}
