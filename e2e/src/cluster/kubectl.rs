//! What a person with kubectl does.

use std::{
    ffi::OsStr,
    io::Write as _,
    process::{Command, Output, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{Cluster, DEADLINE, Place};

/// Between two looks at something that is awaited.
const INTERVAL: Duration = Duration::from_millis(50);

/// The argument of `kubectl wait` and `rollout status`.
pub(super) fn timeout() -> String {
    format!("--timeout={}s", DEADLINE.as_secs())
}

impl Cluster {
    /// A command of this machine that runs in the cluster's network, with `KUBECONFIG` set: `helm`, `curl`, `ash`.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        match &self.place {
            Place::Local(local) => local.run(program),
            Place::Attached { kubeconfig } => {
                let mut command = Command::new(program);
                command.env("KUBECONFIG", kubeconfig);
                command
            }
        }
    }

    /// Runs kubectl as an administrator, with what it reads.
    ///
    /// # Panics
    /// When there is no kubectl.
    pub fn kubectl(&self, arguments: &[&str], input: Option<&str>) -> Output {
        let mut command = self.command("kubectl");
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("kubectl runs");
        // It may refuse before it has read everything.
        let _ = child.stdin.take().expect("its input").write_all(input.unwrap_or_default().as_bytes());
        child.wait_with_output().expect("its end")
    }

    /// Runs kubectl, which has to succeed; what it printed.
    ///
    /// # Panics
    /// When it fails; says what kubectl said.
    pub fn done(&self, arguments: &[&str]) -> String {
        text_of(self.kubectl(arguments, None), arguments)
    }

    /// Runs kubectl, which has to refuse; what it said.
    ///
    /// # Panics
    /// When it succeeds.
    pub fn refused(&self, arguments: &[&str], input: Option<&str>) -> String {
        let output = self.kubectl(arguments, input);
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(!output.status.success(), "kubectl {arguments:?} succeeded: {said}");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    /// Applies manifests: YAML or JSON, server-side.
    ///
    /// # Panics
    /// When they are refused.
    pub fn apply(&self, manifests: &str) {
        let arguments = ["apply", "--server-side", "--force-conflicts", "-f", "-"];
        text_of(self.kubectl(&arguments, Some(manifests)), &arguments);
    }

    /// What kubectl prints as JSON, such as `get pods -n x`.
    ///
    /// # Panics
    /// When it fails.
    pub fn json(&self, arguments: &[&str]) -> Value {
        let arguments: Vec<&str> = arguments.iter().copied().chain(["-o", "json"]).collect();
        serde_json::from_str(&self.done(&arguments)).expect("kubectl prints JSON")
    }

    /// Waits until a condition gives a value.
    ///
    /// # Panics
    /// When it has not within [`DEADLINE`]; says what was waited for.
    pub fn eventually<T>(&self, what: &str, mut condition: impl FnMut(&Self) -> Option<T>) -> T {
        let start = Instant::now();
        loop {
            if let Some(value) = condition(self) {
                return value;
            }
            assert!(start.elapsed() < DEADLINE, "waited {} s in vain: {what}", DEADLINE.as_secs());
            thread::sleep(INTERVAL);
        }
    }
}

/// What a kubectl printed that has to succeed.
pub(super) fn text_of(output: Output, arguments: &[&str]) -> String {
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "kubectl {arguments:?}: {error}");
    String::from_utf8(output.stdout).expect("kubectl prints text")
}
