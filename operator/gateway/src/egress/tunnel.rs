//! The CONNECT proxy: from a request to a connection at a checked address, and the bytes through it.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use http::header::{CONTENT_TYPE, HeaderName, HeaderValue, PROXY_AUTHENTICATE, RETRY_AFTER};
use http::{Request, Response, StatusCode};
use hyper::body::Incoming;
use hyper::ext::ReasonPhrase;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::TokioIo;
use prometheus_client::metrics::counter::Counter;
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::{EgressRefusal, RefusalReason, Target, admit, check_address};
use crate::answer::{Body, full};
use crate::id::SandboxId;
use crate::metrics::{Held, Metrics, TunnelOutcome};
use crate::registry::{Access, Bound, Slots};
use crate::serve::{Place, Shared};

/// Buffer of one direction of a tunnel, in bytes.
const BUFFER: usize = 16 * 1024;

/// Longest target that is shown in answers and events, in bytes.
const MAX_SHOWN: usize = 256;

/// The header that carries the reason of a refusal; tools that hide bodies show headers.
const REASON: HeaderName = HeaderName::from_static("x-ash-egress");

/// Why there are no tunnels while this process may serve nobody.
const FROZEN: &str = "the server's runner is cut off from its coordinators and serves nobody for now";

/// Why no tunnel was opened.
enum Failure {
    Refused(RefusalReason),
    NotResolved(&'static str),
    Unreachable(io::Error),
    Timeout(&'static str),
    Busy(&'static str),
    Cut,
}

/// 407: who asks is not known.
pub(crate) fn unauthorized() -> Response<Body> {
    let mut response = answer(
        StatusCode::PROXY_AUTHENTICATION_REQUIRED,
        "the sandbox token is missing or wrong: use this sandbox's HTTPS_PROXY",
    );
    let basic = HeaderValue::from_static("Basic realm=\"ash\"");
    response.headers_mut().insert(PROXY_AUTHENTICATE, basic);
    response
}

/// 503: the sandbox has too many connections for one more.
pub(crate) fn full_of_connections() -> Response<Body> {
    answer(StatusCode::SERVICE_UNAVAILABLE, "this sandbox has as many connections open as the server permits")
}

/// The same, to be asked again in a second.
fn retry_soon(mut response: Response<Body>) -> Response<Body> {
    response.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
    response
}

/// Opens a tunnel, or says why not.
pub(crate) async fn open(
    shared: Arc<Shared>,
    sandbox: SandboxId,
    mut request: Request<Incoming>,
    detached: CancellationToken,
    place: Place,
) -> Response<Body> {
    // The access first: one that was given before the time was up, and is cut, is seen to be.
    let access = shared.registry.access(sandbox);
    let (bound, slots) = match access {
        _ if shared.lease.is_over() => {
            shared.metrics.tunnel(TunnelOutcome::Frozen);
            return retry_soon(answer(StatusCode::SERVICE_UNAVAILABLE, FROZEN));
        }
        Access::Bound(bound, slots) => (bound, slots),
        Access::Unknown => {
            shared.metrics.tunnel(TunnelOutcome::Unknown);
            let why = "the server has restarted and does not know this sandbox again yet";
            return retry_soon(answer(StatusCode::SERVICE_UNAVAILABLE, why));
        }
        Access::Unclaimed | Access::Released => {
            shared.metrics.tunnel(TunnelOutcome::Refused);
            return answer(StatusCode::FORBIDDEN, "this sandbox belongs to no session");
        }
    };
    let shown = shown(&request, &shared.metrics);
    let made = tokio::select! {
        biased;
        () = bound.cut.cancelled() => Err(Failure::Cut),
        made = prepare(&shared, &bound, &slots, &request) => made,
    };
    let (upstream, permit) = match made {
        Ok(made) => made,
        Err(failure) => return failed(&shared, &bound, &shown, failure),
    };
    let upgrade = hyper::upgrade::on(&mut request);
    let metrics = shared.metrics.clone();
    metrics.tunnel(TunnelOutcome::Opened);
    let idle = shared.limits.tunnel_idle;
    tokio::spawn(async move {
        let _held = (Held::new(&metrics.tunnels), permit, place);
        let running = run(upgrade, upstream, idle, &metrics);
        let ended = tokio::select! {
            biased;
            () = bound.cut.cancelled() => Some(TunnelOutcome::Cut),
            () = detached.cancelled() => Some(TunnelOutcome::Cut),
            ended = running => ended,
        };
        if let Some(outcome) = ended {
            metrics.tunnel(outcome);
        }
    });
    Response::new(full(""))
}

/// Everything before the first byte: policy, lookup, addresses, connection.
async fn prepare(
    shared: &Shared,
    bound: &Bound,
    slots: &Slots,
    request: &Request<Incoming>,
) -> Result<(TcpStream, tokio::sync::OwnedSemaphorePermit), Failure> {
    let authority = request.uri().authority();
    let authority = authority.ok_or(Failure::Refused(RefusalReason::Malformed("no target")))?;
    let target = Target::parse(authority.as_str()).map_err(|why| Failure::Refused(RefusalReason::Malformed(why)))?;
    let admitted = admit(&bound.egress, &shared.egress.allow, &target).map_err(Failure::Refused)?;
    let permit = slots
        .tunnels
        .clone()
        .try_acquire_owned()
        .map_err(|_| Failure::Busy("this sandbox has as many tunnels open as the server permits"))?;
    let addresses = match &target.host {
        super::Host::Address(address) => vec![*address],
        super::Host::Name(name) => lookup(shared, slots, name.clone()).await?,
    };
    if !admitted.exempt {
        for address in &addresses {
            check_address(&shared.egress, *address).map_err(Failure::Refused)?;
        }
    }
    let mut own = Vec::new();
    for address in &addresses {
        let named = shared.egress.allow.networks.iter();
        let exempt = admitted.exempt || named.clone().any(|network| network.contains(*address));
        if !exempt && is_own(SocketAddr::new(*address, target.port)).await {
            own.push(*address);
        }
    }
    if let Some(address) = own.first() {
        return Err(Failure::Refused(RefusalReason::OwnAddress(*address)));
    }
    let untried = addresses.len().saturating_sub(shared.limits.addresses);
    shared.metrics.addresses_untried.inc_by(untried as u64);
    let tried = &addresses[..addresses.len().min(shared.limits.addresses)];
    let stream = timeout(shared.limits.tunnel_connect, connect(tried, target.port))
        .await
        .map_err(|_| Failure::Timeout("the host did not accept the connection in time"))?
        .map_err(Failure::Unreachable)?;
    Ok((stream, permit))
}

async fn lookup(shared: &Shared, slots: &Slots, name: String) -> Result<Vec<IpAddr>, Failure> {
    let own = slots
        .lookups
        .clone()
        .try_acquire_owned()
        .map_err(|_| Failure::Busy("this sandbox has as many name lookups running as the server permits"))?;
    let (all, resolver) = (shared.lookups.clone(), shared.egress.resolver.clone());
    let gauge = shared.metrics.lookups.clone();
    // A task of its own: a lookup cannot be interrupted, and its places are taken until it ends.
    let running = tokio::spawn(async move {
        let _places = (own, all.acquire_owned().await, Held::new(&gauge));
        resolver.resolve(name).await
    });
    let found =
        timeout(shared.limits.lookup, running).await.map_err(|_| Failure::Timeout("the name lookup took too long"))?;
    match found {
        Ok(Ok(addresses)) if !addresses.is_empty() => Ok(addresses),
        _ => Err(Failure::NotResolved("the host name has no address")),
    }
}

/// Whether a packet to this address would stay on this machine: then the kernel chooses the
/// address itself as the source. Nothing is sent.
async fn is_own(target: SocketAddr) -> bool {
    let any: IpAddr = match target.ip() {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let Ok(socket) = UdpSocket::bind((any, 0)).await else {
        return false;
    };
    if socket.connect(target).await.is_err() {
        return false;
    }
    socket.local_addr().is_ok_and(|source| source.ip() == target.ip())
}

async fn connect(addresses: &[IpAddr], port: u16) -> io::Result<TcpStream> {
    let mut last = io::Error::from(io::ErrorKind::AddrNotAvailable);
    for address in addresses {
        match TcpStream::connect(SocketAddr::new(*address, port)).await {
            Ok(stream) => {
                let _ = stream.set_nodelay(true);
                return Ok(stream);
            }
            Err(error) => last = error,
        }
    }
    Err(last)
}

/// Carries bytes both ways until both sides have ended, one fails, or nothing moves.
async fn run(upgrade: OnUpgrade, upstream: TcpStream, idle: Duration, metrics: &Metrics) -> Option<TunnelOutcome> {
    let upgraded: Upgraded = timeout(idle, upgrade).await.ok()?.ok()?;
    let (sandbox_read, sandbox_write) = tokio::io::split(TokioIo::new(upgraded));
    let (upstream_read, upstream_write) = upstream.into_split();
    let activity = Activity::new();
    let out = pump(sandbox_read, upstream_write, &metrics.tunnel_sent, &activity);
    let back = pump(upstream_read, sandbox_write, &metrics.tunnel_received, &activity);
    tokio::select! {
        _ = async { tokio::try_join!(out, back) } => None,
        () = activity.silence(idle) => Some(TunnelOutcome::Idle),
    }
}

async fn pump(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    bytes: &Counter,
    activity: &Activity,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = from.read(&mut buffer).await?;
        if length == 0 {
            // The other direction may go on: half-closed connections are usual.
            return to.shutdown().await;
        }
        activity.touch();
        to.write_all(&buffer[..length]).await?;
        activity.touch();
        bytes.inc_by(u64::try_from(length).unwrap_or(u64::MAX));
    }
}

/// When something last moved, in milliseconds after the start.
struct Activity {
    start: Instant,
    last: AtomicU64,
}

impl Activity {
    fn new() -> Self {
        Self { start: Instant::now(), last: AtomicU64::new(0) }
    }

    fn touch(&self) {
        let now = u64::try_from(self.start.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last.store(now, Ordering::Relaxed);
    }

    /// Ends when nothing has moved for `idle`.
    async fn silence(&self, idle: Duration) {
        loop {
            let last = Duration::from_millis(self.last.load(Ordering::Relaxed));
            let end = self.start + last + idle;
            if end <= Instant::now() {
                return;
            }
            sleep_until(end).await;
        }
    }
}

/// The target as it came, printable and short.
fn shown(request: &Request<Incoming>, metrics: &Metrics) -> String {
    let text = request.uri().authority().map_or("", |a| a.as_str());
    // What stands before an @ may be a password.
    let text = text.rsplit('@').next().unwrap_or("");
    if text.len() > MAX_SHOWN {
        metrics.targets_shortened.inc();
    }
    text.chars().filter(char::is_ascii_graphic).take(MAX_SHOWN).collect()
}

fn failed(shared: &Shared, bound: &Bound, target: &str, failure: Failure) -> Response<Body> {
    let (outcome, status, why) = match failure {
        Failure::Refused(reason) => {
            let why = reason.to_string();
            report(shared, bound, target, reason);
            (TunnelOutcome::Refused, StatusCode::FORBIDDEN, why)
        }
        Failure::NotResolved(why) => {
            let status = StatusCode::BAD_GATEWAY;
            (TunnelOutcome::NotResolved, status, why.to_owned())
        }
        Failure::Unreachable(error) => {
            let why = format!("cannot connect: {}", error.kind());
            (TunnelOutcome::Unreachable, StatusCode::BAD_GATEWAY, why)
        }
        Failure::Timeout(why) => {
            let status = StatusCode::GATEWAY_TIMEOUT;
            (TunnelOutcome::Timeout, status, why.to_owned())
        }
        Failure::Busy(why) => {
            let status = StatusCode::SERVICE_UNAVAILABLE;
            (TunnelOutcome::Busy, status, why.to_owned())
        }
        Failure::Cut if shared.lease.is_over() => {
            (TunnelOutcome::Cut, StatusCode::SERVICE_UNAVAILABLE, FROZEN.to_owned())
        }
        Failure::Cut => {
            let why = "this sandbox no longer belongs to a session".to_owned();
            (TunnelOutcome::Cut, StatusCode::FORBIDDEN, why)
        }
    };
    shared.metrics.tunnel(outcome);
    answer(status, &format!("{target}: {why}"))
}

fn report(shared: &Shared, bound: &Bound, target: &str, reason: RefusalReason) {
    if !bound.may_report(shared.limits.refusals_per_minute) {
        shared.metrics.refusals_unreported.inc();
        return;
    }
    shared.refusals.refused(EgressRefusal {
        tenant: bound.holder.tenant.clone(),
        session: bound.holder.session,
        epoch: bound.holder.epoch,
        sandbox: bound.sandbox,
        target: target.to_owned(),
        reason,
    });
}

/// An answer that says its reason in the status line, in a header and in the body: tools differ in
/// what they show of a failed CONNECT.
fn answer(status: StatusCode, why: &str) -> Response<Body> {
    let text = format!("Ash egress: {why}");
    let mut response = Response::new(full(json!({ "error": text }).to_string()));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if let Ok(value) = HeaderValue::from_str(&text) {
        headers.insert(REASON, value);
    }
    if let Ok(phrase) = ReasonPhrase::try_from(text) {
        response.extensions_mut().insert(phrase);
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_machine_recognises_itself() {
        assert!(is_own("127.0.0.1:80".parse().unwrap()).await);
        assert!(!is_own("192.0.2.1:80".parse().unwrap()).await);
    }
}
