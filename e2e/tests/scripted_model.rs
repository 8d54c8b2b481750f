//! The scripted model over real sockets, asked by a plain HTTP client.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use ash_e2e::model::{Cut, Reply, RequestKind, Script, ScriptedModel};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::{Request, Response, StatusCode, body::Incoming};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};

/// Longest that any of these tests waits for something that must come.
const DEADLINE: Duration = Duration::from_secs(20);

async fn connect(model: &ScriptedModel) -> SendRequest<Full<Bytes>> {
    let stream = tokio::net::TcpStream::connect(model.address()).await.unwrap();
    let (sender, connection) = handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

fn post(path: &str, body: &Value) -> Request<Full<Bytes>> {
    Request::post(path)
        .header("Host", "model")
        .header("X-Api-Key", "canary")
        .header("X-Claude-Code-Session-Id", "session")
        .body(Full::new(Bytes::from(body.to_string())))
        .unwrap()
}

fn ask(messages: &Value) -> Value {
    json!({"model": "m", "stream": true, "tools": [{"name": "Bash"}], "messages": messages})
}

fn say(text: &str) -> Value {
    ask(&json!([{"role": "user", "content": text}]))
}

async fn respond(model: &ScriptedModel, body: &Value) -> Response<Incoming> {
    connect(model).await.send_request(post("/v1/messages?beta=true", body)).await.unwrap()
}

/// The data of all events that came, and whether the stream came to its end.
async fn events(response: Response<Incoming>) -> (Vec<Value>, bool) {
    let mut body = response.into_body();
    let mut bytes = Vec::new();
    let mut whole = true;
    while let Some(frame) = body.frame().await {
        match frame {
            Ok(frame) => bytes.extend_from_slice(frame.data_ref().unwrap()),
            Err(_) => whole = false,
        }
    }
    let text = String::from_utf8(bytes).unwrap();
    let events =
        text.lines().filter_map(|line| line.strip_prefix("data: ")).map(|data| serde_json::from_str(data).unwrap());
    (events.collect(), whole)
}

fn text_of(events: &[Value]) -> String {
    events.iter().filter_map(|event| event["delta"]["text"].as_str()).collect()
}

#[tokio::test]
async fn a_text_streams_as_a_whole_message() {
    let model = ScriptedModel::start(Script::directives()).unwrap();
    let response = respond(&model, &say("[[think: hm]] [[text: Hello there]]")).await;
    assert_eq!(response.status(), StatusCode::OK);
    assert!(response.headers()["content-type"].to_str().unwrap().starts_with("text/event-stream"));
    let (events, whole) = events(response).await;
    assert!(whole);
    let kinds: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    assert_eq!((kinds[0], kinds[1], kinds.last()), ("message_start", "ping", Some(&"message_stop")));
    assert_eq!(text_of(&events), "Hello there");
    assert_eq!(events[events.len() - 2]["delta"]["stop_reason"], "end_turn");

    let recorded = model.wait_for("the end", DEADLINE, |request| request.said.finished).await.unwrap();
    assert_eq!((recorded.api_key(), recorded.path.as_str()), (Some("canary"), "/v1/messages?beta=true"));
    assert_eq!((recorded.said.text.as_str(), recorded.said.thinking.as_str()), ("Hello there", "hm"));
    assert_eq!(recorded.json()["model"], "m");
}

#[tokio::test]
async fn a_tool_call_goes_on_after_its_result() {
    let model = ScriptedModel::start(Script::directives()).unwrap();
    let text = r#"[[tool: Bash {"command":"echo hi"}]] [[text: it said]] [[result]]"#;
    let (first, _) = events(respond(&model, &say(text)).await).await;
    let input: String = first.iter().filter_map(|event| event["delta"]["partial_json"].as_str()).collect();
    assert_eq!(serde_json::from_str::<Value>(&input).unwrap(), json!({"command": "echo hi"}));
    assert_eq!(first[first.len() - 2]["delta"]["stop_reason"], "tool_use");
    let id = &model.requests()[0].said.tools[0].id;
    let history = ask(&json!([
        {"role": "user", "content": text},
        {"role": "assistant", "content": [{"type": "tool_use", "id": id, "name": "Bash", "input": {}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": id, "content": "hi"}]},
    ]));
    let (second, _) = events(respond(&model, &history).await).await;
    assert_eq!(text_of(&second), "it saidhi");
}

#[tokio::test]
async fn a_queue_is_for_turns_only() {
    let model =
        ScriptedModel::start(Script::queue([Reply::new().text("one"), Reply::error(429).retry_after(7)])).unwrap();
    let helper = json!({"model": "small", "messages": [{"role": "user", "content": "[[error: 500]] title?"}]});
    let response = respond(&model, &helper).await;
    assert_eq!(response.status(), StatusCode::OK);
    let message: Value = serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap();
    assert_eq!(message["stop_reason"], "end_turn");

    assert_eq!(text_of(&events(respond(&model, &say("x")).await).await.0), "one");
    let busy = respond(&model, &say("x")).await;
    assert_eq!((busy.status(), busy.headers()["retry-after"].to_str().unwrap()), (StatusCode::TOO_MANY_REQUESTS, "7"));
    let error: Value = serde_json::from_slice(&busy.into_body().collect().await.unwrap().to_bytes()).unwrap();
    assert_eq!((&error["type"], &error["error"]["type"]), (&json!("error"), &json!("rate_limit_error")));

    model.push(Reply::new().text("pushed"));
    assert_eq!(text_of(&events(respond(&model, &say("x")).await).await.0), "pushed");
    assert_eq!(text_of(&events(respond(&model, &say("x")).await).await.0), "You said: x");
    assert_eq!((model.requests().len(), model.all_requests().len(), model.turn_requests()), (4, 5, 4));
    assert_eq!(model.all_requests()[0].kind, RequestKind::Helper);
}

#[tokio::test]
async fn a_closure_sees_the_request() {
    let script = Script::answer(|request| Reply::new().text(format!("{} {}", request.model, request.last_text())));
    let model = ScriptedModel::start(script).unwrap();
    assert_eq!(text_of(&events(respond(&model, &say("x")).await).await.0), "m x");
}

#[tokio::test]
async fn errors_strike_as_often_as_told() {
    let model = ScriptedModel::start(Script::directives()).unwrap();
    let mut statuses = Vec::new();
    for _ in 0..3 {
        statuses.push(respond(&model, &say("[[error: 529 x2]] [[text: ok]]")).await.status().as_u16());
    }
    assert_eq!(statuses, [529, 529, 200]);
    for status in [400, 401, 429, 500] {
        assert_eq!(respond(&model, &say(&format!("[[error: {status}]]"))).await.status().as_u16(), status);
    }
    assert_eq!(respond(&model, &say("[[burst: many]]")).await.status(), StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn a_cut_arrives_after_exactly_its_deltas() {
    let model = ScriptedModel::start(Script::directives()).unwrap();
    let text = "[[burst: 3000]] [[cut: 2500 x1]]";
    let (cut, whole) = events(respond(&model, &say(text)).await).await;
    let deltas = cut.iter().filter(|event| event["type"] == "content_block_delta").count();
    assert_eq!((deltas, whole), (2500, false));
    let said = model.requests()[0].said.clone();
    assert_eq!((said.text, said.finished), (text_of(&cut), false));
    let (again, whole) = events(respond(&model, &say(text)).await).await;
    assert!(whole && text_of(&again).ends_with(" 2999 "));
}

#[tokio::test]
async fn a_connection_can_end_with_a_reset_or_before_an_answer() {
    let model = ScriptedModel::start(Script::directives()).unwrap();
    let (_, whole) = events(respond(&model, &say("[[burst: 9]] [[cut: 5 reset]]")).await).await;
    assert!(!whole);
    for text in ["[[cut: before]]", "[[cut: before reset]]"] {
        let mut connection = connect(&model).await;
        assert!(connection.send_request(post("/v1/messages", &say(text))).await.is_err());
    }
    let queued = ScriptedModel::start(Script::queue([Reply::new().burst(9).cut(0, Cut::Close)])).unwrap();
    let (events, whole) = events(respond(&queued, &say("x")).await).await;
    assert!(!whole && events.last().unwrap()["type"] == "content_block_start");
}

#[tokio::test]
async fn the_small_endpoints_answer() {
    let model = ScriptedModel::start(Script::directives().expect_api_key("canary")).unwrap();
    let mut connection = connect(&model).await;
    let hello = Request::head("/api/hello").header("Host", "model").body(Full::default()).unwrap();
    assert_eq!(connection.send_request(hello).await.unwrap().status(), StatusCode::OK);

    let counted = connection.send_request(post("/v1/messages/count_tokens", &say("x"))).await.unwrap();
    let counted: Value = serde_json::from_slice(&counted.into_body().collect().await.unwrap().to_bytes()).unwrap();
    assert!(counted["input_tokens"].as_u64().unwrap() > 0);

    let unknown = connection.send_request(post("/v1/files", &json!({}))).await.unwrap();
    assert_eq!(unknown.status(), StatusCode::NOT_FOUND);
    let error: Value = serde_json::from_slice(&unknown.into_body().collect().await.unwrap().to_bytes()).unwrap();
    assert_eq!(error["error"]["type"], "not_found_error");

    let bad = connection.send_request(post("/v1/messages", &json!({"model": "m"}))).await.unwrap();
    assert_eq!(bad.status(), StatusCode::BAD_REQUEST);
    drop(bad.into_body().collect().await);
    let stranger =
        Request::post("/v1/messages").header("Host", "model").body(Full::new(Bytes::from(say("x").to_string())));
    assert_eq!(connection.send_request(stranger.unwrap()).await.unwrap().status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn waiting_ends_with_the_request_or_with_what_was_missed() {
    let model = ScriptedModel::start(Script::directives()).unwrap();
    let missed = model.wait_for_requests(1, Duration::from_millis(1)).await.unwrap_err().to_string();
    assert!(missed.contains("request 1"), "{missed}");
    let body = say("x");
    let (waited, _) = tokio::join!(model.wait_for_requests(1, DEADLINE), respond(&model, &body));
    assert_eq!(waited.unwrap().len(), 1);
}

#[tokio::test]
async fn a_dropped_model_is_gone_and_its_address_free() {
    let model = ScriptedModel::start(Script::directives()).unwrap();
    let address = model.address();
    let response = respond(&model, &say("[[text: a]] [[delay: 600s]]")).await;
    drop(model);
    assert!(!events(response).await.1);
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
    let again = ScriptedModel::start_on(address, Script::directives()).unwrap();
    assert_eq!(text_of(&events(respond(&again, &say("x")).await).await.0), "You said: x");
}

#[tokio::test]
async fn the_program_listens_until_it_is_told_to_end() {
    let folder = tempfile::tempdir().unwrap();
    let port_file = folder.path().join("port");
    let mut program = tokio::process::Command::new(env!("CARGO_BIN_EXE_scripted-model"))
        .arg("--port-file")
        .arg(&port_file)
        .stdout(std::process::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut lines = tokio::io::BufReader::new(program.stdout.take().unwrap());
    let mut line = String::new();
    tokio::time::timeout(DEADLINE, tokio::io::AsyncBufReadExt::read_line(&mut lines, &mut line))
        .await
        .unwrap()
        .unwrap();
    let port = std::fs::read_to_string(&port_file).unwrap();
    assert_eq!(line.trim(), format!("http://127.0.0.1:{}", port.trim()));
    let pid = program.id().unwrap().to_string();
    assert!(std::process::Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    assert!(tokio::time::timeout(DEADLINE, program.wait()).await.unwrap().unwrap().success());
}
