//! Sandboxes that come over the network: whose a connection is, and what somebody without a token can do.

use std::net::SocketAddr;
use std::time::Duration;

use crate::support::{World, binding, body, limits, send, soon, text, upstream, world_with};
use ash_gateway::{EgressConfig, EgressPolicy, Limits, SandboxId};
use futures::FutureExt as _;
use http::{Request, Response};
use secrecy::ExposeSecret as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

const OTHER: SandboxId = SandboxId(Uuid::from_u128(43));

async fn served(limits: Limits) -> (World, SocketAddr) {
    let model = upstream(|_| async { Response::new(text("{}")) }.boxed()).await;
    let world = world_with(model, EgressConfig::default(), limits);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let gateway = world.gateway.clone();
    tokio::spawn(async move { gateway.serve_network(listener, CancellationToken::new()).await });
    (world, address)
}

fn token(world: &World, sandbox: SandboxId) -> String {
    world.gateway.token(sandbox).expose_secret().to_owned()
}

fn ask(token: &str) -> Request<crate::support::TestBody> {
    let request = Request::builder().method("POST").uri("/v1/messages").header("host", "x").header("x-api-key", token);
    request.body(text("{\"model\":\"m\",\"max_tokens\":1,\"messages\":[]}")).unwrap()
}

async fn status(address: SocketAddr, token: &str) -> u16 {
    send(address, ask(token)).await.status().as_u16()
}

#[tokio::test]
async fn a_token_says_whose_a_connection_is() {
    let (world, address) = served(limits()).await;
    let (own, other) = (token(&world, world.sandbox), token(&world, OTHER));
    assert_eq!(status(address, "nonsense").await, 401);
    assert_eq!(status(address, &own).await, 529, "nobody has told the gateway about it yet");
    world.gateway.register_unclaimed(world.sandbox).unwrap();
    let rehearsed = send(address, ask(&own)).await;
    assert_eq!(rehearsed.status(), 200);
    assert!(body(rehearsed).await.contains("message"), "the rehearsal's answer");
    world.gateway.bind(world.sandbox, binding(1, EgressPolicy::Model)).unwrap();
    assert_eq!(status(address, &own).await, 200);
    assert_eq!(status(address, &other).await, 529);

    // Once it is somebody's, it stays so.
    let stream = TcpStream::connect(address).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    for (token, expected) in [(&own, 200), (&other, 401), (&own, 200)] {
        let answer = soon(sender.send_request(ask(token))).await.unwrap();
        assert_eq!(answer.status(), expected);
        body(answer).await;
    }
    world.gateway.release(world.sandbox, ash_gateway::Epoch(1)).unwrap();
    assert_eq!(status(address, &own).await, 403);
}

async fn connect(address: SocketAddr, token: &str) -> String {
    use base64::Engine as _;
    let credentials = base64::engine::general_purpose::STANDARD.encode(format!("sandbox:{token}"));
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request =
        format!("CONNECT 10.0.0.1:443 HTTP/1.1\r\nHost: x\r\nProxy-Authorization: Basic {credentials}\r\n\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut head = [0; 64];
    let read = soon(stream.read(&mut head)).await.unwrap();
    String::from_utf8_lossy(&head[..read]).into_owned()
}

#[tokio::test]
async fn tunnels_need_the_token_too() {
    let (world, address) = served(limits()).await;
    world.gateway.bind(world.sandbox, binding(1, EgressPolicy::Public)).unwrap();
    assert!(connect(address, "nonsense").await.starts_with("HTTP/1.1 407"));
    assert!(connect(address, &token(&world, OTHER)).await.starts_with("HTTP/1.1 503"), "not known yet");
    let private = connect(address, &token(&world, world.sandbox)).await;
    assert!(private.starts_with("HTTP/1.1 403"), "{private}");
}

/// Reads to the end, which comes: some get an answer before it.
async fn is_closed(stream: &mut TcpStream) -> bool {
    let mut rest = Vec::new();
    let _ = soon(stream.read_to_end(&mut rest)).await;
    true
}

#[tokio::test]
async fn whoever_shows_no_token_takes_nothing_from_those_who_do() {
    let limits = Limits { unproven_of_address: 3, prove: Duration::from_millis(500), ..limits() };
    let (world, address) = served(limits).await;
    world.gateway.bind(world.sandbox, binding(1, EgressPolicy::Model)).unwrap();
    let own = token(&world, world.sandbox);

    // Connections with a token do not count among those without, however long they are open.
    let mut open = Vec::new();
    for _ in 0..5 {
        let stream = TcpStream::connect(address).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        assert_eq!(soon(sender.send_request(ask(&own))).await.unwrap().status(), 200);
        open.push(sender);
    }
    let mut silent = Vec::new();
    for sent in [&b""[..], b"POST /v1/messages HTTP/1.1\r\n", b"\0\0\0"] {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(sent).await.unwrap();
        silent.push(stream);
    }
    // One more of this address is closed at once; the silent ones when their time is over; then there is room again.
    for stream in &mut silent {
        assert!(is_closed(stream).await);
    }
    drop(silent);
    assert_eq!(status(address, &own).await, 200);
    for sender in &mut open {
        assert_eq!(soon(sender.send_request(ask(&own))).await.unwrap().status(), 200, "those with a token go on");
    }
}

#[tokio::test]
async fn an_address_has_few_connections_without_a_token() {
    let limits = Limits { unproven_of_address: 2, ..limits() };
    let (_world, address) = served(limits).await;
    let mut first = Vec::new();
    for _ in 0..2 {
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut byte = [0; 1];
        assert_eq!(soon(stream.read(&mut byte)).await.unwrap(), 1, "it is served");
        first.push(stream);
    }
    let mut third = TcpStream::connect(address).await.unwrap();
    assert!(is_closed(&mut third).await);
    drop(first);
    // The places come back as soon as the gateway has seen the ends.
    soon(async {
        loop {
            let mut again = TcpStream::connect(address).await.unwrap();
            let _ = again.write_all(b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n").await;
            if matches!(again.read_u8().await, Ok(b'H')) {
                return;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn a_sandbox_has_its_bound_of_connections() {
    let limits = Limits { connections: 2, ..limits() };
    let (world, address) = served(limits).await;
    world.gateway.bind(world.sandbox, binding(1, EgressPolicy::Model)).unwrap();
    world.gateway.bind(OTHER, binding(1, EgressPolicy::Model)).unwrap();
    let own = token(&world, world.sandbox);
    let mut open = Vec::new();
    for expected in [200, 200, 529] {
        let stream = TcpStream::connect(address).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        assert_eq!(soon(sender.send_request(ask(&own))).await.unwrap().status(), expected);
        open.push(sender);
    }
    assert_eq!(status(address, &token(&world, OTHER)).await, 200, "its neighbours are not touched");
}
