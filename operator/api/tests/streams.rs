//! Messages and streams: what a client sees, frame by frame, over the router and over real sockets.
#![allow(clippy::unwrap_used)]

mod support;

use std::{net::SocketAddr, time::Duration};

use ash_api::{ApiConfig, ServeLimits, serve};
use ash_core::{
    Epoch,
    id::SessionId,
    opening::{Opening, OpeningReason},
    ports::StoreError,
    session::SessionState,
};
use axum::body::Body;
use http::Request;
use http_body_util::BodyExt as _;
use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpSocket, TcpStream},
    sync::oneshot,
    task::JoinHandle,
    time::timeout,
};
use tower::ServiceExt as _;

use support::{Answer, KEY, Server, assistant, events, ids, partial, request, result};

const DEADLINE: Duration = Duration::from_secs(20);

async fn turn_begins(server: &Server) {
    let mut changes = server.store.changed.subscribe();
    let begun = changes.wait_for(|_| !server.runner.messages.lock().unwrap().is_empty());
    timeout(DEADLINE, begun).await.unwrap().unwrap();
}

/// Sends a message and writes what comes of it.
async fn turn(server: &Server, session: SessionId, request: Request<Body>) -> Answer {
    server.runner.messages.lock().unwrap().clear();
    let write = async {
        turn_begins(server).await;
        server.store.write(session, [partial("a"), partial("b"), assistant("ab"), result("ab")]);
    };
    timeout(DEADLINE, async { tokio::join!(server.send(request), write).0 }).await.unwrap()
}

fn message(session: SessionId, body: &str) -> Request<Body> {
    request("POST", &format!("/api/sessions/{session}/messages"), body)
}

