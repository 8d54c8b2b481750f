//! SIGTERM in the middle of turns: they may end, for a bounded time; what is left of them is said; with a handover they go on.

use ash_client::{Client, Message, Session};
use ash_e2e::harness::{TestApp, Turn, eventually, pid_of, signal};

use crate::support::{go, goes_on, waiting_turn};

async fn wait_for_log(app: &TestApp, text: &str) {
    eventually(text, async || app.log_tail().contains(text).then_some(())).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_turn_may_end() {
    let mut app = TestApp::start().await;
    let session = app.session().await;
    let (stream, mut turn) = waiting_turn(&app, &session).await;
    signal(app.server_pid(), "TERM");
    wait_for_log(&app, "stopping: running turns may end within 30 s").await;
    go(&app, &session);
    turn.read_rest(stream).await;
    assert_eq!((turn.result().as_deref().map(str::trim), turn.error()), (Some("went"), None), "{:?}", turn.names());
    assert_eq!(turn.names().last(), Some(&"done"));
    assert!(app.wait_end().await.success(), "{}", app.log_tail());
    let claude = pid_of(&app.session_folder(&session.id), "claude");
    assert_eq!(claude, None, "the sandbox went with its server");

    app.start_again().await;
    let sleeping = app.client.session(&session.id).await.expect("the session");
    assert_eq!((sleeping.status.as_str(), &sleeping.other["pausedReason"]), ("paused", &"drained".into()));
    assert_eq!(app.say(&session, "[[count]]").await.result().as_deref(), Some("2"));
}

/// A turn that is not done in time: its client reads on, over the restart, and learns how it ended.
#[tokio::test(flavor = "multi_thread")]
async fn a_turn_that_takes_too_long_is_interrupted_and_reported() {
    let mut app = TestApp::builder().argument("--shutdown-timeout=1s").start().await;
    let session = app.session().await;
    assert_eq!(app.say(&session, "[[text: before]]").await.error(), None);
    let (stream, mut turn) = waiting_turn(&app, &session).await;
    let reading = tokio::spawn(async move {
        turn.read_rest(stream).await;
        turn
    });
    signal(app.server_pid(), "TERM");
    assert!(app.wait_end().await.success(), "{}", app.log_tail());
    app.start_again().await;
    let turn = reading.await.expect("the client");
    let error = turn.error().expect("an error frame");
    assert_eq!(error, "The turn was interrupted.");
    assert_eq!(turn.names().iter().filter(|name| **name == "done").count(), 1, "{:?}", turn.names());
    assert_eq!(turn.names().last(), Some(&"done"), "{:?}", turn.names());
    assert!(!app.log_tail().contains("still in progress"), "{}", app.log_tail());

    goes_on(&app, &session).await;
    let history = app.say(&session, "[[history]]").await.result().expect("a result");
    assert!(history.contains("before") && history.contains("it goes on"), "{history}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_handover_leaves_the_sandboxes_to_the_next_server() {
    let mut app = TestApp::builder().argument("--handover").start().await;
    let session = app.session().await;
    assert_eq!(app.say(&session, "[[text: before]]").await.error(), None);
    let (stream, mut turn) = waiting_turn(&app, &session).await;
    let claude = pid_of(&app.session_folder(&session.id), "claude").expect("a process");
    signal(app.server_pid(), "TERM");
    assert!(app.wait_end().await.success(), "{}", app.log_tail());
    assert_eq!(pid_of(&app.session_folder(&session.id), "claude"), Some(claude), "the turn goes on with no server");
    app.start_again().await;
    go(&app, &session);
    turn.read_rest(stream).await;
    assert_eq!((turn.result().as_deref().map(str::trim), turn.error()), (Some("went"), None), "{:?}", turn.names());
    assert!(!turn.names().contains(&"withdrawn"), "{:?}", turn.names());
    assert_eq!(app.say(&session, "[[count]]").await.result().as_deref(), Some("3"));
    assert_eq!(pid_of(&app.session_folder(&session.id), "claude"), Some(claude));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_signal_stops_at_once_and_loses_nothing() {
    let mut app = TestApp::start().await;
    let session = app.session().await;
    let (stream, mut turn) = waiting_turn(&app, &session).await;
    signal(app.server_pid(), "TERM");
    wait_for_log(&app, "stopping: running turns may end").await;
    signal(app.server_pid(), "INT");
    assert!(app.wait_end().await.success(), "{}", app.log_tail());
    assert!(app.log_tail().contains("stopped at once; the next server finds the sandboxes"), "{}", app.log_tail());
    app.start_again().await;
    go(&app, &session);
    turn.read_rest(stream).await;
    assert_eq!((turn.result().as_deref().map(str::trim), turn.error()), (Some("went"), None), "{:?}", turn.names());
    goes_on(&app, &session).await;
}

/// Those that come while it stops are sent away, and told that they may come again.
#[tokio::test(flavor = "multi_thread")]
async fn new_work_is_refused_while_it_stops() {
    let mut app = TestApp::builder().argument("--warm=2").start().await;
    let session = app.session().await;
    let idle = app.session_of("simple").await;
    let (stream, mut turn) = waiting_turn(&app, &session).await;
    signal(app.server_pid(), "TERM");
    wait_for_log(&app, "stopping: running turns may end").await;
    let patient = Client::new(&format!("http://{}", app.address()), Some(&app.api_key().into())).expect("a client");
    let stopping = async {
        go(&app, &session);
        turn.read_rest(stream).await;
        assert_eq!(turn.error(), None);
        assert!(app.wait_end().await.success(), "{}", app.log_tail());
        app.start_again().await;
    };
    let (late, ()) = tokio::join!(later(patient, idle), stopping);
    assert_eq!(late.and_then(|turn| turn.result()).as_deref(), Some("later"));
}

/// Sends a message until it is taken.
async fn later(client: Client, session: Session) -> Option<Turn> {
    eventually("the message is taken", async || {
        match client.send_message(&session.id, &Message::text("[[text: later]]")).await {
            Ok(stream) => Some(Some(Turn::read(stream).await)),
            Err(error) => {
                assert!(matches!(error.status(), None | Some(503)), "{error}");
                None
            }
        }
    })
    .await
}
