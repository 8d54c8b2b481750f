//! The port of all bridges: takes their connections, has them prove which pod they are in, and hands them to their sandboxes.
//!
//! A pod that does not prove itself has one of few places, for a bounded time: it keeps nobody else out.

use std::{
    collections::HashMap,
    io,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use ash_core::ports::{PodIdentity, ReviewError};
use ash_protocol::preamble::{Answer, Preamble, Proof, line, take_line};
use bytes::BytesMut;
use rustix::net::sockopt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::{OwnedSemaphorePermit, Semaphore},
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::admission::{self, NotAdmitted};
use crate::{
    backend::Pods,
    enclosure::{Enclosure, Proven},
    limits::{
        COMMIT_RETRY, PREAMBLE, PREAMBLE_ANSWER, REVIEW_RETRY, REVIEW_WAIT, TCP_KEEP_ALIVE, TCP_UNANSWERED_MS,
        UNPROVEN_BRIDGES, UNPROVEN_BRIDGES_OF_ADDRESS,
    },
    sandbox::Sandbox,
    shared::Shared,
};

/// Who is refused, and whether dialling again can change it.
#[derive(Debug)]
struct Refused {
    why: String,
    is_final: bool,
}

impl Refused {
    fn for_now(why: impl Into<String>) -> Self {
        Self { why: why.into(), is_final: false }
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// Unproven connections by address.
#[derive(Default)]
struct Addresses(Mutex<HashMap<IpAddr, usize>>);

impl Addresses {
    fn change(&self, address: IpAddr, change: impl FnOnce(&mut usize) -> bool) -> bool {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(address).or_default();
        let done = change(count);
        if *count == 0 {
            counts.remove(&address);
        }
        done
    }
}

/// The place of a connection that has proven nothing yet.
struct Unproven {
    addresses: Arc<Addresses>,
    address: IpAddr,
    _place: OwnedSemaphorePermit,
}

impl Unproven {
    fn new(addresses: &Arc<Addresses>, address: IpAddr, place: OwnedSemaphorePermit) -> Option<Self> {
        let room = addresses.change(address, |count| {
            let room = *count < UNPROVEN_BRIDGES_OF_ADDRESS;
            *count += usize::from(room);
            room
        });
        room.then(|| Self { addresses: Arc::clone(addresses), address, _place: place })
    }
}

impl Drop for Unproven {
    fn drop(&mut self) {
        self.addresses.change(self.address, |count| {
            *count = count.saturating_sub(1);
            true
        });
    }
}

/// Takes the connections of bridges until `stop`.
pub(crate) async fn serve_bridges(
    shared: Arc<Shared>,
    pods: Arc<Pods>,
    listener: TcpListener,
    stop: CancellationToken,
) {
    let places = Arc::new(Semaphore::new(UNPROVEN_BRIDGES));
    let addresses = Arc::new(Addresses::default());
    loop {
        let next = async {
            if places.available_permits() == 0 {
                shared.metrics.bridges_unproven_at_bound.inc();
            }
            let place = Arc::clone(&places).acquire_owned().await.ok()?;
            Some((listener.accept().await, place))
        };
        let Some(Some((accepted, place))) = stop.run_until_cancelled(next).await else { return };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a bridge's connection could not be taken");
                sleep(COMMIT_RETRY).await;
                continue;
            }
        };
        let Some(unproven) = Unproven::new(&addresses, peer.ip(), place) else {
            shared.metrics.bridges_refused.inc();
            continue;
        };
        tokio::spawn(stop.clone().run_until_cancelled_owned(meet(
            Arc::clone(&shared),
            Arc::clone(&pods),
            stream,
            peer,
            unproven,
        )));
    }
}

async fn meet(shared: Arc<Shared>, pods: Arc<Pods>, mut stream: TcpStream, peer: SocketAddr, unproven: Unproven) {
    let mut received = BytesMut::new();
    let preamble = match timeout(PREAMBLE, read_preamble(&mut stream, &mut received)).await {
        Ok(Ok(preamble)) => preamble,
        Ok(Err(error)) => {
            shared.metrics.bridges_refused.inc();
            tracing::debug!(%peer, %error, "what dialled the port of bridges is none");
            return;
        }
        Err(_) => {
            shared.metrics.bridges_refused.inc();
            tracing::debug!(%peer, "what dialled the port of bridges says nothing");
            return;
        }
    };
    let admitted = prove(&shared, &pods, preamble.proof).await;
    drop(unproven);
    let answer = match &admitted {
        Ok((sandbox, pod)) => Answer::accepted(pods.ticket(sandbox, pod)),
        Err(refused) => {
            shared.metrics.bridges_refused.inc();
            tracing::info!(%peer, error = refused.why, is_final = refused.is_final, "a bridge was refused");
            Answer::refused(refused.why.as_str(), refused.is_final)
        }
    };
    let sent = timeout(PREAMBLE_ANSWER, async {
        watch(&stream)?;
        stream.write_all(&line(&answer)).await
    });
    let sent = matches!(sent.await, Ok(Ok(())));
    if let (Ok((sandbox, _)), true) = (admitted, sent)
        && let Enclosure::Pod(pod) = &sandbox.enclosure
        && !pod.deliver(Proven { stream, received })
    {
        tracing::debug!(sandbox = %sandbox.id, "a bridge dials faster than it is served");
    }
}

async fn read_preamble(stream: &mut TcpStream, received: &mut BytesMut) -> io::Result<Preamble> {
    loop {
        if let Some(found) = take_line(received).map_err(io::Error::other)? {
            return Preamble::read(&found).map_err(io::Error::other);
        }
        if stream.read_buf(received).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
}

/// The sandbox of a pod that proves itself, met anew where this life of the runner does not know it yet.
async fn prove(shared: &Arc<Shared>, pods: &Arc<Pods>, proof: Proof) -> Result<(Arc<Sandbox>, PodIdentity), Refused> {
    if shared.closing.is_cancelled() {
        return Err(Refused::for_now("this runner stops: dial its successor"));
    }
    let pod = match proof {
        Proof::Ticket(ticket) => {
            let claims = pods.tickets.read(&ticket.0, now()).map_err(|error| Refused::for_now(error.to_string()))?;
            shared.metrics.bridges_by_ticket.inc();
            if let Some(sandbox) = shared.sandbox(claims.sandbox) {
                let newer = sandbox.hub().is_some_and(|hub| claims.epoch > hub.epoch());
                if newer {
                    return Err(Refused::for_now("the ticket is of an epoch that is still to come"));
                }
                return here(sandbox, claims.pod);
            }
            claims.pod
        }
        Proof::Token(token) => {
            let pod = review(shared, pods, &token.0).await?;
            if pod.node != pods.node {
                let why = format!("the pod is on node {}, this runner serves {}", pod.node, pods.node);
                return Err(Refused::for_now(why));
            }
            shared.metrics.bridges_by_token.inc();
            let known = shared.sandboxes().into_iter().find(|sandbox| {
                matches!(&sandbox.enclosure, Enclosure::Pod(known)
                    if known.identity().is_some_and(|known| known.pod_uid == pod.pod_uid))
            });
            if let Some(sandbox) = known {
                return here(sandbox, pod);
            }
            pod
        }
    };
    match admission::admit(shared, pods, &pod).await {
        Ok(sandbox) => here(sandbox, pod),
        Err(error @ NotAdmitted::Unknown) => Err(Refused { why: error.to_string(), is_final: true }),
        Err(error) => Err(Refused::for_now(error.to_string())),
    }
}

/// A sandbox that this life of the runner knows, unless it is being ended.
fn here(sandbox: Arc<Sandbox>, identity: PodIdentity) -> Result<(Arc<Sandbox>, PodIdentity), Refused> {
    let Enclosure::Pod(pod) = &sandbox.enclosure else { return Err(Refused::for_now("the sandbox is no pod")) };
    if sandbox.end.is_cancelled() {
        return Err(Refused::for_now("the sandbox is being ended"));
    }
    pod.is(&identity);
    if pod.identity().is_some_and(|known| known.pod_uid != identity.pod_uid) {
        return Err(Refused { why: "the sandbox is in another pod".to_owned(), is_final: true });
    }
    Ok((sandbox, identity))
}

/// Asks whose a token is; an API server that is away is waited for, within bounds. The bridge dials again after them.
async fn review(shared: &Shared, pods: &Pods, token: &str) -> Result<PodIdentity, Refused> {
    let until = Instant::now() + REVIEW_WAIT;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let error = match timeout(left, pods.reviews.review(token)).await {
            Ok(Ok(pod)) => return Ok(pod),
            Ok(Err(error @ ReviewError::Refused(_))) => return Err(Refused::for_now(error.to_string())),
            Ok(Err(error)) => error,
            Err(_) => ReviewError::Unavailable(format!("no answer within {} s", REVIEW_WAIT.as_secs())),
        };
        shared.metrics.reviews_failed.inc();
        if Instant::now() + REVIEW_RETRY >= until {
            return Err(Refused::for_now(error.to_string()));
        }
        sleep(REVIEW_RETRY).await;
    }
}

/// A pod that is gone without a word is noticed; small frames are not held back.
fn watch(stream: &TcpStream) -> io::Result<()> {
    let (idle, interval, count): (Duration, Duration, u32) = TCP_KEEP_ALIVE;
    stream.set_nodelay(true)?;
    let socket = stream.as_fd();
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, idle)?;
    sockopt::set_tcp_keepintvl(socket, interval)?;
    sockopt::set_tcp_keepcnt(socket, count)?;
    sockopt::set_tcp_user_timeout(socket, TCP_UNANSWERED_MS)?;
    Ok(())
}
