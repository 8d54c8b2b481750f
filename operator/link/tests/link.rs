//! Two sides over a real socket: who is let in, and that streams do not block each other.

#![allow(clippy::unwrap_used)]

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use ash_link::{
    Body, FrameReader, LinkError, Outgoing, Peer, SecretFile, Service, answer_json, channel, empty, frames, full,
    limits, pieces, read_bounded, serve,
};
use ash_protocol::{
    fleet::{HANDSHAKE, NONCE_HEADER, VERSION_HEADER},
    frame::{Frame, FrameKind},
};
use async_trait::async_trait;
use bytes::Bytes;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

const WAIT: Duration = Duration::from_secs(30);

/// Echoes, counts, and gives streams without an end.
#[derive(Default)]
struct Echo {
    calls: AtomicUsize,
}

async fn flood(outgoing: Outgoing) {
    let body = Bytes::from(vec![7; 60 << 10]);
    loop {
        for piece in frames([Frame::new(FrameKind::Event, 1, body.clone())]) {
            if !outgoing.send(piece).await {
                return;
            }
        }
    }
}

#[async_trait]
impl Service for Echo {
    async fn call(&self, request: Request<Incoming>) -> Response<Body> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        match request.uri().path() {
            "/echo" => Response::new(full(read_bounded(request.into_body(), 128 << 20).await.unwrap())),
            "/flood" => {
                let (outgoing, body) = channel();
                tokio::spawn(flood(outgoing));
                Response::new(body)
            }
            _ => answer_json(&"hello"),
        }
    }
}

fn write(folder: &Path, name: &str, secrets: &[&str]) -> PathBuf {
    let path = folder.join(name);
    let lines: Vec<String> = secrets.iter().map(|secret| secret.repeat(32)).collect();
    fs::write(&path, lines.join("\n")).unwrap();
    path
}

fn secret(path: &Path) -> Arc<SecretFile> {
    Arc::new(SecretFile::open(path).unwrap())
}

async fn served(path: &Path) -> (String, Arc<Echo>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    let echo = Arc::new(Echo::default());
    tokio::spawn(serve(listener, secret(path), Arc::clone(&echo) as _, CancellationToken::new()));
    (address, echo)
}

async fn hello(peer: &Peer) -> Result<String, LinkError> {
    peer.exchange("/hello", &[], WAIT, &()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_come_back_whole() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), "secret", &["a"]);
    let (address, _) = served(&path).await;
    let peer = Peer::new(&address, secret(&path)).unwrap();
    for length in [0, 1, 1 << 10, 70 << 20] {
        let sent = Bytes::from(vec![3; length]);
        let answer =
            peer.call("/echo", &[], WAIT, || pieces(vec![sent.slice(..length / 2), sent.slice(length / 2..)])).await;
        assert_eq!(read_bounded(answer.unwrap().into_body(), length).await.unwrap(), sent);
    }
    let answer = peer.call("/echo", &[], WAIT, || full(vec![1; 10])).await.unwrap();
    assert!(read_bounded(answer.into_body(), 9).await.is_err());
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_that_do_not_read_block_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), "secret", &["a"]);
    let (address, _) = served(&path).await;
    let peer = Peer::new(&address, secret(&path)).unwrap();
    // More than a connection takes, and every one of them full.
    let mut stalled = Vec::new();
    for _ in 0..limits::STREAMS_PER_CONNECTION + 8 {
        stalled.push(peer.call("/flood", &[], WAIT, empty).await.unwrap());
    }
    let mut reader = FrameReader::new(peer.call("/flood", &[], WAIT, empty).await.unwrap().into_body());
    let wanted = limits::CONNECTION_WINDOW_BYTES as usize * 2 / (60 << 10);
    for _ in 0..wanted {
        assert_eq!(reader.next().await.unwrap().unwrap().body.len(), 60 << 10);
    }
    assert_eq!(hello(&peer).await.unwrap(), "hello");
    drop(stalled);
    assert_eq!(hello(&peer).await.unwrap(), "hello");
}

