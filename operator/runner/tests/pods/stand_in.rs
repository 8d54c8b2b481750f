//! A bridge of which a test says every word.

#![allow(unreachable_pub, reason = "a part of two tests")]

use ash_core::{
    Entry, EntryFlags, EntryKind, Sequence,
    ports::{PodSandbox, PodState},
    session::Session,
};
use ash_protocol::{
    fleet::Hidden,
    frame::{Frame, FrameKind},
    message::{Bound, Claimed, Hello, Progress, Reply, Request, Welcome},
    preamble::{Answer, Preamble, Proof, line, take_line},
    version::{self, ProtocolVersion},
};
use bytes::{Bytes, BytesMut};
use serde::Serialize;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    time::timeout,
};

use crate::world::{DEADLINE, Life, NODE, World, eventually, valid};

/// One connection of it.
pub struct StandIn {
    stream: TcpStream,
    received: BytesMut,
    /// What the host answered to its greeting.
    pub welcome: Welcome,
}

impl StandIn {
    /// Dials the life of the runner that listens, once it does, and says that it got so far.
    pub async fn dial(world: &World, row: &PodSandbox, progress: Progress) -> Self {
        Self::dial_as(world, row, progress, version::CURRENT).await
    }

    /// The same, as a bridge that speaks this version.
    pub async fn dial_as(world: &World, row: &PodSandbox, progress: Progress, protocol: ProtocolVersion) -> Self {
        let preamble = line(&Preamble::of_bridge(Proof::Token(Hidden(valid(row, NODE)))));
        let (mut stream, mut received) = eventually("the runner takes the bridge", async || {
            let mut stream = TcpStream::connect(world.bridges).await.ok()?;
            stream.write_all(&preamble).await.ok()?;
            let mut received = BytesMut::new();
            let answer = loop {
                if let Some(answer) = take_line(&mut received).unwrap() {
                    break answer;
                }
                if stream.read_buf(&mut received).await.ok()? == 0 {
                    return None;
                }
            };
            let answer: Answer = serde_json::from_slice(&answer).unwrap();
            answer.ok.then_some((stream, received))
        })
        .await;
        let hello =
            Hello { protocol, bridge: "0".to_owned(), sandbox: row.id.to_string(), progress, gateway_port: None };
        let mut bytes = BytesMut::new();
        Frame::json(FrameKind::Hello, 0, &hello).encode(&mut bytes);
        stream.write_all(&bytes).await.unwrap();
        let welcome = loop {
            if let Some(frame) = Frame::decode(&mut received).unwrap() {
                break serde_json::from_slice(&frame.body).unwrap();
            }
            assert!(timeout(DEADLINE, stream.read_buf(&mut received)).await.unwrap().unwrap() > 0, "no welcome");
        };
        Self { stream, received, welcome }
    }

    /// One of the warm pool that speaks this version, with its row.
    pub async fn warm_as(world: &World, protocol: ProtocolVersion) -> (Self, PodSandbox) {
        let row = world.row(None);
        let bridge = Self::dial_as(world, &row, Progress::Warm, protocol).await;
        eventually("the pod is warm", async || {
            (world.rows.known.lock().unwrap()[&row.id].state == PodState::Warm).then_some(())
        })
        .await;
        (bridge, row)
    }

    /// The bridge of a session's pod, with both rows.
    pub async fn claimed(world: &World, life: &Life) -> (Session, Self, PodSandbox) {
        Self::claimed_as(world, life, version::CURRENT).await
    }

    /// The same, in an older version of the protocol.
    pub async fn claimed_as(world: &World, life: &Life, protocol: ProtocolVersion) -> (Session, Self, PodSandbox) {
        let (mut bridge, row) = Self::warm_as(world, protocol).await;
        let session = world.new_session().await;
        let claimed = world.claim_sandbox(life, &session, row.id).await.unwrap();
        bridge.answer(|request| matches!(request, Request::Bind(_)), &Bound { how: Claimed::Live }).await;
        (claimed, bridge, row)
    }

    /// The next frame that the host sends.
    pub async fn next(&mut self) -> Frame {
        loop {
            if let Some(frame) = Frame::decode(&mut self.received).unwrap() {
                return frame;
            }
            let read = timeout(DEADLINE, self.stream.read_buf(&mut self.received)).await;
            assert!(read.unwrap().unwrap() > 0, "the host closed the connection");
        }
    }

    /// Waits for the next request that is meant; gives what was asked before it too, to which nothing is answered.
    async fn asked_behind(&mut self, is_meant: impl Fn(&Request) -> bool) -> (u64, Vec<Request>) {
        let mut before = Vec::new();
        loop {
            let frame = self.next().await;
            if frame.kind != FrameKind::Request {
                continue;
            }
            let request = serde_json::from_slice(&frame.body).unwrap();
            if is_meant(&request) {
                return (frame.number, before);
            }
            before.push(request);
        }
    }

    /// The same; what else comes before it is not looked at.
    pub async fn asked(&mut self, is_meant: impl Fn(&Request) -> bool) -> u64 {
        self.asked_behind(is_meant).await.0
    }

    /// Answers the next request that is meant; gives what was asked before it, to which nothing is answered.
    pub async fn answer(&mut self, is_meant: impl Fn(&Request) -> bool, value: &impl Serialize) -> Vec<Request> {
        let (number, before) = self.asked_behind(is_meant).await;
        let value = serde_json::value::to_raw_value(value).unwrap();
        self.send(&Frame::json(FrameKind::Reply, number, &Reply::Ok(value))).await;
        before
    }

    /// Waits until everything up to here is acknowledged.
    pub async fn acknowledged(&mut self, last: Sequence) {
        loop {
            let frame = self.next().await;
            if frame.kind == FrameKind::Acknowledge && frame.number >= last.0 {
                return;
            }
        }
    }

    /// Sends a frame, unless the host has gone.
    pub async fn send(&mut self, frame: &Frame) {
        let _ = self.stream.write_all(&frame.header()).await;
        let _ = self.stream.write_all(&frame.body).await;
    }

    /// Sends the beginning of a frame, and nothing of what it holds.
    pub async fn announce(&mut self, frame: &Frame) {
        let _ = self.stream.write_all(&frame.header()).await;
    }

    /// Says that everything was sent that is not acknowledged.
    pub async fn synced(&mut self) {
        self.send(&Frame::new(FrameKind::Synced, 0, Bytes::new())).await;
    }
}

/// An entry as Claude Code's lines are.
pub fn said(sequence: Sequence, body: Bytes) -> Entry {
    Entry { sequence, kind: EntryKind::Claude, flags: EntryFlags::default(), body }
}
