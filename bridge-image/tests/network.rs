//! A bridge that dials over the network: what it proves, with what, and when it gives up.
#![allow(clippy::unwrap_used, clippy::missing_panics_doc)]

use std::{fs, path::Path, time::Duration};

use ash_protocol::{
    frame::{Frame, FrameKind},
    message::{Hello, Progress, Reply, Request, Welcome},
    preamble::{Answer, Preamble, Proof, line, take_line},
    version,
};
use bytes::BytesMut;
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    process::{Child, Command},
    time::timeout,
};

const DEADLINE: Duration = Duration::from_secs(30);

struct Pod {
    folder: TempDir,
    listener: TcpListener,
    bridge: Child,
}

struct Dialled {
    stream: TcpStream,
    received: BytesMut,
    proof: Proof,
}

fn token(folder: &Path) -> std::path::PathBuf {
    folder.join("token")
}

impl Pod {
    async fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        fs::write(token(folder.path()), "first\n").unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let bridge = Command::new(env!("CARGO_BIN_EXE_ash-bridge"))
            .arg(format!("--host=tcp:{}", listener.local_addr().unwrap()))
            .arg(format!("--token-file={}", token(folder.path()).display()))
            .arg(format!("--workspace={}", folder.path().display()))
            .args(["--sandbox=test", "--no-gateway"])
            .env_clear()
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        Self { folder, listener, bridge }
    }

    async fn dialled(&self) -> Dialled {
        let (mut stream, _) = timeout(DEADLINE, self.listener.accept()).await.unwrap().unwrap();
        let mut received = BytesMut::new();
        let found = loop {
            if let Some(found) = take_line(&mut received).unwrap() {
                break found;
            }
            assert!(stream.read_buf(&mut received).await.unwrap() > 0);
        };
        let Preamble { proof, .. } = Preamble::read(&found).unwrap();
        assert!(received.is_empty(), "a bridge waits for the answer");
        Dialled { stream, received, proof }
    }
}

impl Dialled {
    fn proves_with(&self, kind: &str) -> &str {
        match (&self.proof, kind) {
            (Proof::Token(proof), "token") | (Proof::Ticket(proof), "ticket") => &proof.0,
            other => panic!("{other:?}"),
        }
    }

    async fn answer(&mut self, answer: &Answer) {
        self.stream.write_all(&line(answer)).await.unwrap();
    }

    async fn send(&mut self, frame: Frame) {
        let mut bytes = BytesMut::new();
        frame.encode(&mut bytes);
        self.stream.write_all(&bytes).await.unwrap();
    }

    async fn frame(&mut self, kind: FrameKind) -> Frame {
        loop {
            match Frame::decode(&mut self.received).unwrap() {
                Some(frame) if frame.kind == kind => return frame,
                Some(_) => {}
                None => {
                    assert!(timeout(DEADLINE, self.stream.read_buf(&mut self.received)).await.unwrap().unwrap() > 0);
                }
            }
        }
    }

    async fn greeted(&mut self) {
        let hello: Hello = serde_json::from_slice(&self.frame(FrameKind::Hello).await.body).unwrap();
        assert_eq!((hello.progress, hello.gateway_port), (Progress::New, None));
        let welcome =
            Welcome { protocol: version::CURRENT, acknowledged: ash_protocol::Sequence::START, overtaken: false };
        self.send(Frame::json(FrameKind::Welcome, 0, &welcome)).await;
    }
}

#[tokio::test]
async fn a_token_is_proven_once_and_tickets_after_that() {
    let pod = Pod::start().await;
    let mut first = pod.dialled().await;
    assert_eq!(first.proves_with("token"), "first");
    first.answer(&Answer::accepted(Some("one".to_owned()))).await;
    first.greeted().await;
    // Renewed while the connection lives.
    let renew = Request::Ticket { ticket: ash_protocol::fleet::Hidden("two".to_owned()) };
    first.send(Frame::json(FrameKind::Request, 7, &renew)).await;
    let reply: Reply = serde_json::from_slice(&first.frame(FrameKind::Reply).await.body).unwrap();
    assert!(matches!(reply, Reply::Ok(_)));
    drop(first);

    let mut second = pod.dialled().await;
    assert_eq!(second.proves_with("ticket"), "two");
    // Who does not answer has refused nothing: a runner that goes away in between is no reason to need the API server.
    drop(second);
    second = pod.dialled().await;
    assert_eq!(second.proves_with("ticket"), "two");
    second.answer(&Answer::accepted(None)).await;
    second.greeted().await;
    drop(second);

    // A ticket that is refused is dropped, and the token read again: the kubelet has put another one there.
    fs::write(token(pod.folder.path()), "next").unwrap();
    let mut third = pod.dialled().await;
    assert_eq!(third.proves_with("ticket"), "two");
    third.answer(&Answer::refused("expired", true)).await;
    drop(third);
    let mut fourth = pod.dialled().await;
    assert_eq!(fourth.proves_with("token"), "next");
    fourth.answer(&Answer::refused("the API server is away", false)).await;
    drop(fourth);
    assert_eq!(pod.dialled().await.proves_with("token"), "next");
}

#[tokio::test]
async fn a_bridge_that_nobody_wants_ends_itself() {
    let mut pod = Pod::start().await;
    let mut dialled = pod.dialled().await;
    dialled.answer(&Answer::refused("no sandbox has this pod", true)).await;
    let ended = timeout(DEADLINE, pod.bridge.wait()).await.unwrap().unwrap();
    assert!(ended.success());
}

#[tokio::test]
async fn an_answer_that_is_none_is_left_and_dialled_again() {
    let pod = Pod::start().await;
    for answer in [&b"HTTP/1.1 400 Bad Request\r\n\r\n"[..], &vec![b'x'; 40_000], b""] {
        let mut dialled = pod.dialled().await;
        // It may close the connection before it has taken everything.
        let _ = dialled.stream.write_all(answer).await;
        drop(dialled);
    }
    assert_eq!(pod.dialled().await.proves_with("token"), "first");
}
