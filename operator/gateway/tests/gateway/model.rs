//! The model API over real sockets: streaming, errors, cuts, bounds, and who may ask what.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use crate::support::{KEY, TestBody, binding, body, limits, soon, text, until, upstream, world};
use ash_gateway::{BindError, ConfigError, Credential, EgressConfig, EgressPolicy, Epoch, SandboxId, UpstreamOverride};
use bytes::Bytes;
use futures::FutureExt as _;
use futures::channel::mpsc;
use futures::{SinkExt as _, StreamExt as _, stream};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::{Frame, Incoming};
use secrecy::{ExposeSecret as _, SecretString};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use uuid::Uuid;

const START: &str = "event: message_start\ndata: {\"type\":\"message_start\",\"message\":\
    {\"model\":\"claude-x\",\"usage\":{\"input_tokens\":11,\"output_tokens\":1}}}\n\n";
const END: &str = "event: message_delta\ndata: {\"type\":\"message_delta\",\"usage\":\
    {\"output_tokens\":22}}\n\n";

type Chunk = Result<Frame<Bytes>, std::io::Error>;

fn channel() -> (mpsc::Sender<Chunk>, TestBody) {
    let (sender, receiver) = mpsc::channel(0);
    (sender, BodyExt::boxed(StreamBody::new(Shared(Mutex::new(receiver)))))
}

/// `BoxBody` wants `Sync`, which a receiver is not.
struct Shared(Mutex<mpsc::Receiver<Chunk>>);

impl stream::Stream for Shared {
    type Item = Chunk;

