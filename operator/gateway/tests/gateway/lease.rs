//! A gateway answers until its time is up, and not for a moment longer.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ash_gateway::{EgressConfig, EgressPolicy};
use bytes::Bytes;
use futures::FutureExt as _;
use http::Response;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::support::{body, limits, soon, text, until, upstream, world, world_with};

const LONG: Duration = Duration::from_secs(3600);

#[tokio::test]
async fn after_its_time_a_gateway_calls_no_model_until_it_has_more() {
    let calls = Arc::new(AtomicUsize::new(0));
    let counted = calls.clone();
    let address = upstream(move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        async { Response::new(text("answered")) }.boxed()
    })
    .await;
    let world = world(address).bound(EgressPolicy::Model);
    let call = || world.request("POST", "/v1/messages", "{}");
    world.gateway.serve_until(Instant::now() + LONG);
    assert_eq!(world.send(call()).await.status(), 200);
    world.gateway.serve_until(Instant::now());
    let frozen = world.send(call()).await;
    assert_eq!((frozen.status().as_u16(), &frozen.headers()["retry-after"]), (529, &"1".parse().unwrap()));
    assert!(body(frozen).await.contains("overloaded_error"), "Claude Code tries again");
    assert_eq!(calls.load(Ordering::SeqCst), 1, "the model was not called");
    world.gateway.serve_until(Instant::now() + LONG);
    assert_eq!(world.send(call()).await.status(), 200);
}

#[tokio::test]
async fn a_call_that_is_cut_because_the_time_is_up_is_one_to_try_again() {
    let waiting = Arc::new(AtomicUsize::new(0));
    let counted = waiting.clone();
    let address = upstream(move |_| {
        counted.fetch_add(1, Ordering::SeqCst);
        futures::future::pending().boxed()
    })
    .await;
    let world = world(address).bound(EgressPolicy::Model);
    let (response, ()) = tokio::join!(world.send(world.request("POST", "/v1/messages", "{}")), async {
        until(|| waiting.load(Ordering::SeqCst) == 1).await;
        world.gateway.serve_until(Instant::now());
        world.gateway.cut_all();
    });
    assert_eq!(response.status().as_u16(), 529, "403 would end the turn");
}

#[tokio::test]
async fn a_call_whose_sandbox_stands_still_is_cut_too() {
    const CHUNK: usize = 64 * 1024;
    let (open, mut closed) = tokio::sync::mpsc::channel::<()>(1);
    let open = std::sync::Mutex::new(Some(open));
    let address = upstream(move |_| {
        let held = open.lock().unwrap().take();
        let chunks = futures::stream::repeat_with(move || {
            let _open = &held;
            Ok(Frame::data(Bytes::from(vec![b'x'; CHUNK])))
        });
        async move { Response::new(BodyExt::boxed(StreamBody::new(chunks))) }.boxed()
    })
    .await;
    let world = world(address).bound(EgressPolicy::Model);
    // It reads the head, and nothing of what follows without end.
    let response = world.send(world.request("POST", "/v1/messages", "{}")).await;
    assert_eq!(response.status(), 200);
    world.gateway.serve_until(Instant::now());
    world.gateway.cut_all();
    assert!(soon(closed.recv()).await.is_none(), "nobody pays for what nobody reads");
    drop(response);
}

#[tokio::test]
async fn after_its_time_tunnels_are_cut_and_none_is_opened() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let (mut read, mut write) = stream.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    let mut egress = EgressConfig::default();
    egress.allow.networks.push("127.0.0.0/8".parse().unwrap());
    let world = world_with("127.0.0.1:9".parse().unwrap(), egress, limits()).bound(EgressPolicy::Public);
    let target = format!("127.0.0.1:{port}");
    let mut open = world.connect(&target).await;
    assert_eq!(open.status, 200, "{}", open.head);
    open.stream.write_all(b"x").await.unwrap();
    assert_eq!(soon(open.stream.read_u8()).await.unwrap(), b'x');
    world.gateway.serve_until(Instant::now());
    world.gateway.cut_all();
    assert!(!matches!(soon(open.stream.read(&mut [0])).await, Ok(1..)), "it is cut");
    let refused = world.connect(&target).await;
    assert!(refused.status == 503 && refused.head.to_lowercase().contains("retry-after"), "{}", refused.head);
    world.gateway.serve_until(Instant::now() + LONG);
    assert_eq!(world.connect(&target).await.status, 200);
}
