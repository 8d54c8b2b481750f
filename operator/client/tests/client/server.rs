//! A server of one session that cuts its connections where a seed says.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// A request, as far as the tests look at it.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) line: String,
    pub(crate) headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(key, _)| key.eq_ignore_ascii_case(name)).map(|(_, value)| value.as_str())
    }
}

/// What the server does with a connection.
pub(crate) enum Answer {
    /// A status, headers (each with its line end) and a body.
    Whole(u16, &'static str, String),
    /// A stream of which only the first bytes are sent; the connection is then cut in the middle of its chunk, or ended as if
    /// it were complete.
    Stream { bytes: Vec<u8>, send: usize, clean: bool },
    /// A stream that says behind which position it begins, and is cut after these bytes.
    Behind { after: String, bytes: Vec<u8> },
    /// Nothing: the connection is closed.
    Close,
}

/// The requests that came, in order.
pub(crate) type Requests = Arc<Mutex<Vec<Seen>>>;

/// Starts a server that lives as long as the test's runtime.
pub(crate) async fn start(mut answer: impl FnMut(&Seen) -> Answer + Send + 'static) -> (SocketAddr, Requests) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let requests = Requests::default();
    let kept = requests.clone();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let Some(seen) = read(&mut stream).await else { continue };
            kept.lock().unwrap().push(seen.clone());
            // A client that went away ends its own test, not this server.
            let _ = write(&mut stream, answer(&seen)).await;
        }
    });
    (address, requests)
}

async fn read(stream: &mut TcpStream) -> Option<Seen> {
    let mut bytes = Vec::new();
    let head = loop {
        if let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") {
            break end;
        }
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    };
    let text = String::from_utf8(bytes[..head].to_vec()).unwrap();
    let mut lines = text.lines();
    let line = lines.next().unwrap_or_default().to_owned();
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(": "))
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
    let mut seen = Seen { line, headers, body: String::new() };
    let length: usize = seen.header("content-length").map_or(0, |value| value.parse().unwrap());
    while bytes.len() < head + 4 + length {
        if stream.read_buf(&mut bytes).await.ok()? == 0 {
            return None;
        }
    }
    seen.body = String::from_utf8(bytes[head + 4..].to_vec()).unwrap();
    Some(seen)
}

async fn write(stream: &mut TcpStream, answer: Answer) -> std::io::Result<()> {
    match answer {
        Answer::Close => Ok(()),
        Answer::Whole(status, headers, body) => {
            let head = format!(
                "HTTP/1.1 {status} X\r\ncontent-type: application/json\r\nconnection: close\r\n{headers}content-length: {}\r\n\r\n",
                body.len()
            );
            stream.write_all(head.as_bytes()).await?;
            stream.write_all(body.as_bytes()).await
        }
        Answer::Behind { after, bytes } => {
            let head = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\nash-stream-after: {after}\r\n\
                 transfer-encoding: chunked\r\n\r\n{:x}\r\n",
                bytes.len() + 1
            );
            stream.write_all(head.as_bytes()).await?;
            stream.write_all(&bytes).await
        }
        Answer::Stream { bytes, send, clean } => {
            let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\ntransfer-encoding: chunked\r\n\r\n";
            stream.write_all(head.as_bytes()).await?;
            let sent = &bytes[..send.min(bytes.len())];
            let whole = clean || send >= bytes.len();
            let announced = if whole { sent.len() } else { sent.len() + 1 };
            if announced > 0 {
                stream.write_all(format!("{announced:x}\r\n").as_bytes()).await?;
                stream.write_all(sent).await?;
            }
            if whole {
                stream.write_all(if announced > 0 { b"\r\n0\r\n\r\n" } else { b"0\r\n\r\n" }).await?;
            }
            stream.flush().await
        }
    }
}
