//! Start, observe, rename, lose the server, find again, kill.

use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Instant;

use ash_sandbox::{Exit, Policy, ProcessBackend, ReadOnlyBind, SandboxError};

use crate::support::{Place, config, processes_with, spec, until, until_there};

#[tokio::test]
async fn it_is_a_place_of_its_own() {
    let place = Place::new().await;
    let text = place.top.path().join("text");
    std::fs::write(&text, "from the host").unwrap();
    let mut spec =
        place.spec("own", "id -u; id -un; pwd; hostname; echo $HOME; cat /opt/ash/text; echo; echo x > ~/file");
    spec.read_only_binds = vec![ReadOnlyBind { host: text, inside: "/opt/ash/text".into() }];
    let output = place.run_spec(spec).await;
    assert_eq!(output, "1000\nagent\n/workspace\nsandbox\n/home/agent\nfrom the host");
    assert!(place.top.path().join("own/home/file").exists());
}

#[tokio::test]
async fn the_environment_is_exactly_the_given_one() {
    let place = Place::new().await;
    let output = place.run("env", "env | sort; cat /proc/[0-9]*/environ | tr '\\0' '\\n'").await;
    let mut seen: Vec<&str> = output.lines().collect();
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen, ["HOME=/home/agent", "PATH=/usr/bin:/bin", "PWD=/workspace"]);
}

#[tokio::test]
async fn it_inherits_no_files_of_the_server() {
    let place = Place::new().await;
    let output = place.run("files", "ls -l /proc/$$/fd /proc/1/fd 2>&1").await;
    let known = ["/dev/null", "program.log", "anon_inode:[eventfd]"];
    for open in output.lines().filter(|line| line.contains(" -> ")) {
        assert!(
            known.iter().any(|known| open.ends_with(known)),
            "only the standard streams, and bubblewrap's own: {open}"
        );
    }
    assert!(output.lines().count() > 6, "{output}");
}

#[tokio::test]
async fn every_protection_that_this_machine_offers_is_reported() {
    let place = Place::new().await;
    println!("{}", place.backend.protections());
    for needed in ["user namespace", "network namespace", "seccomp filter", "no capabilities", "unprivileged user"] {
        assert!(
            place.backend.protections().iter().any(|protection| protection.name == needed && protection.in_force),
            "{needed} must be in force: {}",
            place.backend.protections()
        );
    }
    assert_eq!(&place.backend.probe().await.unwrap(), place.backend.protections());
    let strict = ProcessBackend::new(ash_sandbox::ProcessConfig { policy: Policy::Strict, ..config() }).await;
    match (place.backend.protections().all_in_force(), strict) {
        (true, Ok(backend)) => backend.close().await.unwrap(),
        (false, Err(SandboxError::PolicyUnmet { missing })) => {
            assert_eq!(missing, place.backend.protections().missing());
        }
        (_, other) => panic!("strict must refuse what is missing and only that: {other:?}"),
    }
}

#[tokio::test]
async fn the_end_of_the_program_is_reported_with_its_last_words() {
    let place = Place::new().await;
    let sandbox = place.start("ends", "echo one; echo two >&2; exit 7").await;
    assert_eq!(sandbox.exited().await, Exit { status: Some(7) });
    assert!(!sandbox.is_alive());
    assert_eq!(sandbox.log_tail(1).await.unwrap(), ["two"]);
    sandbox.kill().await.unwrap();
    let sandbox = place.start("killed", "kill -9 $$").await;
    assert_eq!(sandbox.exited().await, Exit { status: Some(137) });
    sandbox.kill().await.unwrap();
}

#[tokio::test]
async fn a_program_that_cannot_run_says_why() {
    let place = Place::new().await;
    let mut spec = place.spec("not-a-program", "");
    spec.program = place.top.path().join("text");
    std::fs::write(&spec.program, "no program").unwrap();
    let sandbox = place.backend.start(spec.clone()).await.unwrap();
    assert_ne!(sandbox.exited().await.status, Some(0));
    assert!(sandbox.log_tail(5).await.unwrap().concat().contains("execvp"), "bubblewrap names the call");
    sandbox.kill().await.unwrap();
    spec.id = "missing".to_owned();
    spec.program = place.top.path().join("missing");
    assert!(place.backend.start(spec).await.unwrap_err().to_string().contains("missing"));
}

