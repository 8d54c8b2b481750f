//! The gateway's listener is shared with the sandbox: what a hostile agent does to it hurts that agent alone.
//!
//! The agent takes its bridge's place at a restarted server, as [`escapes`](../escapes.rs) does, but with everything right: the
//! greeting names its own session and brings a listener of its own, which it goes on using.

#![allow(clippy::print_stdout, reason = "what a hostile agent was told is shown where a test fails")]

mod hostile;

use std::fs;

use ash_e2e::harness::{TestApp, eventually};
use hostile::{
    assert_answers,
    impersonator::{appears, take_the_bridges_place},
    session_with,
};
use serde_json::json;

/// Looks in a row, 10 ms apart, at which the server must have used no processor time: what spins uses some at each.
const QUIET_LOOKS: u32 = 100;

/// In the place of the bridge: turns `O_NONBLOCK` of the listener that it handed to the server off and on while it takes
/// connections before the server does, shuts the listener down, and gives the place back. Waits for the test in between.
const PROGRAM: &str = r#"
host.sendall(frame(10))

stolen, kept = 0, []
while stolen < 20 and len(kept) < 5000:
    kept.append(socket.create_connection(("127.0.0.1", port)))
    listener.setblocking(False)
    try:
        kept.append(listener.accept()[0])
        stolen += 1
    except BlockingIOError:
        pass
    listener.setblocking(True)
    if len(kept) % 100 == 0:
        for other in kept:
            other.close()
for other in kept:
    other.close()
tell("blocked")
told("shut-it-down")
listener.shutdown(socket.SHUT_RDWR)
tell("shut-down")
told("give-it-back")
host.close()
os.kill(bridge, signal.SIGCONT)
time.sleep(600)
"#;

/// Waits until the server does nothing.
async fn is_idle(app: &TestApp) {
    let used = || {
        let stat = fs::read_to_string(format!("/proc/{}/stat", app.server_pid())).expect("a server that runs");
        let fields: Vec<i64> = stat
            .rsplit_once(')')
            .expect("a name")
            .1
            .split_whitespace()
            .filter_map(|field| field.parse().ok())
            .collect();
        // Of the fields behind the name all but the first, the state, are numbers: utime and stime.
        fields[10] + fields[11]
    };
    let (mut last, mut quiet) = (used(), 0);
    eventually("the server is idle", async || {
        let now = used();
        quiet = if now == last { quiet + 1 } else { 0 };
        last = now;
        (quiet >= QUIET_LOOKS).then_some(())
    })
    .await;
}

/// The server's threads that accept for a gateway.
fn accepting(app: &TestApp) -> usize {
    let tasks = fs::read_dir(format!("/proc/{}/task", app.server_pid())).expect("a server that runs");
    let names = tasks.flatten().filter_map(|task| fs::read_to_string(task.path().join("comm")).ok());
    names.filter(|name| name.trim() == "gateway-accept").count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hostile_listener_holds_up_its_own_sandbox_alone() {
    let mut app = TestApp::builder().argument("--warm=0").start().await;
    let neighbour = session_with(&app, "neighbour", &json!({ "mode": "public" })).await;
    assert_answers(&app, &neighbour).await;
    let session = session_with(&app, "hostile", &json!({ "mode": "model" })).await;
    let workspace = app.session_folder(&session.id).join("workspace");
    take_the_bridges_place(&mut app, &session, PROGRAM).await;
    appears(&workspace, "blocked").await;
    assert_answers(&app, &neighbour).await;
    is_idle(&app).await;

    fs::write(workspace.join("shut-it-down"), "").expect("a file");
    appears(&workspace, "shut-down").await;
    assert_answers(&app, &neighbour).await;
    is_idle(&app).await;

    // The bridge takes its place again, with its own listener.
    fs::write(workspace.join("give-it-back"), "").expect("a file");
    assert_answers(&app, &session).await;
    assert_answers(&app, &neighbour).await;
    is_idle(&app).await;
    for session in [&session, &neighbour] {
        app.client.end_session(&session.id).await.expect("an end");
    }
    eventually("no thread is left behind", async || (accepting(&app) == 0).then_some(())).await;
    println!("{}", fs::read_to_string(workspace.join("log")).unwrap_or_default());
}
