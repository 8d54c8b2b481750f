//! Bridges that stand in for sandbox pods: they dial a runner, prove which pod they are, speak the protocol, and have no Claude Code
//! behind them. Thousands of them fit into a thread.

use std::{
    net::{Ipv4Addr, SocketAddr},
    thread::JoinHandle,
};

use anyhow::{Context, bail, ensure};
use ash_protocol::{
    fleet::Hidden,
    frame::{DATA_END, Frame, FrameKind},
    message::{Bound, Claimed, Hello, Progress, Reply, Request, Warmed},
    preamble::{Answer, Preamble, Proof, line, take_line},
    version,
};
use bytes::BytesMut;
use serde_json::value::{RawValue, to_raw_value};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpSocket, TcpStream},
    sync::oneshot,
    time::{Duration, sleep},
};

use super::reviews::token;

/// Before a bridge that was refused dials again.
const AGAIN: Duration = Duration::from_millis(200);
/// Dials before a bridge is given up.
const DIALS: u32 = 50;
/// What Claude Code would say of itself.
const VERSION: &str = "2.1.330 (Claude Code)";

/// A pod of a node.
#[derive(Debug, Clone)]
pub(super) struct StandIn {
    /// Counts from 0: it has an address of its own, as a pod has.
    pub(super) number: u16,
    /// The id of its sandbox.
    pub(super) sandbox: String,
    pub(super) pod: String,
    pub(super) node: String,
    /// Its node's runner.
    pub(super) runner: SocketAddr,
}

/// Bridges on a thread of their own, until they are dropped.
#[derive(Debug)]
pub(super) struct Bridges {
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Bridges {
    pub(super) fn start(all: Vec<StandIn>) -> anyhow::Result<Self> {
        let (stop, stopped) = oneshot::channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                for one in all {
                    tokio::spawn(live(one));
                }
                // Its other end is dropped.
                let _ = stopped.await;
            });
        });
        Ok(Self { stop: Some(stop), thread: Some(thread) })
    }
}

impl Drop for Bridges {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

async fn live(one: StandIn) {
    for _ in 0..DIALS {
        match serve(&one).await {
            Ok(()) => return,
            Err(error) => {
                if !error.to_string().contains("closed") {
                    eprintln!("{}: {error:#}", one.pod);
                }
                sleep(AGAIN).await;
            }
        }
    }
}

async fn serve(one: &StandIn) -> anyhow::Result<()> {
    let socket = TcpSocket::new_v4()?;
    let [high, low] = one.number.to_be_bytes();
    socket.bind(SocketAddr::from((Ipv4Addr::new(127, 1, high, low), 0)))?;
    let mut stream = socket.connect(one.runner).await?;
    stream.set_nodelay(true)?;
    let proof = Proof::Token(Hidden(token(&one.pod, &one.node)));
    stream.write_all(&line(&Preamble::of_bridge(proof))).await?;
    let mut received = BytesMut::new();
    let answer: Answer = loop {
        if let Some(line) = take_line(&mut received)? {
            break serde_json::from_slice(&line)?;
        }
        ensure!(stream.read_buf(&mut received).await? > 0, "the runner closed the connection");
    };
    ensure!(answer.ok, "refused: {}", answer.error.unwrap_or_default());
    let hello = Hello {
        protocol: version::CURRENT,
        bridge: env!("CARGO_PKG_VERSION").to_owned(),
        sandbox: one.sandbox.clone(),
        progress: Progress::New,
        gateway_port: None,
    };
    send(&mut stream, &Frame::json(FrameKind::Hello, 0, &hello)).await?;
    let welcome = next(&mut stream, &mut received).await?;
    ensure!(welcome.kind == FrameKind::Welcome, "no welcome");
    send(&mut stream, &Frame::new(FrameKind::Synced, 0, bytes::Bytes::new())).await?;
    loop {
        let frame = next(&mut stream, &mut received).await?;
        if frame.kind != FrameKind::Request {
            continue;
        }
        let reply = match serde_json::from_slice::<Request>(&frame.body)? {
            Request::Warm(_) => raw(&Warmed { version: VERSION.to_owned(), rehearsed: true })?,
            Request::Bind(_) => raw(&Bound { how: Claimed::Live })?,
            Request::Shutdown { .. } => return Ok(()),
            Request::Unpack { .. } => {
                loop {
                    let data = next(&mut stream, &mut received).await?;
                    if data.kind == FrameKind::Data && data.flags & DATA_END != 0 {
                        break;
                    }
                }
                raw(&())?
            }
            Request::Ticket { .. } => raw(&())?,
            other => bail!("a stand-in has no answer to {other:?}"),
        };
        send(&mut stream, &Frame::json(FrameKind::Reply, frame.number, &Reply::Ok(reply))).await?;
    }
}

fn raw(value: &impl serde::Serialize) -> anyhow::Result<Box<RawValue>> {
    to_raw_value(value).context("an answer is JSON")
}

async fn send(stream: &mut TcpStream, frame: &Frame) -> anyhow::Result<()> {
    let mut bytes = BytesMut::new();
    frame.encode(&mut bytes);
    Ok(stream.write_all(&bytes).await?)
}

async fn next(stream: &mut TcpStream, received: &mut BytesMut) -> anyhow::Result<Frame> {
    loop {
        if let Some(frame) = Frame::decode(received)? {
            return Ok(frame);
        }
        ensure!(stream.read_buf(received).await? > 0, "the runner closed the connection");
    }
}
