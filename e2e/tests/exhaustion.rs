//! An agent that takes all that it can get: processes, memory, temporary files, the disk. It meets its own bounds; the server and
//! the sessions beside it go on, and so does its own with its next message.

#![allow(clippy::print_stdout, reason = "what a hostile agent was told is shown where a test fails")]

mod hostile;

use std::fs;

use ash_client::Session;
use ash_e2e::harness::{TestApp, eventually};
use hostile::{assert_answers, bash, message, modes, perl, print_protections, processes, session_with};
use serde_json::json;

/// Processes and threads of a sandbox in these tests. Claude Code itself has some dozens.
const PROCESSES: usize = 128;

async fn start(arguments: &[&str]) -> (TestApp, Session) {
    let builder = TestApp::builder().argument(format!("--processes={PROCESSES}")).argument("--memory=1GiB");
    let app = arguments.iter().fold(builder, |builder, argument| builder.argument(*argument)).start().await;
    print_protections(&app);
    let neighbour = session_with(&app, "neighbour", &json!({ "mode": "public" })).await;
    assert_answers(&app, &neighbour).await;
    (app, neighbour)
}

/// Whether a control group keeps a bound, which counts how often it was met.
fn counts(app: &TestApp, protection: &str) -> bool {
    let log = app.log_tail();
    log.lines().any(|line| line.contains(protection) && line.contains("in force") && line.contains("control group"))
}

