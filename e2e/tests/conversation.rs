//! Conversations of the real Claude Code, in real sandboxes, before the scripted model.

use ash_e2e::harness::TestApp;

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_with_a_tool() {
    let app = TestApp::start().await;
    let session = app.session().await;
    let turn = app.say(&session, "[[text: one two three]]").await;
    assert_eq!(turn.deltas(), "one two three");
    assert_eq!(turn.result().as_deref(), Some("one two three"));
    assert_eq!((turn.names().first(), turn.names().last()), (Some(&"session_start"), Some(&"done")));

    let turn = app.say(&session, r#"[[tool: Bash {"command":"echo from-the-sandbox > note; cat note"}]] [[result]]"#).await;
    assert!(turn.names().contains(&"tool_use") && turn.names().contains(&"tool_result"), "{:?}", turn.names());
    assert!(turn.result().is_some_and(|text| text.contains("from-the-sandbox")), "{:?}", turn.result());

    let turn = app.say(&session, "[[count]]").await;
    assert_eq!(turn.result().as_deref(), Some("3"));
    let ended = app.client.end_session(&session.id).await.expect("an end");
    assert_eq!(ended.status, "ended");
}
