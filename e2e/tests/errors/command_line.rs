//! What a person at the command line sees of it: a sentence, what to do next, and the exit code.

use std::{
    fs,
    io::Write,
    os::unix::fs::symlink,
    path::Path,
    process::{Command, Output, Stdio},
    time::Duration,
};

use ash_e2e::harness::{TestApp, program};
use tokio::io::AsyncReadExt;

struct Said {
    code: Option<i32>,
    output: String,
    error: String,
}

/// Runs `ash` in an empty folder and an empty environment.
async fn ash(url: &str, key: Option<&str>, arguments: &[&str], input: &str) -> Said {
    let folder = tempfile::tempdir().expect("a folder");
    let mut command = Command::new(program("ash"));
    command.args(arguments).env_clear().env("ASH_URL", url).current_dir(folder.path());
    if let Some(key) = key {
        command.env("ASH_API_KEY", key);
    }
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let input = input.to_owned();
    let output: Output = tokio::task::spawn_blocking(move || {
        let mut process = command.spawn().expect("ash starts");
        // One that refuses its arguments reads nothing.
        let _ = process.stdin.take().expect("an input").write_all(input.as_bytes());
        process.wait_with_output().expect("its end")
    })
    .await
    .expect("a thread");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    Said { code: output.status.code(), output: text(output.stdout), error: text(output.stderr) }
}

async fn here(app: &TestApp, arguments: &[&str], input: &str) -> Said {
    ash(&format!("http://{}", app.address()), Some(app.api_key()), arguments, input).await
}

