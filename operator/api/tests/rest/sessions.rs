//! Sessions: made, listed, put aside, resumed, ended, read.

use std::sync::Arc;

use ash_core::{
    EntryKind,
    id::TurnId,
    ports::RunnerError,
    session::{PausedReason, SessionState},
};
use serde_json::{Value, json};

use crate::support::{Cluster, OTHER_KEY, Server, assistant, line, request, result};

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
async fn an_idempotency_key_makes_one_resource() {
    let cluster = Arc::new(Cluster::default());
    let server = Server::in_cluster(&cluster).await;
    server.deploy("a").await;
    server.deploy("b").await;
    let create = |agent: &str| {
        let mut request = request("POST", "/api/sessions", &json!({ "agent": agent }).to_string());
        request.headers_mut().insert("idempotency-key", "k".parse().unwrap());
        request
    };
    let one = server.send(create("a")).await.json()["session"]["id"].clone();
    assert!(server.send(create("b")).await.error(409).contains("agent \"a\""));
    assert_eq!(cluster.sessions().len(), 1);
    // Its resource has ended, and is gone after its time.
    assert_eq!(server.call("DELETE", &format!("/api/sessions/{}", one.as_str().unwrap()), "").await.status, 200);
    cluster.sessions().clear();
    assert_eq!(server.send(create("a")).await.json()["session"]["id"], one);
    assert!(cluster.sessions().is_empty());
    // Two at once: each has looked for the key before the other made its session.
    server.store.forget_key_once();
    server.send(create("b")).await.error(409);
    let sessions = cluster.sessions();
    assert_eq!(sessions.iter().map(|session| session.is_ended).collect::<Vec<_>>(), [true]);
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
            server.store.write(id, [crate::support::partial("x"), assistant(text), result(text)]);
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
