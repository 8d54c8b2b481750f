//! Serves sandboxes: accepts their connections, finds out who asks, and sends each request to the
//! part that answers it.

use std::any::Any;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, STANDARD_NO_PAD};
use http::header::{AUTHORIZATION, HeaderMap, PROXY_AUTHORIZATION};
use http::{Method, Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::accept::Connections;
use crate::answer::{Body, Problem, full, problem};
use crate::egress::{EgressConfig, EgressSink, tunnel};
use crate::headers::X_API_KEY;
use crate::id::SandboxId;
use crate::lease::Lease;
use crate::limits::Limits;
use crate::metrics::{Held, Metrics, ModelOutcome, TunnelOutcome};
use crate::model::{Route, forward, released, route};
use crate::network::Visitor;
use crate::registry::{Access, Registry};
use crate::rehearsal;
use crate::token::TokenSigner;
use crate::upstream::Upstream;
use crate::usage::UsageSink;

/// Largest request head and read buffer of one connection, in bytes; a longer head gets 431.
const HEAD_BYTES: usize = 64 * 1024;

/// How long a connection that is cut with all others has to tell its sandbox why.
const CUT_GRACE: Duration = Duration::from_secs(1);

/// What every connection shares.
pub(crate) struct Shared {
    pub(crate) signer: TokenSigner,
    pub(crate) registry: Registry,
    pub(crate) upstream: Upstream,
    pub(crate) egress: EgressConfig,
    pub(crate) limits: Limits,
    pub(crate) metrics: Metrics,
    pub(crate) usage: Arc<dyn UsageSink>,
    pub(crate) refusals: Arc<dyn EgressSink>,
    pub(crate) lookups: Arc<Semaphore>,
    pub(crate) lease: Lease,
}

/// Accepts one sandbox's connections until `cut`.
pub(crate) async fn accept_loop(
    shared: Arc<Shared>,
    sandbox: SandboxId,
    mut connections: Connections,
    cut: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(shared.limits.connections));
    loop {
        let next = next_connection(&shared, sandbox, &mut connections, &places);
        let Some(Some((stream, place))) = cut.run_until_cancelled(next).await else {
            return;
        };
        let asker = Asker::Listener { sandbox, place: Arc::new(place) };
        tokio::spawn(serve(shared.clone(), asker, stream, cut.clone()));
    }
}

async fn next_connection(
    shared: &Shared,
    sandbox: SandboxId,
    connections: &mut Connections,
    places: &Arc<Semaphore>,
) -> Option<(TcpStream, Option<OwnedSemaphorePermit>)> {
    if places.available_permits() == 0 {
        shared.metrics.connections_at_bound.inc();
    }
    // The semaphore is never closed, so there is always a place in the end.
    let place = places.clone().acquire_owned().await.ok();
    loop {
        let accepted = connections.next().await?.and_then(|stream| {
            stream.set_nonblocking(true)?;
            TcpStream::from_std(stream)
        });
        match accepted {
            Ok(stream) => return Some((stream, place)),
            Err(error) => {
                shared.metrics.accept_errors.inc();
                tracing::warn!(%sandbox, %error, "cannot accept a connection of the sandbox");
            }
        }
    }
}

/// Whose a connection is.
pub(crate) enum Asker {
    /// Of the sandbox whose listener it came over.
    Listener {
        /// The sandbox.
        sandbox: SandboxId,
        /// Its place.
        place: Place,
    },
    /// Whose the first valid token says.
    Network(Arc<Visitor>),
}

/// Why somebody is not let in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NotLet {
    /// No valid token, or another sandbox's.
    Unauthorized,
    /// The sandbox has as many connections as it may.
    Full,
}

/// The place of a connection; a tunnel keeps it after the connection has become one.
pub(crate) type Place = Arc<dyn Any + Send + Sync>;

impl Asker {
    /// The sandbox that asks with this token. A listener belongs to one sandbox, and so does a connection of the network: the
    /// token has to say the same, always.
    fn authenticate(&self, shared: &Shared, token: Option<&str>) -> Result<(SandboxId, Place), NotLet> {
        let named = token.and_then(|token| shared.signer.verify(token).ok()).ok_or(NotLet::Unauthorized)?;
        match self {
            Self::Listener { sandbox, place } if *sandbox == named => Ok((named, place.clone())),
            Self::Listener { .. } => Err(NotLet::Unauthorized),
            Self::Network(visitor) => visitor.is_of(named, &shared.limits).map(|place| (named, place)),
        }
    }
}

