//! What an operator decides about every sandbox: where bubblewrap is, which user it becomes, how strict to be.

use std::path::PathBuf;

/// The unprivileged user and group that sandboxes run as when the server is root.
///
/// 65533 belongs to nobody on Debian and Ubuntu: 65534 (`nobody`) is shared with other services and with the files of
/// unmapped users on network file systems, and Debian's allocation ranges end below 65533. All sandboxes share the
/// user; what separates them from each other are their namespaces.
pub const DEFAULT_USER: SandboxUser = SandboxUser { uid: 65_533, gid: 65_533 };

/// Name of the parent control group when the configuration names none.
pub const DEFAULT_GROUP: &str = "ash";

/// Host user and group of every process of a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SandboxUser {
    /// User id on the host; never 0.
    pub uid: u32,
    /// Group id on the host; never 0.
    pub gid: u32,
}

/// What to do when a protection is not available on this machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Policy {
    /// Start with what there is, and say what is missing. Namespaces are needed in any case: nothing runs without.
    #[default]
    BestEffort,
    /// Refuse to start when any protection is missing.
    Strict,
}

/// Configuration of the process back end.
#[derive(Debug, Clone)]
pub struct ProcessConfig {
    /// The bubblewrap program; `None` looks for `bwrap` in `PATH`.
    pub bubblewrap: Option<PathBuf>,
    /// Who sandboxes run as when the server is root; `None` is [`DEFAULT_USER`]. Ignored for an ordinary user, whose
    /// sandboxes run as that user.
    pub sandbox_user: Option<SandboxUser>,
    /// What happens when a protection is missing.
    pub policy: Policy,
    /// Name of the control group above those of the sandboxes (letters, digits, `-`, `_`; at most 64). Two servers on
    /// one machine need different names, since each removes the groups in it that it does not know.
    pub group: String,
    /// Where the probe makes its short-lived sandbox; `None` is the system's directory for temporary files.
    pub scratch: Option<PathBuf>,
}

impl Default for ProcessConfig {
    fn default() -> Self {
        Self {
            bubblewrap: None,
            sandbox_user: None,
            policy: Policy::default(),
            group: DEFAULT_GROUP.to_owned(),
            scratch: None,
        }
    }
}

/// Bounds of one sandbox.
///
/// With control groups, memory, processor time and the number of processes are bounds of the sandbox as a whole.
/// Where none can be written they become limits that the kernel keeps per process (memory: private data of each
/// process) or per user namespace (processes), and processor time is not bounded; the protections say so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Memory of all processes, with `/tmp` and `/dev/shm`, in bytes. At the bound the kernel kills a process of the
    /// sandbox.
    pub memory_bytes: u64,
    /// Processor time per second in thousandths of one processor (1500 is one and a half). At the bound it waits.
    pub cpu_millis: u32,
    /// Processes and threads together. At the bound `fork` fails with `EAGAIN`.
    pub processes: u32,
    /// Size of `/tmp`, and of `/dev/shm`, in bytes each. At the bound a write fails with `ENOSPC`.
    pub tmp_bytes: u64,
    /// Quota of the disk in bytes: the kernel refuses a single file over it (`SIGXFSZ`); the sum is measured with
    /// [`measure_disk`](crate::measure_disk) by the caller, who kills the sandbox over it.
    pub workspace_bytes: u64,
    /// Open files of each process. At the bound `open` fails with `EMFILE`.
    pub open_files: u32,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            memory_bytes: 2 * 1024 * 1024 * 1024,
            cpu_millis: 2000,
            processes: 512,
            tmp_bytes: 512 * 1024 * 1024,
            workspace_bytes: 10 * 1024 * 1024 * 1024,
            open_files: 16_384,
        }
    }
}