    fn poll_next(
        self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Chunk>> {
        self.0.lock().unwrap().poll_next_unpin(context)
    }
}

#[allow(clippy::unnecessary_wraps)]
fn data(content: &str) -> Chunk {
    Ok(Frame::data(Bytes::from(content.to_owned())))
}

fn events(body: TestBody) -> Response<TestBody> {
    Response::builder()
        .header("content-type", "text/event-stream; charset=utf-8")
        .header("request-id", "req_1")
        .body(body)
        .unwrap()
}

async fn chunk(response: &mut Response<Incoming>) -> Option<Bytes> {
    let frame = soon(response.body_mut().frame()).await?;
    Some(frame.unwrap().into_data().unwrap())
}

/// An upstream whose answer's body the test feeds by hand.
async fn fed() -> (std::net::SocketAddr, mpsc::Sender<Chunk>, Arc<Mutex<Vec<(String, HeaderMap)>>>) {
    let (sender, answer) = channel();
    let answer = Mutex::new(Some(answer));
    let requests = Arc::new(Mutex::new(Vec::new()));
    let kept = requests.clone();
    let address = upstream(move |request: Request<Incoming>| {
        let path = request.uri().to_string();
        kept.lock().unwrap().push((path, request.headers().clone()));
        let answer = answer.lock().unwrap().take().unwrap();
        async move {
            request.into_body().collect().await.unwrap();
            events(answer)
        }
        .boxed()
    })
    .await;
    (address, sender, requests)
}

#[tokio::test]
async fn an_answer_streams_with_the_real_key_put_in() {
    let (address, mut feed, requests) = fed().await;
    let world = world(address).bound(EgressPolicy::Model);
    let request = world.request("POST", "/v1/messages?beta=true", "{\"stream\":true}");
    let (mut response, ()) = tokio::join!(world.send(request), async {
        feed.send(data(START)).await.unwrap();
    });
    assert_eq!(response.status(), StatusCode::OK);
    assert_eq!(response.headers()["request-id"], "req_1");
    // The first part is here although the second has not been sent.
    assert_eq!(chunk(&mut response).await.unwrap(), START);
    feed.send(data(END)).await.unwrap();
    assert_eq!(chunk(&mut response).await.unwrap(), END);
    drop(feed);
    assert!(chunk(&mut response).await.is_none());

    let (path, headers) = requests.lock().unwrap().remove(0);
    assert_eq!(path, "/prefix/v1/messages?beta=true");
    assert_eq!(headers["x-api-key"], KEY);
    assert_eq!(headers["x-team"], "blue");
    assert_eq!(headers["content-length"], "15");
    let token = world.token();
    assert!(headers.values().all(|value| value != token.as_str()));

    until(|| !world.seen.usage.lock().unwrap().is_empty()).await;
    let reports = world.seen.usage.lock().unwrap();
    assert_eq!(reports.len(), 1);
    assert_eq!((reports[0].usage.input, reports[0].usage.output), (11, 22));
    assert_eq!(reports[0].model.as_deref(), Some("claude-x"));
    assert!(reports[0].complete);
    assert_eq!(reports[0].epoch, Epoch(1));
}

#[tokio::test]
async fn errors_come_as_they_are_but_for_secrets() {
    let address = upstream(|request: Request<Incoming>| {
        let key = request.headers()["x-api-key"].clone();
        async move {
            let echo = format!("{{\"bad key\":\"{}\"}}", key.to_str().unwrap());
            let mut response = Response::new(text(&echo));
            *response.status_mut() = StatusCode::TOO_MANY_REQUESTS;
            let headers = response.headers_mut();
            headers.insert("retry-after", "17".parse().unwrap());
            headers.insert("x-echo", key);
            response
        }
        .boxed()
    })
    .await;
    let world = world(address).bound(EgressPolicy::Model);
    let response = world.send(world.request("POST", "/v1/messages", "{}")).await;
    assert_eq!(response.status(), 429);
    assert_eq!(response.headers()["retry-after"], "17");
    assert!(!format!("{:?}", response.headers()).contains(KEY));
    assert_eq!(body(response).await, "{\"bad key\":\"[redacted]\"}");
}

#[tokio::test]
async fn a_redirect_is_not_followed() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    let address = upstream(move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        let mut response = Response::new(text(""));
        *response.status_mut() = StatusCode::TEMPORARY_REDIRECT;
        response.headers_mut().insert("location", "/elsewhere".parse().unwrap());
        async move { response }.boxed()
    })
    .await;
    let world = world(address).bound(EgressPolicy::Model);
    let response = world.send(world.request("POST", "/v1/messages", "{}")).await;
    assert_eq!(response.status(), 307);
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_cut_in_the_middle_is_passed_on() {
    let (address, mut feed, _) = fed().await;
    let world = world(address).bound(EgressPolicy::Model);
    let request = world.request("POST", "/v1/messages", "{}");
    let (mut response, ()) = tokio::join!(world.send(request), async {
        feed.send(data(START)).await.unwrap();
    });
    assert!(chunk(&mut response).await.is_some());
    feed.send(Err(std::io::Error::other("cut"))).await.unwrap();
    let next = soon(response.body_mut().frame()).await;
    assert!(next.unwrap().is_err(), "the end of a cut answer is an error");
    until(|| !world.seen.usage.lock().unwrap().is_empty()).await;
    let reports = world.seen.usage.lock().unwrap();
    assert!(!reports[0].complete);
    assert_eq!(reports[0].usage.input, 11);
}

#[tokio::test]
async fn a_release_cuts_an_open_call() {
    let (address, mut feed, _) = fed().await;
    let world = world(address).bound(EgressPolicy::Model);
    let request = world.request("POST", "/v1/messages", "{}");
    let (mut response, ()) = tokio::join!(world.send(request), async {
        feed.send(data(START)).await.unwrap();
    });
    assert!(chunk(&mut response).await.is_some());
    assert!(matches!(world.gateway.release(world.sandbox, Epoch(0)), Err(BindError::Stale { .. })));
    world.gateway.release(world.sandbox, Epoch(1)).unwrap();
    assert!(soon(response.body_mut().frame()).await.unwrap().is_err());
    // And the upstream's side is closed too: nobody pays for what nobody reads.
    until(|| feed.try_send(data("x")).is_err_and(|error| error.is_disconnected())).await;
    let response = world.send(world.request("POST", "/v1/messages", "{}")).await;
    assert_eq!(response.status(), 403);
    assert!(world.gateway.bind(world.sandbox, binding(1, EgressPolicy::Model)).is_err());
    world.gateway.rebind(world.sandbox, binding(2, EgressPolicy::Model)).unwrap();
}

