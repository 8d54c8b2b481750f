//! The server's side: takes connections, proves itself on each, and passes on the requests of those who proved themselves.

use std::{
    convert::Infallible,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ash_protocol::fleet::{
    FLEET_VERSION, HANDSHAKE, NONCE_HEADER, PROOF_HEADER, Refusal, VERSION_HEADER, read_version, understands,
    version_text,
};
use async_trait::async_trait;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use hyper::{body::Incoming, server::conn::http2::Builder, service::service_fn};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use serde::Serialize;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Notify, Semaphore},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use crate::{
    body::{self, Body},
    error::shown,
    io::prepare,
    limits::{
        CONNECTION_WINDOW_BYTES, HANDSHAKE_WAIT, HEADER_LIST_BYTES, MAX_CONNECTIONS, PING_INTERVAL, PING_TIMEOUT,
        SEND_BUFFER_BYTES, STOP_WAIT, STREAM_WINDOW_BYTES, STREAMS_PER_CONNECTION,
    },
    proof::{Nonces, accepts, is_nonce, nonce, server_proof},
    secret::SecretFile,
};

/// Pause after a connection could not be accepted (too many open files).
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What carries out the requests of those who have the secret.
#[async_trait]
pub trait Service: Send + Sync + 'static {
    /// Answers a request.
    async fn call(&self, request: Request<Incoming>) -> Response<Body>;
}

/// A refusal, with a sentence that says what to do.
pub fn refuse(status: StatusCode, error: impl Into<String>) -> Response<Body> {
    let mut response = answer_json(&Refusal { error: error.into() });
    *response.status_mut() = status;
    response
}

/// An answer of JSON.
pub fn answer_json(value: &impl Serialize) -> Response<Body> {
    let mut response = Response::new(body::json(value));
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    response
}

/// Serves until `stop`; then takes nothing more, and lets requests end for [`STOP_WAIT`].
pub async fn serve(listener: TcpListener, secret: Arc<SecretFile>, service: Arc<dyn Service>, stop: CancellationToken) {
    let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let next = async {
            let place = Arc::clone(&places).acquire_owned().await;
            (listener.accept().await, place)
        };
        let (accepted, place) = tokio::select! {
            () = stop.cancelled() => break,
            next = next => next,
            Some(_) = connections.join_next(), if !connections.is_empty() => continue,
        };
        match accepted {
            Ok((stream, _)) => {
                let (secret, service, stop) = (Arc::clone(&secret), Arc::clone(&service), stop.clone());
                connections.spawn(async move {
                    let _place = place;
                    Connection { secret, service, nonces: Mutex::default(), shaken: Notify::new() }
                        .run(stream, stop)
                        .await;
                });
            }
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    let _ = timeout(STOP_WAIT, async { while connections.join_next().await.is_some() {} }).await;
    connections.shutdown().await;
}

struct Connection {
    secret: Arc<SecretFile>,
    service: Arc<dyn Service>,
    nonces: Mutex<Option<Nonces>>,
    /// The client proved itself.
    shaken: Notify,
}

impl Connection {
    async fn run(self, stream: TcpStream, stop: CancellationToken) {
        if let Err(error) = prepare(&stream) {
            tracing::debug!(%error, "a connection's options could not be set");
        }
        let this = Arc::new(self);
        let of_service = Arc::clone(&this);
        let service = service_fn(move |request| {
            let this = Arc::clone(&of_service);
            async move { Ok::<_, Infallible>(this.answer(request).await) }
        });
        let connection = Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_concurrent_streams(STREAMS_PER_CONNECTION)
            // Readers that leave at the same time are no attack: whoever gets here has the secret, or is closed soon.
            .max_pending_accept_reset_streams(STREAMS_PER_CONNECTION as usize)
            .max_header_list_size(HEADER_LIST_BYTES)
            .max_send_buf_size(SEND_BUFFER_BYTES)
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(PING_TIMEOUT)
            .serve_connection(TokioIo::new(stream), service);
        let mut connection = std::pin::pin!(connection);
        let in_time = timeout(HANDSHAKE_WAIT, this.shaken.notified());
        let mut in_time = std::pin::pin!(in_time);
        let mut waits = true;
        loop {
            tokio::select! {
                result = connection.as_mut() => {
                    if let Err(error) = result {
                        tracing::debug!(%error, "a connection ended");
                    }
                    return;
                }
                // One that proves nothing does not keep its place.
                shaken = in_time.as_mut(), if waits => match shaken {
                    Ok(()) => waits = false,
                    Err(_) => return,
                },
                () = stop.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    let _ = connection.await;
                    return;
                }
            }
        }
    }

    async fn answer(&self, request: Request<Incoming>) -> Response<Body> {
        if request.uri().path() == HANDSHAKE {
            return self.shake_hands(request.headers());
        }
        if self.is_authorised(request.headers()) {
            self.shaken.notify_one();
            return self.service.call(request).await;
        }
        tracing::warn!(path = request.uri().path(), "a request without the shared secret was refused");
        refuse(
            StatusCode::UNAUTHORIZED,
            "the request does not prove the shared secret: give both sides the same --fleet-secret-file",
        )
    }

    fn shake_hands(&self, headers: &HeaderMap) -> Response<Body> {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let theirs = read_version(text(VERSION_HEADER));
        let mut response = match theirs {
            Some(theirs) if understands(FLEET_VERSION, theirs) => match nonce() {
                Ok(server) if is_nonce(text(NONCE_HEADER)) => self.prove(text(NONCE_HEADER), server),
                Ok(_) => refuse(StatusCode::BAD_REQUEST, "the handshake has no nonce"),
                Err(error) => refuse(StatusCode::INTERNAL_SERVER_ERROR, error.to_string()),
            },
            theirs => {
                let (ours, theirs) = (shown(FLEET_VERSION), theirs.map_or_else(|| "unknown".to_owned(), shown));
                tracing::warn!(theirs, ours, "a peer of an incompatible version was refused");
                refuse(
                    StatusCode::UPGRADE_REQUIRED,
                    format!(
                        "this side speaks version {ours} of the fleet's protocol and the other {theirs}: run releases of one \
                         generation"
                    ),
                )
            }
        };
        if let Ok(version) = HeaderValue::from_str(&version_text(FLEET_VERSION)) {
            response.headers_mut().insert(VERSION_HEADER, version);
        }
        response
    }

    fn prove(&self, client: &str, server: String) -> Response<Body> {
        let nonces = Nonces { client: client.to_owned(), server };
        let proofs: Vec<String> = self.secret.current().iter().map(|secret| server_proof(secret, &nonces)).collect();
        let mut response = Response::new(body::empty());
        let headers = [(NONCE_HEADER, nonces.server.clone()), (PROOF_HEADER, proofs.join(","))];
        for (name, value) in headers {
            if let Ok(value) = HeaderValue::from_str(&value) {
                response.headers_mut().insert(name, value);
            }
        }
        *self.nonces.lock().unwrap_or_else(PoisonError::into_inner) = Some(nonces);
        response
    }

    /// Looked at for every request, so that a secret that was taken out of the file ends what it opened.
    fn is_authorised(&self, headers: &HeaderMap) -> bool {
        let token = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let nonces = self.nonces.lock().unwrap_or_else(PoisonError::into_inner).clone();
        match (token.and_then(|token| token.strip_prefix("Bearer ")), nonces) {
            (Some(token), Some(nonces)) => accepts(&self.secret.current(), &nonces, token),
            _ => false,
        }
    }
}
