//! Everything that can go wrong with a sandbox, each with what to do next.

use std::io;
use std::path::PathBuf;

/// An error of the process back end.
#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    /// There is no bubblewrap program.
    #[error("bubblewrap was not found ({looked}); install it, on Debian and Ubuntu with `apt-get install bubblewrap`")]
    BubblewrapMissing {
        /// Where it was looked for.
        looked: String,
    },
    /// The probe could not start any sandbox.
    #[error("no sandbox can be started on this machine: {detail}; {remedy}")]
    Unavailable {
        /// What the attempt said.
        detail: String,
        /// What to do about it.
        remedy: String,
    },
    /// The policy is strict and something is missing.
    #[error(
        "the sandbox policy is strict and these protections are not in force:\n{missing}\nput them in force, or choose the policy best-effort"
    )]
    PolicyUnmet {
        /// One line for each missing protection, with its remedy.
        missing: String,
    },
    /// The configuration makes no sense.
    #[error("configuration of the sandboxes: {what}")]
    InvalidConfig {
        /// Which field, and what it should be.
        what: String,
    },
    /// The description of a sandbox makes no sense.
    #[error("description of the sandbox: {what}")]
    InvalidSpec {
        /// Which field, and what it should be.
        what: String,
    },
    /// A file or directory of the host could not be used.
    #[error("cannot {action} {}: {source}; check that it is there, its owner and its permissions", path.display())]
    File {
        /// What was to be done, as a verb.
        action: &'static str,
        /// The file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A control group could not be used although the probe could.
    #[error("cannot {action} control group {}: {source}; check that nothing else changes groups of this name, then restart the server", path.display())]
    ControlGroup {
        /// What was to be done, as a verb.
        action: &'static str,
        /// Directory or file of the group.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A system call of the start failed.
    #[error("cannot {action} for the sandbox: {source}; {remedy}")]
    System {
        /// What was to be done, as a verb.
        action: &'static str,
        /// Why not.
        source: io::Error,
        /// What to do about it.
        remedy: &'static str,
    },
    /// Bubblewrap ended before the program ran.
    #[error(
        "bubblewrap could not set up the sandbox: {log}; `ash serve` prints at start which protections this machine offers"
    )]
    SetUp {
        /// The last lines that it wrote.
        log: String,
    },
    /// Bubblewrap did not answer within 10 s.
    #[error(
        "bubblewrap did not set up the sandbox within {seconds} s; the machine is overloaded, start fewer sandboxes at once"
    )]
    StartTimedOut {
        /// The bound.
        seconds: u64,
    },
    /// The record of a sandbox cannot be read.
    #[error("the record {} is damaged ({what}); end the processes of that sandbox by hand and remove the file", path.display())]
    DamagedRecord {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The sandbox's processes did not go away after SIGKILL.
    #[error(
        "sandbox {id} still has processes {seconds} s after SIGKILL; they wait in the kernel (look for state D in `ps`), try again later"
    )]
    KillTimedOut {
        /// Id of the sandbox.
        id: String,
        /// The bound.
        seconds: u64,
    },
    /// The seccomp filter could not be compiled.
    #[error("the seccomp filter does not compile for this machine: {what}; report this with the output of `uname -m`")]
    Filter {
        /// What the compiler said.
        what: String,
    },
    /// A task of this crate ended early because the runtime shuts down.
    #[error("the work on the sandbox was cut short: {what}; the server is shutting down")]
    Interrupted {
        /// What the runtime said.
        what: String,
    },
}

impl SandboxError {
    /// For `map_err` on the use of a file.
    pub(crate) fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }
}

/// Runs blocking work of this crate outside the asynchronous threads.
pub(crate) async fn blocking<T, F>(work: F) -> Result<T, SandboxError>
where
    T: Send + 'static,
    F: FnOnce() -> T + Send + 'static,
{
    tokio::task::spawn_blocking(work).await.map_err(|error| SandboxError::Interrupted { what: error.to_string() })
}
