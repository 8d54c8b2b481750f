//! Sessions that a person pauses, stops and resumes, with the real Claude Code.

use ash_client::{Message, Session};
use ash_e2e::harness::{TestApp, Turn, eventually, pid_of};

async fn say_refused(app: &TestApp, session: &Session, state: &str) {
    let refused = app.client.send_message(&session.id, &Message::text("hello?")).await.expect_err("it is put aside");
    assert_eq!(refused.status(), Some(400), "{refused}");
    assert!(refused.to_string().contains(&format!("Session is {state}")), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_paused_session_keeps_its_conversation_and_its_files_and_refuses_messages() {
    let mut app = TestApp::start().await;
    let session = app.session().await;
    let folder = app.session_folder(&session.id);
    app.say(&session, r#"[[tool: Bash {"command":"echo kept > note"}]] [[text: first]]"#).await;
    for (state, round) in [("paused", 1), ("stopped", 2)] {
        let put_aside = match state {
            "paused" => app.client.pause_session(&session.id).await,
            _ => app.client.stop_session(&session.id).await,
        };
        assert_eq!(put_aside.expect("an answer").status, state);
        assert_eq!(pid_of(&folder, "claude"), None);
        say_refused(&app, &session, state).await;
        // What a person chose survives a restart of the server.
        app.kill();
        app.start_again().await;
        assert_eq!(app.client.session(&session.id).await.expect("the session").status, state);
        say_refused(&app, &session, state).await;
        let (one, other) = tokio::join!(app.client.resume_session(&session.id), app.client.resume_session(&session.id));
        for resumed in [one, other] {
            assert_eq!(resumed.expect("an answer").status, "active");
        }
        // Its sandbox comes by itself, before any message.
        eventually("Claude Code of the resumed session", async || pid_of(&folder, "claude")).await;
        let turn = app.say(&session, r#"[[tool: Bash {"command":"cat note"}]] [[result]]"#).await;
        assert_eq!(turn.result().as_deref().map(str::trim), Some("kept"), "round {round}");
        let history = app.say(&session, "[[history]]").await.result().expect("a result");
        assert!(history.contains("first"), "round {round}: {history}");
    }
    app.client.end_session(&session.id).await.expect("an end");
    let gone = app.client.resume_session(&session.id).await.expect_err("it has ended");
    assert_eq!(gone.status(), Some(410), "{gone}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pause_interrupts_the_turn_and_its_reader_is_told() {
    let app = TestApp::start().await;
    let session = app.session().await;
    let message = Message::text("[[text: never to its end]] [[delay: 600s]] [[text: never]]");
    let mut stream = app.client.send_message(&session.id, &message).await.expect("a stream");
    let mut turn = Turn::default();
    turn.read_until(&mut stream, "text_delta").await;
    assert_eq!(app.client.pause_session(&session.id).await.expect("an answer").status, "paused");
    turn.read_rest(stream).await;
    assert_eq!(turn.names().last(), Some(&"done"), "{:?}", turn.names());
    assert!(turn.error().is_some(), "{:?}", turn.names());
    // A pause of one that is paused changes nothing, nor a resumption of an active one.
    assert_eq!(app.client.pause_session(&session.id).await.expect("an answer").status, "paused");
    for _ in 0..2 {
        assert_eq!(app.client.resume_session(&session.id).await.expect("an answer").status, "active");
    }
    let history = app.say(&session, "[[history]]").await.result().expect("a result");
    assert!(history.contains("never to its end"), "{history}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_without_a_sandbox_is_paused_and_resumed_too() {
    let app = TestApp::builder().argument("--max-sandboxes=1").argument("--warm=0").start().await;
    let (one, other) = (app.session().await, app.session().await);
    app.say(&one, "[[text: mine]]").await;
    // The other one took the only sandbox.
    app.say(&other, "[[text: mine now]]").await;
    assert_eq!(app.client.pause_session(&one.id).await.expect("an answer").status, "paused");
    say_refused(&app, &one, "paused").await;
    assert_eq!(app.client.resume_session(&one.id).await.expect("an answer").status, "active");
    assert_eq!(app.say(&one, "[[count]]").await.result().as_deref(), Some("2"));
}
