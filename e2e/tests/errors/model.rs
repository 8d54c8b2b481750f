//! A model that answers with errors, for good: the turn says so and ends, the session goes on.

use ash_client::Session;
use ash_e2e::harness::{TestApp, Turn};

use crate::support::goes_on;

/// An agent whose Claude Code tries a failed model call again only once, so that the test need not wait for ten tries.
async fn impatient_session(app: &TestApp) -> Session {
    let settings = r#"{"env":{"CLAUDE_CODE_MAX_RETRIES":"1"}}"#;
    app.deploy("impatient", &[("CLAUDE.md", "You do not wait.\n"), (".claude/settings.json", settings)]).await;
    app.session_of("impatient").await
}

fn check_failed(turn: &Turn, said: &str) {
    let result = turn.messages("result").pop().expect("a result");
    assert_eq!(result["is_error"], true, "{result}");
    let error = turn.error().expect("an error frame");
    assert!(error.contains(said), "{said:?} is not in {error:?}");
    assert_eq!(turn.names().last(), Some(&"done"), "{:?}", turn.names());
    assert_eq!(turn.names().iter().filter(|name| **name == "error").count(), 1, "{:?}", turn.names());
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_that_last() {
    let app = TestApp::start().await;
    let session = impatient_session(&app).await;
    for status in [400, 401, 429, 500, 529] {
        let turn = app.say(&session, &format!("[[error: {status}]]")).await;
        check_failed(&turn, if status == 401 { "401" } else { "API Error" });
        goes_on(&app, &session).await;
    }
    let turn = app.say(&session, "[[text: half of it]] [[error: 400]]").await;
    check_failed(&turn, "API Error");
    goes_on(&app, &session).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn errors_that_pass() {
    let app = TestApp::start().await;
    let session = impatient_session(&app).await;
    for directive in
        ["error: 429 retry-after=1 x1", "error: 529 x1", "stream-error: overloaded_error x1", "cut: before x1"]
    {
        let turn = app.say(&session, &format!("[[{directive}]] [[text: at last]]")).await;
        assert_eq!(
            (turn.result().as_deref(), turn.error()),
            (Some("at last"), None),
            "{directive}: {:?}",
            turn.names()
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_model_cannot_be_reached() {
    let app = TestApp::builder().variable("ANTHROPIC_BASE_URL", "http://127.0.0.1:1").start().await;
    let session = impatient_session(&app).await;
    for _ in 0..2 {
        let turn = app.say(&session, "[[text: nobody hears this]]").await;
        check_failed(&turn, "API Error");
    }
    assert_eq!(app.client.session(&session.id).await.expect("the session").status, "active");
    assert_eq!(app.model.turn_requests(), 0);
}
