//! Options that change in a session's life, seen in what the model is asked: live where that can be, with a restart of Claude Code
//! where it cannot, and kept whatever is restarted.

use ash_client::{Message, Session, SessionChanges};
use ash_e2e::harness::{TestApp, Turn, eventually, pid_of};
use serde_json::{Map, Value, json};

fn model(name: Option<&str>) -> SessionChanges {
    SessionChanges { model: Some(name.map(ToOwned::to_owned)), ..SessionChanges::default() }
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(ToString::to_string).collect()
}

fn tools(app: &TestApp) -> Vec<String> {
    let request = app.last_request();
    let tools = request["tools"].as_array().expect("tools");
    tools.iter().map(|tool| tool["name"].as_str().expect("a name").to_owned()).collect()
}

fn claude(app: &TestApp, session: &Session) -> u32 {
    pid_of(&app.session_folder(&session.id), "claude").expect("Claude Code runs")
}

#[tokio::test(flavor = "multi_thread")]
async fn the_living_process_changes_where_it_can_and_is_restarted_where_it_cannot() {
    let app = TestApp::start().await;
    let session = app.session().await;
    app.say(&session, "(m-first) [[text: x]]").await;
    let usual = app.last_request()["model"].clone();
    let process = claude(&app, &session);
    let changed = app.client.configure_session(&session.id, &model(Some("claude-sonnet-4-5"))).await.expect("a change");
    assert_eq!(changed.other["model"], "claude-sonnet-4-5");
    app.say(&session, "[[text: x]]").await;
    assert_eq!(app.last_request()["model"], "claude-sonnet-4-5");
    assert_eq!(claude(&app, &session), process, "the same process goes on");

    // In the middle of a turn: that turn keeps what it began with.
    let long = Message::text("[[text: begun]] [[delay: 600s]] [[text: never]]");
    let mut stream = app.client.send_message(&session.id, &long).await.expect("the message is taken");
    let mut turn = Turn::default();
    turn.read_until(&mut stream, "text_delta").await;
    app.client.configure_session(&session.id, &model(Some("claude-haiku-4-5"))).await.expect("a change");
    assert_eq!(app.last_request()["model"], "claude-sonnet-4-5");
    app.client.interrupt(&session.id).await.expect("an interrupt");
    turn.read_rest(stream).await;
    app.say(&session, "[[text: x]]").await;
    assert_eq!(app.last_request()["model"], "claude-haiku-4-5");
    assert_eq!(claude(&app, &session), process);

    // What a process has to be started with is there from the next turn on, with the conversation.
    assert!(tools(&app).contains(&"Read".to_owned()));
    let without = SessionChanges { disallowed_tools: Some(Some(words(&["Read"]))), ..SessionChanges::default() };
    app.client.configure_session(&session.id, &without).await.expect("a change");
    assert_eq!(claude(&app, &session), process, "nothing is restarted before there is something to do");
    let history = app.say(&session, "[[history]]").await.result().expect("a result");
    assert!(history.contains("(m-first)"), "{history}");
    assert!(!tools(&app).contains(&"Read".to_owned()), "{:?}", tools(&app));
    assert_ne!(claude(&app, &session), process);
    assert_eq!(app.last_request()["model"], "claude-haiku-4-5", "what was changed before stays");

    // As the agent has it.
    let changes = SessionChanges { disallowed_tools: Some(None), ..model(None) };
    let changed = app.client.configure_session(&session.id, &changes).await.expect("a change");
    assert!(!changed.other.contains_key("model"), "{changed:?}");
    app.say(&session, "[[text: x]]").await;
    assert_eq!(app.last_request()["model"], usual);
    assert!(tools(&app).contains(&"Read".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_changed_survives_a_killed_server_and_sleep() {
    let mut app = TestApp::builder().argument("--max-sandboxes=1").argument("--warm=0").start().await;
    let session = app.session().await;
    app.say(&session, "[[text: x]]").await;
    app.client.configure_session(&session.id, &model(Some("claude-haiku-4-5"))).await.expect("a change");
    app.kill();
    app.start_again().await;
    app.say(&session, "[[text: x]]").await;
    assert_eq!(app.last_request()["model"], "claude-haiku-4-5");
    // While it sleeps, for it has no sandbox to be told.
    let other = app.session_of("simple").await;
    app.say(&other, "[[text: mine]]").await;
    let metadata = [("colour".to_owned(), "green".to_owned())].into();
    let changes = SessionChanges { metadata: Some(metadata), ..model(Some("claude-sonnet-4-5")) };
    let changed = app.client.configure_session(&session.id, &changes).await.expect("a change");
    assert_eq!((&changed.status, &changed.other["metadata"]), (&"paused".to_owned(), &json!({ "colour": "green" })));
    app.say(&session, "[[text: x]]").await;
    assert_eq!(app.last_request()["model"], "claude-sonnet-4-5");
    let (_, found) = app.request("GET", "/api/sessions?metadata.colour=green", None).await;
    assert_eq!(found["sessions"].as_array().map(Vec::len), Some(1), "{found}");
    // Its runner knows a session that a person put aside only by its row.
    app.client.pause_session(&session.id).await.expect("an answer");
    app.client.configure_session(&session.id, &model(Some("claude-haiku-4-5"))).await.expect("a change");
    app.client.resume_session(&session.id).await.expect("an answer");
    let asked = eventually("an answer", async || {
        app.say(&session, "[[text: x]]").await.result().map(|_| app.last_request()["model"].clone())
    })
    .await;
    assert_eq!(asked, "claude-haiku-4-5");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_change_is_refused_by_name() {
    let app = TestApp::start().await;
    let session = app.session().await;
    let path = format!("/api/sessions/{}/config", session.id);
    for (name, value) in [
        ("systemPrompt", json!("x")),
        ("permissionMode", json!("plan")),
        ("extraEnv", json!({ "A": "b" })),
        ("mcpServers", json!({})),
        ("agent", json!("another")),
        ("model", json!("")),
        ("allowedTools", json!("Bash")),
    ] {
        let body: Map<String, Value> = [(name.to_owned(), value)].into_iter().collect();
        let (status, answer) = app.request("PATCH", &path, Some(body.into())).await;
        assert_eq!(status, 400, "{answer}");
        assert!(answer["error"].as_str().is_some_and(|error| error.starts_with(name)), "{answer}");
    }
    let (status, answer) = app.request("PATCH", &path, Some(json!({}))).await;
    assert_eq!((status, &answer["session"]["id"]), (200, &json!(session.id)));
    app.client.end_session(&session.id).await.expect("an end");
    let refused = app.client.configure_session(&session.id, &model(Some("x"))).await.expect_err("it has ended");
    assert_eq!(refused.status(), Some(400), "{refused}");
    assert!(refused.to_string().contains("Session is ended"), "{refused}");
}