/// Processes and threads of a session's sandbox.
fn tasks(app: &TestApp, session: &Session) -> usize {
    let processes = processes(&app.session_folder(&session.id));
    processes.iter().filter_map(|pid| Some(fs::read_dir(format!("/proc/{pid}/task")).ok()?.count())).sum()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fork_bomb_meets_the_bound_of_its_sandbox() {
    let (app, neighbour) = start(&["--cpus=1"]).await;
    let counted = counts(&app, "process limit");
    for (mode, network) in modes(&["example.com".to_owned()]) {
        let session = session_with(&app, mode, &network).await;
        assert_answers(&app, &session).await;
        // The processes stay, so that the bomb is seen at its bound and not only on its way.
        let bomb = message(
            "bomb() { bomb & bomb & read -t 300 <>/dev/zero; sleep 299; sleep 298; }; bomb 2>/dev/null & bomb 2>/dev/null",
        );
        let burning = app.say(&session, &bomb);
        let others = async {
            eventually("the bomb is at its bound", async || (tasks(&app, &session) >= PROCESSES - 8).then_some(()))
                .await;
            for _ in 0..3 {
                assert_answers(&app, &neighbour).await;
                let count = tasks(&app, &session);
                println!("{mode}: {count} processes and threads");
                // They are counted one by one while they change.
                assert!(count <= PROCESSES + 8, "{count}");
            }
            app.client.end_session(&session.id).await.expect("an end")
        };
        let (_, ended) = tokio::join!(burning, others);
        assert_eq!(ended.status, "ended");
        assert_eq!(tasks(&app, &session), 0, "{mode}: nothing is left of it");
        assert_answers(&app, &neighbour).await;
    }
    if counted {
        for metric in ["ash_runner_processes_refused_total", "ash_runner_throttled_periods_total"] {
            assert!(app.metric(metric).await > 0, "{metric}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_memory_bomb_meets_the_bound_of_its_sandbox() {
    let (app, neighbour) = start(&[]).await;
    let counted = counts(&app, "memory limit");
    for (mode, network) in modes(&["example.com".to_owned()]) {
        let session = session_with(&app, mode, &network).await;
        bash(&app, &session, "echo kept >kept").await;
        let bomb = message(&perl(r#"my $x = "x" x (1 << 31); print "survived", length($x)"#));
        let (turn, ()) = tokio::join!(app.say(&session, &bomb), assert_answers(&app, &neighbour));
        println!("{mode}: {:?} {:?}", turn.result(), turn.error());
        assert!(!turn.result().is_some_and(|text| text.contains("survived2147483648")), "{mode}: no bound");
        assert!(turn.result().is_some() || turn.error().is_some(), "{mode}: {:?}", turn.names());
        assert_eq!(bash(&app, &session, "cat kept").await, "kept", "{mode}: the session goes on");
        assert_answers(&app, &neighbour).await;
    }
    if counted {
        eventually("the kills are counted", async || {
            (app.metric("ash_runner_memory_kills_total").await >= 3).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn filling_temporary_files_meets_their_bound() {
    let (app, neighbour) = start(&[]).await;
    for (mode, network) in modes(&["example.com".to_owned()]) {
        let session = session_with(&app, mode, &network).await;
        // Claude Code keeps what a command prints in /tmp, so it is said when there is room again.
        let script = "for folder in /tmp /dev/shm; do head -c 2G /dev/zero >$folder/fill; stat -c '%s bytes' $folder/fill; done \
            >said 2>&1; rm /tmp/fill /dev/shm/fill; cat said";
        let (output, ()) = tokio::join!(bash(&app, &session, script), assert_answers(&app, &neighbour));
        println!("{mode}: {output}");
        assert_eq!(output.matches("No space left on device").count(), 2, "{mode}: {output}");
        assert_answers(&app, &session).await;
        assert_answers(&app, &neighbour).await;
    }
}

/// Files of 8 MiB, more than the quota together but not without end.
const FILL: &str = "for i in $(seq 40); do head -c 8M /dev/zero >fill$i; done";

/// Waits, and does not end before its sandbox.
fn wait_inside() -> String {
    perl("select(undef,undef,undef,600)")
}

#[tokio::test(flavor = "multi_thread")]
async fn filling_the_disk_ends_the_sandbox_with_a_clear_error() {
    let (app, neighbour) = start(&["--workspace-quota=64MiB"]).await;
    for (mode, network) in modes(&["example.com".to_owned()]) {
        let session = session_with(&app, mode, &network).await;
        let one =
            bash(&app, &session, "(head -c 1G /dev/zero >one) 2>&1; stat -c '%s' one; rm one; echo kept >kept").await;
        assert!(one.contains("67108864"), "{mode}: one file ends at the quota: {one}");
        let fill = message(&format!("{FILL}; {}", wait_inside()));
        let (turn, ()) = tokio::join!(app.say(&session, &fill), assert_answers(&app, &neighbour));
        let error = turn.error().unwrap_or_default();
        println!("{mode}: {error}");
        assert!(error.contains("quota of 64 MiB"), "{mode}: {:?}", turn.names());
        assert_answers(&app, &neighbour).await;
        assert_eq!(
            bash(&app, &session, "rm -f fill*; cat kept").await,
            "kept",
            "{mode}: it wakes with its next message"
        );
        assert_answers(&app, &session).await;
    }
}

/// A program that a turn left behind is held to the quota also when no turn runs.
#[tokio::test(flavor = "multi_thread")]
async fn filling_the_disk_behind_a_turn_ends_the_sandbox() {
    let (app, neighbour) = start(&["--workspace-quota=64MiB"]).await;
    let session = session_with(&app, "patient", &json!({ "mode": "model" })).await;
    let behind = format!(
        "setsid bash -c 'while [ ! -e go ]; do sleep 0.05; done; {FILL}; sleep 600' >/dev/null 2>&1 </dev/null &"
    );
    bash(&app, &session, &behind).await;
    let folder = app.session_folder(&session.id);
    fs::write(folder.join("workspace/go"), "").expect("a file in the workspace");
    eventually("the sandbox over its quota is ended", async || processes(&folder).is_empty().then_some(())).await;
    assert!(app.log_tail().contains("a sandbox is over its disk quota"), "{}", app.log_tail());
    assert_eq!(bash(&app, &session, "rm -f fill*; ls go").await, "go", "it wakes with its next message");
    assert_answers(&app, &session).await;
    assert_answers(&app, &neighbour).await;
}
