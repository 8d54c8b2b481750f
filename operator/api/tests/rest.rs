//! Every route that answers at once, and everything that it refuses.
#![allow(clippy::unwrap_used)]

mod support;

use ash_api::{ApiConfig, ensure_initial_key, hash_key};
use ash_bundle::Bundle;
use ash_core::{
    EntryKind,
    id::TurnId,
    ports::{KeyStore as _, RunnerError, StoreError},
    session::{PausedReason, SessionState},
};
use axum::body::Body;
use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::Request;
use serde_json::{Value, json};

use support::{Memory, OTHER_KEY, Server, assistant, line, request, result};

fn files(files: &[(&str, &str)]) -> Value {
    let file = |(path, text): &(&str, &str)| json!({ "path": path, "content": BASE64_STANDARD.encode(text) });
    files.iter().map(file).collect()
}

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
async fn an_agent_is_deployed_in_versions_and_deleted() {
    let server = Server::new().await;
    let deploy = json!({
        "name": "my-agent", "slug": "mine", "description": "d", "model": "m", "env": { "TOKEN": "secret" },
        "config": { "a": 1 }, "network": { "mode": "allowlist", "hosts": ["github.com", "*.x.org:8443"] },
        "files": files(&[("CLAUDE.md", "hello"), (".claude/settings.json", r#"{"hooks":{"Stop":[{}]}}"#)]),
        "backend": "claude-code", "somethingNew": true,
    });
    let answer = server.post("/api/agents", &deploy).await;
    assert_eq!(answer.status, 201);
    let agent = answer.json()["agent"].clone();
    assert_eq!((&agent["version"], &agent["env"]), (&json!(1), &json!({ "TOKEN": "***" })));
    assert!(agent["path"].as_str().unwrap().starts_with("bundle:"));
    assert!(agent["createdAt"].as_str().unwrap().ends_with('Z'));
    assert_eq!(agent["createdAt"].as_str().unwrap().len(), "2026-11-22T20:00:00.000Z".len());
    {
        let prepared = server.runner.prepared.lock().unwrap();
        assert!(prepared[0].settings.has_hooks);
        assert_eq!(prepared[0].settings.env["TOKEN"], "secret");
        let packed = server.store.tables().bundles[&prepared[0].digest].clone();
        let bundle = Bundle::from_tar_zstd(&packed).unwrap();
        assert_eq!(bundle.digest(), prepared[0].digest);
        assert_eq!(bundle.file("CLAUDE.md").unwrap().bytes, b"hello");
    }
    let again = json!({ "name": "my-agent", "systemPrompt": "You are new." });
    assert_eq!(server.post("/api/agents", &again).await.json()["agent"]["version"], 2);
    assert_eq!(server.get("/api/agents/my-agent").await.json()["agent"]["version"], 2);
    assert_eq!(server.get("/api/agents/mine").await.json()["agent"]["name"], "my-agent");
    let list = server.get("/api/agents").await;
    assert_eq!(list.json()["agents"].as_array().unwrap().len(), 1);
    assert!(!list.text().contains("You are new.") && !list.text().contains("secret"));

    let mut of_another = request("GET", "/api/agents/my-agent", "");
    of_another.headers_mut().insert("authorization", format!("Bearer {OTHER_KEY}").parse().unwrap());
    server.send(of_another).await.error(404);

    let answer = server.call("DELETE", "/api/agents/mine", "").await;
    assert_eq!((answer.status.as_u16(), answer.json()), (200, json!({ "ok": true })));
    assert_eq!(server.runner.forgotten.lock().unwrap().len(), 1);
    server.call("DELETE", "/api/agents/mine", "").await.error(404);
    server.get("/api/agents/my-agent").await.error(404);
}

#[tokio::test]
async fn a_deployment_that_cannot_work_says_why() {
    let server = Server::new().await;
    let md = || files(&[("CLAUDE.md", "x")]);
    for (body, words) in [
        (json!({}), "name"),
        (json!({ "name": "../x", "files": md() }), "no name for an agent"),
        (json!({ "name": "a" }), "CLAUDE.md"),
        (json!({ "name": "a", "files": [] }), "CLAUDE.md"),
        (json!({ "name": "a", "files": files(&[("sub/CLAUDE.md", "x")]) }), "CLAUDE.md"),
        (json!({ "name": "a", "files": files(&[("CLAUDE.md", "x"), ("../x", "")]) }), "../x"),
        (json!({ "name": "a", "files": files(&[("CLAUDE.md", "x"), ("/etc/x", "")]) }), "/etc/x"),
        (json!({ "name": "a", "files": [{ "path": "CLAUDE.md", "content": "%%" }] }), "base64"),
        (json!({ "name": "a", "files": files(&[("CLAUDE.md", "x"), (".mcp.json", "{")]) }), ".mcp.json"),
        (json!({ "name": "a", "path": "." }), "standalone"),
        (json!({ "name": "a", "path": ".", "files": md() }), "both"),
        (json!({ "name": "a", "files": md(), "slug": "a b" }), "slug"),
        (json!({ "name": "a", "files": md(), "backend": "other" }), "backend"),
        (json!({ "name": "a", "files": md(), "env": { "HTTPS_PROXY": "x" } }), "HTTPS_PROXY"),
        (json!({ "name": "a", "files": md(), "env": { "ANTHROPIC_API_KEY": "sk" } }), "gateway"),
        (json!({ "name": "a", "files": md(), "env": { "A": 1 } }), "env"),
        (json!({ "name": "a", "files": md(), "network": { "mode": "wild" } }), "network"),
        (json!({ "name": "a", "files": md(), "network": { "mode": "allowlist", "hosts": ["a b"] } }), "network"),
        (json!([]), "JSON object"),
    ] {
        let error = server.post("/api/agents", &body).await.error(400);
        assert!(error.contains(words), "{body}: {error}");
    }
    assert!(server.call("POST", "/api/agents", "{").await.error(400).contains("JSON"));
    let large = "a".repeat(150 << 20);
    assert_eq!(server.call("POST", "/api/agents", &large).await.status, 400);
    server.call("POST", "/api/agents", &(large + "a")).await.error(413);
    let taken = json!({ "name": "a", "slug": "s", "systemPrompt": "x" });
    assert_eq!(server.post("/api/agents", &taken).await.status, 201);
    server.post("/api/agents", &json!({ "name": "b", "slug": "s", "systemPrompt": "x" })).await.error(409);
}

#[tokio::test]
async fn a_folder_is_deployed_only_where_that_is_allowed() {
    let folder = tempfile::tempdir().unwrap();
    let server = Server::with(ApiConfig { allow_path: true, ..ApiConfig::default() }).await;
    let body = json!({ "name": "a", "path": folder.path() });
    let error = server.post("/api/agents", &body).await.error(400);
    assert!(error.contains("CLAUDE.md") && !error.contains(folder.path().to_str().unwrap()), "{error}");
    std::fs::write(folder.path().join("CLAUDE.md"), "x").unwrap();
    assert_eq!(server.post("/api/agents", &body).await.status, 201);
    std::os::unix::fs::symlink("/etc/hostname", folder.path().join("out")).unwrap();
    assert!(server.post("/api/agents", &body).await.error(400).contains("\"out\""));
}

#[tokio::test]
async fn a_session_takes_its_options() {
    let server = Server::new().await;
    let agent = json!({ "name": "a", "systemPrompt": "x", "env": { "A": "1", "B": "2" } });
    server.post("/api/agents", &agent).await;
    let body = json!({
        "agent": "a", "extraEnv": { "B": "3", "C": "4" }, "model": "m", "mcpServers": { "s": { "command": "x" } },
        "systemPrompt": "p", "permissionMode": "permissionsByAgent", "allowedTools": ["Bash"],
        "disallowedTools": ["Write"], "betas": ["b"], "subagents": { "helper": { "prompt": "h" } },
        "initialAgent": "helper", "metadata": { "k": "v" }, "credentialId": null, "unknown": 1,
    });
    let answer = server.post("/api/sessions", &body).await;
    assert_eq!(answer.status, 201);
    let session = answer.json()["session"].clone();
    assert_eq!((&session["status"], &session["agentName"]), (&json!("active"), &json!("a")));
    assert_eq!(session["extraEnv"], json!({ "B": "***", "C": "***" }));
    assert_eq!((&session["metadata"], &session["runnerId"]), (&json!({ "k": "v" }), &Value::Null));
    assert!(!session["sandboxId"].as_str().unwrap().is_empty());
    {
        let options = server.store.tables().sessions[0].options.clone();
        let environment: Vec<_> = options.environment.iter().map(|(k, v)| (k.as_str(), v.as_str())).collect();
        assert_eq!(environment, [("A", "1"), ("B", "3"), ("C", "4")]);
        let json = serde_json::to_value(&options).unwrap();
        assert_eq!(json["permissionMode"], "default");
        for field in ["model", "mcpServers", "systemPrompt", "allowedTools", "disallowedTools", "betas", "subagents"] {
            assert_eq!(json[field], body[field], "{field}");
        }
    }
    let list = server.get("/api/sessions").await.text();
    assert!(!list.contains("extraEnv") && !list.contains("\"p\""));
}

#[tokio::test]
async fn a_session_that_cannot_be_is_refused_by_name() {
    let server = Server::new().await;
    server.deploy("a").await;
    for (field, value) in [
        ("permissionMode", json!("wild")),
        ("permissionMode", json!(1)),
        ("model", json!("")),
        ("model", json!("a\nb")),
        ("allowedTools", json!("Bash")),
        ("disallowedTools", json!([""])),
        ("betas", json!([1])),
        ("mcpServers", json!([])),
        ("mcpServers", json!({ "x": 1 })),
        ("subagents", json!({ "x": "y" })),
        ("initialAgent", json!(7)),
        ("metadata", json!({ "k": 1 })),
        ("metadata", json!({ "": "v" })),
        ("extraEnv", json!({ "PATH": "/x" })),
        ("extraEnv", json!({ "ANTHROPIC_BASE_URL": "http://x" })),
        ("extraEnv", json!({ "CLAUDE_CODE_X": "1" })),
        ("extraEnv", json!({ "LD_PRELOAD": "x" })),
        ("systemPrompt", json!("\u{0}")),
    ] {
        let mut body = json!({ "agent": "a" });
        body[field] = value;
        let error = server.post("/api/sessions", &body).await.error(400);
        assert!(error.contains(field), "{body}: {error}");
    }
    let unknown = json!({ "agent": "a", "credentialId": "5bdc01b3-0f12-4a58-a71a-f3dd3e1bd6d1" });
    assert!(server.post("/api/sessions", &unknown).await.error(404).contains("credential"));
    assert_eq!(server.post("/api/sessions", &json!({ "agent": "b" })).await.error(404), "Agent not found");
    assert!(server.post("/api/sessions", &json!({})).await.error(400).contains("agent is missing"));
    assert!(server.call("POST", "/api/sessions", "{x").await.error(400).contains("JSON"));
    assert!(server.store.tables().sessions.is_empty());
}

#[tokio::test]
async fn a_server_without_runners_or_credentials_says_so() {
    let server = Server::new().await;
    let runners = server.call("GET", "/api/runners", "").await;
    assert_eq!((runners.status.as_u16(), &*runners.body), (200, &br#"{"runners":[]}"#[..]));
    assert!(server.call("POST", "/api/runners/one/cordon", "").await.error(404).contains("standalone"));
    assert!(server.call("GET", "/api/credentials", "").await.error(404).contains("keeps no credentials"));
    for (body, said) in [
        (json!({ "type": "openai", "key": "k" }), "type"),
        (json!({ "type": "nonsense", "key": "k" }), "type"),
        (json!({ "type": "anthropic" }), "key"),
        (json!({ "type": "anthropic", "key": " " }), "key"),
        (json!({ "type": "anthropic", "key": "two words" }), "key"),
        (json!({ "type": "custom", "key": "no object" }), "JSON object"),
        (json!({ "type": "custom", "key": "{\"HTTPS_PROXY\":\"x\"}" }), "HTTPS_PROXY"),
        (json!({ "type": "anthropic", "key": "k", "label": "" }), "label"),
    ] {
        let error = server.post("/api/credentials", &body).await.error(400);
        assert!(error.contains(said), "{body}: {error}");
    }
}

#[tokio::test]
async fn misspelt_fields_are_refused_and_unknown_ones_ignored() {
    let server = Server::new().await;
    let session = server.session().await;
    let messages = format!("/api/sessions/{session}/messages");
    let before = server.get("/api/sessions").await.json()["sessions"].as_array().unwrap().len();
    for (path, body, given, meant) in [
        ("/api/sessions", json!({ "agent": "a", "permission_mode": "default" }), "permission_mode", "permissionMode"),
        ("/api/sessions", json!({ "agent": "a", "disallowedTool": ["Bash"] }), "disallowedTool", "disallowedTools"),
        (&messages, json!({ "content": "x", "max_turns": 1 }), "max_turns", "maxTurns"),
        (
            &messages,
            json!({ "content": "x", "thinking": { "type": "enabled", "budget_tokens": 2048 } }),
            "thinking.budget_tokens",
            "thinking.budgetTokens",
        ),
        ("/api/agents", json!({ "name": "n", "system-prompt": "p" }), "system-prompt", "systemPrompt"),
        (
            "/api/agents",
            json!({ "name": "n", "systemPrompt": "p", "network": { "mode": "model", "Hosts": [] } }),
            "network.Hosts",
            "network.hosts",
        ),
    ] {
        let said = server.post(path, &body).await.error(400);
        assert_eq!(said, format!("{given} is not a field: did you mean {meant}?"));
    }
    assert_eq!(server.get("/api/sessions").await.json()["sessions"].as_array().unwrap().len(), before);
    let unknown = json!({ "name": "n", "systemPrompt": "p", "labels": {}, "network": { "mode": "model", "new": 1 } });
    assert_eq!(server.post("/api/agents", &unknown).await.status, 201);
    assert_eq!(server.post("/api/sessions", &json!({ "agent": "n", "toolset": [] })).await.status, 201);
}

#[tokio::test]
async fn an_idempotency_key_makes_one_session() {
    let server = Server::new().await;
    server.deploy("a").await;
    let create = |key: &str| {
        let mut request = request("POST", "/api/sessions", r#"{"agent":"a"}"#);
        request.headers_mut().insert("idempotency-key", key.parse().unwrap());
        request
    };
    let one = server.send(create("k")).await.json()["session"]["id"].clone();
    let two = server.send(create("k")).await;
    assert_eq!((two.status.as_u16(), &two.json()["session"]["id"]), (201, &one));
    assert_ne!(server.send(create("l")).await.json()["session"]["id"], one);
    server.send(create("")).await.error(400);
    server.send(create(&"x".repeat(256))).await.error(400);
}

#[tokio::test]
async fn sessions_are_listed_with_filters() {
    let server = Server::new().await;
    server.deploy("a").await;
    server.deploy("b").await;
    for (agent, metadata) in [("a", json!({ "team": "x" })), ("a", json!({ "team": "y" })), ("b", json!({}))] {
        server.post("/api/sessions", &json!({ "agent": agent, "metadata": metadata })).await;
    }
    for (query, count) in [
        ("", 3),
        ("?agent=a", 2),
        ("?status=active", 3),
        ("?status=ended", 0),
        ("?metadata.team=x", 1),
        ("?agent=a&metadata.team=z", 0),
        ("?limit=2", 2),
        ("?limit=2&offset=2", 1),
    ] {
        let answer = server.get(&format!("/api/sessions{query}")).await.json();
        assert_eq!(answer["sessions"].as_array().unwrap().len(), count, "{query}");
        assert!(answer["total"].is_null());
    }
    assert_eq!(server.get("/api/sessions?limit=1&includeTotal=true").await.json()["total"], 3);
    for query in ["limit=0", "limit=1001", "offset=-1", "status=wild", "includeTotal=perhaps"] {
        let error = server.get(&format!("/api/sessions?{query}")).await.error(400);
        assert!(error.contains(query.split('=').next().unwrap()), "{error}");
    }
}

#[tokio::test]
async fn a_session_is_ended_and_kept() {
    let server = Server::new().await;
    let id = server.session().await;
    let path = format!("/api/sessions/{id}");
    assert_eq!(server.get(&path).await.json()["session"]["id"], json!(id));
    let mut of_another = request("GET", &path, "");
    of_another.headers_mut().insert("authorization", format!("Bearer {OTHER_KEY}").parse().unwrap());
    assert_eq!(server.send(of_another).await.error(404), "Session not found");
    assert!(server.call("DELETE", &format!("{path}?purge=true"), "").await.error(400).contains("purge"));
    for _ in 0..2 {
        let answer = server.call("DELETE", &path, "").await;
        assert_eq!((answer.status.as_u16(), &answer.json()["session"]["status"]), (200, &json!("ended")));
    }
    let answer = server.call("POST", &format!("{path}/messages"), r#"{"content":"x"}"#).await;
    assert_eq!(answer.error(400), "Session is ended");
    server.store.update(id, |session| session.state = SessionState::Paused(PausedReason::Person));
    let answer = server.call("POST", &format!("{path}/messages"), r#"{"content":"x"}"#).await;
    assert_eq!(answer.error(400), "Session is paused");
    let view = server.get(&path).await.json();
    assert_eq!((&view["session"]["pausedReason"], &view["session"]["sandboxId"]), (&json!("person"), &json!("")));
    server.get(&format!("/api/sessions/{}", uuid::Uuid::nil())).await.error(404);
}

#[tokio::test]
async fn interrupts_take_an_empty_body() {
    let server = Server::new().await;
    let id = server.session().await;
    let answer = server.call("POST", &format!("/api/sessions/{id}/interrupt"), "").await;
    assert_eq!((answer.status.as_u16(), &answer.json()["interrupted"]), (200, &json!(false)));
    assert_eq!(answer.json()["session"]["id"], json!(id));
    assert_eq!(*server.runner.interrupted.lock().unwrap(), [id]);
}

#[tokio::test]
async fn sessions_are_paused_stopped_resumed_and_ended() {
    let server = Server::new().await;
    let id = server.session().await;
    // Statuses, states and words that published clients rely on.
    for (how, status, said) in [
        ("resume", 200, "active"),
        ("pause", 200, "paused"),
        ("pause", 200, "paused"),
        ("stop", 200, "stopped"),
        ("pause", 400, "Session is stopped"),
        ("resume", 200, "active"),
        ("resume", 200, "active"),
        ("stop", 200, "stopped"),
    ] {
        let answer = server.call("POST", &format!("/api/sessions/{id}/{how}"), "").await;
        let body = answer.json();
        let is = if status == 200 { &body["session"]["status"] } else { &body["error"] };
        assert_eq!((answer.status.as_u16(), is), (status, &json!(said)), "{how}");
    }
    server.call("DELETE", &format!("/api/sessions/{id}"), "").await;
    for (how, status) in [("pause", 400), ("stop", 400), ("resume", 410)] {
        let answer = server.call("POST", &format!("/api/sessions/{id}/{how}"), "").await;
        assert_eq!(answer.status.as_u16(), status, "{how}");
        assert!(answer.json()["error"].as_str().unwrap().contains("Session is ended"), "{how}");
    }
    let missing = "0190a6b0-0000-7000-8000-000000000000";
    for how in ["pause", "stop", "resume"] {
        let answer = server.call("POST", &format!("/api/sessions/{missing}/{how}"), "").await;
        assert_eq!(answer.status.as_u16(), 404, "{how}");
    }
}

#[tokio::test]
async fn permissions_are_answered() {
    let server = Server::new().await;
    let id = server.session().await;
    let path = format!("/api/sessions/{id}/permissions/p1");
    let body = "{\"behavior\":\"allow\",\"updatedInput\":{\n\"a\":1.0e1},\"answers\":{\"q\":\"a\"}}";
    assert_eq!(server.call("POST", &path, body).await.status, 200);
    {
        let decisions = server.runner.decisions.lock().unwrap();
        assert_eq!(decisions[0].0, "p1");
        assert_eq!(decisions[0].1.updated_input.as_ref().unwrap().get(), "{ \"a\":1.0e1}");
    }
    assert_eq!(server.post(&path, &json!({ "behavior": "deny", "message": "no" })).await.status, 200);
    for (body, field) in [
        (json!({}), "behavior"),
        (json!({ "behavior": "perhaps" }), "behavior"),
        (json!({ "behavior": "allow", "updatedInput": 1 }), "updatedInput"),
        (json!({ "behavior": "deny", "updatedInput": {} }), "updatedInput"),
    ] {
        assert!(server.post(&path, &body).await.error(400).contains(field));
    }
    server.runner.fail(RunnerError::PermissionClosed);
    server.post(&path, &json!({ "behavior": "deny" })).await.error(409);
    server.runner.fail(RunnerError::UnknownPermission);
    server.post(&path, &json!({ "behavior": "deny" })).await.error(404);

    // A request of an earlier turn: the runner has forgotten it, the log has not.
    let asked = json!({ "permission_request": {
        "id": "p1", "turn": TurnId::new(), "toolName": "Bash", "input": {}, "expiresAtMs": 5
    }});
    server.store.write(id, [line(EntryKind::Bridge, false, &asked.to_string()), assistant("p1"), result("p1")]);
    for (request, status) in [("p1", 409), ("p", 404), ("p2", 404)] {
        server.runner.fail(RunnerError::UnknownPermission);
        let path = format!("/api/sessions/{id}/permissions/{request}");
        server.post(&path, &json!({ "behavior": "deny" })).await.error(status);
    }
}

#[tokio::test]
async fn options_that_the_model_would_ignore_are_refused() {
    let server = Server::new().await;
    let replaced = json!({ "name": "a", "systemPrompt": "x", "model": "claude-opus-4-1" });
    assert!(server.post("/api/agents", &replaced).await.error(400).contains("model is not valid"));
    let settings = json!({ "name": "a", "files": files(&[("CLAUDE.md", ""), (".claude/settings.json", r#"{"model":"claude-sonnet-4-5"}"#)]) });
    let answer = server.post("/api/agents", &settings).await;
    assert_eq!(answer.json()["agent"]["model"], "claude-sonnet-4-5", "the folder's model is the agent's");
    let create = json!({ "agent": "a", "model": "claude-opus-4-0" });
    assert!(server.post("/api/sessions", &create).await.error(400).contains("model is not valid"));

    let path = format!("/api/sessions/{}/messages", server.session().await);
    let adaptive = json!({ "type": "adaptive" });
    for (body, option) in [
        (json!({ "content": "x", "effort": "low" }), "effort"),
        (json!({ "content": "x", "thinking": adaptive }), "thinking"),
        (json!({ "content": "x", "model": "opus", "thinking": { "type": "disabled" } }), "thinking"),
        (json!({ "content": "x", "model": "claude-opus-4-1" }), "model"),
    ] {
        let error = server.post(&path, &body).await.error(400);
        assert!(error.starts_with(&format!("{option} is not valid")), "{error}");
    }
    assert!(server.runner.messages.lock().unwrap().is_empty());
}

#[tokio::test]
async fn history_is_read_in_pages_up_to_the_last_entry() {
    let server = Server::new().await;
    let id = server.session().await;
    let path = format!("/api/sessions/{id}");
    for text in ["one", "two"] {
        let turn = server.send(request("POST", &format!("{path}/messages"), r#"{"content":"hello"}"#));
        let write = async {
            let mut changes = server.store.changed.subscribe();
            changes.wait_for(|_| !server.runner.messages.lock().unwrap().is_empty()).await.unwrap();
            server.runner.messages.lock().unwrap().clear();
            server.store.write(id, [support::partial("x"), assistant(text), result(text)]);
        };
        tokio::join!(turn, write);
    }
    // The last turn is not committed yet: it is read from the runner.
    server.store.tables().uncommitted_from.insert(id, 4);
    let messages = server.get(&format!("{path}/messages")).await.json();
    let roles: Vec<_> = messages["messages"].as_array().unwrap().iter().map(|m| m["role"].clone()).collect();
    assert_eq!(roles, ["user", "assistant", "assistant", "user", "assistant", "assistant"]);
    let first = &messages["messages"][0];
    let content: Value = serde_json::from_str(first["content"].as_str().unwrap()).unwrap();
    assert_eq!(content["message"]["content"], "hello");
    for field in ["id", "sessionId", "tenantId", "sequence", "createdAt"] {
        assert!(!first[field].is_null(), "{field}");
    }
    let page = server.get(&format!("{path}/messages?limit=2")).await.json();
    assert_eq!((page["messages"].as_array().unwrap().len(), &page["hasMore"]), (2, &json!(true)));
    let after = &page["messages"][1]["sequence"];
    let rest = server.get(&format!("{path}/messages?after={after}")).await.json();
    assert_eq!(rest["messages"].as_array().unwrap().len(), 4);

    let events = server.get(&format!("{path}/events")).await.json();
    let kinds: Vec<_> = events["events"].as_array().unwrap().iter().map(|e| e["type"].clone()).collect();
    assert_eq!(kinds, ["text", "turn_complete", "text", "turn_complete"]);
    assert_eq!(events, server.get(&format!("{path}/events")).await.json());
    let only = server.get(&format!("{path}/events?type=text")).await.json();
    assert_eq!(only["events"].as_array().unwrap().len(), 2);
    for query in ["events?type=wild", "events?limit=0", "messages?after=x", "messages?limit=1001"] {
        server.get(&format!("{path}/{query}")).await.error(400);
    }
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
