//! Measures what the gateway adds to the first byte of an answer: the same request over loopback,
//! directly to a small server and through the gateway, in turns.
//!
//! `cargo run --release -p ash-gateway --example first_byte`
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ash_gateway::{
    Binding, Credential, EgressConfig, EgressPolicy, EgressRefusal, EgressSink, Epoch, Gateway, GatewayConfig, Limits,
    SandboxId, SessionId, TenantId, TokenSigner, UpstreamConfig, UsageReport, UsageSink,
};
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use secrecy::{ExposeSecret as _, SecretBox, SecretString};
use tokio::net::{TcpListener, TcpStream};
use uuid::Uuid;

const ROUNDS: usize = 2000;
const REQUEST: usize = 48 * 1024;
const ANSWER: &str = "event: message_start\ndata: {\"type\":\"message_start\",\"message\":\
    {\"model\":\"m\",\"usage\":{\"input_tokens\":1,\"output_tokens\":1}}}\n\n";

struct Nobody;

impl UsageSink for Nobody {
    fn record(&self, _: UsageReport) {}
}

impl EgressSink for Nobody {
    fn refused(&self, _: EgressRefusal) {}
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let _ = request.into_body().collect().await;
    let answer = Response::builder()
        .header("content-type", "text/event-stream")
        .body(Full::new(Bytes::from_static(ANSWER.as_bytes())));
    Ok(answer.unwrap())
}

async fn server() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            let builder = hyper::server::conn::http1::Builder::new();
            tokio::spawn(builder.serve_connection(TokioIo::new(stream), service_fn(answer)));
        }
    });
    address
}

async fn client(address: SocketAddr) -> SendRequest<Full<Bytes>> {
    let stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (sender, connection) = handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

async fn call(sender: &mut SendRequest<Full<Bytes>>, token: &str, body: &Bytes) -> Duration {
    let request = Request::post("/v1/messages?beta=true")
        .header("host", "model")
        .header("x-api-key", token)
        .body(Full::new(body.clone()))
        .unwrap();
    sender.ready().await.unwrap();
    let start = Instant::now();
    let mut response = sender.send_request(request).await.unwrap();
    response.body_mut().frame().await.unwrap().unwrap();
    let first = start.elapsed();
    let _ = response.into_body().collect().await;
    first
}

fn report(name: &str, times: &mut [Duration]) {
    times.sort_unstable();
    let at = |percent: usize| times[times.len() * percent / 100];
    println!("{name}: p50 {:?}, p90 {:?}, p99 {:?}", at(50), at(90), at(99));
}

#[tokio::main(flavor = "current_thread")]
async fn main() {
    // Server, gateway and client are threads of their own, as they are processes in reality.
    let (send, receive) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_all().build().unwrap();
        runtime.block_on(async {
            send.send(server().await).unwrap();
            std::future::pending::<()>().await;
        });
    });
    let upstream = receive.recv().unwrap();
    let (send, receive) = std::sync::mpsc::channel();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.enable_all().build().unwrap();
        runtime.block_on(async {
            let config = GatewayConfig {
                upstream: UpstreamConfig {
                    base_url: format!("http://{upstream}").parse().unwrap(),
                    credential: Some(Credential::ApiKey(SecretString::from("a-real-key"))),
                    proxy: None,
                    no_proxy: None,
                    extra_ca: None,
                    extra_headers: Vec::new(),
                },
                egress: EgressConfig::default(),
                limits: Limits::default(),
            };
            let signer = TokenSigner::new(SecretBox::new(Box::new([1; 32])));
            let gateway = Gateway::new(config, signer, Arc::new(Nobody), Arc::new(Nobody));
            let gateway = gateway.unwrap();
            let sandbox = SandboxId(Uuid::from_u128(1));
            let binding = Binding {
                tenant: TenantId("t".into()),
                session: SessionId(Uuid::from_u128(2)),
                epoch: Epoch(1),
                egress: EgressPolicy::Model,
                upstream: None,
            };
            gateway.bind(sandbox, binding).unwrap();
            let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
            let attachment = gateway.attach(sandbox, listener).unwrap();
            let token = gateway.token(sandbox).expose_secret().to_owned();
            send.send((attachment.local_address(), token)).unwrap();
            std::future::pending::<()>().await;
        });
    });
    let (through, token) = receive.recv().unwrap();
    let body = Bytes::from(vec![b'x'; REQUEST]);
    let mut direct_client = client(upstream).await;
    let mut gateway_client = client(through).await;
    let (mut direct, mut added) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        direct.push(call(&mut direct_client, &token, &body).await);
        added.push(call(&mut gateway_client, &token, &body).await);
    }
    report("direct     ", &mut direct);
    report("via gateway", &mut added);
}
