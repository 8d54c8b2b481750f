//! The port of all bridges: takes their connections, has them prove which pod they are in, and hands them to their sandboxes.
//!
//! A pod that does not prove itself has one of few places, for a bounded time ([`super::room`]), and makes nobody be asked more than
//! at a rate ([`super::questions`]): it keeps nobody else out.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    os::fd::AsFd,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use ash_core::ports::{PodIdentity, ReviewError};
use ash_protocol::preamble::{Answer, Preamble, Proof, line, take_line};
use bytes::BytesMut;
use rustix::net::sockopt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    sync::SemaphorePermit,
    time::{Instant, sleep, timeout},
};
use tokio_util::sync::CancellationToken;

use super::{
    admission::{self, NotAdmitted},
    questions::Questions,
    room::{Room, Visitor},
    token,
};
use crate::{
    backend::Pods,
    enclosure::{Enclosure, Proven},
    limits::{COMMIT_RETRY, PREAMBLE, PREAMBLE_ANSWER, REVIEW_RETRY, REVIEW_WAIT, TCP_KEEP_ALIVE, TCP_UNANSWERED_MS},
    sandbox::Sandbox,
    shared::Shared,
};

/// Who is refused.
#[derive(Debug)]
enum Refused {
    /// It is told why, and whether dialling again can change it.
    Told { why: String, is_final: bool },
    /// It is not even told so, and may dial again with what it showed: there is no room for it now.
    Crowded(&'static str),
}

impl Refused {
    fn for_now(why: impl Into<String>) -> Self {
        Self::Told { why: why.into(), is_final: false }
    }
}

/// Seconds since 1970.
pub(crate) fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// What all connections to the port share.
struct Port {
    shared: Arc<Shared>,
    pods: Arc<Pods>,
    room: Arc<Room>,
    questions: Questions,
}

/// Takes the connections of bridges until `stop`.
pub(crate) async fn serve_bridges(
    shared: Arc<Shared>,
    pods: Arc<Pods>,
    listener: TcpListener,
    stop: CancellationToken,
) {
    let room = Arc::new(Room::new(Arc::clone(&shared.metrics)));
    let port = Arc::new(Port { shared, pods, room, questions: Questions::default() });
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a bridge's connection could not be taken");
                sleep(COMMIT_RETRY).await;
                continue;
            }
        };
        let Some(visitor) = port.room.enter(peer.ip()) else {
            port.shared.metrics.bridges_refused.inc();
            continue;
        };
        tokio::spawn(stop.clone().run_until_cancelled_owned(meet(Arc::clone(&port), stream, peer, visitor)));
    }
}

