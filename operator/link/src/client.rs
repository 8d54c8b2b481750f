//! The client's side: a bounded pool of connections to one address, each proven before anything is sent on it.

use std::{
    fmt,
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::{Context, Poll},
    time::{Duration, Instant},
};

use ash_protocol::fleet::{
    FLEET_VERSION, HANDSHAKE, NONCE_HEADER, PROOF_HEADER, Refusal, VERSION_HEADER, read_version, understands,
    version_text,
};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header::AUTHORIZATION};
use hyper::{
    body::{Body as HttpBody, Frame as Piece, Incoming, SizeHint},
    client::conn::http2::{Builder, SendRequest},
};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use serde::{Serialize, de::DeserializeOwned};
use tokio::{
    net::TcpStream,
    sync::{Notify, watch},
    time::timeout,
};
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::{
    body::{self, Body, read_bounded, read_json},
    error::{LinkError, shown, with_causes},
    io::prepare,
    limits::{
        CONNECT_TIMEOUT, CONNECTION_WINDOW_BYTES, CONNECTIONS_PER_PEER, HEADER_LIST_BYTES, MAX_REFUSAL_BYTES,
        PING_INTERVAL, PING_TIMEOUT, SEND_BUFFER_BYTES, STREAM_WINDOW_BYTES, STREAMS_PER_CONNECTION,
    },
    proof::{Nonces, client_token, nonce, proven},
    secret::SecretFile,
};

/// Attempts of a request whose connection turned out to be over, or to be of a secret that was changed.
const ATTEMPTS: usize = 3;

/// One address, with the connections to it.
pub struct Peer {
    address: String,
    authority: String,
    secret: Arc<SecretFile>,
    connections: Mutex<Vec<Arc<Connection>>>,
    /// Held by who makes a connection, so that a hundred requests at once make one.
    connecting: tokio::sync::Mutex<Option<(Instant, LinkError)>>,
    released: Arc<Notify>,
    /// Counts connections that ended.
    ended: watch::Sender<u64>,
    /// Nobody is there any more.
    given_up: CancellationToken,
}

struct Connection {
    sender: SendRequest<Body>,
    token: HeaderValue,
    streams: AtomicUsize,
    over: AtomicBool,
}

/// A stream's place on its connection.
struct Lease {
    connection: Arc<Connection>,
    released: Arc<Notify>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.connection.streams.fetch_sub(1, Ordering::SeqCst);
        self.released.notify_one();
    }
}

/// The body of an answer. Dropped, its stream is ended.
pub struct Answer {
    body: Incoming,
    _lease: Lease,
}