#[tokio::test]
async fn a_release_cuts_a_call_that_waits_for_its_head() {
    let waiting = Arc::new(AtomicUsize::new(0));
    let counted = waiting.clone();
    let address = upstream(move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        futures::future::pending().boxed()
    })
    .await;
    let world = world(address).bound(EgressPolicy::Model);
    let request = world.request("POST", "/v1/messages", "{}");
    let (response, ()) = tokio::join!(world.send(request), async {
        until(|| waiting.load(Ordering::SeqCst) == 1).await;
        world.gateway.cut(world.sandbox);
    });
    assert_eq!(response.status(), 403);
}

#[tokio::test]
async fn a_client_that_leaves_ends_the_call() {
    let (address, mut feed, _) = fed().await;
    let world = world(address).bound(EgressPolicy::Model);
    let request = world.request("POST", "/v1/messages", "{}");
    let (mut response, ()) = tokio::join!(world.send(request), async {
        feed.send(data(START)).await.unwrap();
    });
    assert!(chunk(&mut response).await.is_some());
    drop(response);
    until(|| feed.try_send(data("x")).is_err_and(|error| error.is_disconnected())).await;
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_the_model_back() {
    const CHUNK: usize = 64 * 1024;
    const CHUNKS: usize = 4096;
    let sent = Arc::new(AtomicUsize::new(0));
    let counted = sent.clone();
    let address = upstream(move |_| {
        let counted = counted.clone();
        let chunks = stream::iter(0..CHUNKS).map(move |_| {
            counted.fetch_add(1, Ordering::SeqCst);
            Ok(Frame::data(Bytes::from(vec![b'x'; CHUNK])))
        });
        async move { events(BodyExt::boxed(StreamBody::new(chunks))) }.boxed()
    })
    .await;
    let world = world(address).bound(EgressPolicy::Model);
    let request = world.request("POST", "/v1/messages", "{}");
    let response = world.send(request).await;
    // Quiet for a while: everything that has room is full. The kernel's buffers take some MiB.
    let (mut last, mut quiet) = (0, 0);
    until(|| {
        let now = sent.load(Ordering::SeqCst);
        quiet = if now == last { quiet + 1 } else { 0 };
        last = now;
        quiet > 100
    })
    .await;
    assert!(last < CHUNKS / 2, "{last} of {CHUNKS} chunks were taken");
    let content = soon(response.into_body().collect()).await.unwrap().to_bytes();
    assert_eq!(content.len(), CHUNK * CHUNKS);
}

#[tokio::test]
async fn who_is_not_bound_reaches_no_model() {
    let address = upstream(|_| panic!("no call may reach the model")).await;
    let world = world(address);
    let call = || world.request("POST", "/v1/messages", "{\"model\":\"m\",\"stream\":true}");

    let response = world.send(call()).await;
    assert_eq!(response.status().as_u16(), 529);
    assert_eq!(response.headers()["retry-after"], "1");
    assert!(body(response).await.contains("overloaded_error"));

    world.gateway.register_unclaimed(world.sandbox).unwrap();
    let response = world.send(call()).await;
    assert_eq!(response.status(), 200);
    let stream = body(response).await;
    assert!(stream.starts_with("event: message_start\ndata: {"), "{stream}");
    assert!(stream.ends_with("event: message_stop\ndata: {\"type\":\"message_stop\"}\n\n"));
    let whole = world.request("POST", "/v1/messages", "{\"model\":\"m\"}");
    let document = body(world.send(whole).await).await;
    assert!(document.contains("\"stop_reason\":\"end_turn\""), "{document}");
    let count = world.request("POST", "/v1/messages/count_tokens", "{}");
    assert_eq!(body(world.send(count).await).await, "{\"input_tokens\":1}");
    let files = world.request("GET", "/v1/files", "");
    assert_eq!(world.send(files).await.status(), 403);
    let broken = world.request("POST", "/v1/messages", "{");
    assert_eq!(world.send(broken).await.status(), 400);

    let hello = Request::head("/api/hello").body(text("")).unwrap();
    assert_eq!(world.send(hello).await.status(), 200);
    assert!(world.seen.usage.lock().unwrap().is_empty());
}

#[tokio::test]
async fn wrong_tokens_are_refused() {
    let address = upstream(|_| panic!("no call may reach the model")).await;
    let world = world(address).bound(EgressPolicy::Public);
    let other = world.gateway.token(SandboxId(Uuid::from_u128(43)));
    world.gateway.register_unclaimed(SandboxId(Uuid::from_u128(43))).unwrap();
    for token in ["", "x", KEY, other.expose_secret()] {
        for (name, value) in [("x-api-key", token.to_owned()), ("authorization", format!("Bearer {token}"))] {
            let request = Request::post("/v1/messages").header(name, value).body(text("{}")).unwrap();
            let response = world.send(request).await;
            assert_eq!(response.status(), 401, "{name}");
            assert!(body(response).await.contains("authentication_error"));
        }
    }
}

#[tokio::test]
async fn only_model_calls_get_through() {
    let address = upstream(|request: Request<Incoming>| {
        let path = request.uri().path().to_owned();
        async move { Response::new(text(&path)) }.boxed()
    })
    .await;
    let world = world(address).bound(EgressPolicy::Public);
    for (method, path) in [
        ("POST", "/v1/messages/batches"),
        ("GET", "/v1/files"),
        ("POST", "/v1/organizations/api_keys"),
        ("GET", "/v1/models/%2e%2e/files"),
        ("DELETE", "/v1/models/m"),
    ] {
        let response = world.send(world.request(method, path, "")).await;
        assert_eq!(response.status(), 403, "{path}");
        assert!(body(response).await.contains("permission_error"));
    }
    let response = world.send(world.request("GET", "/v1/models/m-1", "")).await;
    assert_eq!(body(response).await, "/prefix/v1/models/m-1");
    let absolute = world.request("GET", "http://example.com/v1/models", "");
    assert_eq!(world.send(absolute).await.status(), 405);
}

#[tokio::test]
async fn a_request_beyond_the_bound_is_refused() {
    let address = upstream(|request: Request<Incoming>| {
        async move {
            let length = request.into_body().collect().await.map_or(0, |b| b.to_bytes().len());
            Response::new(text(&length.to_string()))
        }
        .boxed()
    })
    .await;
    let mut small = limits();
    small.request_body = 1000;
    let world = crate::support::world_with(address, EgressConfig::default(), small);
    let world = world.bound(EgressPolicy::Model);
    let fits = world.request("POST", "/v1/messages", &"x".repeat(1000));
    assert_eq!(body(world.send(fits).await).await, "1000");
    let known = world.request("POST", "/v1/messages", &"x".repeat(1001));
    assert_eq!(world.send(known).await.status(), 413);
    let chunks = stream::iter((0..11).map(|_| data(&"x".repeat(100))));
    let chunked = world.request("POST", "/v1/messages", "").map(|_| BodyExt::boxed(StreamBody::new(chunks)));
    assert_eq!(world.send(chunked).await.status(), 413);
}

#[tokio::test]
async fn a_model_that_is_not_there() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let world = world(address).bound(EgressPolicy::Model);
    // One that hangs up without an answer.
    let request = world.request("POST", "/v1/messages", "{}");
    let (response, ()) = tokio::join!(world.send(request), async {
        let (mut stream, _) = listener.accept().await.unwrap();
        let _ = stream.read(&mut [0; 10]).await;
        stream.shutdown().await.unwrap();
    });
    assert_eq!(response.status(), 502);
    drop(listener);
    let response = world.send(world.request("POST", "/v1/messages", "{}")).await;
    assert_eq!(response.status(), 502);
    let message = body(response).await;
    assert!(message.contains("api_error"), "{message}");
    assert!(!message.contains(KEY) && !message.contains("127.0.0.1"), "{message}");
}

