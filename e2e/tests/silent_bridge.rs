//! A restarted server waits for a bridge's tail for a bounded time: an agent that greets in its bridge's place and then says
//! nothing keeps neither its session nor its place in the pool.

mod hostile;

use ash_client::Session;
use ash_e2e::harness::{DEADLINE, TestApp, eventually};
use hostile::{assert_answers, impersonator::take_the_bridges_place, processes, session_with};
use serde_json::json;
use tokio::time::timeout;

/// In the place of the bridge: never says that its tail has been sent.
const SILENT: &str = "signal.pause()";

/// Messages of a session before its bridge is silent: those of [`take_the_bridges_place`].
const MESSAGES_BEFORE: usize = 3;

/// An app with one place in its pool, and a session whose bridge greeted the restarted server and says nothing.
async fn with_a_silent_bridge() -> (TestApp, Session) {
    let mut app = TestApp::builder().argument("--warm=0").argument("--max-sandboxes=1").start().await;
    let session = session_with(&app, "silent", &json!({ "mode": "model" })).await;
    take_the_bridges_place(&mut app, &session, SILENT).await;
    let session = app.client.session(&session.id).await.expect("the session");
    (app, session)
}

#[tokio::test(flavor = "multi_thread")]
async fn its_session_can_be_ended() {
    let (app, session) = with_a_silent_bridge().await;
    let folder = app.session_folder(&session.id);
    assert!(!processes(&folder).is_empty(), "the sandbox is there");
    let ended = timeout(DEADLINE, app.client.end_session(&session.id)).await.expect("an end in time").expect("an end");
    assert_eq!(ended.status, "ended", "{ended:?}");
    eventually("nothing is left of the sandbox", async || processes(&folder).is_empty().then_some(())).await;
    // Its place is free.
    let other = session_with(&app, "other", &json!({ "mode": "model" })).await;
    assert_answers(&app, &other).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn its_session_goes_on_elsewhere_and_others_get_its_place() {
    let (app, session) = with_a_silent_bridge().await;
    let folder = app.session_folder(&session.id);
    let silent = processes(&folder);
    assert!(!silent.is_empty(), "the sandbox is there");
    let other = session_with(&app, "other", &json!({ "mode": "model" })).await;
    let (turn, ()) = tokio::join!(app.say(&session, "[[count]]"), assert_answers(&app, &other));
    let count = (MESSAGES_BEFORE + 1).to_string();
    assert_eq!((turn.result(), turn.error()), (Some(count), None), "{:?}", turn.names());
    let now = app.client.session(&session.id).await.expect("the session");
    assert_ne!(now.other["sandboxId"], session.other["sandboxId"], "on a new sandbox");
    let left = processes(&folder);
    assert!(silent.iter().all(|pid| !left.contains(pid)), "nothing is left of the silent one: {silent:?} {left:?}");
}
