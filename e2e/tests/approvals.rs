//! Consent to tool calls: asked of the client, answered once, kept through a restart of the server.

use ash_client::{Behavior, CreateSession, Decision, Event, FrameStream, Message, PermissionMode, Session};
use ash_e2e::harness::{TestApp, Turn};
use serde_json::{Value, json, value::RawValue};

/// A permission request as a client sees it.
struct Asked {
    id: String,
    tool: String,
    input: Value,
}

/// An agent's session in which every tool call needs consent.
async fn asking_session(app: &TestApp) -> Session {
    app.deploy("asks", &[("CLAUDE.md", "You ask first.\n")]).await;
    let create = CreateSession {
        agent: "asks".to_owned(),
        permission_mode: Some(PermissionMode::Default),
        ..CreateSession::default()
    };
    app.client.create_session(&create).await.expect("a session")
}

/// Sends a message and reads its stream until a permission is asked for.
async fn ask(app: &TestApp, session: &Session, text: &str) -> (Asked, Turn, FrameStream) {
    let mut stream = app.client.send_message(&session.id, &Message::text(text)).await.expect("a stream");
    let mut turn = Turn::default();
    let event = turn.read_until(&mut stream, "permission_request").await;
    let Event::PermissionRequest { id, tool_name, input, expires_at } = event else { panic!("{event:?}") };
    assert!(expires_at.ends_with('Z'), "{expires_at}");
    (Asked { id, tool: tool_name, input }, turn, stream)
}

fn bash(command: &str) -> String {
    format!("[[tool: Bash {}]] [[result]]", json!({ "command": command }))
}

fn raw(value: &Value) -> Box<RawValue> {
    RawValue::from_string(value.to_string()).expect("JSON")
}

fn decision(behavior: Behavior) -> Decision {
    Decision { behavior, updated_input: None, answers: None, message: None }
}

fn resolutions(turn: &Turn) -> Vec<String> {
    let resolved =
        |event| if let Event::PermissionResolved { resolution, .. } = event { Some(resolution) } else { None };
    turn.events().into_iter().filter_map(resolved).collect()
}