#[tokio::test]
async fn a_session_with_a_key_of_its_own() {
    let address = upstream(|request: Request<Incoming>| {
        let key = request.headers()["authorization"].clone();
        assert!(!request.headers().contains_key("x-api-key"));
        async move {
            assert_eq!(key, "Bearer tenant-token");
            Response::new(text("ok"))
        }
        .boxed()
    })
    .await;
    let world = world(address);
    let own = |base: Option<&str>| UpstreamOverride {
        credential: Credential::AuthToken(SecretString::from("tenant-token")),
        base_url: base.map(|base| base.parse().unwrap()),
    };
    let mut bind = binding(1, EgressPolicy::Model);
    for base in ["http://127.0.0.1:1", "http://[::ffff:10.0.0.1]", "http://0x7f.1", "http://169.254.169.254"] {
        bind.upstream = Some(own(Some(base)));
        assert!(
            matches!(
                world.gateway.bind(world.sandbox, bind.clone()),
                Err(BindError::Upstream(ConfigError::TargetRefused(_)))
            ),
            "{base}"
        );
    }
    bind.upstream = Some(own(None));
    world.gateway.bind(world.sandbox, bind).unwrap();
    let response = world.send(world.request("POST", "/v1/messages", "{}")).await;
    assert_eq!(body(response).await, "ok");
}

