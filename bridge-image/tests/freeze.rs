//! A host that may serve nobody stops what is in its sandbox, through the bridge, and has it go on.
#![allow(clippy::unwrap_used, clippy::missing_panics_doc)]

mod support;

use std::time::{Duration, Instant};

use ash_protocol::{
    message::Request,
    options::{SessionOptions, TurnOptions},
};
use support::{Connection, DEADLINE, Sandbox, stand_in};

/// The state of a process, as `/proc` has it; `T` where it is stopped.
fn state(pid: u32) -> char {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(')').unwrap().1.trim_start().chars().next().unwrap()
}

/// A signal is acted on when the process is next to run.
async fn becomes(pid: u32, stopped: bool) {
    let start = Instant::now();
    while (state(pid) == 'T') != stopped {
        assert!(start.elapsed() < DEADLINE, "it is {:?}", state(pid));
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn ask(connection: &mut Connection, sandbox: &mut Sandbox, request: Request) {
    connection.ask::<()>(sandbox, request).await.unwrap();
}

#[tokio::test]
async fn a_turn_stands_still_and_goes_on_and_a_host_that_comes_thaws() {
    let mut sandbox = Sandbox::start(stand_in(), &[]);
    let mut connection = sandbox.session(SessionOptions::default()).await;
    let claude = sandbox.claude_pid().unwrap();
    ask(&mut connection, &mut sandbox, Request::Thaw {}).await;
    ask(&mut connection, &mut sandbox, Request::Freeze {}).await;
    ask(&mut connection, &mut sandbox, Request::Freeze {}).await;
    becomes(claude, true).await;

    // The bridge goes on: it takes a message, which Claude Code reads when it may.
    connection.admit(&mut sandbox, 1, "[[count]]", TurnOptions::default()).await.unwrap();
    assert_eq!((sandbox.turns_ended(), state(claude)), (0, 'T'));
    // What is started meanwhile is stopped, too: it does not come to write.
    let command = "echo > late".to_owned();
    let exec = connection.request(Request::Exec { command, timeout_ms: 60_000, max_output_bytes: 100 }).await;
    let list = Request::ListFiles { path: String::new(), limit: 10 };
    let _: serde_json::Value = connection.ask(&mut sandbox, list).await.unwrap();

    ask(&mut connection, &mut sandbox, Request::Thaw {}).await;
    connection.until(&mut sandbox, |sandbox, _| sandbox.turns_ended() == 1).await;
    assert_eq!(sandbox.results()[0]["result"], "messages: 1");
    let _: serde_json::Value = connection.answer(&mut sandbox, exec).await.unwrap();
    assert!(sandbox.workspace().join("late").exists());
    becomes(claude, false).await;

    // The host that stopped it dies. The next one serves it.
    ask(&mut connection, &mut sandbox, Request::Freeze {}).await;
    becomes(claude, true).await;
    drop(connection);
    let mut connection = sandbox.connect().await;
    becomes(claude, false).await;
    assert_eq!(connection.turn(&mut sandbox, 2, "[[count]]").await["result"], "messages: 2");
}
