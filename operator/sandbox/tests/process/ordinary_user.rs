//! The same for a server that is not root: without control groups of its own, with what the kernel gives everybody.

use std::os::unix::fs::{PermissionsExt, chown};
use std::path::PathBuf;
use std::process::Command;

use ash_sandbox::{ProcessBackend, SandboxError};

use crate::support::{SMALL, config, spec, until, until_there};

/// A user that is neither root nor the one that root's sandboxes run as.
const USER: u32 = 65_532;

#[test]
fn an_ordinary_user_gets_sandboxes_too() {
    let top = tempfile::tempdir().unwrap();
    let mut command;
    if rustix::process::geteuid().is_root() {
        // Where the test program lies may be closed to other users.
        let program = top.path().join("test");
        // By a process of its own: what another test starts meanwhile would keep a file that is written here open, and what
        // is open for writing cannot be started (ETXTBSY).
        let copied = Command::new("cp").arg(std::env::current_exe().unwrap()).arg(&program).status().unwrap();
        assert!(copied.success());
        std::fs::set_permissions(top.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let scratch = top.path().join("scratch");
        std::fs::create_dir(&scratch).unwrap();
        chown(&scratch, Some(USER), Some(USER)).unwrap();
        command = Command::new("setpriv");
        command.args([&format!("--reuid={USER}"), &format!("--regid={USER}"), "--clear-groups"]).arg(program);
        command.env("ASH_TEST_DIRECTORY", scratch);
    } else {
        command = Command::new(std::env::current_exe().unwrap());
        command.env("ASH_TEST_DIRECTORY", top.path());
    }
    let output = command
        .args(["--exact", "ordinary_user::as_ordinary_user", "--ignored", "--nocapture"])
        .current_dir("/")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{text}");
    assert!(output.status.success(), "{text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(text.contains("1 passed"), "{text}");
}

/// The other process of the test above.
#[tokio::test]
#[ignore = "started by another test, as another user"]
async fn as_ordinary_user() {
    let top = PathBuf::from(std::env::var_os("ASH_TEST_DIRECTORY").unwrap());
    let config = ash_sandbox::ProcessConfig { scratch: Some(top.clone()), ..config() };
    let backend = ProcessBackend::new(config.clone()).await.unwrap();
    println!("{}", backend.protections());
    assert_eq!(backend.sandbox_user(), None);
    let of = |name: &str| backend.protections().iter().find(|protection| protection.name == name).unwrap().in_force;
    assert!(of("user namespace") && of("network namespace") && of("seccomp filter") && of("process limit"));
    let strict =
        ProcessBackend::new(ash_sandbox::ProcessConfig { policy: ash_sandbox::Policy::Strict, ..config }).await;
    if !of("memory limit") {
        assert!(matches!(&strict, Err(SandboxError::PolicyUnmet { missing }) if missing.contains("Delegate=yes")));
    }

    let limits = ash_sandbox::Limits { workspace_bytes: 1 << 30, ..SMALL };
    let mut bomb = spec(
        &top.join("bomb"),
        "bomb",
        "perl -e 'while (1) { if (!defined fork) { open F, \">\", \
        \"/workspace/refused\"; close F } }'",
    );
    bomb.limits = limits;
    let bomb = backend.start(bomb).await.unwrap();
    until_there(&top.join("bomb/workspace/refused")).await;
    let used = bomb.usage().await.unwrap();
    assert!(used.processes <= u64::from(limits.processes), "{used:?}");

    // The neighbour belongs to the same user and is not affected.
    let mut memory = spec(
        &top.join("memory"),
        "memory",
        "perl -e 'my @x; push @x, \"x\" x 1000000 while 1' 2> /dev/null; \
        id -u > /workspace/ended; while sleep 0.01; do echo > /workspace/tick; done",
    );
    memory.limits = limits;
    let memory = backend.start(memory).await.unwrap();
    until_there(&top.join("memory/workspace/tick")).await;
    assert_eq!(std::fs::read_to_string(top.join("memory/workspace/ended")).unwrap().trim(), "1000");
    bomb.kill().await.unwrap();

    memory.freeze().await.unwrap();
    let tick = top.join("memory/workspace/tick");
    until("the sandbox stands still", || async {
        let _ = std::fs::remove_file(&tick);
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        !tick.exists()
    })
    .await;
    memory.thaw().await.unwrap();
    until_there(&tick).await;
    drop(memory);
    let memory = backend.adopt(&top.join("memory")).await.unwrap().unwrap();
    memory.kill().await.unwrap();
    backend.close().await.unwrap();
}
