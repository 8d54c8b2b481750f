//! A gateway with one attached sandbox, a scripted upstream, and a client inside the "sandbox".

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ash_gateway::{
    Attachment, Binding, Credential, EgressConfig, EgressPolicy, EgressRefusal, EgressSink, Epoch, Gateway,
    GatewayConfig, Limits, SandboxId, SessionId, TenantId, TokenSigner, UpstreamConfig, UsageReport, UsageSink,
};
use bytes::Bytes;
use futures::future::BoxFuture;
use http::{Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use secrecy::{ExposeSecret as _, SecretBox, SecretString};
use tokio::net::{TcpListener, TcpStream};
use uuid::Uuid;

pub(crate) const KEY: &str = "sk-ant-real-key-canary";
pub(crate) const DEADLINE: Duration = Duration::from_secs(20);

pub(crate) type TestBody = BoxBody<Bytes, std::io::Error>;

/// Fails the test where the future does not end.
pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(DEADLINE, future).await.expect("deadline passed")
}

/// Waits until the condition holds.
pub(crate) async fn until(mut condition: impl FnMut() -> bool) {
    soon(async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    })
    .await;
}

pub(crate) fn text(content: &str) -> TestBody {
    Full::new(Bytes::from(content.to_owned())).map_err(|never: Infallible| match never {}).boxed()
}

/// Starts a real HTTP server on loopback.
pub(crate) async fn upstream<F>(handler: F) -> SocketAddr
where
    F: Fn(Request<Incoming>) -> BoxFuture<'static, Response<TestBody>> + Send + Sync + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let handler = Arc::new(handler);
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            stream.set_nodelay(true).unwrap();
            let handler = handler.clone();
            let service = service_fn(move |request| {
                let answer = handler(request);
                async move { Ok::<_, Infallible>(answer.await) }
            });
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service));
        }
    });
    address
}

#[derive(Default)]
pub(crate) struct Seen {
    pub(crate) usage: Mutex<Vec<UsageReport>>,
    pub(crate) refused: Mutex<Vec<EgressRefusal>>,
}

impl UsageSink for Seen {
    fn record(&self, report: UsageReport) {
        self.usage.lock().unwrap().push(report);
    }
}

impl EgressSink for Seen {
    fn refused(&self, refusal: EgressRefusal) {
        self.refused.lock().unwrap().push(refusal);
    }
}

pub(crate) struct World {
    pub(crate) gateway: Gateway,
    pub(crate) sandbox: SandboxId,
    pub(crate) attachment: Attachment,
    pub(crate) seen: Arc<Seen>,
}

pub(crate) fn limits() -> Limits {
    Limits::default()
}

pub(crate) fn upstream_config(address: SocketAddr) -> UpstreamConfig {
    UpstreamConfig {
        base_url: format!("http://{address}/prefix/").parse().unwrap(),
        credential: Some(Credential::ApiKey(SecretString::from(KEY))),
        proxy: None,
        no_proxy: None,
        extra_ca: None,
        extra_headers: vec![("x-team".parse().unwrap(), SecretString::from("blue".to_owned()))],
    }
}

pub(crate) fn world_with(address: SocketAddr, egress: EgressConfig, limits: Limits) -> World {
    world_of(upstream_config(address), egress, limits)
}

pub(crate) fn world_of(upstream: UpstreamConfig, egress: EgressConfig, limits: Limits) -> World {
    let seen = Arc::new(Seen::default());
    let signer = TokenSigner::new(SecretBox::new(Box::new([7; 32])));
    let config = GatewayConfig { upstream, egress, limits };
    let gateway = Gateway::new(config, signer, seen.clone(), seen.clone()).unwrap();
    let sandbox = SandboxId(Uuid::from_u128(42));
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let attachment = gateway.attach(sandbox, listener).unwrap();
    World { gateway, sandbox, attachment, seen }
}

pub(crate) fn world(address: SocketAddr) -> World {
    world_with(address, EgressConfig::default(), limits())
}

pub(crate) fn binding(epoch: u32, egress: EgressPolicy) -> Binding {
    Binding {
        tenant: TenantId("default".into()),
        session: SessionId(Uuid::from_u128(9)),
        epoch: Epoch(epoch),
        egress,
        upstream: None,
    }
}

impl World {
    pub(crate) fn bound(self, egress: EgressPolicy) -> Self {
        self.gateway.bind(self.sandbox, binding(1, egress)).unwrap();
        self
    }

    pub(crate) fn token(&self) -> String {
        self.gateway.token(self.sandbox).expose_secret().to_owned()
    }

    /// A request as Claude Code sends it.
    pub(crate) fn request(&self, method: &str, path: &str, body: &str) -> Request<TestBody> {
        Request::builder()
            .method(method)
            .uri(path)
            .header("host", "127.0.0.1")
            .header("x-api-key", self.token())
            .header("content-type", "application/json")
            .body(text(body))
            .unwrap()
    }

    pub(crate) async fn send(&self, request: Request<TestBody>) -> Response<Incoming> {
        send(self.attachment.local_address(), request).await
    }

    pub(crate) async fn connect(&self, target: &str) -> Connected {
        self.connect_with(target, &self.token()).await
    }

    pub(crate) async fn connect_with(&self, target: &str, token: &str) -> Connected {
        use base64::Engine as _;
        use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
        let address = self.attachment.local_address();
        let mut stream = TcpStream::connect(address).await.unwrap();
        let credentials = base64::engine::general_purpose::STANDARD.encode(format!("sandbox:{token}"));
        let request = format!(
            "CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\
             Proxy-Authorization: Basic {credentials}\r\n\r\n"
        );
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let byte = soon(stream.read_u8()).await;
            let Ok(byte) = byte else { break };
            head.push(byte);
        }
        let head = String::from_utf8(head).unwrap();
        let status = head.split(' ').nth(1).unwrap_or("0").parse().unwrap();
        Connected { status, head, stream }
    }
}

/// The answer to a CONNECT, and the tunnel behind it.
pub(crate) struct Connected {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) stream: TcpStream,
}

pub(crate) async fn send(address: SocketAddr, request: Request<TestBody>) -> Response<Incoming> {
    let stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    soon(sender.send_request(request)).await.unwrap()
}

pub(crate) async fn body(response: Response<Incoming>) -> String {
    let bytes = soon(response.into_body().collect()).await.unwrap().to_bytes();
    String::from_utf8(bytes.to_vec()).unwrap()
}