#[tokio::test]
async fn a_turn_streams_from_its_start_to_its_done() {
    let server = Server::new().await;
    let id = server.session().await;
    let answer = turn(&server, id, message(id, r#"{"content":"hi","includePartialMessages":true}"#)).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.headers["content-type"], "text/event-stream");
    assert_eq!(answer.headers["cache-control"], "no-cache");
    assert_eq!(answer.headers["x-accel-buffering"], "no");
    assert!(answer.headers.contains_key("x-request-id"));
    let text = answer.text();
    let start = format!("event: session_start\ndata: {{\"sessionId\":\"{id}\"");
    assert!(text.starts_with(&start), "{text}");
    let expected = [
        "session_start",
        "text_delta",
        "message",
        "text_delta",
        "message",
        "message",
        "turn_complete",
        "message",
        "done",
    ];
    assert_eq!(events(&text), expected);
    assert_eq!(ids(&text).len(), expected.len() - 1);
    assert!(text.contains("event: turn_complete\ndata: {\"numTurns\":1,\"result\":\"ab\"}"));

    let without = turn(&server, id, message(id, r#"{"content":"hi"}"#)).await.text();
    assert_eq!(events(&without), ["session_start", "message", "turn_complete", "message", "done"]);
    assert_eq!(server.metric("ash_api_open_streams").await, 0);
    assert_eq!(server.metric("ash_api_streams_total{end=\"Complete\"}").await, 2);
    assert_eq!(server.metric("ash_api_stream_frames_total").await, 8 + 4);
}

#[tokio::test]
async fn the_start_comes_before_anything_else_does() {
    let server = Server::new().await;
    let id = server.session().await;
    let response = server.router.clone().oneshot(message(id, r#"{"content":"hi"}"#)).await.unwrap();
    let mut body = response.into_body();
    let first = timeout(DEADLINE, body.frame()).await.unwrap().unwrap().unwrap().into_data().unwrap();
    assert!(first.starts_with(b"event: session_start"));
    drop(body);
    assert_eq!(server.metric("ash_api_streams_total{end=\"Abandoned\"}").await, 1);
    // Its turn goes on: another message has to wait for it.
    server.send(message(id, r#"{"content":"hi"}"#)).await.error(409);
}

#[tokio::test]
async fn an_answer_in_one_piece() {
    let server = Server::new().await;
    let id = server.session().await;
    let mut request = message(id, r#"{"content":"hi"}"#);
    request.headers_mut().insert("accept", "application/json".parse().unwrap());
    let answer = turn(&server, id, request).await;
    assert_eq!(answer.headers["content-type"], "application/json");
    let body = answer.json();
    assert_eq!((&body["result"], &body["numTurns"], &body["isError"]), (&json!("ab"), &json!(1), &json!(false)));
    assert_eq!((&body["sessionId"], &body["error"]), (&json!(id), &json!(null)));
    assert_eq!((&body["usage"]["input_tokens"], &body["totalCostUsd"]), (&json!(3), &json!(0.25)));
}

#[tokio::test]
async fn a_repeat_joins_its_turn() {
    let server = Server::new().await;
    let id = server.session().await;
    let keyed = || {
        let mut request = message(id, r#"{"content":"hi"}"#);
        request.headers_mut().insert("idempotency-key", "once".parse().unwrap());
        request
    };
    let first = turn(&server, id, keyed()).await.text();
    let second = timeout(DEADLINE, server.send(keyed())).await.unwrap().text();
    assert_eq!(first, second);
    assert_eq!(server.runner.messages.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn messages_that_cannot_be_are_refused_before_they_are_sent() {
    let server = Server::new().await;
    let id = server.session().await;
    for (body, words) in [
        ("", "content"),
        ("{", "JSON"),
        ("\u{1}", "JSON"),
        (r#"{"content":[]}"#, "content"),
        (r#"{"content":"x","queue":true}"#, "queue is not valid: this server keeps no queue"),
        (r#"{"content":"x","retries":1}"#, "retries"),
        (r#"{"content":"x","effort":"x"}"#, "effort"),
    ] {
        let error = server.send(message(id, body)).await.error(400);
        assert!(error.contains(words), "{error}");
    }
    let large = format!(r#"{{"content":"{}"}}"#, "x".repeat(50_000_000));
    server.send(message(id, &large)).await.error(413);
    assert_eq!(server.metric("ash_api_bodies_refused_total").await, 1);
    server.send(message(SessionId::new(), r#"{"content":"x"}"#)).await.error(404);
    assert!(server.runner.messages.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_stream_goes_on_after_every_frame() {
    let server = Server::new().await;
    let id = server.session().await;
    let stream = |query: &str| request("GET", &format!("/api/sessions/{id}/stream?{query}"), "");
    let nothing = server.send(stream("")).await.text();
    assert_eq!(events(&nothing), ["session_start", "done"]);
    assert!(ids(&nothing).is_empty());
    turn(&server, id, message(id, r#"{"content":"hi"}"#)).await;
    let whole = server.send(stream("after=0&includePartialMessages=true")).await.text();
    let all = ids(&whole);
    assert_eq!(all.len(), 8);
    for (index, seen) in all.iter().enumerate() {
        let text = server.send(stream(&format!("after={seen}&includePartialMessages=1"))).await.text();
        assert_eq!(ids(&text), &all[index + 1..], "{seen}");
        assert_eq!(events(&text).last(), Some(&"done"));
        let mut by_header = stream("after=0&includePartialMessages=true");
        by_header.headers_mut().insert("last-event-id", seen.parse().unwrap());
        assert_eq!(server.send(by_header).await.text(), text);
    }
    // One from now on says where that is, so that a client which is cut before its first frame can come back to it.
    let now = server.send(stream("")).await.headers["ash-stream-after"].to_str().unwrap().to_owned();
    assert!(all.last().unwrap().starts_with(&format!("{now}.")), "{now}");
    assert_eq!(server.send(stream("after=12.1")).await.headers["ash-stream-after"], "12.1");
    for query in ["after=x", "after=1.", "follow=perhaps", "includePartialMessages=2"] {
        server.send(stream(query)).await.error(400);
    }
    let mut bad = stream("");
    bad.headers_mut().insert("last-event-id", "nonsense".parse().unwrap());
    server.send(bad).await.error(400);
}

#[tokio::test]
async fn a_stream_goes_through_the_turn_in_progress() {
    let server = Server::new().await;
    let id = server.session().await;
    drop(server.router.clone().oneshot(message(id, r#"{"content":"hi"}"#)).await.unwrap());
    let response =
        server.router.clone().oneshot(request("GET", &format!("/api/sessions/{id}/stream"), "")).await.unwrap();
    server.store.write(id, [assistant("x"), result("x")]);
    let text = timeout(DEADLINE, response.into_body().collect()).await.unwrap().unwrap().to_bytes();
    let text = String::from_utf8(text.to_vec()).unwrap();
    assert_eq!(events(&text), ["session_start", "message", "turn_complete", "message", "done"]);
}

#[tokio::test]
async fn a_stream_that_follows_goes_on_until_its_session_ends() {
    let server = Server::new().await;
    let id = server.session().await;
    let path = format!("/api/sessions/{id}/stream?follow=true");
    let response = server.router.clone().oneshot(request("GET", &path, "")).await.unwrap();
    let read = tokio::spawn(response.into_body().collect());
    turn(&server, id, message(id, r#"{"content":"hi"}"#)).await;
    turn(&server, id, message(id, r#"{"content":"hi"}"#)).await;
    server.store.update(id, |session| session.state = SessionState::Ended);
    let text = timeout(DEADLINE, read).await.unwrap().unwrap().unwrap().to_bytes();
    let text = String::from_utf8(text.to_vec()).unwrap();
    assert_eq!(events(&text).iter().filter(|event| **event == "done").count(), 2);
}

#[tokio::test]
async fn an_interrupted_turn_says_so_and_ends() {
    let server = Server::new().await;
    let id = server.session().await;
    let response = server.router.clone().oneshot(message(id, r#"{"content":"hi"}"#)).await.unwrap();
    server.store.write(id, [assistant("lost"), assistant("lost too")]);
    let turn = server.runner.messages.lock().unwrap()[0].turn;
    let opening = Opening {
        reason: OpeningReason::Lost,
        last_committed: Epoch(1).sequence(3),
        interrupted: Some(turn.0),
        message: Some("The sandbox was lost.".to_owned()),
        recovered: None,
        sandbox: None,
    };
    let mut body = response.into_body();
    let mut text = String::new();
    let mut opened = false;
    while let Some(frame) = timeout(DEADLINE, body.frame()).await.unwrap() {
        text += std::str::from_utf8(&frame.unwrap().into_data().unwrap()).unwrap();
        if text.contains("lost too") && !opened {
            opened = true;
            server.store.write(id, [opening.entry(Epoch(2))]);
        }
    }
    assert_eq!(events(&text), ["session_start", "message", "message", "withdrawn", "error", "done"]);
    assert!(text.contains(r#"{"error":"The sandbox was lost."}"#));
}

#[tokio::test]
async fn a_log_that_cannot_be_read_cuts_the_stream() {
    let server = Server::new().await;
    let id = server.session().await;
    let response = server.router.clone().oneshot(message(id, r#"{"content":"hi"}"#)).await.unwrap();
    server.store.fail(StoreError::Unavailable("x".to_owned()));
    server.store.changed.send_modify(|changes| *changes += 1);
    assert!(timeout(DEADLINE, response.into_body().collect()).await.unwrap().is_err());
    assert_eq!(server.metric("ash_api_streams_total{end=\"Cut\"}").await, 1);
}

#[tokio::test(start_paused = true)]
async fn silence_is_filled_with_comments() {
    let server = Server::new().await;
    let id = server.session().await;
    let response = server.router.clone().oneshot(message(id, r#"{"content":"hi"}"#)).await.unwrap();
    let mut body = response.into_body();
    let mut next = async || body.frame().await.unwrap().unwrap().into_data().unwrap();
    next().await;
    let before = tokio::time::Instant::now();
    for _ in 0..3 {
        assert_eq!(&next().await[..], b": keep-alive\n\n");
    }
    assert_eq!(before.elapsed().as_secs(), 30);
    // Partials that this client does not want are silence too.
    server.store.write(id, [partial("x")]);
    assert_eq!(&next().await[..], b": keep-alive\n\n");
}

struct Listening {
    address: SocketAddr,
    stop: oneshot::Sender<()>,
    task: JoinHandle<()>,
}

async fn listen(server: &Server, limits: ServeLimits) -> Listening {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, stopped) = oneshot::channel();
    let (router, state) = (server.router.clone(), server.state.clone());
    let task = tokio::spawn(async move {
        serve(listener, router, &state, limits, async { drop(stopped.await) }).await;
    });
    Listening { address, stop, task }
}

fn head(method: &str, path: &str, body: &str) -> String {
    let length = body.len();
    format!(
        "{method} {path} HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\ncontent-length: {length}\r\n\r\n{body}"
    )
}

async fn read_until(stream: &mut TcpStream, end: &str) -> String {
    let mut text = String::new();
    let mut buffer = [0; 4096];
    while !text.contains(end) {
        let read = timeout(DEADLINE, stream.read(&mut buffer)).await.unwrap().unwrap();
        assert_ne!(read, 0, "closed after {text}");
        text += std::str::from_utf8(&buffer[..read]).unwrap();
    }
    text
}

#[tokio::test]
async fn a_connection_is_used_again() {
    let server = Server::new().await;
    let id = server.session().await;
    let listening = listen(&server, ServeLimits::default()).await;
    let mut client = TcpStream::connect(listening.address).await.unwrap();
    for _ in 0..2 {
        server.runner.messages.lock().unwrap().clear();
        let request = head("POST", &format!("/api/sessions/{id}/messages"), r#"{"content":"hi"}"#);
        client.write_all(request.as_bytes()).await.unwrap();
        let start = read_until(&mut client, "session_start").await;
        assert!(start.starts_with("HTTP/1.1 200"), "{start}");
        turn_begins(&server).await;
        server.store.write(id, [result("x")]);
        read_until(&mut client, "\r\n0\r\n\r\n").await;
    }
    assert_eq!(server.metric("ash_api_connections").await, 1);
    listening.stop.send(()).unwrap();
    timeout(DEADLINE, listening.task).await.unwrap().unwrap();
}

#[tokio::test]
async fn who_does_not_read_is_cut_off_and_hurts_nobody() {
    let server = Server::new().await;
    let (slow, quick) = (server.session().await, server.session().await);
    let limits = ServeLimits { write_timeout: Duration::from_millis(300), ..ServeLimits::default() };
    let listening = listen(&server, limits).await;
    let socket = TcpSocket::new_v4().unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    let mut stuck = socket.connect(listening.address).await.unwrap();
    let request = head("POST", &format!("/api/sessions/{slow}/messages"), r#"{"content":"hi"}"#);
    stuck.write_all(request.as_bytes()).await.unwrap();
    turn_begins(&server).await;
    let large = "x".repeat(1 << 20);
    server.store.write(slow, (0..32).map(|_| assistant(&large)));

    let cut_off = async {
        while server.metric("ash_api_connections_cut_off_total").await < 1 {
            // Others are listening meanwhile.
            server.runner.messages.lock().unwrap().clear();
            let mut client = TcpStream::connect(listening.address).await.unwrap();
            let request = head("POST", &format!("/api/sessions/{quick}/messages"), r#"{"content":"hi"}"#);
            client.write_all(request.as_bytes()).await.unwrap();
            turn_begins(&server).await;
            server.store.write(quick, [result("x")]);
            read_until(&mut client, "event: done").await;
        }
    };
    timeout(DEADLINE, cut_off).await.unwrap();
    // The turn went on: it ends, and whoever asks gets all of it.
    server.store.write(slow, [result("x")]);
    let whole = server.get(&format!("/api/sessions/{slow}/stream?after=0")).await.text();
    assert_eq!(events(&whole).len(), 1 + 32 + 3);
    drop(stuck);
}

#[tokio::test]
async fn a_body_that_is_too_long_is_told_so_over_a_socket() {
    let server = Server::new().await;
    let id = server.session().await;
    let listening = listen(&server, ServeLimits::default()).await;
    let mut client = TcpStream::connect(listening.address).await.unwrap();
    let length = 60_000_000;
    let request = format!(
        "POST /api/sessions/{id}/messages HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\ncontent-length: {length}\r\n\r\n"
    );
    client.write_all(request.as_bytes()).await.unwrap();
    client.write_all(&vec![b' '; length]).await.unwrap();
    let answer = read_until(&mut client, "statusCode").await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
    assert!(answer.contains("connection: close"), "{answer}");
}

#[tokio::test]
async fn connections_over_the_bound_wait() {
    let server = Server::new().await;
    let listening = listen(&server, ServeLimits { max_connections: 1, ..ServeLimits::default() }).await;
    let mut first = TcpStream::connect(listening.address).await.unwrap();
    first.write_all(head("GET", "/health", "").as_bytes()).await.unwrap();
    read_until(&mut first, "\"ok\"").await;
    let mut second = TcpStream::connect(listening.address).await.unwrap();
    second.write_all(head("GET", "/health", "").as_bytes()).await.unwrap();
    let waits = async {
        while server.metric("ash_api_connections_at_bound_total").await < 1 {
            tokio::task::yield_now().await;
        }
    };
    timeout(DEADLINE, waits).await.unwrap();
    drop(first);
    read_until(&mut second, "\"ok\"").await;
}

#[tokio::test]
async fn a_shutdown_lets_turns_end_and_followers_go() {
    let server = Server::with(ApiConfig::default()).await;
    let (busy, idle) = (server.session().await, server.session().await);
    let listening = listen(&server, ServeLimits::default()).await;
    let mut turn = TcpStream::connect(listening.address).await.unwrap();
    let request = head("POST", &format!("/api/sessions/{busy}/messages"), r#"{"content":"hi"}"#);
    turn.write_all(request.as_bytes()).await.unwrap();
    read_until(&mut turn, "session_start").await;
    let mut follower = TcpStream::connect(listening.address).await.unwrap();
    let request = head("GET", &format!("/api/sessions/{idle}/stream?follow=true"), "");
    follower.write_all(request.as_bytes()).await.unwrap();
    read_until(&mut follower, "session_start").await;
    listening.stop.send(()).unwrap();
    let mut rest = Vec::new();
    let _ = timeout(DEADLINE, follower.read_to_end(&mut rest)).await.unwrap();
    assert!(!rest.ends_with(b"0\r\n\r\n"), "the answer must not look complete");
    assert!(!listening.task.is_finished());
    server.store.write(busy, [result("x")]);
    read_until(&mut turn, "event: done").await;
    timeout(DEADLINE, listening.task).await.unwrap().unwrap();
}