async fn answer_status(app: &TestApp, session: &Session, id: &str, body: Value) -> (u16, Value) {
    app.request("POST", &format!("/api/sessions/{}/permissions/{id}", session.id), Some(body)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tool_call_waits_for_its_answer() {
    let app = TestApp::start().await;
    let session = asking_session(&app).await;
    let written = app.session_folder(&session.id).join("workspace/written");

    let (asked, mut turn, stream) = ask(&app, &session, &bash("echo yes > written; cat written")).await;
    assert_eq!((asked.tool.as_str(), &asked.input["command"]), ("Bash", &json!("echo yes > written; cat written")));
    assert!(!written.exists());
    app.client.answer_permission(&session.id, &asked.id, &decision(Behavior::Allow)).await.expect("the first answer");
    // The first one wins, whatever the second one says.
    let (status, error) = answer_status(&app, &session, &asked.id, json!({ "behavior": "deny" })).await;
    assert_eq!(status, 409, "{error}");
    turn.read_rest(stream).await;
    assert_eq!(resolutions(&turn), ["allowed"]);
    assert_eq!(turn.result().as_deref().map(str::trim), Some("yes"));
    let (status, error) = answer_status(&app, &session, &asked.id, json!({ "behavior": "allow" })).await;
    assert_eq!(status, 409, "{error}");

    let (asked, mut turn, stream) = ask(&app, &session, &bash("rm written")).await;
    let denial = Decision { message: Some("Leave it where it is.".to_owned()), ..decision(Behavior::Deny) };
    app.client.answer_permission(&session.id, &asked.id, &denial).await.expect("the first answer");
    turn.read_rest(stream).await;
    assert_eq!(resolutions(&turn), ["denied"]);
    assert!(turn.result().is_some_and(|text| text.contains("Leave it where it is.")), "{:?}", turn.result());
    assert!(written.exists());

    let (asked, mut turn, stream) = ask(&app, &session, &bash("touch this")).await;
    let other =
        Decision { updated_input: Some(raw(&json!({ "command": "echo instead" }))), ..decision(Behavior::Allow) };
    app.client.answer_permission(&session.id, &asked.id, &other).await.expect("the first answer");
    turn.read_rest(stream).await;
    assert_eq!(turn.result().as_deref().map(str::trim), Some("instead"));
    assert!(!written.with_file_name("this").exists());

    // Two calls in one message are asked one after the other.
    let text = format!(
        "[[tool: Bash {}]] [[and-tool: Bash {}]] [[text: both]]",
        json!({ "command": "echo a > first" }),
        json!({ "command": "echo b > second" })
    );
    let (first, mut turn, mut stream) = ask(&app, &session, &text).await;
    app.client.answer_permission(&session.id, &first.id, &decision(Behavior::Allow)).await.expect("the first answer");
    let Event::PermissionRequest { id: second, .. } = turn.read_until(&mut stream, "permission_request").await else {
        panic!("a permission request")
    };
    app.client.answer_permission(&session.id, &second, &decision(Behavior::Allow)).await.expect("the first answer");
    turn.read_rest(stream).await;
    assert_eq!((turn.result().as_deref(), turn.error()), (Some("both"), None));
    assert!(written.with_file_name("first").exists() && written.with_file_name("second").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_answer_is_refused() {
    let app = TestApp::start().await;
    let session = asking_session(&app).await;
    let (status, error) = answer_status(&app, &session, "no-such-request", json!({ "behavior": "allow" })).await;
    assert_eq!(status, 404, "{error}");

    let (asked, mut turn, stream) = ask(&app, &session, &bash("touch a")).await;
    let (status, error) = answer_status(&app, &session, "no-such-request", json!({ "behavior": "allow" })).await;
    assert_eq!(status, 404, "{error}");
    for body in [
        json!({}),
        json!({ "behavior": "perhaps" }),
        json!({ "behavior": "allow", "updatedInput": "x" }),
        json!({ "behavior": "deny", "answers": {} }),
    ] {
        let (status, error) = answer_status(&app, &session, &asked.id, body).await;
        assert_eq!(status, 400, "{error}");
    }
    // None of that was an answer. An interrupt withdraws the request.
    app.client.interrupt(&session.id).await.expect("an interrupt");
    turn.read_rest(stream).await;
    assert_eq!(resolutions(&turn), ["withdrawn"]);
    assert!(turn.error().is_some());
    let (status, error) = answer_status(&app, &session, &asked.id, json!({ "behavior": "allow" })).await;
    assert_eq!(status, 409, "{error}");
    assert_eq!(app.say(&session, "[[text: on]]").await.result().as_deref(), Some("on"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_agent_asks_a_question() {
    let app = TestApp::start().await;
    app.deploy("curious", &[("CLAUDE.md", "You ask.\n")]).await;
    // Questions are asked in every mode.
    for mode in [PermissionMode::BypassPermissions, PermissionMode::Default] {
        let create =
            CreateSession { agent: "curious".to_owned(), permission_mode: Some(mode), ..CreateSession::default() };
        let session = app.client.create_session(&create).await.expect("a session");
        let options = json!([{ "label": "Red", "description": "warm" }, { "label": "Blue", "description": "cold" }]);
        let question = json!({ "questions": [
            { "question": "Which colour?", "header": "Colour", "options": options, "multiSelect": false }
        ]});
        let text = format!("[[tool: AskUserQuestion {question}]] [[result]]");
        let (asked, mut turn, stream) = ask(&app, &session, &text).await;
        assert_eq!(asked.tool, "AskUserQuestion");
        assert_eq!(asked.input["questions"][0]["question"], "Which colour?");
        let answer = Decision { answers: Some(raw(&json!({ "Which colour?": "Blue" }))), ..decision(Behavior::Allow) };
        app.client.answer_permission(&session.id, &asked.id, &answer).await.expect("the first answer");
        turn.read_rest(stream).await;
        assert!(turn.result().is_some_and(|text| text.contains("Blue")), "{:?}", turn.result());
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_answers_is_denied() {
    let app = TestApp::builder().argument("--permission-timeout=300ms").start().await;
    let session = asking_session(&app).await;
    let (asked, mut turn, stream) = ask(&app, &session, &bash("touch late")).await;
    turn.read_rest(stream).await;
    assert_eq!(resolutions(&turn), ["expired"]);
    assert!(turn.result().is_some_and(|text| text.contains("Nobody answered")), "{:?}", turn.result());
    assert!(!app.session_folder(&session.id).join("workspace/late").exists());
    assert_eq!(app.metric("ash_runner_permissions_expired_total").await, 1);
    let (status, error) = answer_status(&app, &session, &asked.id, json!({ "behavior": "allow" })).await;
    assert_eq!(status, 409, "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_request_survives_a_killed_server() {
    let mut app = TestApp::start().await;
    let session = asking_session(&app).await;
    let (asked, mut turn, stream) = ask(&app, &session, &bash("echo after the restart > done; cat done")).await;
    app.kill();
    app.start_again().await;
    let (status, error) = answer_status(&app, &session, "no-such-request", json!({ "behavior": "allow" })).await;
    assert_eq!(status, 404, "{error}");
    app.client.answer_permission(&session.id, &asked.id, &decision(Behavior::Allow)).await.expect("the first answer");
    turn.read_rest(stream).await;
    assert_eq!(turn.result().as_deref().map(str::trim), Some("after the restart"));
    assert_eq!((resolutions(&turn), turn.error()), (vec!["allowed".to_owned()], None));
    let (status, error) = answer_status(&app, &session, &asked.id, json!({ "behavior": "deny" })).await;
    assert_eq!(status, 409, "{error}");

    // Killed once more.
    let (asked, mut turn, stream) = ask(&app, &session, &bash("echo again > done")).await;
    app.kill();
    app.start_again().await;
    let denial = Decision { message: Some("Not any more.".to_owned()), ..decision(Behavior::Deny) };
    app.client.answer_permission(&session.id, &asked.id, &denial).await.expect("the first answer");
    turn.read_rest(stream).await;
    assert!(turn.result().is_some_and(|text| text.contains("Not any more.")), "{:?}", turn.result());

    // Too late is too late: in a later turn, after one more restart, and after the session's end.
    let late = json!({ "behavior": "allow" });
    assert_eq!(app.say(&session, "[[text: on]]").await.result().as_deref(), Some("on"));
    assert_eq!(answer_status(&app, &session, &asked.id, late.clone()).await.0, 409);
    app.kill();
    app.start_again().await;
    assert_eq!(answer_status(&app, &session, &asked.id, late.clone()).await.0, 409);
    app.client.end_session(&session.id).await.expect("an end");
    assert_eq!(answer_status(&app, &session, &asked.id, late).await.0, 409);
    assert_eq!(answer_status(&app, &session, "no-such-request", json!({ "behavior": "allow" })).await.0, 404);
}
