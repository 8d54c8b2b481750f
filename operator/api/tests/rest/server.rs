//! What every route has in common: keys, forms of errors, health.

use ash_api::{ApiConfig, ensure_initial_key, hash_key};
use ash_core::{
    ports::{KeyStore as _, RunnerError, StoreError},
    session::SessionState,
};
use axum::body::Body;
use http::Request;
use serde_json::json;

use crate::support::{Memory, Server, request};

#[tokio::test]
async fn health_and_metrics_are_public() {
    let server = Server::new().await;
    let answer = server.send(Request::get("/health").body(Body::empty()).unwrap()).await;
    let body = answer.json();
    assert_eq!((answer.status.as_u16(), &body["status"]), (200, &json!("ok")));
    for field in ["version", "coordinatorId", "activeSessions", "activeSandboxes", "remoteRunners", "uptime"] {
        assert!(!body[field].is_null(), "{field}");
    }
    assert_eq!(body["pool"]["maxCapacity"], 8);
    assert_eq!(body["pool"]["resumeWarmHits"], 0);
    let metrics = server.send(Request::get("/metrics").body(Body::empty()).unwrap()).await;
    assert!(metrics.text().contains("ash_api_requests_total{method=\"GET\",route=\"/health\",status=\"2xx\"} 1"));
    server.store.fail(StoreError::Unavailable("at /secret/place".to_owned()));
    let answer = server.get("/health").await;
    assert!(!answer.error(503).contains("secret"));
    assert!(answer.headers.contains_key("retry-after"));
}

#[tokio::test]
async fn below_api_a_key_is_needed() {
    let server = Server::with(ApiConfig { api_key: Some("ash_extra".to_owned().into()), ..ApiConfig::default() }).await;
    let with = |key: Option<&str>, path: &str| {
        let mut request = Request::get(path);
        if let Some(key) = key {
            request = request.header("authorization", key);
        }
        request.body(Body::empty()).unwrap()
    };
    for path in ["/api/agents", "/api/nothing", "/api"] {
        assert_eq!(server.send(with(None, path)).await.error(401), "Missing Authorization header");
        for key in ["Bearer wrong", "Basic YTpi", "Bearer ", "ash_test"] {
            let answer = server.send(with(Some(key), path)).await;
            assert_eq!(answer.error(401), "Invalid API key");
            assert_eq!(answer.headers["www-authenticate"], "Bearer");
        }
    }
    assert_eq!(server.metric("ash_api_auth_failures_total").await, 15);
    assert_eq!(server.send(with(Some("Bearer ash_extra"), "/api/agents")).await.status, 200);
    assert_eq!(server.send(with(Some("bearer ash_test"), "/api/agents")).await.status, 200);
}

#[tokio::test]
async fn what_no_route_takes_is_an_error_of_the_same_form() {
    let server = Server::new().await;
    server.get("/nothing").await.error(404);
    server.get("/api/nothing").await.error(404);
    server.call("PUT", "/api/agents", "").await.error(405);
    server.call("POST", "/health", "").await.error(405);
    server.get("/api/sessions/not-an-id").await.error(404);
    server.get("/api/sessions?limit=x").await.error(400);
    server.get("/api/agents/%ff").await.error(400);
}

#[tokio::test]
async fn requests_have_ids() {
    let server = Server::new().await;
    let given = server.get("/health").await.headers["x-request-id"].to_str().unwrap().to_owned();
    assert!(given.parse::<uuid::Uuid>().is_ok());
    let mut request = request("GET", "/health", "");
    request.headers_mut().insert("x-request-id", "mine-1".parse().unwrap());
    assert_eq!(server.send(request).await.headers["x-request-id"], "mine-1");
}

#[tokio::test]
async fn a_defect_is_an_error_without_details() {
    let server = Server::new().await;
    let session = server.session().await;
    *server.runner.panics.lock().unwrap() = true;
    let error = server.call("POST", &format!("/api/sessions/{session}/interrupt"), "").await.error(500);
    assert!(!error.contains("on purpose"));
    assert_eq!(server.metric("ash_api_panics_total").await, 1);
    server.call("POST", &format!("/api/sessions/{session}/messages"), r#"{"content":"x"}"#).await.error(500);
}

#[tokio::test]
async fn the_first_key_is_written_where_only_its_owner_reads_it() {
    use std::os::unix::fs::PermissionsExt as _;

    let folder = tempfile::tempdir().unwrap();
    let store = Memory::default();
    std::fs::write(folder.path().join("initial-api-key"), "stale").unwrap();
    let path = ensure_initial_key(&store, folder.path()).await.unwrap().unwrap();
    assert_eq!(path, folder.path().join("initial-api-key"));
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    let key = std::fs::read_to_string(&path).unwrap();
    let key = key.trim_end();
    assert!(key.starts_with("ash_") && key.len() == 4 + 32, "{key}");
    assert!(store.key(&hash_key(key)).await.unwrap().is_some());
    assert!(ensure_initial_key(&store, folder.path()).await.unwrap().is_none());
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    let nowhere = folder.path().join("gone");
    let empty = Memory::default();
    assert!(ensure_initial_key(&empty, &nowhere).await.unwrap_err().to_string().contains("writable"));
    assert!(!empty.has_keys().await.unwrap());
}

#[tokio::test]
async fn what_the_ports_refuse_keeps_its_meaning() {
    let server = Server::new().await;
    let id = server.session().await;
    let path = format!("/api/sessions/{id}/messages");
    let store = |error| RunnerError::Store(error);
    for (error, status, retry) in [
        (RunnerError::TurnInProgress, 409, false),
        (RunnerError::LogFull { quota_bytes: 1 << 30 }, 409, false),
        (RunnerError::State(SessionState::Stopped), 400, false),
        (RunnerError::OptionRefused("betas: no".to_owned()), 400, false),
        (RunnerError::NoCapacity { waited_seconds: 30 }, 503, true),
        (RunnerError::ShuttingDown, 503, true),
        (RunnerError::Internal("x".to_owned()), 500, false),
        (store(StoreError::Full), 503, true),
        (store(StoreError::Unavailable("x".to_owned())), 503, true),
        (store(StoreError::Damaged("x".to_owned())), 500, false),
    ] {
        server.runner.fail(error.clone());
        let answer = server.call("POST", &path, r#"{"content":"x"}"#).await;
        answer.error(status);
        assert_eq!(answer.headers.contains_key("retry-after"), retry, "{error}");
    }
}
