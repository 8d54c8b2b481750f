//! Conversations of the real Claude Code, in real sandboxes, before the scripted model.

use ash_client::{Event, Message, Session, StreamOptions};
use ash_e2e::{
    harness::{DEADLINE, TestApp, Turn, counted, eventually},
    http::send,
};
use bytes::Bytes;
use http_body_util::Full;
use hyper::{Request, Response};
use serde_json::{Value, json};

/// A tool call that lasts until the test creates the file `go` in the workspace.
const WAITS_FOR_GO: &str =
    r#"[[text: I wait.]] [[tool: Bash {"command":"until [ -e go ]; do sleep 0.02; done; rm go; echo went"}]]"#;

fn go(app: &TestApp, session: &Session) {
    std::fs::write(app.session_folder(&session.id).join("workspace/go"), "").expect("a file in the workspace");
}

/// Sends a message as no client method does: with these headers.
async fn post(app: &TestApp, session: &Session, body: &Value, headers: &[(&str, &str)]) -> Response<Bytes> {
    let mut request = Request::post(format!("/api/sessions/{}/messages", session.id))
        .header("host", app.address().to_string())
        .header("authorization", format!("Bearer {}", app.api_key()))
        .header("content-type", "application/json");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::new(Bytes::from(body.to_string()))).expect("a request");
    send(app.address(), request).await.expect("an answer")
}

