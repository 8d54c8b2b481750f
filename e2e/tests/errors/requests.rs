//! Requests that are refused: agents that are none, bodies that cannot be read, keys that are none.

use std::{fs, os::unix::fs::symlink, path::Path};

use ash_e2e::harness::TestApp;
use bytes::Bytes;
use serde_json::json;

use crate::support::{go, goes_on, refused, refused_with_key, waiting_turn};

/// Deploys a folder by its path, which has to be refused.
async fn refused_folder(app: &TestApp, name: &str, folder: &Path) -> (u16, String) {
    let body = json!({ "name": name, "path": folder }).to_string();
    let refused = refused_with_key(app, "POST", "/api/agents", body).await;
    (refused.status, refused.sentence)
}

#[tokio::test(flavor = "multi_thread")]
async fn folders_that_are_no_agents() {
    let app = TestApp::start().await;
    let session = app.session().await;
    let folder = tempfile::tempdir().expect("a folder");
    let (folder, outside) = (folder.path().join("agent"), folder.path().join("outside"));
    fs::create_dir(&folder).expect("a folder");
    fs::write(&outside, "not the agent's").expect("a file");

    let (status, sentence) = refused_folder(&app, "empty", &folder).await;
    assert_eq!((status, sentence.as_str()), (400, "no CLAUDE.md: an agent's folder needs one at its root"));

    fs::write(folder.join("CLAUDE.md"), "You are.\n").expect("a file");
    for name in ["", "with space", "-x", "../up", "a/b", &"n".repeat(64)] {
        let (status, sentence) = refused_folder(&app, name, &folder).await;
        assert_eq!(status, 400, "{name:?}: {sentence}");
        assert!(sentence.contains("letters, digits"), "{name:?}: {sentence}");
    }

    for target in [Path::new("../outside"), &outside, Path::new("/etc/passwd"), Path::new("..")] {
        let link = folder.join("link");
        symlink(target, &link).expect("a link");
        let (status, sentence) = refused_folder(&app, "leaves", &folder).await;
        assert_eq!(status, 400, "{}: {sentence}", target.display());
        assert!(sentence.starts_with("\"link\" is a link that leaves the agent's folder"), "{sentence}");
        fs::remove_file(link).expect("no link");
    }

    // Sparse: nothing is written.
    let large = fs::File::create(folder.join("large")).expect("a file");
    large.set_len((100 << 20) + 1).expect("a size");
    let (status, sentence) = refused_folder(&app, "large", &folder).await;
    assert_eq!(status, 413, "{sentence}");
    assert_eq!(sentence, "the files have more than 100 MiB: leave out what the agent does not need");
    fs::remove_file(folder.join("large")).expect("no file");

    let (status, sentence) = refused_folder(&app, "absent", &folder.join("not/there")).await;
    assert_eq!(status, 400, "{sentence}");
    assert!(sentence.contains("cannot be opened"), "{sentence}");

    fs::write(folder.join(".mcp.json"), "{ no json").expect("a file");
    let (status, sentence) = refused_folder(&app, "settings", &folder).await;
    assert_eq!(status, 400, "{sentence}");
    assert!(sentence.contains(".mcp.json is not valid"), "{sentence}");
    fs::remove_file(folder.join(".mcp.json")).expect("no file");

    // None of them is there now, what was there is, and the same folder is taken.
    let agents = app.client.agents().await.expect("the agents");
    assert_eq!(agents.iter().map(|agent| agent.name.as_str()).collect::<Vec<_>>(), ["simple"]);
    let (status, answer) = app.request("POST", "/api/agents", Some(json!({ "name": "taken", "path": folder }))).await;
    assert_eq!((status, &answer["agent"]["version"]), (201, &json!(1)), "{answer}");
    goes_on(&app, &session).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_are_no_agent() {
    let app = TestApp::start().await;
    for (files, said) in [
        (json!([]), "no CLAUDE.md"),
        (json!([{ "path": "README.md", "content": "eA==" }]), "no CLAUDE.md"),
        (json!([{ "path": "../CLAUDE.md", "content": "eA==" }]), "../CLAUDE.md"),
        (json!([{ "path": "/CLAUDE.md", "content": "eA==" }]), "/CLAUDE.md"),
        (json!([{ "path": "CLAUDE.md", "content": "not base64!" }]), "is not base64"),
        (
            json!([{ "path": "CLAUDE.md", "content": "eA==" }, { "path": "CLAUDE.md", "content": "eA==" }]),
            "there twice",
        ),
    ] {
        let body = json!({ "name": "files", "files": files }).to_string();
        let refused = refused_with_key(&app, "POST", "/api/agents", body).await;
        assert_eq!(refused.status, 400, "{files}: {refused:?}");
        assert!(refused.sentence.contains(said), "{files}: {refused:?}");
    }
    // 120 MiB of base64 are 90 of files: with 20 more they are too many.
    let file = |name, mebibytes: usize| format!(r#"{{"path":"{name}","content":"{}"}}"#, "A".repeat(mebibytes << 20));
    let body = format!(r#"{{"name":"large","files":[{},{}]}}"#, file("CLAUDE.md", 120), file("more", 20));
    let refused = refused_with_key(&app, "POST", "/api/agents", body).await;
    assert_eq!(refused.status, 413, "{refused:?}");
    assert!(app.client.agents().await.expect("the agents").is_empty());
    let session = app.session().await;
    goes_on(&app, &session).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_that_cannot_be_read() {
    let app = TestApp::start().await;
    let session = app.session().await;
    let messages = format!("/api/sessions/{}/messages", session.id);
    for path in ["/api/agents", "/api/sessions", messages.as_str()] {
        for (body, said) in [
            (&b"{\"content\": "[..], "the body is not JSON"),
            (b"hello", "the body is not JSON"),
            (b"[1, 2]", "the body is not a JSON object"),
            (b"\"text\"", "the body is not a JSON object"),
            (b"\xff\xfe{}", "the body is not UTF-8"),
            (b"{\"content\": 7, \"name\": 7, \"agent\": 7}", " is not valid"),
            (b"{}", " is missing"),
            (b"", " is missing"),
        ] {
            let refused = refused_with_key(&app, "POST", path, Bytes::copy_from_slice(body)).await;
            assert_eq!(refused.status, 400, "{path} {:?}: {refused:?}", String::from_utf8_lossy(body));
            assert!(refused.sentence.contains(said), "{path} {:?}: {refused:?}", String::from_utf8_lossy(body));
        }
    }
    // Over 50 MB, told and not told before; a message of just less would be taken.
    let large = Bytes::from(format!("{{\"content\": \"{}\"}}", "x".repeat(50_000_000)));
    let refused = refused_with_key(&app, "POST", &messages, large).await;
    assert_eq!(refused.status, 413, "{refused:?}");
    assert_eq!(refused.sentence, "the body has more than 50 MB: send less");
    let (status, history) = app.request("GET", &messages, None).await;
    assert_eq!((status, &history["messages"]), (200, &json!([])), "nothing of it is in the log");
    goes_on(&app, &session).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_there() {
    let app = TestApp::start().await;
    let session = app.session().await;
    let nobody = "00000000-0000-4000-8000-000000000000";
    for (method, path, body, sentence) in [
        ("POST", "/api/sessions".to_owned(), r#"{"agent":"nobody"}"#, "Agent not found"),
        ("GET", "/api/agents/nobody".to_owned(), "", "Agent not found"),
        ("DELETE", "/api/agents/nobody".to_owned(), "", "Agent not found"),
        ("GET", format!("/api/sessions/{nobody}"), "", "Session not found"),
        ("GET", "/api/sessions/no-id".to_owned(), "", "Session not found"),
        ("DELETE", format!("/api/sessions/{nobody}"), "", "Session not found"),
        ("POST", format!("/api/sessions/{nobody}/messages"), r#"{"content":"x"}"#, "Session not found"),
        ("GET", format!("/api/sessions/{nobody}/stream"), "", "Session not found"),
        ("POST", format!("/api/sessions/{nobody}/interrupt"), "", "Session not found"),
        ("GET", "/api/nothing".to_owned(), "", "there is nothing at this address"),
    ] {
        let refused = refused_with_key(&app, method, &path, body).await;
        assert_eq!((refused.status, refused.sentence.as_str()), (404, sentence), "{method} {path}");
    }
    let refused = refused_with_key(&app, "PUT", "/api/agents", "").await;
    assert_eq!(refused.status, 405, "{refused:?}");
    goes_on(&app, &session).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn keys_that_are_none() {
    let app = TestApp::start().await;
    let session = app.session().await;
    let path = format!("/api/sessions/{}", session.id);
    for path in ["/api/agents", &path, "/api/nothing"] {
        let refused = refused(&app, "GET", path, None, Bytes::new()).await;
        assert_eq!((refused.status, refused.sentence.as_str()), (401, "Missing Authorization header"), "{path}");
    }
    for key in ["Bearer ash_wrong", "Bearer", "Basic YXNoOmFzaA==", app.api_key()] {
        let refused = refused(&app, "GET", &path, Some(key), Bytes::new()).await;
        assert_eq!((refused.status, refused.sentence.as_str()), (401, "Invalid API key"), "{key}");
    }
    goes_on(&app, &session).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_that_cannot_take_a_message() {
    let app = TestApp::start().await;
    let session = app.session().await;
    let messages = format!("/api/sessions/{}/messages", session.id);
    let (stream, mut turn) = waiting_turn(&app, &session).await;
    let refused = refused_with_key(&app, "POST", &messages, r#"{"content":"me too"}"#).await;
    assert_eq!(refused.status, 409, "{refused:?}");
    assert!(refused.sentence.contains("turn"), "{refused:?}");
    go(&app, &session);
    turn.read_rest(stream).await;
    assert_eq!(turn.result().as_deref().map(str::trim), Some("went"));
    goes_on(&app, &session).await;

    app.client.end_session(&session.id).await.expect("an end");
    let refused = refused_with_key(&app, "POST", &messages, r#"{"content":"more"}"#).await;
    assert_eq!((refused.status, refused.sentence.as_str()), (400, "Session is ended"));
    let (status, history) = app.request("GET", &messages, None).await;
    assert_eq!(status, 200);
    assert!(history.to_string().contains("it goes on"), "{history}");
}