#[tokio::test]
async fn detaching_closes_everything() {
    let (address, mut feed, _) = fed().await;
    let world = world(address).bound(EgressPolicy::Model);
    let request = world.request("POST", "/v1/messages", "{}");
    let (mut response, ()) = tokio::join!(world.send(request), async {
        feed.send(data(START)).await.unwrap();
    });
    assert!(chunk(&mut response).await.is_some());
    world.attachment.detach();
    assert!(soon(response.body_mut().frame()).await.unwrap().is_err());
}

#[tokio::test]
async fn an_answer_in_one_piece_is_counted() {
    let answer = "{\"model\":\"m\",\"usage\":{\"input_tokens\":5,\"output_tokens\":6}}";
    let address = upstream(move |_| {
        let mut response = Response::new(text(answer));
        let json = "application/json".parse().unwrap();
        response.headers_mut().insert("content-type", json);
        async move { response }.boxed()
    })
    .await;
    let world = world(address).bound(EgressPolicy::Model);
    let response = world.send(world.request("POST", "/v1/messages", "{}")).await;
    assert_eq!(response.headers()["content-length"], answer.len().to_string().as_str());
    assert_eq!(body(response).await, answer);
    until(|| !world.seen.usage.lock().unwrap().is_empty()).await;
    let reports = world.seen.usage.lock().unwrap();
    assert_eq!((reports[0].usage.input, reports[0].usage.output, reports[0].complete), (5, 6, true));
}

#[tokio::test]
async fn the_model_is_reached_through_the_servers_proxy() {
    let proxy = upstream(|request: Request<Incoming>| {
        let seen = format!("{} {:?}", request.uri(), request.headers().get("proxy-authorization"));
        async move { Response::new(text(&seen)) }.boxed()
    })
    .await;
    let mut config = crate::support::upstream_config(proxy);
    config.base_url = "http://model.example".parse().unwrap();
    config.proxy = Some(SecretString::from(format!("http://user:word@{proxy}")));
    let world = crate::support::world_of(config, EgressConfig::default(), limits());
    let world = world.bound(EgressPolicy::Model);
    let response = world.send(world.request("POST", "/v1/messages", "{}")).await;
    let seen = body(response).await;
    assert!(seen.starts_with("http://model.example/v1/messages Some("), "{seen}");
}
