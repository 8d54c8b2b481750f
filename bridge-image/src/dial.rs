//! Dials the host: a Unix socket, or over the network with a preamble that proves which pod this is.

use std::{cell::RefCell, io, net::SocketAddr, os::fd::AsFd, path::Path, time::Duration};

use ash_protocol::{
    fleet::Hidden,
    preamble::{Answer, LineError, MAX_LINE_BYTES, Preamble, Proof, line, take_line},
};
use bytes::BytesMut;
use rustix::net::sockopt;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpStream, UnixStream},
    time::timeout,
};

use crate::args::Host;

/// How long a host of the network may take to take a connection.
const CONNECT: Duration = Duration::from_secs(5);

/// How long it may take to answer the preamble: it may have to ask the API server and its coordinators.
const PROVE: Duration = Duration::from_secs(30);

/// A connection in which nothing moves is looked at after this time, and then as often, this many times: a host that is gone
/// without a word is noticed after 25 s.
const KEEP_ALIVE: (Duration, Duration, u32) = (Duration::from_secs(10), Duration::from_secs(5), 3);

/// How long sent bytes may stay without a sign of the other end.
const UNANSWERED: Duration = Duration::from_secs(25);

/// A connection to the host.
pub(crate) enum Dialled {
    /// Over a Unix socket.
    Unix(UnixStream),
    /// Over the network, proven, with what came after the answer.
    Tcp(TcpStream, BytesMut),
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DialError {
    #[error("{0}")]
    Io(#[from] io::Error),
    /// Nobody was asked for anything.
    #[error("nothing takes connections at {0}: {1}")]
    NotThere(SocketAddr, io::Error),
    #[error("the token {path} cannot be read: {error}")]
    Token { path: String, error: io::Error },
    #[error("the host's answer: {0}")]
    Answer(#[from] LineError),
    #[error("the host did not answer within {} s", .0.as_secs())]
    Silent(Duration),
    #[error("the host refuses this bridge: {0}")]
    Refused(String),
    /// Dialling again changes nothing.
    #[error("the host has nothing for this bridge: {0}")]
    Unwanted(String),
}

/// What the last host gave for the next connection.
#[derive(Debug, Default)]
pub(crate) struct Ticket(RefCell<Option<Hidden>>);

impl Ticket {
    /// Keeps a ticket in place of the one before.
    pub(crate) fn keep(&self, ticket: Hidden) {
        self.0.replace(Some(ticket));
    }
}

/// Dials once.
pub(crate) async fn dial(host: &Host, ticket: &Ticket) -> Result<Dialled, DialError> {
    match host {
        Host::Unix(path) => Ok(Dialled::Unix(UnixStream::connect(path).await?)),
        Host::Tcp { address, token_file } => prove(*address, token_file, ticket).await,
    }
}

async fn prove(address: SocketAddr, token_file: &Path, ticket: &Ticket) -> Result<Dialled, DialError> {
    let known = ticket.0.take();
    let with_ticket = known.is_some();
    let proof = match &known {
        Some(ticket) => Proof::Ticket(ticket.clone()),
        None => Proof::Token(read_token(token_file)?),
    };
    // A host that cannot be asked has refused nothing: the ticket is kept for the next try.
    let asked = async {
        let connected = timeout(CONNECT, TcpStream::connect(address)).await.map_err(|_| DialError::Silent(CONNECT))?;
        let mut stream = connected.map_err(|error| DialError::NotThere(address, error))?;
        watch(&stream)?;
        stream.write_all(&line(&Preamble::of_bridge(proof))).await?;
        let mut received = BytesMut::new();
        let answer = timeout(PROVE, read_answer(&mut stream, &mut received));
        let answer = answer.await.map_err(|_| DialError::Silent(PROVE))??;
        Ok((stream, received, answer))
    };
    let (stream, received, answer) = match asked.await {
        Ok(answered) => answered,
        Err(error) => {
            ticket.0.replace(known);
            return Err(error);
        }
    };
    if answer.ok {
        ticket.0.replace(answer.ticket.or(known));
        return Ok(Dialled::Tcp(stream, received));
    }
    let error = answer.error.unwrap_or_default();
    // A ticket that is refused is worth nothing any more: the token decides.
    if answer.is_final && !with_ticket { Err(DialError::Unwanted(error)) } else { Err(DialError::Refused(error)) }
}

async fn read_answer(stream: &mut TcpStream, received: &mut BytesMut) -> Result<Answer, DialError> {
    loop {
        if let Some(line) = take_line(received)? {
            return serde_json::from_slice(&line).map_err(|_| DialError::Answer(LineError::Malformed));
        }
        if stream.read_buf(received).await? == 0 {
            return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
        }
    }
}

/// Read again each time: the kubelet puts another one there before it expires.
fn read_token(path: &Path) -> Result<Hidden, DialError> {
    let unreadable = |error| DialError::Token { path: path.display().to_string(), error };
    let size = std::fs::metadata(path).map_err(unreadable)?.len();
    if size > MAX_LINE_BYTES as u64 {
        return Err(unreadable(io::Error::other("it is too long to be a token")));
    }
    let token = std::fs::read_to_string(path).map_err(unreadable)?;
    Ok(Hidden(token.trim().to_owned()))
}

/// A host that is gone without a word is noticed; small frames are not held back.
fn watch(stream: &TcpStream) -> io::Result<()> {
    let (idle, interval, count) = KEEP_ALIVE;
    stream.set_nodelay(true)?;
    let socket = stream.as_fd();
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, idle)?;
    sockopt::set_tcp_keepintvl(socket, interval)?;
    sockopt::set_tcp_keepcnt(socket, count)?;
    sockopt::set_tcp_user_timeout(socket, u32::try_from(UNANSWERED.as_millis()).unwrap_or(u32::MAX))?;
    Ok(())
}
