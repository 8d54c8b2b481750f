//! Tries the machine: runs a real, short-lived sandbox that reports what it is, and looks at it from outside.

use std::collections::HashMap;
use std::fs::DirBuilder;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use crate::backend;
use crate::config::Limits;
use crate::error::{SandboxError, blocking};
use crate::hierarchy::Controller;
use crate::launch::{Context, quoted_log};
use crate::log_file;
use crate::protections::{Observed, Protections, judge};
use crate::sandbox::ProcessSandbox;
use crate::spec::SandboxSpec;

/// How long the sandbox may take to report. It takes some hundredths of a second; at the bound the probe fails.
const REPORT_BOUND: Duration = Duration::from_secs(20);
/// How often its report is looked at.
const REPORT_INTERVAL: Duration = Duration::from_millis(5);
/// The last line of the report.
const LAST_LINE: &str = "report ends";

/// What the sandbox runs, in a POSIX shell. Waits at its end, so that it can be looked at from outside.
pub(crate) const SCRIPT: &str = r#"
cat /proc/self/status /proc/self/limits /proc/mounts
for kind in user pid ipc uts mnt net; do echo "namespace $kind $(readlink /proc/self/ns/$kind)"; done
tail -n +3 /proc/net/dev | while read -r interface; do echo "interface $interface"; done
for directory in / /usr /etc; do
    if (: > "$directory/ash-probe") 2>/dev/null; then echo "system written"; fi
done
if unshare --user true 2>/dev/null; then echo "namespaces allowed"; fi
echo "report ends"
exec sleep 60
"#;

/// Bounds of the probe's sandbox: any that differ from what a machine has by itself.
const LIMITS: Limits = Limits {
    memory_bytes: 256 * 1024 * 1024,
    cpu_millis: 1000,
    processes: 123,
    tmp_bytes: 1024 * 1024,
    workspace_bytes: 1024 * 1024 * 1024,
    open_files: 256,
};

/// Runs the probe.
pub(crate) async fn probe(context: &Context, scratch: &Path) -> Result<Protections, SandboxError> {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let id = format!("probe-{}-{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
    let directory = Scratch::make(scratch.join(format!("ash-{id}")))?;
    let spec = SandboxSpec {
        id,
        directory: directory.0.clone(),
        program: "/bin/sh".into(),
        arguments: vec!["-c".to_owned(), SCRIPT.to_owned()],
        read_only_binds: Vec::new(),
        environment: vec![("PATH".to_owned(), "/usr/bin:/bin".to_owned())],
        limits: LIMITS,
    };
    let context = Arc::new(context.clone());
    let sandbox = backend::start(&context, spec).await.map_err(|error| match error {
        SandboxError::SetUp { log } => unavailable(log, &context.bubblewrap),
        SandboxError::System { .. } => unavailable(error.to_string(), &context.bubblewrap),
        other => other,
    })?;
    let inside = report(&sandbox).await;
    let observed = inside.map(|inside| observe(&context, &sandbox, inside));
    sandbox.kill().await?;
    observed.map(|observed| judge(&observed)).map_err(|log| unavailable(log, &context.bubblewrap))
}

/// The whole report, or the end of the log when the sandbox ended or the bound was reached before.
async fn report(sandbox: &ProcessSandbox) -> Result<String, String> {
    let deadline = Instant::now() + REPORT_BOUND;
    loop {
        let directory = sandbox.directory();
        let alive = sandbox.is_alive();
        let text = blocking(move || std::fs::read_to_string(directory.join(log_file::NAME)).unwrap_or_default())
            .await
            .map_err(|error| error.to_string())?;
        if text.lines().any(|line| line == LAST_LINE) {
            return Ok(text);
        }
        if !alive || Instant::now() >= deadline {
            return Err(quoted_log(&sandbox.directory()));
        }
        sleep(REPORT_INTERVAL).await;
    }
}

fn observe(context: &Context, sandbox: &ProcessSandbox, inside: String) -> Observed {
    let record = sandbox.record();
    let bounds = |controller| {
        record
            .group
            .as_ref()
            .is_some_and(|group| group.contains(record.init.pid) && group.is_bound(controller, &LIMITS))
    };
    Observed {
        inside,
        server_namespaces: server_namespaces(),
        host_user: host_user(record.init.pid),
        group_bounds: Controller::BOUNDS.map(bounds),
        processes: LIMITS.processes,
        bounded_tmp: context.system.bounded_tmp,
    }
}

fn server_namespaces() -> HashMap<String, String> {
    ["user", "pid", "ipc", "uts", "mnt", "net"]
        .into_iter()
        .filter_map(|kind| {
            let name = std::fs::read_link(format!("/proc/self/ns/{kind}")).ok()?;
            Some((kind.to_owned(), name.to_str()?.to_owned()))
        })
        .collect()
}

/// Real user of a process, as the host sees it.
fn host_user(pid: i32) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("Uid:"))?.split_ascii_whitespace().next()?.parse().ok()
}

/// Says why no sandbox can be started, from the settings of the kernel that are known to refuse it.
fn unavailable(detail: String, bubblewrap: &Path) -> SandboxError {
    let setting = |path: &str| std::fs::read_to_string(path).ok().map(|value| value.trim().to_owned());
    let is = |path: &str, value: &str| setting(path).as_deref() == Some(value);
    let remedy = if is("/proc/sys/kernel/apparmor_restrict_unprivileged_userns", "1") {
        app_armor_remedy(bubblewrap)
    } else if is("/proc/sys/kernel/unprivileged_userns_clone", "0") {
        "the kernel refuses user namespaces to ordinary users; allow them with `sudo sysctl -w \
         kernel.unprivileged_userns_clone=1`"
            .to_owned()
    } else if is("/proc/sys/user/max_user_namespaces", "0") {
        "the kernel allows no user namespaces; allow them with `sudo sysctl -w user.max_user_namespaces=10000`"
            .to_owned()
    } else {
        "in a container, allow it user namespaces and an unmasked /proc (Docker: `--security-opt seccomp=unconfined \
         --security-opt systempaths=unconfined --cap-add SYS_ADMIN`); elsewhere, try `bwrap --unshare-all --ro-bind / / \
         true` for the reason"
            .to_owned()
    };
    SandboxError::Unavailable { detail, remedy }
}

/// The one command that allows bubblewrap, and nothing else, to make user namespaces under `AppArmor`.
fn app_armor_remedy(bubblewrap: &Path) -> String {
    format!(
        "AppArmor refuses user namespaces to programs without a profile; allow bubblewrap with\n  printf 'abi \
         <abi/4.0>,\\ninclude <tunables/global>\\nprofile bwrap {} flags=(unconfined) {{\\n  userns,\\n}}\\n' | sudo tee \
         /etc/apparmor.d/bwrap > /dev/null && sudo apparmor_parser -r /etc/apparmor.d/bwrap",
        bubblewrap.display()
    )
}

/// The probe's directory; removed when the probe is over.
struct Scratch(PathBuf);

impl Scratch {
    fn make(path: PathBuf) -> Result<Self, SandboxError> {
        // Not recursive: in a directory that others can write to, an existing one is not ours.
        DirBuilder::new().mode(0o700).create(&path).map_err(SandboxError::file("create", &path))?;
        Ok(Self(path))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!(path = %self.0.display(), %error, "the directory of the probe could not be removed");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_app_armor_command_names_this_bubblewrap() {
        let remedy = app_armor_remedy(Path::new("/usr/bin/bwrap"));
        assert!(remedy.contains("profile bwrap /usr/bin/bwrap flags=(unconfined) {\\n  userns,\\n}"), "{remedy}");
    }
}