#[tokio::test(flavor = "multi_thread")]
async fn another_secret_is_refused_before_anything_is_sent() {
    let folder = tempfile::tempdir().unwrap();
    let (ours, theirs) = (write(folder.path(), "ours", &["a"]), write(folder.path(), "theirs", &["b"]));
    let (address, echo) = served(&theirs).await;
    let peer = Peer::new(&address, secret(&ours)).unwrap();
    let error = hello(&peer).await.unwrap_err();
    assert!(matches!(error, LinkError::Secret { .. }) && error.nothing_happened(), "{error}");
    assert_eq!(echo.calls.load(Ordering::SeqCst), 0);
    // While a secret is exchanged, one side may have both.
    let both = write(folder.path(), "both", &["a", "b"]);
    assert_eq!(hello(&Peer::new(&address, secret(&both)).unwrap()).await.unwrap(), "hello");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_secret_is_taken_and_the_one_before_it_refused() {
    let folder = tempfile::tempdir().unwrap();
    let (server, old) = (write(folder.path(), "server", &["a"]), write(folder.path(), "old", &["a"]));
    let new = write(folder.path(), "new", &["a"]);
    let (address, _) = served(&server).await;
    let (stays, changes) = (Peer::new(&address, secret(&old)).unwrap(), Peer::new(&address, secret(&new)).unwrap());
    assert_eq!(hello(&stays).await.unwrap(), "hello");
    assert_eq!(hello(&changes).await.unwrap(), "hello");
    write(folder.path(), "server", &["n"]);
    write(folder.path(), "new", &["n"]);
    // Files are looked at once per second.
    let refused = async {
        while hello(&stays).await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(WAIT, refused).await.unwrap();
    let taken = async {
        while hello(&changes).await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(WAIT, taken).await.unwrap();
    assert!(matches!(hello(&stays).await.unwrap_err(), LinkError::Secret { .. }));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_incompatible_version_and_a_request_without_proof_are_refused_with_a_sentence() {
    let folder = tempfile::tempdir().unwrap();
    let (address, echo) = served(&write(folder.path(), "secret", &["a"])).await;
    let stream = TcpStream::connect(address.trim_start_matches("http://")).await.unwrap();
    let connection =
        hyper::client::conn::http2::handshake::<_, _, Body>(TokioExecutor::new(), TokioIo::new(stream)).await;
    let (mut sender, connection) = connection.unwrap();
    tokio::spawn(connection);
    let nonce = "A".repeat(43);
    let request = |path: &str, version: &str| {
        Request::post(format!("{address}{path}"))
            .header(VERSION_HEADER, version)
            .header(NONCE_HEADER, &nonce)
            .header("authorization", "Bearer AAAA")
            .body(empty())
            .unwrap()
    };
    for (path, version, status, said) in [
        (HANDSHAKE, "2.0", 426, "run releases of one generation"),
        (HANDSHAKE, "nonsense", 426, "unknown"),
        ("/hello", "1.0", 401, "--fleet-secret-file"),
        (HANDSHAKE, "1.7", 200, ""),
        ("/hello", "1.0", 401, "--fleet-secret-file"),
    ] {
        let answer = sender.send_request(request(path, version)).await.unwrap();
        assert_eq!(answer.status(), status, "{path} {version}");
        let text = read_bounded(answer.into_body(), 1 << 10).await.unwrap();
        assert!(String::from_utf8_lossy(&text).contains(said), "{text:?}");
    }
    assert_eq!(echo.calls.load(Ordering::SeqCst), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_there_is_said_and_an_ended_server_is_found_again() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), "secret", &["a"]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let stop = CancellationToken::new();
    let serving = tokio::spawn(serve(listener, secret(&path), Arc::new(Echo::default()), stop.clone()));
    let peer = Peer::new(&format!("http://{address}"), secret(&path)).unwrap();
    assert_eq!(hello(&peer).await.unwrap(), "hello");
    stop.cancel();
    serving.await.unwrap();
    let error = hello(&peer).await.unwrap_err();
    assert!(matches!(error, LinkError::Unreachable { .. }), "{error}");
    let listener = TcpListener::bind(address).await.unwrap();
    tokio::spawn(serve(listener, secret(&path), Arc::new(Echo::default()), CancellationToken::new()));
    assert_eq!(hello(&peer).await.unwrap(), "hello");
    for wrong in ["127.0.0.1:1", "ftp://x:1", "http://x/path", ""] {
        assert!(Peer::new(wrong, secret(&path)).is_err(), "{wrong}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_waits_for_a_peer_that_is_given_up_is_told_so() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), "secret", &["a"]);
    // It takes connections and proves nothing.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let peer = Arc::new(Peer::new(&format!("http://{}", listener.local_addr().unwrap()), secret(&path)).unwrap());
    let waiting = tokio::spawn({
        let peer = Arc::clone(&peer);
        async move { hello(&peer).await }
    });
    let _taken = listener.accept().await.unwrap();
    peer.give_up();
    for error in [waiting.await.unwrap().unwrap_err(), hello(&peer).await.unwrap_err()] {
        assert!(error.nothing_happened() && error.to_string().contains("it is gone"), "{error}");
    }
    // What is there already goes on.
    let (address, _) = served(&path).await;
    let peer = Peer::new(&address, secret(&path)).unwrap();
    assert_eq!(hello(&peer).await.unwrap(), "hello");
    peer.give_up();
    assert_eq!(hello(&peer).await.unwrap(), "hello");
}

#[tokio::test(flavor = "multi_thread")]
async fn those_who_wait_for_a_peer_that_does_not_answer_are_told_together() {
    let folder = tempfile::tempdir().unwrap();
    let path = write(folder.path(), "secret", &["a"]);
    // It takes connections and says nothing.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let peer = Arc::new(Peer::new(&format!("http://{}", listener.local_addr().unwrap()), secret(&path)).unwrap());
    let taken = tokio::spawn(async move {
        let mut taken = Vec::new();
        loop {
            taken.push(listener.accept().await.unwrap());
            assert!(taken.len() <= 3, "each caller makes an attempt of its own");
        }
    });
    let callers = (0..50).map(|_| {
        let peer = Arc::clone(&peer);
        tokio::spawn(async move { hello(&peer).await })
    });
    let all = tokio::time::timeout(WAIT, futures::future::join_all(callers)).await.unwrap();
    for one in all {
        assert!(one.unwrap().unwrap_err().nothing_happened());
    }
    assert!(!taken.is_finished());
    taken.abort();
}
