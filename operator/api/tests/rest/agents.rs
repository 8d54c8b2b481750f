//! Agents: deployed, refused, deleted.

use std::sync::Arc;

use ash_api::ApiConfig;
use ash_bundle::Bundle;
use serde_json::json;

use crate::files;
use crate::support::{Cluster, OTHER_KEY, Server, request};

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
async fn a_version_has_what_others_have_set_on_the_resource() {
    let cluster = Arc::new(Cluster::default());
    let enclosed = json!({ "runtimeClassName": "gvisor" }).as_object().unwrap().clone();
    *cluster.sandbox.lock().unwrap() = Some(enclosed.clone());
    let server = Server::in_cluster(&cluster).await;
    server.post("/api/agents", &json!({ "name": "a", "model": "m", "systemPrompt": "x" })).await;
    let version = server.store.tables().versions[0].clone();
    assert_eq!((version.settings.sandbox, version.settings.model.as_deref()), (Some(enclosed), Some("m")));
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