fn text_of(response: &Response<Bytes>) -> String {
    String::from_utf8(response.body().to_vec()).expect("an answer is text")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_conversation_with_a_tool() {
    let app = TestApp::start().await;
    let session = app.session().await;
    let turn = app.say(&session, "[[text: one two three]]").await;
    assert_eq!(turn.deltas(), "one two three");
    assert_eq!(turn.result().as_deref(), Some("one two three"));
    assert_eq!((turn.names().first(), turn.names().last()), (Some(&"session_start"), Some(&"done")));

    let turn =
        app.say(&session, r#"[[tool: Bash {"command":"echo from-the-sandbox > note; cat note"}]] [[result]]"#).await;
    assert!(turn.names().contains(&"tool_use") && turn.names().contains(&"tool_result"), "{:?}", turn.names());
    assert!(turn.result().is_some_and(|text| text.contains("from-the-sandbox")), "{:?}", turn.result());

    let turn = app.say(&session, "[[count]]").await;
    assert_eq!(turn.result().as_deref(), Some("3"));
    let ended = app.client.end_session(&session.id).await.expect("an end");
    assert_eq!(ended.status, "ended");
    let refused = app.client.send_message(&session.id, &Message::text("more")).await.expect_err("it has ended");
    assert_eq!(refused.status(), Some(400), "{refused}");
    assert!(refused.to_string().contains("Session is ended"), "{refused}");
    let session = app.client.session(&session.id).await.expect("its history is kept");
    assert_eq!(session.status, "ended");
    let (status, history) = app.request("GET", &format!("/api/sessions/{}/messages", session.id), None).await;
    assert_eq!(status, 200);
    assert!(history.to_string().contains("from-the-sandbox"), "{history}");
}

#[tokio::test(flavor = "multi_thread")]
async fn fifty_turns_in_one_session() {
    let app = TestApp::start().await;
    let session = app.session().await;
    let mut said = Vec::new();
    for number in 1..=50 {
        let text = format!("Turn {number}: [[count]]");
        let turn = app.say(&session, &text).await;
        said.push(text);
        assert_eq!(turn.result(), Some(number.to_string()));
        assert!(!turn.names().contains(&"claude_restarted"), "turn {number}");
    }
    said.push("[[history]]".to_owned());
    let history = app.say(&session, "[[history]]").await.result().expect("a result");
    assert_eq!(serde_json::from_str::<Vec<String>>(&history).expect("a list of texts"), said);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_sessions_side_by_side() {
    let app = TestApp::builder().argument("--warm=2").start().await;
    let (one, other) = (app.session().await, app.session_of("simple").await);
    let talk = async |session: &Session, name: &str| {
        for number in 1..=5 {
            let text = format!(
                r#"{name} {number} [[tool: Bash {{"command":"echo {name} >> note; sort -u note"}}]] [[result]]"#
            );
            let turn = app.say(session, &text).await;
            assert_eq!(turn.result().as_deref().map(str::trim), Some(name));
        }
        app.say(session, "[[history]]").await.result().expect("a result")
    };
    let (left, right) = tokio::join!(talk(&one, "left"), talk(&other, "right"));
    assert!(left.contains("left 5") && !left.contains("right"), "{left}");
    assert!(right.contains("right 5") && !right.contains("left"), "{right}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_interrupt_ends_the_turn_and_nothing_else() {
    let app = TestApp::start().await;
    let session = app.session().await;
    for text in [WAITS_FOR_GO, "[[text: never to its end]] [[delay: 600s]] [[text: never]]"] {
        let (mut stream, mut turn) =
            (app.client.send_message(&session.id, &Message::text(text)).await.expect("a stream"), Turn::default());
        turn.read_until(&mut stream, "text_delta").await;
        app.client.interrupt(&session.id).await.expect("an interrupt");
        turn.read_rest(stream).await;
        let result = turn.messages("result").pop().expect("a result");
        assert_eq!(result["subtype"], "error_during_execution", "{result}");
        assert!(turn.error().is_some(), "{:?}", turn.names());
        assert_eq!(turn.names().last(), Some(&"done"));
        assert!(!turn.deltas().ends_with(" never"));

        let next = app.say(&session, "[[text: and on]]").await;
        assert_eq!((next.result().as_deref(), next.error()), (Some("and on"), None));
        assert!(!next.names().contains(&"claude_restarted"));
    }
    let history = app.say(&session, "[[history]]").await.result().expect("a result");
    assert!(history.contains("never to its end") && history.contains("and on"), "{history}");
    // Nothing runs: fine, and nothing happens.
    app.client.interrupt(&session.id).await.expect("an interrupt");
    assert_eq!(app.say(&session, "[[text: still]]").await.result().as_deref(), Some("still"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_message_during_a_turn_is_refused_and_loses_nothing() {
    let app = TestApp::start().await;
    let session = app.session().await;
    let message = Message::text(format!("{WAITS_FOR_GO} [[result]]"));
    let mut stream = app.client.send_message(&session.id, &message).await.expect("a stream");
    let mut turn = Turn::default();
    turn.read_until(&mut stream, "tool_use").await;
    let refused = app.client.send_message(&session.id, &Message::text("me too")).await.expect_err("a turn runs");
    assert_eq!(refused.status(), Some(409), "{refused}");
    go(&app, &session);
    turn.read_rest(stream).await;
    assert_eq!(turn.result().as_deref().map(str::trim), Some("went"));
    let history = app.say(&session, "[[history]]").await.result().expect("a result");
    assert!(!history.contains("me too"), "{history}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_goes_on_without_its_client_and_is_replayed() {
    let app = TestApp::start().await;
    let session = app.session().await;
    let message = Message::text(format!("{WAITS_FOR_GO} [[text: and then I say more]]"));
    let mut stream = app.client.send_message(&session.id, &message).await.expect("a stream");
    let mut seen = Turn::default();
    seen.read_until(&mut stream, "tool_use").await;
    let position = stream.position().expect("a position");
    drop(stream);

    // One that joins during the turn, from where the first one left.
    let options = StreamOptions { include_partial_messages: true, ..StreamOptions::default() };
    let joined = app.client.stream(&session.id, Some(&position), options).await.expect("a stream");
    go(&app, &session);
    let joined = Turn::read(joined).await;
    assert_eq!(joined.result().as_deref(), Some("and then I say more"));
    assert_eq!(joined.names().last(), Some(&"done"));

    // One that comes after the turn, and one that saw nothing.
    let late = app.client.stream(&session.id, Some(&position), options).await.expect("a stream");
    assert_eq!(Turn::read(late).await.frames, joined.frames);
    let all = app.client.stream(&session.id, Some("0"), options).await.expect("a stream");
    let expected: Vec<_> = seen.frames.into_iter().chain(joined.frames.into_iter().skip(1)).collect();
    assert_eq!(Turn::read(all).await.frames, expected);

    // A client that nobody follows: the turn ends all the same.
    drop(app.client.send_message(&session.id, &Message::text("[[text: alone]]")).await.expect("a stream"));
    let next = eventually("the turn ends", async || {
        let sent = app.client.send_message(&session.id, &Message::text("[[history]]")).await;
        sent.inspect_err(|error| assert_eq!(error.status(), Some(409), "{error}")).ok()
    })
    .await;
    assert!(Turn::read(next).await.result().expect("a result").contains("alone"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_stream_has_in_it() {
    let app = TestApp::start().await;
    let session = app.session().await;

    let turn = app.say(&session, "[[burst: 2000]]").await;
    let expected = counted(2000);
    assert_eq!(turn.deltas().trim_end(), expected.trim_end());
    let deltas = turn.events().iter().filter(|event| matches!(event, Event::TextDelta(_))).count();
    assert_eq!(deltas, 2000);
    assert_eq!(turn.result().as_deref().map(str::trim_end), Some(expected.trim_end()));

    let turn = app.say(&session, "[[think: let me see]] [[text: I see]]").await;
    let thought: String = turn
        .events()
        .into_iter()
        .filter_map(|event| if let Event::ThinkingDelta(text) = event { Some(text) } else { None })
        .collect();
    assert!(thought.starts_with("let me see"), "{thought}");
    assert_eq!(turn.result().as_deref(), Some("I see"));

    let message = Message { include_partial_messages: false, ..Message::text("[[text: no partials]]") };
    let turn = app.send(&session, &message).await;
    assert!(!turn.names().contains(&"text_delta"), "{:?}", turn.names());
    assert!(turn.messages("stream_event").is_empty());
    assert_eq!(turn.result().as_deref(), Some("no partials"));
    // The ids are the same for one who has them.
    let id = turn.frames[1].id.clone().expect("an id");
    let options = StreamOptions { include_partial_messages: true, ..StreamOptions::default() };
    let with = Turn::read(app.client.stream(&session.id, Some(&id), options).await.expect("a stream")).await;
    assert!(with.names().contains(&"text_delta"));
    for frame in turn.frames.iter().skip(2) {
        assert!(with.frames.contains(frame), "{frame:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn one_answer_of_json_and_repeated_messages() {
    let app = TestApp::start().await;
    let session = app.session().await;

    let body = json!({ "content": "[[text: in one piece]]" });
    let response = post(&app, &session, &body, &[("accept", "application/json")]).await;
    assert_eq!(response.status(), 200);
    let answer: Value = serde_json::from_slice(response.body()).expect("JSON");
    assert_eq!((&answer["result"], &answer["isError"]), (&json!("in one piece"), &json!(false)), "{answer}");
    let body = json!({ "content": "[[error: 400]]" });
    let response = post(&app, &session, &body, &[("accept", "application/json")]).await;
    let answer: Value = serde_json::from_slice(response.body()).expect("JSON");
    assert_eq!((response.status().as_u16(), &answer["isError"]), (200, &json!(true)), "{answer}");

    // Twice at the same time, and again afterwards: one turn.
    let before = app.model.turn_requests();
    let body = json!({ "content": format!("{WAITS_FOR_GO} [[text: once]]") });
    let key = [("idempotency-key", "the-same")];
    let first = post(&app, &session, &body, &key);
    let second = async {
        app.model.wait_for_requests(before + 1, DEADLINE).await.expect("the turn begins");
        let second = post(&app, &session, &body, &key);
        let go = async { go(&app, &session) };
        tokio::join!(second, go).0
    };
    let (first, second) = tokio::join!(first, second);
    assert_eq!((first.status().as_u16(), second.status().as_u16()), (200, 200), "{}", text_of(&second));
    assert_eq!(text_of(&first), text_of(&second));
    let again = post(&app, &session, &body, &key).await;
    assert_eq!(text_of(&again), text_of(&first));
    let with_json = [("idempotency-key", "the-same"), ("accept", "application/json")];
    let again: Value = serde_json::from_slice(post(&app, &session, &body, &with_json).await.body()).expect("JSON");
    assert_eq!(again["result"], "once");
    assert_eq!(app.model.turn_requests() - before, 2, "one turn of two model calls");
    assert_eq!(app.say(&session, "[[count]]").await.result().as_deref(), Some("4"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_folder_speaks_to_the_model() {
    let app = TestApp::start().await;
    app.deploy("speaks", &[("CLAUDE.md", "You are the agent of the canary-of-the-folder.\n")]).await;
    let session = app.session_of("speaks").await;
    assert_eq!(app.say(&session, "[[text: yes]]").await.error(), None);
    let request = app.last_request();
    assert!(request.to_string().contains("canary-of-the-folder"), "{request}");
    // Nothing of the warming is in it.
    assert!(!request.to_string().contains("rehearsal"), "{request}");
}
