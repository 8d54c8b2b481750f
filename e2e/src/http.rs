//! Plain HTTP/1.1 requests, for what the client has no method for and what no client should send.

use std::net::SocketAddr;

use anyhow::Context;
use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::{Request, client::conn::http1};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

/// Sends one request on a connection of its own: the status, the headers and the whole body of the answer.
pub async fn send(address: SocketAddr, request: Request<Full<Bytes>>) -> anyhow::Result<hyper::Response<Bytes>> {
    let stream = TcpStream::connect(address).await.context("cannot connect")?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    tokio::spawn(connection);
    let (parts, body) = sender.send_request(request).await?.into_parts();
    Ok(hyper::Response::from_parts(parts, body.collect().await?.to_bytes()))
}

/// Sends JSON and reads JSON: the status and the answer.
pub async fn json(
    address: SocketAddr,
    method: &str,
    path: &str,
    key: Option<&str>,
    body: Option<serde_json::Value>,
) -> anyhow::Result<(u16, serde_json::Value)> {
    let mut request = Request::builder().method(method).uri(path).header("host", address.to_string());
    if let Some(key) = key {
        request = request.header("authorization", format!("Bearer {key}"));
    }
    if body.is_some() {
        request = request.header("content-type", "application/json");
    }
    let body = body.map(|body| Bytes::from(body.to_string())).unwrap_or_default();
    let response = send(address, request.body(Full::new(body))?).await?;
    let status = response.status().as_u16();
    let value = serde_json::from_slice(response.body())
        .with_context(|| format!("{status}: {}", String::from_utf8_lossy(response.body())))?;
    Ok((status, value))
}

/// Reads a page of text.
pub async fn text(address: SocketAddr, path: &str) -> anyhow::Result<String> {
    let request = Request::builder().uri(path).header("host", address.to_string()).body(Full::default())?;
    Ok(String::from_utf8_lossy(send(address, request).await?.body()).into_owned())
}
