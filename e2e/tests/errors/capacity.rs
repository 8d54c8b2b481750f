//! A pool that is too small: messages wait, sessions sleep and wake, creations never fail.

use std::fs;

use ash_client::{Message, Session};
use ash_e2e::harness::{TestApp, Turn, eventually, program};
use futures::future::join_all;
use serde_json::json;

use crate::support::{go, goes_on, refused_with_key, waiting_turn};

/// The session's state and, where it sleeps, why.
async fn state(app: &TestApp, session: &Session) -> (String, String) {
    let session = app.client.session(&session.id).await.expect("the session");
    let reason = session.other.get("pausedReason").and_then(|reason| reason.as_str()).unwrap_or_default();
    (session.status, reason.to_owned())
}

/// Whether the file that the agent wrote is still in its workspace.
async fn has_its_file(app: &TestApp, session: &Session, name: &str) {
    let turn = app.say(session, r#"[[tool: Bash {"command":"cat note"}]] [[result]]"#).await;
    assert_eq!(turn.result().as_deref().map(str::trim), Some(name), "{:?} {:?}", turn.names(), turn.error());
}

async fn write_file(app: &TestApp, session: &Session, name: &str) {
    let text = format!(r#"[[tool: Bash {{"command":"echo {name} > note"}}]] [[text: written]]"#);
    let turn = app.say(session, &text).await;
    assert_eq!((turn.result().as_deref(), turn.error()), (Some("written"), None), "{:?}", turn.names());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_waits_for_a_place_and_gets_it_when_a_turn_ends() {
    let app = TestApp::builder().argument("--max-sandboxes=1").start().await;
    let first = app.session().await;
    write_file(&app, &first, "first").await;
    let (stream, mut turn) = waiting_turn(&app, &first).await;
    let second = app.session_of("simple").await;
    assert_eq!(second.status, "active", "a creation never waits");
    let waiting = async {
        let turn = app.say(&second, "[[text: my turn]]").await;
        assert_eq!((turn.result().as_deref(), turn.error()), (Some("my turn"), None), "{:?}", turn.names());
    };
    let going = async {
        eventually("the message waits", async || (app.metric("ash_runner_messages_waiting").await == 1).then_some(()))
            .await;
        assert_eq!(state(&app, &first).await.0, "active", "a running turn makes no room");
        go(&app, &first);
        turn.read_rest(stream).await;
        assert_eq!((turn.result().as_deref().map(str::trim), turn.error()), (Some("went"), None));
    };
    tokio::join!(waiting, going);
    assert_eq!(state(&app, &first).await, ("paused".to_owned(), "evicted".to_owned()));
    // It wakes with its next message, and the other one sleeps.
    has_its_file(&app, &first, "first").await;
    assert_eq!(app.say(&first, "[[count]]").await.result().as_deref(), Some("4"));
    assert_eq!(state(&app, &second).await, ("paused".to_owned(), "evicted".to_owned()));
    assert_eq!(app.say(&second, "[[count]]").await.result().as_deref(), Some("2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_gets_no_place_in_time_is_told_when_to_come_again() {
    let app = TestApp::builder().argument("--max-sandboxes=1").argument("--capacity-wait=1s").start().await;
    app.deploy("simple", &[("CLAUDE.md", "You are a simple agent.\n")]).await;
    app.wait_warm(1).await;
    let first = app.session_of("simple").await;
    let (stream, mut turn) = waiting_turn(&app, &first).await;
    let second = app.session_of("simple").await;
    let path = format!("/api/sessions/{}/messages", second.id);
    for _ in 0..2 {
        let refused = refused_with_key(&app, "POST", &path, r#"{"content":"me too"}"#).await;
        assert_eq!(refused.status, 503, "{refused:?}");
        assert_eq!(refused.retry_after, Some(5), "{refused:?}");
        assert_eq!(refused.sentence, "no sandbox became free within 1 s: try again later, or raise --max-sandboxes");
    }
    go(&app, &first);
    turn.read_rest(stream).await;
    assert_eq!((turn.result().as_deref().map(str::trim), turn.error()), (Some("went"), None));
    goes_on(&app, &second).await;
    assert_eq!(app.say(&second, "[[count]]").await.result().as_deref(), Some("2"), "the refused ones never began");
    goes_on(&app, &first).await;
}

/// The only place is a sandbox's that is being warmed: it is claimed, not ended for another one to be started.
#[tokio::test(flavor = "multi_thread")]
async fn a_message_that_waits_takes_the_sandbox_that_becomes_warm() {
    let app = TestApp::builder().claude(program("stand-in-claude")).argument("--max-sandboxes=1").start().await;
    app.deploy("held", &[("CLAUDE.md", "You are a simple agent.\n"), ("hold", "")]).await;
    eventually("a sandbox is being warmed", async || (app.client.health().await.ok()?.pool.warming == 1).then_some(()))
        .await;
    let session = app.session_of("held").await;
    let waiting = app.say(&session, "hello");
    let warming = async {
        eventually("the message waits", async || (app.metric("ash_runner_messages_waiting").await == 1).then_some(()))
            .await;
        let folders = fs::read_dir(app.data().join("sandboxes")).expect("the sandboxes' folder");
        let folders: Vec<_> = folders.map(|folder| folder.expect("a folder").path()).collect();
        let [folder] = folders.as_slice() else { panic!("one sandbox has a folder: {folders:?}") };
        eventually("Claude Code goes on", async || fs::remove_file(folder.join("workspace/hold")).ok()).await;
    };
    let (turn, ()) = tokio::join!(waiting, warming);
    assert_eq!((turn.result().as_deref(), turn.error()), (Some("ok"), None), "{:?}", turn.names());
    for (metric, value) in
        [("ash_runner_messages_waiting", 0), ("ash_runner_sandbox_starts_total", 1), ("ash_runner_evictions_total", 0)]
    {
        assert_eq!(app.metric(metric).await, value, "{metric}");
    }
}

/// A sandbox whose folder cannot take the session's name is ended with all that it left; the session goes on with another one.
#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_that_cannot_be_given_to_its_session_leaves_nothing() {
    let app = TestApp::builder().argument("--max-sandboxes=1").start().await;
    // The only place is taken while the session is made: it is given a warm sandbox by its message, not before.
    let first = app.session().await;
    let (stream, mut first_turn) = waiting_turn(&app, &first).await;
    let session = app.session_of("simple").await;
    let folder = app.session_folder(&session.id);
    fs::create_dir(&folder).expect("a folder in the way");
    fs::write(folder.join("in-the-way"), "").expect("a file in the way");
    go(&app, &first);
    first_turn.read_rest(stream).await;
    app.client.end_session(&first.id).await.expect("an end");
    app.wait_warm(1).await;
    let folders = || fs::read_dir(app.data().join("sandboxes")).expect("the sandboxes' folder").flatten();
    let of_sessions = [app.session_folder(&first.id), folder];
    let warm =
        folders().map(|found| found.path()).find(|found| !of_sessions.contains(found)).expect("a warm sandbox's");
    let turn = app.say(&session, "[[text: never]]").await;
    assert!(turn.error().is_some_and(|error| error.contains("folder")), "{:?} {:?}", turn.names(), turn.error());
    eventually("folders are left only of the two sessions and of what there is", async || {
        let sandboxes = app.client.health().await.ok()?.pool.total;
        (!warm.exists() && u64::try_from(folders().count()).ok()? == sandboxes + 2).then_some(())
    })
    .await;
    goes_on(&app, &session).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn evicted_sessions_keep_conversation_and_workspace() {
    let app = TestApp::builder().argument("--max-sandboxes=2").start().await;
    let mut sessions = vec![app.session().await];
    for _ in 1..4 {
        sessions.push(app.session_of("simple").await);
    }
    for (number, session) in sessions.iter().enumerate() {
        write_file(&app, session, &format!("of-{number}")).await;
    }
    for (number, session) in sessions.iter().enumerate().rev() {
        has_its_file(&app, session, &format!("of-{number}")).await;
        let history = app.say(session, "[[history]]").await.result().expect("a result");
        assert!(history.contains(&format!("of-{number}")), "{history}");
        for other in (0..sessions.len()).filter(|other| *other != number) {
            assert!(!history.contains(&format!("of-{other}")), "{history}");
        }
    }
    assert!(app.client.health().await.expect("health").pool.total <= 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_sessions_at_once_on_a_pool_of_four() {
    let app = TestApp::builder().argument("--max-sandboxes=4").start().await;
    app.deploy("simple", &[("CLAUDE.md", "You are a simple agent.\n")]).await;
    let create = || app.request("POST", "/api/sessions", Some(json!({ "agent": "simple" })));
    let created = join_all((0..200).map(|_| create())).await;
    let mut ids = std::collections::BTreeSet::new();
    for (status, answer) in created {
        assert_eq!((status, &answer["session"]["status"]), (201, &json!("active")), "{answer}");
        ids.insert(answer["session"]["id"].as_str().expect("an id").to_owned());
    }
    assert_eq!(ids.len(), 200);
    // Each of them can be talked with; six at a time want more than there is.
    let some: Vec<&String> = ids.iter().step_by(34).collect();
    let said = join_all(some.iter().map(|id| async {
        let stream = app.client.send_message(id, &Message::text("[[text: here]]")).await.expect("a place in time");
        Turn::read(stream).await
    }))
    .await;
    for turn in said {
        assert_eq!((turn.result().as_deref(), turn.error()), (Some("here"), None), "{:?}", turn.names());
    }
    for id in &ids {
        let session = app.client.session(id).await.expect("the session");
        assert_ne!(session.status, "error", "{session:?}");
    }
    assert!(app.client.health().await.expect("health").pool.total <= 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unused_session_falls_asleep_and_a_message_wakes_it() {
    let app = TestApp::builder().argument("--idle-timeout=1s").start().await;
    let session = app.session().await;
    write_file(&app, &session, "asleep").await;
    eventually("the session sleeps", async || {
        (state(&app, &session).await == ("paused".to_owned(), "idle".to_owned())).then_some(())
    })
    .await;
    has_its_file(&app, &session, "asleep").await;
    assert_eq!(app.say(&session, "[[count]]").await.result().as_deref(), Some("3"));
}