async fn meet(port: Arc<Port>, mut stream: TcpStream, peer: SocketAddr, visitor: Visitor) {
    let Port { shared, pods, .. } = &*port;
    let mut received = BytesMut::new();
    let read = tokio::select! {
        read = timeout(PREAMBLE, read_preamble(&mut stream, &mut received)) => read,
        () = visitor.cut() => {
            shared.metrics.bridges_refused.inc();
            return;
        }
    };
    visitor.spoke();
    tracing::debug!(%peer, "a bridge dials");
    let preamble = match read {
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
    let admitted = port.prove(peer.ip(), preamble.proof).await;
    drop(visitor);
    let answer = match &admitted {
        Ok((sandbox, pod)) => Answer::accepted(pods.ticket(sandbox, pod)),
        Err(Refused::Told { why, is_final }) => {
            shared.metrics.bridges_refused.inc();
            tracing::info!(%peer, error = why, is_final, "a bridge was refused");
            Answer::refused(why.as_str(), *is_final)
        }
        Err(Refused::Crowded(why)) => {
            shared.metrics.bridges_refused.inc();
            tracing::debug!(%peer, why, "a bridge has to dial again");
            return;
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

impl Port {
    /// The sandbox of a pod that proves itself, met anew where this life of the runner does not know it yet. A ticket of a sandbox
    /// that is known needs no room and asks nobody.
    async fn prove(&self, from: IpAddr, proof: Proof) -> Result<(Arc<Sandbox>, PodIdentity), Refused> {
        let Self { shared, pods, .. } = self;
        if shared.closing.is_cancelled() {
            return Err(Refused::for_now("this runner stops: dial its successor"));
        }
        match proof {
            Proof::Ticket(ticket) => {
                let claims =
                    pods.tickets.read(&ticket.0, now()).map_err(|error| Refused::for_now(error.to_string()))?;
                shared.metrics.bridges_by_ticket.inc();
                if let Some(sandbox) = shared.sandbox(claims.sandbox) {
                    let newer = sandbox.hub().is_some_and(|hub| claims.epoch > hub.epoch());
                    if newer {
                        return Err(Refused::for_now("the ticket is of an epoch that is still to come"));
                    }
                    return here(sandbox, claims.pod);
                }
                let _place = self.place(false)?;
                self.question(from)?;
                self.admit(claims.pod).await
            }
            Proof::Token(token) => {
                self.look(&token.0)?;
                let _place = self.place(true)?;
                self.question(from)?;
                let pod = self.review(from, &token.0).await?;
                if pod.node != pods.node {
                    return Err(Refused::for_now(token::elsewhere(&pod.node, &pods.node)));
                }
                shared.metrics.bridges_by_token.inc();
                let known = shared.sandboxes().into_iter().find(|sandbox| {
                    matches!(&sandbox.enclosure, Enclosure::Pod(known)
                        if known.identity().is_some_and(|known| known.pod_uid == pod.pod_uid))
                });
                match known {
                    Some(sandbox) => here(sandbox, pod),
                    None => self.admit(pod).await,
                }
            }
        }
    }

    async fn admit(&self, pod: PodIdentity) -> Result<(Arc<Sandbox>, PodIdentity), Refused> {
        match admission::admit(&self.shared, &self.pods, &pod).await {
            Ok(sandbox) => here(sandbox, pod),
            Err(error @ NotAdmitted::Unknown) => Err(Refused::Told { why: error.to_string(), is_final: true }),
            Err(error) => Err(Refused::for_now(error.to_string())),
        }
    }

    fn place(&self, token: bool) -> Result<SemaphorePermit<'_>, Refused> {
        self.room.ask(token).ok_or(Refused::Crowded("too many are being asked about"))
    }

    /// Takes a question of an address.
    fn question(&self, from: IpAddr) -> Result<(), Refused> {
        if self.questions.may_ask(from, Instant::now()) {
            return Ok(());
        }
        self.shared.metrics.bridges_asked_too_much.inc();
        Err(Refused::Crowded("its address asked too much"))
    }

    /// Refuses a token of which it is known, without asking, that it proves nothing.
    fn look(&self, token: &str) -> Result<(), Refused> {
        let looked = token::look(token, &self.pods.audience, &self.pods.node, now());
        let refused = match self.questions.refused(token, Instant::now()) {
            Some(why) => Err(why),
            None => looked,
        };
        refused.map_err(|why| {
            self.shared.metrics.reviews_spared.inc();
            Refused::for_now(why)
        })
    }

    /// Asks whose a token is; an API server that is away is waited for, within bounds. The bridge dials again after them.
    async fn review(&self, from: IpAddr, token: &str) -> Result<PodIdentity, Refused> {
        let until = Instant::now() + REVIEW_WAIT;
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let error = match timeout(left, self.pods.reviews.review(token)).await {
                Ok(Ok(pod)) => return Ok(pod),
                Ok(Err(error @ ReviewError::Refused(_))) => {
                    self.questions.note_refused(token, error.to_string(), Instant::now());
                    return Err(Refused::for_now(error.to_string()));
                }
                Ok(Err(error)) => error,
                Err(_) => ReviewError::Unavailable(format!("no answer within {} s", REVIEW_WAIT.as_secs())),
            };
            self.shared.metrics.reviews_failed.inc();
            // Another try is another question.
            loop {
                if Instant::now() + REVIEW_RETRY >= until {
                    return Err(Refused::for_now(error.to_string()));
                }
                sleep(REVIEW_RETRY).await;
                if self.questions.may_ask(from, Instant::now()) {
                    break;
                }
            }
        }
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
        return Err(Refused::Told { why: "the sandbox is in another pod".to_owned(), is_final: true });
    }
    Ok((sandbox, identity))
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