#[tokio::test]
async fn kill_leaves_no_process_however_it_hides() {
    let place = Place::new().await;
    let marker = format!("ash-daemon-{}", std::process::id());
    let script = format!(
        "for n in 1 2 3; do perl -e '$0; $SIG{{TERM}}=$SIG{{HUP}}=\"IGNORE\"; exit if fork; setpgrp; exit if fork; \
         open F, \">\", \"/workspace/$ARGV[0]\"; close F; sleep 1 while 1' $n {marker}; done; sleep 600"
    );
    let sandbox = place.start("daemons", &script).await;
    for n in 1..=3 {
        until_there(&place.top.path().join(format!("daemons/workspace/{n}"))).await;
    }
    assert!(processes_with(&marker).len() >= 3);
    let (one, two) = tokio::join!(sandbox.kill(), sandbox.kill());
    one.unwrap();
    two.unwrap();
    assert_eq!(processes_with(&marker), Vec::<PathBuf>::new());
    assert!(!sandbox.is_alive());
    assert_eq!(sandbox.exited().await.status.unwrap_or(137), 137);
    sandbox.kill().await.unwrap();
    assert!(!place.top.path().join("daemons/sandbox.json").exists());
}

#[tokio::test]
async fn frozen_it_stands_still_and_can_be_killed() {
    let place = Place::new().await;
    let sandbox = place.start("frozen", "while sleep 0.01; do echo > /workspace/tick; done").await;
    let tick = place.top.path().join("frozen/workspace/tick");
    until_there(&tick).await;
    sandbox.freeze().await.unwrap();
    let before = sandbox.usage().await.unwrap();
    // What was on its way when the freezer came has to arrive first.
    until("the sandbox stands still", || async {
        let _ = std::fs::remove_file(&tick);
        let used = sandbox.usage().await.unwrap().cpu_microseconds;
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        used == sandbox.usage().await.unwrap().cpu_microseconds && !tick.exists()
    })
    .await;
    assert!(before.processes >= 2, "{before:?}");
    sandbox.thaw().await.unwrap();
    until_there(&tick).await;
    sandbox.freeze().await.unwrap();
    sandbox.kill().await.unwrap();
}

#[tokio::test]
async fn its_directory_can_be_renamed_while_it_runs() {
    let place = Place::new().await;
    let script = "while sleep 0.01; do echo > /workspace/tick; \
        perl -e 'socket(S,1,1,0); connect(S, pack(\"S a*\",1,\"/run/ash/socket\")) or exit 1; \
        open F,\">\",\"/workspace/connected\"'; done";
    let sandbox = place.start("warm", script).await;
    until_there(&place.top.path().join("warm/workspace/tick")).await;
    let new = place.top.path().join("session");
    std::fs::rename(place.top.path().join("warm"), &new).unwrap();
    assert!(sandbox.relocate(place.top.path()).is_err());
    sandbox.relocate(&new).unwrap();
    std::fs::remove_file(new.join("workspace/tick")).unwrap();
    until_there(&new.join("workspace/tick")).await;
    // A host that comes later listens under the new name; the sandbox finds it under its own.
    let _listener = UnixListener::bind(new.join("run/socket")).unwrap();
    place.backend.give(&new.join("run/socket")).await.unwrap();
    until_there(&new.join("workspace/connected")).await;
    let again = place.backend.adopt(&new).await.unwrap().unwrap();
    assert_eq!((again.id(), again.directory()), ("warm", new.clone()));
    sandbox.kill().await.unwrap();
    assert!(place.backend.adopt(&new).await.unwrap().is_none());
}

