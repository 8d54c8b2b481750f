//! Stands in for the API server of runners that review the tokens of bridges, and answers nothing else: a token is a pod's name, its
//! uid and its node.

use std::{convert::Infallible, net::SocketAddr, path::PathBuf};

use anyhow::Context;
use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::{Request, Response, body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::{net::TcpListener, task::JoinHandle};

/// The audience of a bridge's token.
const AUDIENCE: &str = "ash-runner";

/// The server, until it is dropped, with the kubeconfig that leads to it.
#[derive(Debug)]
pub(super) struct Reviews {
    serving: JoinHandle<()>,
    folder: TempDir,
}

impl Drop for Reviews {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Reviews {
    pub(super) async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let folder = TempDir::new()?;
        write_kubeconfig(&folder, listener.local_addr()?)?;
        let serving = tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                // A small answer leaves at once; one that cannot be told so is slower.
                let _ = stream.set_nodelay(true);
                tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service_fn(answer)));
            }
        });
        Ok(Self { serving, folder })
    }

    /// For `KUBECONFIG`.
    pub(super) fn kubeconfig(&self) -> PathBuf {
        self.folder.path().join("config")
    }
}

/// The token of a pod.
pub(super) fn token(pod: &str, node: &str) -> String {
    format!("{pod}/uid-{pod}/{node}")
}

fn write_kubeconfig(folder: &TempDir, address: SocketAddr) -> anyhow::Result<()> {
    let config = json!({
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{ "name": "it", "cluster": { "server": format!("http://{address}") } }],
        "users": [{ "name": "it", "user": {} }],
        "contexts": [{ "name": "it", "context": { "cluster": "it", "user": "it" } }],
        "current-context": "it",
    });
    std::fs::write(folder.path().join("config"), config.to_string()).context("the kubeconfig cannot be written")
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let body = request.into_body().collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
    let mut review: Value = serde_json::from_slice(&body).unwrap_or_default();
    let token = review["spec"]["token"].as_str().unwrap_or_default().to_owned();
    let parts: Vec<&str> = token.split('/').collect();
    review["status"] = match parts.as_slice() {
        [pod, uid, node] => json!({
            "authenticated": true,
            "audiences": [AUDIENCE],
            "user": {
                "username": "system:serviceaccount:default:default",
                "extra": {
                    "authentication.kubernetes.io/pod-name": [pod],
                    "authentication.kubernetes.io/pod-uid": [uid],
                    "authentication.kubernetes.io/node-name": [node],
                },
            },
        }),
        _ => json!({ "authenticated": false, "error": "no token of a stand-in" }),
    };
    let mut response = Response::new(Full::new(Bytes::from(review.to_string())));
    *response.status_mut() = http::StatusCode::CREATED;
    response.headers_mut().insert("content-type", http::HeaderValue::from_static("application/json"));
    Ok(response)
}
