//! A server without database and sandboxes: both ports in memory, driven by the test.
#![allow(clippy::unwrap_used, dead_code, unreachable_pub, clippy::missing_panics_doc, missing_docs)]

mod cluster;
mod runner;
mod store;

use std::sync::{Arc, Mutex};

use ash_api::{ApiConfig, ApiState, OptionalPorts};
use ash_core::{
    Entry, EntryKind, Sequence,
    id::{SessionId, TenantId},
    ports::{KeyStore as _, NewKey},
};
use ash_protocol::EntryFlags;
use axum::{Router, body::Body};
use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt as _;
use prometheus_client::registry::Registry;
use serde_json::Value;
use tower::ServiceExt as _;

pub use cluster::Cluster;
pub use runner::Runner;
pub use store::Memory;

pub const KEY: &str = "ash_test";
pub const OTHER_KEY: &str = "ash_other";

pub struct Server {
    pub store: Arc<Memory>,
    pub runner: Arc<Runner>,
    pub state: ApiState,
    pub router: Router,
}

pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: Bytes,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|_| panic!("{:?}", self.body))
    }

    pub fn text(&self) -> String {
        String::from_utf8(self.body.to_vec()).unwrap()
    }

    /// The answer is an error of the contract's form; gives its sentence.
    pub fn error(&self, status: u16) -> String {
        let body = self.json();
        assert_eq!((self.status.as_u16(), body["statusCode"].as_u64()), (status, Some(status.into())), "{body}");
        assert_eq!(body.as_object().unwrap().len(), 2);
        body["error"].as_str().unwrap().to_owned()
    }
}

impl Server {
    pub async fn new() -> Self {
        Self::with(ApiConfig::default()).await
    }

    pub async fn with(config: ApiConfig) -> Self {
        Self::begin(config, OptionalPorts::default()).await
    }

    /// A server that writes what people want into these resources.
    pub async fn in_cluster(cluster: &Arc<Cluster>) -> Self {
        let optional = OptionalPorts { resources: Some(Arc::clone(cluster) as _), ..OptionalPorts::default() };
        Self::begin(ApiConfig::default(), optional).await
    }

    async fn begin(config: ApiConfig, optional: OptionalPorts) -> Self {
        let store = Arc::new(Memory::default());
        let runner = Arc::new(Runner::new(store.clone()));
        for (key, tenant) in [(KEY, TenantId::default_tenant()), (OTHER_KEY, TenantId("other".to_owned()))] {
            let key = NewKey { tenant, name: "test".to_owned(), hash: ash_api::hash_key(key) };
            store.add_key(key).await.unwrap();
        }
        let registry = Arc::new(Mutex::new(Registry::default()));
        let state = ApiState::with(store.clone(), runner.clone(), optional, registry, config);
        let router = ash_api::router(state.clone());
        Self { store, runner, state, router }
    }

    pub async fn send(&self, request: Request<Body>) -> Answer {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Answer { status: parts.status, headers: parts.headers, body }
    }

    pub async fn call(&self, method: &str, path: &str, body: &str) -> Answer {
        self.send(request(method, path, body)).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.call("GET", path, "").await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.call("POST", path, &body.to_string()).await
    }

    pub async fn deploy(&self, name: &str) {
        let body = serde_json::json!({ "name": name, "systemPrompt": "You are a test." });
        let answer = self.post("/api/agents", &body).await;
        assert_eq!(answer.status, 201, "{:?}", answer.body);
    }

    pub async fn session(&self) -> SessionId {
        if self.get("/api/agents/a").await.status == 404 {
            self.deploy("a").await;
        }
        let answer = self.post("/api/sessions", &serde_json::json!({ "agent": "a" })).await;
        assert_eq!(answer.status, 201, "{:?}", answer.body);
        answer.json()["session"]["id"].as_str().unwrap().parse().unwrap()
    }

    /// The value of a metric of one line.
    pub async fn metric(&self, line: &str) -> u64 {
        let text = self.get("/metrics").await.text();
        let found = text.lines().find_map(|other| other.strip_prefix(line)?.strip_prefix(' '));
        found.map_or(0, |value| value.parse().unwrap())
    }
}

pub fn request(method: &str, path: &str, body: &str) -> Request<Body> {
    Request::builder()
        .method(method)
        .uri(path)
        .header("authorization", format!("Bearer {KEY}"))
        .header("content-type", "application/json")
        .body(Body::from(body.to_owned()))
        .unwrap()
}

/// What a session's log has, without its sequence.
pub fn line(kind: EntryKind, ends: bool, body: &str) -> Entry {
    let flags = if ends { EntryFlags::ENDS_TURN } else { EntryFlags::default() };
    Entry { sequence: Sequence::START, kind, flags, body: Bytes::copy_from_slice(body.as_bytes()) }
}

pub fn partial(text: &str) -> Entry {
    let body = serde_json::json!({
        "type": "stream_event",
        "event": { "type": "content_block_delta", "delta": { "type": "text_delta", "text": text } },
    });
    line(EntryKind::Partial, false, &body.to_string())
}

pub fn assistant(text: &str) -> Entry {
    let content = serde_json::json!([{ "type": "text", "text": text }]);
    let body = serde_json::json!({ "type": "assistant", "message": { "content": content } });
    line(EntryKind::Claude, false, &body.to_string())
}

pub fn result(text: &str) -> Entry {
    let body = serde_json::json!({
        "type": "result", "subtype": "success", "is_error": false, "num_turns": 1, "result": text,
        "usage": { "input_tokens": 3 }, "total_cost_usd": 0.25, "duration_ms": 12,
    });
    line(EntryKind::Claude, true, &body.to_string())
}

/// The names of the events of a stream.
pub fn events(text: &str) -> Vec<&str> {
    text.lines().filter_map(|line| line.strip_prefix("event: ")).collect()
}

/// The ids of the events of a stream.
pub fn ids(text: &str) -> Vec<&str> {
    text.lines().filter_map(|line| line.strip_prefix("id: ")).collect()
}