#[tokio::test]
async fn it_survives_its_server_and_is_found_by_the_next() {
    let place = Place::new().await;
    let directory = place.top.path().join("left");
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "lifecycle::server_that_dies", "--ignored", "--nocapture"])
        .env("ASH_TEST_DIRECTORY", &directory)
        .env("ASH_TEST_GROUP", &place.group)
        .stdout(Stdio::null())
        .status()
        .unwrap();
    assert!(!status.success(), "it was to die by SIGKILL");
    let sandbox = place.backend.adopt(&directory).await.unwrap().expect("the sandbox survives");
    assert!(sandbox.is_alive());
    let tick = directory.join("workspace/tick");
    std::fs::remove_file(&tick).unwrap();
    until_there(&tick).await;
    assert!(sandbox.usage().await.unwrap().memory_bytes > 0);
    let (exit, killed) = tokio::join!(sandbox.exited(), sandbox.kill());
    killed.unwrap();
    assert_ne!(exit.status, Some(0));
    assert!(place.backend.adopt(&directory).await.unwrap().is_none());
    assert!(place.backend.adopt(Path::new("/nonexistent")).await.unwrap().is_none());
}

/// The other process of the test above.
#[tokio::test]
#[ignore = "started by another test, in a process of its own"]
async fn server_that_dies() {
    let directory = PathBuf::from(std::env::var_os("ASH_TEST_DIRECTORY").unwrap());
    let group = std::env::var("ASH_TEST_GROUP").unwrap();
    let backend = ProcessBackend::new(ash_sandbox::ProcessConfig { group, ..config() }).await.unwrap();
    let script = "while sleep 0.01; do echo > /workspace/tick; done";
    let _sandbox = backend.start(spec(&directory, "left", script)).await.unwrap();
    until_there(&directory.join("workspace/tick")).await;
    rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL).unwrap();
}

#[tokio::test]
async fn what_died_in_the_meantime_is_cleared_up() {
    let place = Place::new().await;
    let sandbox = place.start("dead", "exit 0").await;
    let directory = sandbox.directory();
    sandbox.exited().await;
    drop(sandbox);
    assert!(directory.join("sandbox.json").exists());
    assert!(place.backend.adopt(&directory).await.unwrap().is_none());
    assert!(!directory.join("sandbox.json").exists());
}

#[tokio::test]
async fn a_sandbox_without_a_record_is_an_orphan() {
    let place = Place::new().await;
    let known = place.start("known", "sleep 600").await;
    let unknown = place.start("unknown", "sleep 600").await;
    std::fs::remove_file(unknown.directory().join("sandbox.json")).unwrap();
    let removed = place.backend.remove_orphans(vec!["known".to_owned()]).await.unwrap();
    if place.backend.protections().iter().any(|protection| protection.name == "memory limit" && protection.in_force) {
        assert_eq!(removed, ["unknown"]);
        unknown.exited().await;
    }
    assert!(known.is_alive());
    known.kill().await.unwrap();
    unknown.kill().await.unwrap();
}

#[tokio::test]
async fn a_start_that_nobody_waits_for_leaves_no_sandbox() {
    let place = Place::new().await;
    let marker = format!("ash-unwanted-{}", std::process::id());
    let starting = place.backend.start(place.spec("unwanted", &format!("exec sleep 600 # {marker}")));
    // Polled once, so that the work has begun, and dropped.
    let polled = tokio::time::timeout(std::time::Duration::ZERO, starting).await;
    if let Ok(started) = polled {
        started.unwrap().kill().await.unwrap();
    }
    until("no process is left", || async {
        processes_with(&marker).is_empty() && processes_with("bwrap").iter().all(|path| !is_of(path, &marker))
    })
    .await;
}

fn is_of(path: &Path, marker: &str) -> bool {
    std::fs::read(path.join("cmdline")).is_ok_and(|line| String::from_utf8_lossy(&line).contains(marker))
}

/// Reports, and asserts nothing about, how long a start takes until the program runs.
#[tokio::test]
async fn the_time_of_a_start_is_reported() {
    let place = Place::new().await;
    let mut times = Vec::new();
    for number in 0..20 {
        let id = format!("start-{number}");
        let begin = Instant::now();
        let sandbox = place.start(&id, "echo > /workspace/running; sleep 600").await;
        let returned = begin.elapsed();
        until_there(&place.top.path().join(&id).join("workspace/running")).await;
        times.push((begin.elapsed(), returned));
        sandbox.kill().await.unwrap();
    }
    times.sort_unstable();
    println!("start until the program runs (and until start returned): p50 {:?}, slowest {:?}", times[10], times[19]);
}
