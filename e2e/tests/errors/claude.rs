//! Claude Code that does not start, or ends in the middle of a turn: the reason is said, a message tries again.

use std::{fs, path::Path};

use ash_e2e::harness::{TestApp, Turn, eventually, program};
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{open_folder, refused_with_key, script};

/// What cannot start says this on its standard error.
const COMPLAINT: &str = "libawkward.so.7: cannot open shared object file";

/// A program that says the right version and ends as soon as it shall work.
fn broken() -> String {
    format!(
        "#!/bin/sh\ncase \"$*\" in *--version*) echo '2.1.330 (Claude Code)'; exit 0;; esac\n\
         for n in 1 2 3; do echo \"line $n\" >&2; done\necho '{COMPLAINT}' >&2\nexit 7\n"
    )
}

/// A folder with the program, and an app that uses it.
async fn app_with(works: bool) -> (TestApp, TempDir) {
    let folder = open_folder();
    let prepare = if works { repair } else { damage };
    prepare(&folder);
    let app = TestApp::builder().claude(folder.path().join("claude")).argument("--warm=0").start().await;
    (app, folder)
}

fn damage(folder: &TempDir) {
    script(&folder.path().join("claude"), &broken());
}

/// Puts a program that works in the place of what did not.
fn repair(folder: &TempDir) {
    let new = folder.path().join("new");
    fs::copy(program("stand-in-claude"), &new).expect("a copy");
    fs::rename(new, folder.path().join("claude")).expect("a program in its place");
}

async fn wait_for_error(app: &TestApp, id: &str) -> String {
    let path = format!("/api/sessions/{id}");
    eventually("the session is in error", async || {
        let (_, answer) = app.request("GET", &path, None).await;
        let session = &answer["session"];
        (session["status"] == "error").then(|| session["error"].as_str().map(str::to_owned))
    })
    .await
    .unwrap_or_default()
}

fn check_failed(turn: &Turn) {
    let error = turn.error().expect("an error");
    assert!(error.contains(COMPLAINT) && error.contains("line 3"), "{error}");
    assert_eq!(turn.names().last(), Some(&"done"), "{:?}", turn.names());
}

#[tokio::test(flavor = "multi_thread")]
async fn it_does_not_start_and_a_message_tries_again() {
    let (app, folder) = app_with(false).await;
    // The creation is durable, whatever comes of its sandbox.
    let session = app.session().await;
    assert_eq!(session.status, "active");
    let reason = wait_for_error(&app, &session.id).await;
    assert!(reason.is_empty() || reason.contains(COMPLAINT), "{reason}");

    check_failed(&app.say(&session, "try").await);
    wait_for_error(&app, &session.id).await;
    check_failed(&app.say(&session, "and again").await);
    assert_eq!(app.client.health().await.expect("the server is up").pool.total, 0, "nothing is left of the attempts");

    repair(&folder);
    let turn = app.say(&session, "and now").await;
    assert_eq!((turn.result().as_deref(), turn.error()), (Some("ok"), None), "{:?}", turn.names());
    assert_eq!(app.client.session(&session.id).await.expect("the session").status, "active");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_wakes_keeps_its_workspace_when_it_cannot_start() {
    let (mut app, folder) = app_with(true).await;
    let session = app.session().await;
    assert_eq!(app.say(&session, "one").await.result().as_deref(), Some("ok"));
    let kept = app.session_folder(&session.id).join("workspace/kept");
    fs::write(&kept, "what the agent made").expect("a file in the workspace");
    app.stop();
    app.start_again().await;
    damage(&folder);
    check_failed(&app.say(&session, "two").await);
    assert_eq!(read(&kept), "what the agent made", "a failed start took the workspace with it");
    repair(&folder);
    let turn = app.say(&session, "[[count]]").await;
    // The message that never began is no part of the conversation.
    assert_eq!((turn.result().as_deref(), turn.error()), (Some("messages: 2"), None), "{:?}", turn.names());
    assert_eq!(read(&kept), "what the agent made");
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn it_ends_in_the_middle_of_a_turn() {
    let app = TestApp::builder().claude(program("stand-in-claude")).start().await;
    let session = app.session().await;
    for (directive, said) in [("exit: 3", "3"), ("half", "")] {
        let turn = app.say(&session, &format!("[[{directive}]]")).await;
        let error = turn.error().expect("an error");
        assert!(error.contains(said), "{directive}: {error}");
        assert_eq!(turn.names().last(), Some(&"done"), "{directive}: {:?}", turn.names());
        let turn = app.say(&session, "[[text: on]]").await;
        assert_eq!((turn.result().as_deref(), turn.error()), (Some("ok"), None), "{directive}: {:?}", turn.names());
    }
    // What is no JSON is an event, and no end.
    let turn = app.say(&session, "[[garbage]]").await;
    assert_eq!(turn.result().as_deref(), Some("ok"), "{:?}", turn.names());
    assert!(turn.error().is_some_and(|error| error.contains("JSON")), "{:?}", turn.error());
    // Neither is a line that is too long, which is counted.
    let turn = app.say(&session, "[[long: 70000000]]").await;
    assert!(turn.error().is_some_and(|error| error.contains("dropped")), "{:?}", turn.error());
    assert_eq!(app.metric("ash_runner_bridge_bounds_total{bound=\"line\"}").await, 1);
    assert!(app.metric("ash_runner_claude_restarts_total{reason=\"died\"}").await >= 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_warm_pool_that_cannot_be_filled_harms_nobody() {
    let folder = open_folder();
    damage(&folder);
    let app = TestApp::builder().claude(folder.path().join("claude")).argument("--warm=2").start().await;
    let session = app.session().await;
    eventually("an attempt fails", async || app.log_tail().contains("could not be warmed").then_some(())).await;
    assert!(app.log_tail().contains(COMPLAINT), "{}", app.log_tail());
    wait_for_error(&app, &session.id).await;
    repair(&folder);
    let turn = app.say(&session, "now").await;
    assert_eq!(turn.result().as_deref(), Some("ok"), "{:?}", turn.error());
    let refused = refused_with_key(&app, "POST", "/api/sessions", Value::Null.to_string()).await;
    assert_eq!(refused.status, 400, "{refused:?}");
}