/// Serves one connection until its end, or `cut`.
pub(crate) async fn serve(shared: Arc<Shared>, asker: Asker, stream: TcpStream, cut: CancellationToken) {
    let _held = Held::new(&shared.metrics.connections);
    // Without this the first byte of an answer may wait for an acknowledgement.
    let _ = stream.set_nodelay(true);
    let asker = Arc::new(asker);
    let service = service_fn(|request| {
        let (shared, cut, asker) = (shared.clone(), cut.clone(), asker.clone());
        async move { Ok::<_, Infallible>(dispatch(shared, &asker, request, cut).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(shared.limits.head)
        .max_buf_size(HEAD_BYTES)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    // A sandbox that does not read keeps its call open, which cannot be told then that it is cut.
    let open = shared.lease.connection();
    let all_cut = async {
        open.cancelled().await;
        sleep(CUT_GRACE).await;
    };
    let ended = tokio::select! {
        ended = cut.run_until_cancelled(connection) => ended,
        () = all_cut => None,
    };
    // How a connection ends is the sandbox's business: the outcome of its requests is counted.
    if let Some(Err(error)) = ended
        && error.is_parse_too_large()
    {
        shared.metrics.heads_too_long.inc();
    }
}

async fn dispatch(
    shared: Arc<Shared>,
    asker: &Asker,
    request: Request<Incoming>,
    cut: CancellationToken,
) -> Response<Body> {
    if request.method() == Method::CONNECT {
        let token = proxy_token(request.headers());
        return match asker.authenticate(&shared, token.as_deref()) {
            Ok((sandbox, place)) => tunnel::open(shared, sandbox, request, cut, place).await,
            Err(NotLet::Unauthorized) => {
                shared.metrics.tunnel(TunnelOutcome::Unauthorized);
                tunnel::unauthorized()
            }
            Err(NotLet::Full) => {
                shared.metrics.connections_at_bound.inc();
                shared.metrics.tunnel(TunnelOutcome::Busy);
                tunnel::full_of_connections()
            }
        };
    }
    if request.uri().authority().is_some() {
        return problem(
            Problem::MethodNotAllowed,
            "Ash's proxy opens CONNECT tunnels only: use https://, or a tool that tunnels http.",
        );
    }
    let route = route(request.method(), request.uri().path());
    if route == Route::Hello {
        // Claude probes without a key; the answer says nothing.
        return hello(request).await;
    }
    let token = api_token(request.headers());
    let sandbox = match asker.authenticate(&shared, token) {
        Ok((sandbox, _)) => sandbox,
        Err(why) => return not_let(&shared, why, request).await,
    };
    // The access first: one that was given before the time was up, and is cut, is seen to be.
    let access = shared.registry.access(sandbox);
    let (outcome, answer) = match access {
        _ if shared.lease.is_over() => (ModelOutcome::Frozen, frozen()),
        Access::Unknown => (
            ModelOutcome::Unknown,
            problem(Problem::Overloaded, "Ash has restarted and does not know this sandbox again yet."),
        ),
        Access::Released => (ModelOutcome::Released, released()),
        Access::Unclaimed | Access::Bound(..) if route == Route::Refused => (
            ModelOutcome::PathRefused,
            problem(
                Problem::Permission,
                "Ash passes on model calls only: /v1/messages, /v1/messages/count_tokens and \
                 /v1/models.",
            ),
        ),
        Access::Unclaimed => return rehearsal::answer(&shared, route, request).await,
        Access::Bound(bound, slots) => {
            return forward(&shared, bound, &slots, route, request).await;
        }
    };
    shared.metrics.model(outcome);
    drain(request.into_body(), shared.limits.rehearsal_body).await;
    answer
}

async fn hello(request: Request<Incoming>) -> Response<Body> {
    drain(request.into_body(), HEAD_BYTES).await;
    Response::new(full(""))
}

/// The answer to every call while this process may serve nobody: Claude tries again.
pub(crate) fn frozen() -> Response<Body> {
    problem(Problem::Overloaded, "Ash's runner is cut off from its coordinators and serves nobody for now.")
}

/// Reads a body that nobody wants, up to a bound. An answer to a request that is still being sent
/// would be lost when the connection is closed under the sender.
pub(crate) async fn drain(mut body: Incoming, bound: usize) {
    let mut left = bound;
    while let Some(Ok(frame)) = body.frame().await {
        let length = frame.data_ref().map_or(0, bytes::Bytes::len);
        let Some(rest) = left.checked_sub(length) else {
            return;
        };
        left = rest;
    }
}

async fn not_let(shared: &Shared, why: NotLet, request: Request<Incoming>) -> Response<Body> {
    drain(request.into_body(), shared.limits.rehearsal_body).await;
    match why {
        NotLet::Unauthorized => {
            shared.metrics.model(ModelOutcome::Unauthorized);
            problem(
                Problem::Authentication,
                "The sandbox token is missing or wrong: use the ANTHROPIC_API_KEY of this sandbox.",
            )
        }
        NotLet::Full => {
            shared.metrics.connections_at_bound.inc();
            problem(Problem::Overloaded, "This sandbox has as many connections open as the server permits.")
        }
    }
}

/// The token of a model request: `x-api-key`, or `Authorization: Bearer`.
fn api_token(headers: &HeaderMap) -> Option<&str> {
    if let Some(key) = headers.get(X_API_KEY) {
        return key.to_str().ok();
    }
    let value = headers.get(AUTHORIZATION)?.to_str().ok()?;
    let (scheme, token) = value.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| token.trim_start())
}

/// The token of a proxy request: the password of `Proxy-Authorization: Basic`.
fn proxy_token(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(PROXY_AUTHORIZATION)?.to_str().ok()?;
    let (scheme, encoded) = value.split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    let encoded = encoded.trim();
    let plain = STANDARD.decode(encoded).or_else(|_| STANDARD_NO_PAD.decode(encoded)).ok()?;
    let plain = String::from_utf8(plain).ok()?;
    let (_, token) = plain.split_once(':')?;
    Some(token.to_owned())
}

/// A running listener of one sandbox. Dropping it stops accepting and cuts what is open.
pub struct Attachment {
    pub(crate) address: SocketAddr,
    pub(crate) cut: CancellationToken,
    pub(crate) listener: Arc<std::net::TcpListener>,
}

impl Attachment {
    /// Where it listens, as seen inside the sandbox.
    pub fn local_address(&self) -> SocketAddr {
        self.address
    }

    /// The sandbox is over: its listener is shut down for all who have it, so that no accept that was made to block waits for
    /// ever. Never for a sandbox that another server takes over.
    pub fn end(self) {
        if let Err(error) = rustix::net::shutdown(&*self.listener, rustix::net::Shutdown::Both) {
            tracing::debug!(%error, "a listener could not be shut down");
        }
    }

    /// Stops accepting and cuts what is open; the same as dropping it.
    pub fn detach(self) {
        drop(self);
    }
}

impl Drop for Attachment {
    fn drop(&mut self) {
        self.cut.cancel();
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    #[test]
    fn tokens_are_found_where_tools_put_them() {
        let mut headers = HeaderMap::new();
        headers.insert(AUTHORIZATION, HeaderValue::from_static("bearer t1"));
        assert_eq!(api_token(&headers), Some("t1"));
        headers.insert(X_API_KEY, HeaderValue::from_static("t2"));
        assert_eq!(api_token(&headers), Some("t2"));
        for (value, expected) in [
            ("Basic c2FuZGJveDp0", Some("t")),
            ("basic c2FuZGJveDp0Og==", Some("t:")),
            ("Basic c2FuZGJveDp0Og", Some("t:")),
            ("Bearer x", None),
            ("Basic !!", None),
            ("Basic", None),
        ] {
            headers.insert(PROXY_AUTHORIZATION, HeaderValue::from_static(value));
            assert_eq!(proxy_token(&headers).as_deref(), expected, "{value}");
        }
    }
}