impl fmt::Debug for Answer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Answer").finish_non_exhaustive()
    }
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Piece<Bytes>, hyper::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl fmt::Debug for Peer {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Peer").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Peer {
    /// A peer at `http://host:port`. Connects to nothing yet.
    pub fn new(address: &str, secret: Arc<SecretFile>) -> Result<Self, LinkError> {
        let malformed = || LinkError::Malformed {
            address: address.to_owned(),
            reason: "the address has to be written as http://HOST:PORT".to_owned(),
        };
        let url = Url::parse(address).map_err(|_| malformed())?;
        let host = url.host_str().filter(|_| url.scheme() == "http" && url.path() == "/").ok_or_else(malformed)?;
        let port = url.port_or_known_default().ok_or_else(malformed)?;
        Ok(Self {
            address: format!("http://{host}:{port}"),
            authority: format!("{host}:{port}"),
            secret,
            connections: Mutex::default(),
            connecting: tokio::sync::Mutex::default(),
            released: Arc::default(),
            ended: watch::Sender::new(0),
            given_up: CancellationToken::new(),
        })
    }

    /// The address.
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Says that nobody is there any more: whoever waits for a connection, or asks for one, is told so at once. Connections that
    /// there are stay: what was sent over them may have an answer.
    pub fn give_up(&self) {
        self.given_up.cancel();
    }

    /// Says that what its connections lead to may be gone without a word: what is asked from now on goes over another one. What is on
    /// its way over them may still have an answer.
    pub fn renew(&self) {
        for connection in self.lock().drain(..) {
            connection.over.store(true, Ordering::SeqCst);
        }
    }

    /// How many connections ended so far; changes when one does.
    pub fn ended(&self) -> watch::Receiver<u64> {
        self.ended.subscribe()
    }

    /// Sends a request and waits for the head of its answer, `within` at the most. `body` may be asked for more than once: where
    /// a connection was over before the request was sent, or the secret was changed, another one is tried.
    pub async fn call(
        &self,
        path: &str,
        headers: &[(&'static str, String)],
        within: Duration,
        body: impl Fn() -> Body + Send,
    ) -> Result<Response<Answer>, LinkError> {
        let mut last = None;
        for _ in 0..ATTEMPTS {
            let mut lease = self.lease().await?;
            let connection = Arc::clone(&lease.connection);
            let mut sender = connection.sender.clone();
            if sender.ready().await.is_err() {
                self.retire(&connection);
                continue;
            }
            let request = self.request(path, headers, &connection.token, body())?;
            let response = match timeout(within, sender.send_request(request)).await {
                Ok(Ok(response)) => response,
                Ok(Err(error)) => {
                    self.retire(&connection);
                    let broken = LinkError::Broken { address: self.address.clone(), reason: with_causes(&error) };
                    if error.is_canceled() {
                        last = Some(broken);
                        continue;
                    }
                    return Err(broken);
                }
                Err(_) => {
                    return Err(LinkError::Broken {
                        address: self.address.clone(),
                        reason: format!("no answer within {} s", within.as_secs()),
                    });
                }
            };
            let (head, incoming) = response.into_parts();
            if head.status.is_success() {
                lease.connection = connection;
                return Ok(Response::from_parts(head, Answer { body: incoming, _lease: lease }));
            }
            let refused = refusal(head.status, incoming).await;
            if head.status != StatusCode::UNAUTHORIZED {
                return Err(refused);
            }
            // The secret was changed on one side: the next connection proves the new one.
            self.retire(&connection);
            last = Some(refused);
        }
        Err(last.unwrap_or_else(|| self.unreachable("its connections end at once")))
    }

    /// Sends JSON and reads JSON.
    pub async fn exchange<T: DeserializeOwned>(
        &self,
        path: &str,
        headers: &[(&'static str, String)],
        within: Duration,
        message: &(impl Serialize + Sync),
    ) -> Result<T, LinkError> {
        let bytes = Bytes::from(serde_json::to_vec(message).map_err(|error| self.malformed(&error.to_string()))?);
        let answer = self.call(path, headers, within, || body::full(bytes.clone())).await?;
        let read = timeout(within, read_json(answer.into_body())).await;
        match read {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(reason)) => Err(LinkError::Broken { address: self.address.clone(), reason }),
            Err(_) => Err(LinkError::Broken {
                address: self.address.clone(),
                reason: format!("no whole answer within {} s", within.as_secs()),
            }),
        }
    }

    /// An error about what came.
    pub fn malformed(&self, reason: &str) -> LinkError {
        LinkError::Malformed { address: self.address.clone(), reason: reason.to_owned() }
    }

    fn unreachable(&self, reason: &str) -> LinkError {
        LinkError::Unreachable { address: self.address.clone(), reason: reason.to_owned() }
    }

    fn request(
        &self,
        path: &str,
        headers: &[(&'static str, String)],
        token: &HeaderValue,
        body: Body,
    ) -> Result<Request<Body>, LinkError> {
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(format!("http://{}{path}", self.authority))
            .header(AUTHORIZATION, token.clone());
        for (name, value) in headers {
            request = request.header(*name, value);
        }
        request.body(body).map_err(|error| self.malformed(&error.to_string()))
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Arc<Connection>>> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn retire(&self, connection: &Arc<Connection>) {
        connection.over.store(true, Ordering::SeqCst);
        self.lock().retain(|other| !Arc::ptr_eq(other, connection));
    }

    /// A stream's place on the connection with the fewest streams.
    fn try_lease(&self) -> Option<Lease> {
        let mut connections = self.lock();
        connections.retain(|connection| !connection.over.load(Ordering::SeqCst) && !connection.sender.is_closed());
        let least = connections.iter().min_by_key(|connection| connection.streams.load(Ordering::SeqCst))?;
        if least.streams.load(Ordering::SeqCst) >= STREAMS_PER_CONNECTION as usize {
            return None;
        }
        least.streams.fetch_add(1, Ordering::SeqCst);
        Some(Lease { connection: Arc::clone(least), released: Arc::clone(&self.released) })
    }

    async fn lease(&self) -> Result<Lease, LinkError> {
        loop {
            let released = self.released.notified();
            tokio::pin!(released);
            released.as_mut().enable();
            if let Some(lease) = self.try_lease() {
                return Ok(lease);
            }
            if self.lock().len() >= CONNECTIONS_PER_PEER {
                released.await;
                continue;
            }
            let leased = self.given_up.run_until_cancelled(self.lease_new()).await;
            return leased.unwrap_or_else(|| Err(self.unreachable("it is gone")));
        }
    }

    /// A stream's place on a new connection, or on one that another caller made meanwhile.
    async fn lease_new(&self) -> Result<Lease, LinkError> {
        let arrived = Instant::now();
        let mut failed = self.connecting.lock().await;
        if let Some(lease) = self.try_lease() {
            return Ok(lease);
        }
        // An attempt that began later has failed: those who waited for it do not each make one of their own.
        if let Some((_, error)) = failed.as_ref().filter(|(begun, _)| *begun >= arrived) {
            return Err(error.clone());
        }
        let begun = Instant::now();
        let connected = timeout(CONNECT_TIMEOUT, self.connect())
            .await
            .unwrap_or_else(|_| Err(self.unreachable(&format!("no handshake within {} s", CONNECT_TIMEOUT.as_secs()))));
        let connection = connected.inspect_err(|error| *failed = Some((begun, error.clone())))?;
        *failed = None;
        connection.streams.fetch_add(1, Ordering::SeqCst);
        self.lock().push(Arc::clone(&connection));
        Ok(Lease { connection, released: Arc::clone(&self.released) })
    }

    /// Makes a connection and lets the other side prove itself.
    async fn connect(&self) -> Result<Arc<Connection>, LinkError> {
        let reason = |error: &dyn fmt::Display| self.unreachable(&error.to_string());
        let stream = TcpStream::connect(&self.authority).await.map_err(|error| reason(&error))?;
        prepare(&stream).map_err(|error| reason(&error))?;
        let (mut sender, connection) = Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_header_list_size(HEADER_LIST_BYTES)
            .max_send_buf_size(SEND_BUFFER_BYTES)
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .keep_alive_while_idle(true)
            .handshake::<_, Body>(TokioIo::new(stream))
            .await
            .map_err(|error| reason(&error))?;
        let ended = self.ended.clone();
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to a peer ended");
            }
            ended.send_modify(|count| *count += 1);
        });
        let token = self.shake_hands(&mut sender).await?;
        let (streams, over) = (AtomicUsize::new(0), AtomicBool::new(false));
        Ok(Arc::new(Connection { sender, token, streams, over }))
    }

    async fn shake_hands(&self, sender: &mut SendRequest<Body>) -> Result<HeaderValue, LinkError> {
        let client = nonce().map_err(|error| self.unreachable(&error.to_string()))?;
        let request = Request::builder()
            .method(Method::POST)
            .uri(format!("http://{}{HANDSHAKE}", self.authority))
            .header(VERSION_HEADER, version_text(FLEET_VERSION))
            .header(NONCE_HEADER, &client)
            .body(body::empty())
            .map_err(|error| self.malformed(&error.to_string()))?;
        let answer = sender.send_request(request).await.map_err(|error| self.unreachable(&error.to_string()))?;
        let (head, incoming) = answer.into_parts();
        let text = |name: &str| text(&head.headers, name);
        let theirs = read_version(text(VERSION_HEADER));
        if !theirs.is_some_and(|theirs| understands(FLEET_VERSION, theirs)) {
            let theirs = theirs.map_or_else(|| "unknown".to_owned(), shown);
            return Err(LinkError::Version { address: self.address.clone(), theirs, ours: shown(FLEET_VERSION) });
        }
        if !head.status.is_success() {
            return Err(refusal(head.status, incoming).await);
        }
        let nonces = Nonces { client, server: text(NONCE_HEADER).to_owned() };
        let secrets = self.secret.current();
        let Some(secret) = proven(&secrets, &nonces, text(PROOF_HEADER)) else {
            return Err(LinkError::Secret { address: self.address.clone() });
        };
        let mut token = HeaderValue::from_str(&format!("Bearer {}", client_token(secret, &nonces)))
            .map_err(|error| self.malformed(&error.to_string()))?;
        token.set_sensitive(true);
        Ok(token)
    }
}

fn text<'a>(headers: &'a HeaderMap, name: &str) -> &'a str {
    headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

async fn refusal(status: StatusCode, body: Incoming) -> LinkError {
    let sentence = match timeout(CONNECT_TIMEOUT, read_bounded(body, MAX_REFUSAL_BYTES)).await {
        Ok(Ok(bytes)) => serde_json::from_slice::<Refusal>(&bytes).ok().map(|refusal| refusal.error),
        _ => None,
    };
    let message = sentence.unwrap_or_else(|| format!("the other side refused with HTTP {status}"));
    LinkError::Refused { status: status.as_u16(), message }
}
