//! What the gateway adds to the first byte of a model's answer: the same request over loopback, directly to a small server and
//! through the gateway, in turns. Server, gateway and client are threads of their own, as they are processes in reality.

use std::{
    convert::Infallible,
    future::{Future, pending},
    net::SocketAddr,
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use anyhow::Context;
use ash_gateway::{
    Binding, Credential, EgressConfig, EgressPolicy, EgressRefusal, EgressSink, Epoch, Gateway, GatewayConfig, Limits,
    SandboxId, SessionId, TenantId, TokenSigner, UpstreamConfig, UsageReport, UsageSink,
};
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, Response, body::Incoming, service::service_fn};
use hyper_util::rt::TokioIo;
use secrecy::{ExposeSecret, SecretBox};
use tokio::net::TcpListener;
use uuid::Uuid;

use super::{WARM_UP, ratio};
use crate::bench::{
    connection::Connection,
    report::Row,
    statistics::{Times, milliseconds},
};

/// Requests of each side.
const ROUNDS: usize = 2000;
/// Bytes of a request: Claude Code's first one.
const REQUEST_BYTES: usize = 48 << 10;
/// What the gateway may add.
const ADDED: Duration = Duration::from_micros(500);

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
    // A request that breaks off gets an answer that nobody reads.
    let _ = request.into_body().collect().await;
    let mut answer = Response::new(Full::new(Bytes::from_static(ANSWER.as_bytes())));
    answer.headers_mut().insert("content-type", http::HeaderValue::from_static("text/event-stream"));
    Ok(answer)
}

/// Runs this on a thread of its own for as long as the program lives, and gives what it sends when it is up.
fn on_a_thread<T: Send + 'static, F: Future<Output = anyhow::Result<()>>>(
    work: impl FnOnce(mpsc::Sender<T>) -> F + Send + 'static,
) -> anyhow::Result<T> {
    let (send, receive) = mpsc::channel();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    thread::spawn(move || runtime.block_on(work(send)));
    receive.recv().context("a part of the measurement does not start")
}

async fn serve(up: mpsc::Sender<SocketAddr>) -> anyhow::Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    up.send(listener.local_addr()?)?;
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let connection = hyper::server::conn::http1::Builder::new();
        tokio::spawn(connection.serve_connection(TokioIo::new(stream), service_fn(answer)));
    }
}

async fn relay(upstream: SocketAddr, up: mpsc::Sender<(SocketAddr, String)>) -> anyhow::Result<()> {
    let config = GatewayConfig {
        upstream: UpstreamConfig {
            base_url: format!("http://{upstream}").parse()?,
            credential: Some(Credential::ApiKey("a-real-key".into())),
            proxy: None,
            no_proxy: None,
            extra_ca: None,
            extra_headers: Vec::new(),
        },
        egress: EgressConfig::default(),
        limits: Limits::default(),
    };
    let signer = TokenSigner::new(SecretBox::new(Box::new([1; 32])));
    let gateway = Gateway::new(config, signer, Arc::new(Nobody), Arc::new(Nobody))?;
    let sandbox = SandboxId(Uuid::from_u128(1));
    let binding = Binding {
        tenant: TenantId("t".into()),
        session: SessionId(Uuid::from_u128(2)),
        epoch: Epoch(1),
        egress: EgressPolicy::Model,
        upstream: None,
    };
    gateway.bind(sandbox, binding)?;
    let attachment = gateway.attach(sandbox, std::net::TcpListener::bind("127.0.0.1:0")?)?;
    up.send((attachment.local_address(), gateway.token(sandbox).expose_secret().to_owned()))?;
    pending().await
}

pub(super) fn measure() -> anyhow::Result<Vec<Row>> {
    let upstream = on_a_thread(serve)?;
    let (address, token) = on_a_thread(move |up| relay(upstream, up))?;
    let mut direct = Connection::open(upstream, &token)?;
    let mut through = Connection::open(address, &token)?;
    let body = "x".repeat(REQUEST_BYTES);
    let marker: &[u8] = b"message_start";
    let (mut without, mut with) = (Times::default(), Times::default());
    for round in 0..WARM_UP + ROUNDS {
        let one = direct.send("POST", "/v1/messages?beta=true", &body, &[marker])?.at(0)?;
        let other = through.send("POST", "/v1/messages?beta=true", &body, &[marker])?.at(0)?;
        if round >= WARM_UP {
            without.push(one);
            with.push(other);
        }
    }
    let added = with.median().saturating_sub(without.median());
    Ok(vec![Row {
        what: "gateway, added to the first byte",
        measured: format!("{} of {}", milliseconds(added), with.summary()),
        beside: format!("directly {}", without.summary()),
        ratio: ratio(with.median(), without.median()),
        reach: "0.5 ms",
        reached: added <= ADDED,
    }])
}