fn check_refused(said: &Said, sentences: &[&str]) {
    assert_eq!((said.code, said.output.as_str()), (Some(1), ""), "{}", said.error);
    assert!(said.error.starts_with("error: "), "{}", said.error);
    for sentence in sentences {
        assert!(said.error.contains(sentence), "{sentence:?} is not in {}", said.error);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn folders_that_are_no_agents() {
    let app = TestApp::builder().claude(program("stand-in-claude")).argument("--warm=0").start().await;
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path().join("my-agent");
    fs::create_dir(&folder).expect("a folder");
    let path = folder.to_str().expect("a path");
    let deploy = async |arguments: &[&str]| here(&app, &[&["deploy", path], arguments].concat(), "").await;

    check_refused(&deploy(&[]).await, &["no CLAUDE.md: an agent's folder needs one at its root"]);
    fs::write(folder.join("CLAUDE.md"), "You are.\n").expect("a file");
    check_refused(&deploy(&["--name", "not a name"]).await, &["letters, digits"]);
    symlink("/etc/passwd", folder.join("link")).expect("a link");
    check_refused(&deploy(&[]).await, &["\"link\" is a link that leaves the agent's folder", "put a copy"]);
    fs::remove_file(folder.join("link")).expect("no link");
    fs::File::create(folder.join("large")).expect("a file").set_len((100 << 20) + 1).expect("a size");
    check_refused(&deploy(&[]).await, &["the files have more than 100 MiB", "leave out"]);
    fs::remove_file(folder.join("large")).expect("no file");
    check_refused(&here(&app, &["deploy", "/not/there"], "").await, &["/not/there"]);
    check_refused(
        &here(&app, &["deploy", folder.join("CLAUDE.md").to_str().expect("a path")], "").await,
        &["CLAUDE.md"],
    );
    assert!(app.client.agents().await.expect("the agents").is_empty());

    let said = deploy(&[]).await;
    assert_eq!((said.code, said.error.as_str()), (Some(0), ""), "{}", said.output);
    assert!(said.output.starts_with("Deployed my-agent version 1 (1 file, "), "{}", said.output);
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_that_an_agent_can_be_deployed_with() {
    let app = TestApp::builder().claude(program("stand-in-claude")).argument("--warm=0").start().await;
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("CLAUDE.md"), "You are.\n").expect("a file");
    let path = folder.path().to_str().expect("a path");
    let deploy =
        async |arguments: &[&str]| here(&app, &[&["deploy", path, "--name", "a"], arguments].concat(), "").await;
    let said = deploy(&[
        "--slug=the-a",
        "--description=An agent.",
        "--model=opus",
        "--env=KEY=secret",
        "--system-prompt=You are told.",
        "--allow-host=github.com:22,443",
        "--allow-host=*.example.com",
        r#"--config-json={"team":"blue"}"#,
        "--json",
    ])
    .await;
    assert_eq!((said.code, said.error.as_str()), (Some(0), ""), "{}", said.output);
    let agent: serde_json::Value = serde_json::from_str(&said.output).expect("JSON");
    let agent = &agent["agent"];
    let hosts = serde_json::json!({ "mode": "allowlist", "hosts": ["github.com:22,443", "*.example.com"] });
    assert_eq!(agent["network"], hosts);
    for (field, value) in
        [("slug", "the-a"), ("description", "An agent."), ("model", "opus"), ("systemPrompt", "You are told.")]
    {
        assert_eq!(agent[field], value);
    }
    assert_eq!((&agent["env"]["KEY"], &agent["config"]["team"]), (&"***".into(), &"blue".into()));
    assert_eq!(deploy(&["--network=model"]).await.code, Some(0));
    check_refused(&deploy(&["--allow-host=http://x"]).await, &["network is not valid", "host rule", "name, *.name"]);
    check_refused(&deploy(&["--network=model", "--allow-host=x"]).await, &["--allow-host is for --network allowlist"]);
    check_refused(&deploy(&["--network=allowlist"]).await, &["name one, or use --network model"]);
    check_refused(&deploy(&["--model=claude-opus-4-1"]).await, &["model is not valid", "claude-opus-5-5"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_server() {
    // A port that was free a moment ago.
    let address = std::net::TcpListener::bind("127.0.0.1:0").and_then(|port| port.local_addr()).expect("a port");
    let url = format!("http://{address}");
    for arguments in [
        &["chat", "a"][..],
        &["health"],
        &["agent", "list"],
        &["agent", "get", "a"],
        &["session", "create", "a"],
        &["session", "send", "00000000-0000-4000-8000-000000000000", "x"],
    ] {
        let said = ash(&url, Some("ash_key"), arguments, "hello\n").await;
        let hint = format!("hint: is `ash serve` running at {url}");
        check_refused(&said, &[&format!("cannot reach {url}"), &hint, "--url or ASH_URL"]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn refusals_of_the_server() {
    let app = TestApp::builder().claude(program("stand-in-claude")).start().await;
    let session = app.session().await;
    let nobody = "00000000-0000-4000-8000-000000000000";
    for arguments in [
        &["chat", "nobody"][..],
        &["agent", "get", "nobody"],
        &["agent", "delete", "nobody"],
        &["session", "create", "nobody"],
    ] {
        check_refused(&here(&app, arguments, "hello\n").await, &["Agent not found: nobody", "hint: `ash agent list`"]);
    }
    for arguments in [&["session", "get", nobody][..], &["session", "end", nobody], &["session", "send", nobody, "x"]] {
        let sentences = [&format!("Session not found: {nobody}"), "hint: `ash session list`"];
        check_refused(&here(&app, arguments, "").await, &sentences);
    }
    check_refused(&here(&app, &["session", "list", "--agent", "nobody"], "").await, &["Agent not found: nobody"]);
    let said = here(&app, &["session", "list", "--agent", "simple", "--status", "ended"], "").await;
    assert!(
        said.output.starts_with("There are no such sessions of simple. Begin one: ash chat simple"),
        "{}",
        said.output
    );
    let said = here(&app, &["--json", "session", "get", nobody], "").await;
    let error: serde_json::Value = serde_json::from_str(&said.error).expect("a JSON object");
    assert_eq!((said.code, said.output.as_str()), (Some(1), ""));
    assert_eq!((&error["error"], &error["status"]), (&format!("Session not found: {nobody}").into(), &404.into()));
    let url = format!("http://{}", app.address());
    let said = ash(&url, Some("ash_wrong"), &["agent", "list"], "").await;
    check_refused(
        &said,
        &["Invalid API key", "hint: give the API key with --api-key or ASH_API_KEY", "initial-api-key"],
    );
    assert!(!said.error.contains("ash_wrong"), "{}", said.error);
    let said = ash(&url, None, &["agent", "list"], "").await;
    check_refused(&said, &["Missing Authorization header", "hint: give the API key"]);

    let said = here(&app, &["session", "send", &session.id, "hello"], "").await;
    assert_eq!((said.code, said.output.as_str(), said.error.as_str()), (Some(0), "ok\n", ""));
    let said = here(&app, &["session", "send", &session.id], "hello from a pipe").await;
    assert_eq!((said.code, said.output.as_str()), (Some(0), "ok\n"), "{}", said.error);
    let said = here(&app, &["session", "end", &session.id], "").await;
    assert_eq!(said.code, Some(0), "{}", said.error);
    check_refused(&here(&app, &["session", "send", &session.id, "more"], "").await, &["Session is ended"]);
    check_refused(&here(&app, &["chat", "simple", "--session", &session.id], "more\n").await, &["Session is ended"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_turn_that_fails() {
    let app = TestApp::start().await;
    let session = app.session().await;
    let said = here(&app, &["session", "send", &session.id, "[[error: 400]]"], "").await;
    assert_eq!(said.code, Some(1), "{} {}", said.output, said.error);
    assert!(said.error.contains("API Error"), "{} {}", said.output, said.error);
    // In a pipe what follows a failure is not sent.
    let said = here(&app, &["chat", "simple"], "[[text: one]]\n[[error: 400]]\n[[text: two]]\n").await;
    assert_eq!(said.code, Some(1), "{} {}", said.output, said.error);
    assert!(said.output.contains("one") && !said.output.contains("two"), "{}", said.output);
    let said = here(&app, &["--json", "session", "send", &session.id, "[[error: 400]]"], "").await;
    assert_eq!(said.code, Some(1), "{}", said.error);
    for line in said.output.lines() {
        let frame: serde_json::Value = serde_json::from_str(line).expect("a line of JSON");
        assert!(frame["event"].is_string(), "{line}");
    }
    assert!(said.output.contains(r#""event":"error""#), "{}", said.output);
    let said = here(&app, &["chat", "simple"], "[[text: one]]\n\n[[text: two]]\n").await;
    assert_eq!((said.code, said.output.as_str()), (Some(0), "one\ntwo\n"), "{}", said.error);
}

/// What a turn says reaches a pipe while the turn runs, and stays where the turn is interrupted.
#[tokio::test(flavor = "multi_thread")]
async fn a_pipe_gets_an_answer_as_it_is_written() {
    let app = TestApp::start().await;
    let session = app.session().await;
    let folder = tempfile::tempdir().expect("a folder");
    let mut process = tokio::process::Command::new(program("ash"))
        .args(["session", "send", &session.id, "[[text: so far]][[delay: 600s]][[text: and on]]"])
        .env_clear()
        .env("ASH_URL", format!("http://{}", app.address()))
        .env("ASH_API_KEY", app.api_key())
        .current_dir(folder.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .expect("ash starts");
    let mut output = process.stdout.take().expect("an output");
    let mut so_far = [0; "so far".len()];
    let read = tokio::time::timeout(Duration::from_secs(60), output.read_exact(&mut so_far)).await;
    read.expect("the text comes while the turn runs").expect("the output is read");
    assert_eq!(&so_far, b"so far");
    app.client.interrupt(&session.id).await.expect("the turn is interrupted");
    let said = process.wait_with_output().await.expect("its end");
    let mut rest = String::new();
    output.read_to_string(&mut rest).await.expect("the output is read");
    assert_eq!((said.status.code(), rest.as_str()), (Some(1), "\n"), "{}", String::from_utf8_lossy(&said.stderr));
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_of_something_else() {
    let model = ash_e2e::model::ScriptedModel::start(ash_e2e::model::Script::directives()).expect("another server");
    let said = ash(&model.base_url(), Some("ash_key"), &["agent", "list"], "").await;
    assert_eq!((said.code, said.output.as_str()), (Some(1), ""), "{}", said.error);
    assert!(said.error.starts_with("error: "), "{}", said.error);
    let said = ash("ftp://127.0.0.1", Some("ash_key"), &["health"], "").await;
    check_refused(&said, &["ftp://127.0.0.1", "hint: give it like http://127.0.0.1:4100"]);
    assert!(!Path::new("data").exists());
}
