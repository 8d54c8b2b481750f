//! Every option of a message and of a session, seen in what the model is asked or in what the turn comes to.

mod models;

use std::collections::BTreeMap;

use ash_client::{CreateSession, Effort, Event, Message, OutputFormat, PermissionMode, Session, Thinking, TurnOptions};
use ash_e2e::harness::{TestApp, Turn, pid_of};
use serde_json::{Map, Value, json};

/// An MCP server over stdio, in the least of Python: one tool, `look`, that says the value of a variable.
const MCP_SERVER: &str = r#"
import json, os, sys
for line in sys.stdin:
    request = json.loads(line)
    method = request.get("method")
    if method == "initialize":
        result = {"protocolVersion": request["params"]["protocolVersion"], "capabilities": {"tools": {}},
                  "serverInfo": {"name": "look", "version": "1"}}
    elif method == "tools/list":
        result = {"tools": [{"name": "look", "description": "Says a variable.",
                             "inputSchema": {"type": "object", "properties": {"name": {"type": "string"}}}}]}
    elif method == "tools/call":
        value = os.environ.get(request["params"]["arguments"]["name"], "unset")
        result = {"content": [{"type": "text", "text": "value=" + value}]}
    elif "id" in request:
        result = {}
    else:
        continue
    print(json.dumps({"jsonrpc": "2.0", "id": request["id"], "result": result}), flush=True)
"#;

const CLAUDE_MD: (&str, &str) = ("CLAUDE.md", "You are the agent of the options.\n");

async fn app() -> TestApp {
    let app = TestApp::start().await;
    app.deploy("options", &[CLAUDE_MD]).await;
    app.wait_warm(1).await;
    app
}

/// What a session of the agent `options` is made of.
fn plain() -> CreateSession {
    CreateSession { agent: "options".to_owned(), ..CreateSession::default() }
}

async fn create(app: &TestApp, create: CreateSession) -> Session {
    app.client.create_session(&create).await.expect("a session")
}

async fn say_with(app: &TestApp, session: &Session, text: &str, options: TurnOptions) -> Turn {
    app.send(session, &Message { options, ..Message::text(text) }).await
}

/// Sends a message during whose turn nobody is asked for consent.
async fn say_unasked(app: &TestApp, session: &Session, text: &str) -> Turn {
    let mut stream = app.client.send_message(&session.id, &Message::text(text)).await.expect("a stream");
    let mut turn = Turn::default();
    while let Some(frame) = stream.next().await {
        let frame = frame.expect("the stream goes on");
        assert_ne!(frame.event, "permission_request", "{}", frame.data);
        turn.frames.push(frame);
    }
    turn
}

fn bash(command: &str) -> String {
    format!("[[tool: Bash {}]] [[result]]", json!({ "command": command }))
}

fn object(value: Value) -> Map<String, Value> {
    let Value::Object(fields) = value else { panic!("an object") };
    fields
}

fn words(words: &[&str]) -> Vec<String> {
    words.iter().map(ToString::to_string).collect()
}

fn variables(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
}

fn result(turn: &Turn) -> String {
    turn.result().unwrap_or_else(|| panic!("a result: {:?}", turn.frames)).trim().to_owned()
}

/// The tools that the model is offered.
fn tools(app: &TestApp) -> Vec<String> {
    let request = app.last_request();
    let tools = request["tools"].as_array().expect("tools");
    tools.iter().map(|tool| tool["name"].as_str().expect("a name").to_owned()).collect()
}

/// Claude Code's process in the session's sandbox.
fn claude(app: &TestApp, session: &Session) -> u32 {
    pid_of(&app.session_folder(&session.id), "claude").expect("Claude Code runs")
}

fn restarts(turn: &Turn) -> usize {
    turn.names().iter().filter(|name| **name == "claude_restarted").count()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_changes_without_a_restart() {
    let app = app().await;
    let session = create(
        &app,
        CreateSession {
            model: Some("claude-sonnet-4-5".to_owned()),
            permission_mode: Some(PermissionMode::AcceptEdits),
            system_prompt: Some("You are told: canary-of-the-prompt.".to_owned()),
            extra_env: variables(&[("CANARY", "of the environment")]),
            allowed_tools: Some(words(&["Bash(touch:*)", "Bash(printenv:*)"])),
            ..plain()
        },
    )
    .await;
    let process = claude(&app, &session);

    let turn = say_unasked(&app, &session, &bash("printenv CANARY")).await;
    // This model is shown how many tokens are left behind what the tool says.
    assert!(result(&turn).starts_with("of the environment"), "{:?}", turn.result());
    let request = app.last_request();
    assert_eq!(request["model"], "claude-sonnet-4-5");
    assert!(request["system"].to_string().contains("canary-of-the-prompt"), "{}", request["system"]);
    let thought = request["thinking"].clone();
    assert_eq!(thought["type"], "enabled", "{thought}");

    // A model of one turn, then the session's again.
    let haiku = TurnOptions { model: Some("claude-haiku-4-5".to_owned()), ..TurnOptions::default() };
    say_with(&app, &session, "[[text: x]]", haiku).await;
    assert_eq!(app.last_request()["model"], "claude-haiku-4-5");
    app.say(&session, "[[text: x]]").await;
    assert_eq!(app.last_request()["model"], "claude-sonnet-4-5");
    assert!(app.last_request()["system"].to_string().contains("canary-of-the-prompt"));

    // Thinking of one turn.
    let thinking = |thinking| TurnOptions { thinking: Some(thinking), ..TurnOptions::default() };
    say_with(&app, &session, "[[text: x]]", thinking(Thinking::Disabled {})).await;
    assert_eq!(app.last_request()["thinking"]["type"].as_str().unwrap_or("disabled"), "disabled");
    say_with(&app, &session, "[[text: x]]", thinking(Thinking::Enabled { budget_tokens: Some(2048) })).await;
    let budget = app.last_request()["thinking"].clone();
    assert_eq!((&budget["type"], &budget["budget_tokens"]), (&json!("enabled"), &json!(2048)), "{budget}");
    app.say(&session, "[[text: x]]").await;
    assert_eq!(app.last_request()["thinking"], thought);

    // The effort of one turn, of a model that knows efforts.
    let usual = TurnOptions { model: Some("opus".to_owned()), ..TurnOptions::default() };
    say_with(&app, &session, "[[text: x]]", usual.clone()).await;
    let usual_effort = app.last_request()["output_config"]["effort"].clone();
    for (effort, name) in [(Effort::Low, "low"), (Effort::Max, "max")] {
        say_with(&app, &session, "[[text: x]]", TurnOptions { effort: Some(effort), ..usual.clone() }).await;
        assert_eq!(app.last_request()["output_config"]["effort"], name);
    }
    say_with(&app, &session, "[[text: x]]", usual).await;
    assert_eq!(app.last_request()["output_config"]["effort"], usual_effort);

    // The permission mode lets edits through, the allowed tools one command, and everything else asks.
    for text in
        [format!("[[tool: Write {}]] [[text: written]]", json!({ "file_path": "a", "content": "b" })), bash("touch b")]
    {
        let turn = say_unasked(&app, &session, &text).await;
        assert_eq!(turn.error(), None);
    }
    assert!(app.session_folder(&session.id).join("workspace/b").exists());
    let mut stream =
        app.client.send_message(&session.id, &Message::text(bash("python3 -c 1"))).await.expect("a stream");
    let mut turn = Turn::default();
    turn.read_until(&mut stream, "permission_request").await;
    app.client.interrupt(&session.id).await.expect("an interrupt");
    turn.read_rest(stream).await;

    assert_eq!(claude(&app, &session), process, "it was never restarted");
    let turn = app.say(&session, "[[text: x]]").await;
    assert_eq!(turn.messages("system")[0]["permissionMode"], "acceptEdits");

    // In another session nothing of this is in force.
    let other = create(&app, plain()).await;
    let turn = app.say(&other, &bash("echo [$CANARY]")).await;
    assert_eq!(result(&turn), "[]");
    assert_eq!(turn.messages("system")[0]["permissionMode"], "bypassPermissions");
    assert!(!app.last_request()["system"].to_string().contains("canary-of-the-prompt"));
}

#[tokio::test(flavor = "multi_thread")]
async fn bounds_of_a_turn() {
    let app = app().await;
    let session = create(&app, plain()).await;
    let text = format!("[[tool: Bash {0}]] [[tool: Bash {0}]] [[text: twice]]", json!({ "command": "true" }));

    let turn = say_with(&app, &session, &text, TurnOptions { max_turns: Some(1), ..TurnOptions::default() }).await;
    let last = turn.messages("result").pop().expect("a result");
    assert_eq!(last["subtype"], "error_max_turns", "{last}");
    assert!(turn.error().is_some_and(|error| error.contains("maximum number of turns")), "{:?}", turn.error());
    let turn = app.say(&session, &text).await;
    assert_eq!((result(&turn).as_str(), turn.error()), ("twice", None));
    assert_eq!(restarts(&turn), 1);

    // A model that came with a bound goes without it, live.
    let model = Some("haiku".to_owned());
    let turn =
        say_with(&app, &session, &text, TurnOptions { max_turns: Some(9), model, ..TurnOptions::default() }).await;
    assert_eq!((result(&turn).as_str(), restarts(&turn)), ("twice", 1));
    assert!(app.last_request()["model"].as_str().is_some_and(|model| model.contains("haiku")));
    let turn = say_with(&app, &session, &text, TurnOptions { max_turns: Some(9), ..TurnOptions::default() }).await;
    assert_eq!((result(&turn).as_str(), restarts(&turn)), ("twice", 0));
    assert!(!app.last_request()["model"].as_str().is_some_and(|model| model.contains("haiku")));

    // A budget is for the turn alone: what was spent before does not count.
    let budget = |usd| TurnOptions { max_budget_usd: Some(usd), ..TurnOptions::default() };
    let costly = format!("[[usage: 100000 1000]] {text}");
    for _ in 0..2 {
        let turn = say_with(&app, &session, &costly, budget(0.01)).await;
        let last = turn.messages("result").pop().expect("a result");
        assert_eq!(last["subtype"], "error_max_budget_usd", "{last}");
        let turn = say_with(&app, &session, &costly, budget(100.0)).await;
        assert_eq!((result(&turn).as_str(), turn.error()), ("twice", None));
    }
    let turn = app.say(&session, "[[count]]").await;
    assert_eq!((result(&turn).as_str(), turn.error()), ("9", None));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_form_of_the_answer() {
    let app = app().await;
    let session = create(&app, plain()).await;
    assert_eq!(app.say(&session, "[[text: before]]").await.error(), None);
    let schema = json!({
        "type": "object", "properties": { "colour": { "type": "string" } }, "required": ["colour"]
    });
    let format: OutputFormat =
        serde_json::from_value(json!({ "type": "json_schema", "schema": schema })).expect("a format");
    let options = TurnOptions { output_format: Some(format), ..TurnOptions::default() };
    let turn = say_with(&app, &session, r#"[[tool: StructuredOutput {"colour":"red"}]]"#, options.clone()).await;
    let last = turn.messages("result").pop().expect("a result");
    assert_eq!(last["structured_output"], json!({ "colour": "red" }), "{last}");
    assert!(tools(&app).contains(&"StructuredOutput".to_owned()));
    // The same again needs no other process; without it the tool is gone and the conversation is not.
    let turn = say_with(&app, &session, r#"[[tool: StructuredOutput {"colour":"blue"}]]"#, options).await;
    assert_eq!(turn.messages("result")[0]["structured_output"], json!({ "colour": "blue" }));
    assert_eq!(restarts(&turn), 0);
    let turn = app.say(&session, "[[count]]").await;
    assert_eq!(result(&turn), "4");
    assert!(!tools(&app).contains(&"StructuredOutput".to_owned()));
}

#[tokio::test(flavor = "multi_thread")]
async fn tools_that_a_session_has_not() {
    let app = app().await;
    let usual = create(&app, plain()).await;
    app.say(&usual, "[[text: x]]").await;
    assert!(tools(&app).contains(&"Write".to_owned()), "{:?}", tools(&app));

    let session =
        create(&app, CreateSession { disallowed_tools: Some(words(&["Write", "Bash(rm:*)"])), ..plain() }).await;
    let turn = app.say(&session, &bash("touch a; rm a")).await;
    assert!(!tools(&app).contains(&"Write".to_owned()), "{:?}", tools(&app));
    assert!(tools(&app).contains(&"Bash".to_owned()));
    assert!(result(&turn).contains("denied"), "{:?}", turn.result());

    // Allowed beforehand, where everything else asks.
    let session = create(
        &app,
        CreateSession {
            permission_mode: Some(PermissionMode::Default),
            allowed_tools: Some(words(&["Bash(touch:*)"])),
            ..plain()
        },
    )
    .await;
    let turn = say_unasked(&app, &session, "[[tool: Bash {\"command\":\"touch here\"}]] [[text: touched]]").await;
    assert_eq!(result(&turn), "touched");
    assert!(app.session_folder(&session.id).join("workspace/here").exists());

    // The mode that plans: nothing is changed without consent.
    let session = create(&app, CreateSession { permission_mode: Some(PermissionMode::Plan), ..plain() }).await;
    let write = format!("[[tool: Write {}]]", json!({ "file_path": "planned", "content": "x" }));
    let mut stream = app.client.send_message(&session.id, &Message::text(write)).await.expect("a stream");
    let mut turn = Turn::default();
    turn.read_until(&mut stream, "permission_request").await;
    app.client.interrupt(&session.id).await.expect("an interrupt");
    turn.read_rest(stream).await;
    assert_eq!(turn.messages("system")[0]["permissionMode"], "plan");
    assert!(!app.session_folder(&session.id).join("workspace/planned").exists());
}

#[tokio::test(flavor = "multi_thread")]
async fn agents_and_betas_of_a_session() {
    let app = app().await;
    let helper =
        json!({ "helper": { "description": "helps", "prompt": "You are canary-of-the-helper.", "tools": ["Read"] } });
    let session = create(&app, CreateSession { subagents: Some(object(helper.clone())), ..plain() }).await;
    let turn = app.say(&session, "[[text: x]]").await;
    let agents = turn.messages("system")[0]["agents"].clone();
    assert!(agents.as_array().is_some_and(|agents| agents.iter().any(|agent| agent == "helper")), "{agents}");

    let leading =
        CreateSession { subagents: Some(object(helper)), initial_agent: Some("helper".to_owned()), ..plain() };
    let session = create(&app, leading).await;
    app.say(&session, "[[text: x]]").await;
    let system = app.last_request()["system"].to_string();
    assert!(system.contains("canary-of-the-helper"), "{system}");
    assert!(!tools(&app).contains(&"Bash".to_owned()), "{:?}", tools(&app));

    let session = create(&app, CreateSession { betas: Some(words(&["a-beta-2026-01-01"])), ..plain() }).await;
    app.say(&session, "[[text: x]]").await;
    let request = app.model.requests().pop().expect("a request");
    let betas = request.headers.get("anthropic-beta").cloned().unwrap_or_default();
    assert!(betas.contains("a-beta-2026-01-01"), "{betas}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sub_agent_works_beside_the_conversation() {
    let app = app().await;
    let helper = json!({ "helper": { "description": "helps", "prompt": "You help.", "tools": ["Read"] } });
    let session = create(&app, CreateSession { subagents: Some(object(helper)), ..plain() }).await;
    for number in 1..=3 {
        let call = json!({ "subagent_type": "helper", "description": "x", "prompt": "[[text: from the helper]]" });
        let turn = app.say(&session, &format!("[[tool: Agent {call}]] [[text: answer {number}]]")).await;
        // A sub-agent that ends between two messages makes Claude Code answer by itself; what ends the turn is the turn's own.
        let last = turn.messages("result").pop().expect("a result");
        assert_eq!(last["result"], format!("answer {number}"), "{:?}", turn.names());
        assert_eq!(turn.names().iter().filter(|name| **name == "done").count(), 1);
    }
    let turn = app.say(&session, "[[text: at last]]").await;
    assert_eq!(turn.messages("result").pop().expect("a result")["result"], "at last");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_agent_says_and_the_session_overrides() {
    let app = TestApp::start().await;
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("CLAUDE.md"), "x\n").expect("a file");
    let agent = json!({
        "name": "options", "path": folder.path().to_string_lossy(), "model": "claude-sonnet-4-5",
        "systemPrompt": "The canary-of-the-agent.", "env": { "WHO": "agent" }
    });
    let (status, answer) = app.request("POST", "/api/agents", Some(agent)).await;
    assert_eq!((status, &answer["agent"]["env"]["WHO"]), (201, &json!("***")), "{answer}");
    app.wait_warm(1).await;
    let session = create(&app, plain()).await;
    app.say(&session, "[[text: x]]").await;
    assert_eq!(app.last_request()["model"], "claude-sonnet-4-5");
    assert!(app.last_request()["system"].to_string().contains("canary-of-the-agent"));

    let overriding = CreateSession {
        model: Some("claude-haiku-4-5".to_owned()),
        system_prompt: Some("The canary-of-the-session.".to_owned()),
        ..plain()
    };
    app.wait_warm(1).await;
    let session = create(&app, overriding).await;
    let process = claude(&app, &session);
    for _ in 0..2 {
        let turn = app.say(&session, "[[text: x]]").await;
        assert_eq!((restarts(&turn), claude(&app, &session)), (0, process));
        let request = app.last_request();
        assert_eq!(request["model"], "claude-haiku-4-5");
        let system = request["system"].to_string();
        assert!(system.contains("canary-of-the-session") && !system.contains("canary-of-the-agent"), "{system}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_environment_of_agent_and_session() {
    let app = TestApp::start().await;
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::write(folder.path().join("CLAUDE.md"), "x\n").expect("a file");
    let agent = json!({
        "name": "options", "path": folder.path().to_string_lossy(),
        "env": { "FROM_AGENT": "agent", "FROM_BOTH": "agent" }
    });
    assert_eq!(app.request("POST", "/api/agents", Some(agent)).await.0, 201);
    app.wait_warm(1).await;
    let extra = variables(&[("FROM_SESSION", "it's \"quoted\" $HOME"), ("FROM_BOTH", "session")]);
    let session = create(&app, CreateSession { extra_env: extra, ..plain() }).await;
    let process = claude(&app, &session);
    for _ in 0..2 {
        let turn = app.say(&session, &bash("printf '%s|' \"$FROM_AGENT\" \"$FROM_BOTH\" \"$FROM_SESSION\"")).await;
        assert_eq!(result(&turn), "agent|session|it's \"quoted\" $HOME|");
    }
    assert_eq!(claude(&app, &session), process);

    // Through a restart, too.
    let options = TurnOptions { max_turns: Some(5), ..TurnOptions::default() };
    let turn = say_with(&app, &session, &bash("echo $FROM_BOTH"), options).await;
    assert_eq!((result(&turn).as_str(), restarts(&turn)), ("session", 1));
    assert_ne!(claude(&app, &session), process);

    let (status, error) = app
        .request(
            "POST",
            "/api/sessions",
            Some(json!({ "agent": "options", "extraEnv": { "ANTHROPIC_BASE_URL": "x" } })),
        )
        .await;
    assert_eq!(status, 400, "{error}");
    assert!(error["error"].as_str().is_some_and(|error| error.contains("ANTHROPIC_BASE_URL")), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn mcp_servers_of_folder_and_session() {
    let app = TestApp::start().await;
    let of_folder = json!({ "mcpServers": { "folder": { "command": "python3", "args": ["server.py"] } } }).to_string();
    app.deploy("options", &[CLAUDE_MD, ("server.py", MCP_SERVER), (".mcp.json", &of_folder)]).await;
    app.wait_warm(1).await;
    let look =
        |server: &str, name: &str| format!("[[tool: mcp__{server}__look {}]] [[result]]", json!({ "name": name }));

    // The folder's own, from a warm sandbox, with the session's variables.
    let session = create(&app, CreateSession { extra_env: variables(&[("CANARY", "sung")]), ..plain() }).await;
    let process = claude(&app, &session);
    let turn = app.say(&session, &look("folder", "CANARY")).await;
    assert!(result(&turn).contains("value=sung"), "{:?}", turn.result());
    assert_eq!(claude(&app, &session), process);
    assert!(!turn.names().contains(&"mcp_status"), "{:?}", turn.names());
    // None of ours: the token is the sandbox's own business.
    let session = create(&app, plain()).await;
    assert!(result(&app.say(&session, &look("folder", "CANARY")).await).contains("value=unset"));

    // The session's own, beside it; one that fails is an event, and the turn goes on.
    let own = json!({
        "own": { "command": "python3", "args": ["server.py"], "env": { "MINE": "yes" } },
        "broken": { "command": "/no/such/program" }
    });
    let session = create(&app, CreateSession { mcp_servers: Some(object(own)), ..plain() }).await;
    let turn = app.say(&session, &look("own", "MINE")).await;
    assert!(result(&turn).contains("value=yes"), "{:?}", turn.result());
    let failed = events_of_mcp(&app, &session).await;
    assert!(failed.to_string().contains(r#""broken":"failed""#), "{failed}");
    assert!(!failed.to_string().contains("own"), "{failed}");
    assert!(result(&app.say(&session, &look("folder", "MINE")).await).contains("value=unset"));
    // Through a restart, too.
    let options = TurnOptions { max_turns: Some(9), ..TurnOptions::default() };
    let turn = say_with(&app, &session, &look("own", "MINE"), options).await;
    assert_eq!((result(&turn).contains("value=yes"), restarts(&turn)), (true, 1), "{:?}", turn.result());

    // One of the folder that fails: the warm sandbox knew it before the session was there.
    let of_folder = json!({ "mcpServers": { "gone": { "command": "/no/such/program", "args": [] } } }).to_string();
    app.deploy("failing", &[CLAUDE_MD, (".mcp.json", &of_folder)]).await;
    app.wait_warm(2).await;
    let session = create(&app, CreateSession { agent: "failing".to_owned(), ..plain() }).await;
    assert_eq!(result(&app.say(&session, "[[text: all the same]]").await), "all the same");
    let failed = events_of_mcp(&app, &session).await;
    assert_eq!(failed, json!([{ "gone": "failed" }]));
    let path = format!("/api/sessions/{}/events", session.id);
    let (status, events) = app.request("GET", &format!("{path}?type=mcp_status"), None).await;
    assert_eq!(status, 200);
    assert!(events.to_string().contains("gone"), "{events}");
    assert!(!app.request("GET", &path, None).await.1.to_string().contains("mcp_status"));
}

/// The events of the session's log about MCP servers, wherever in it they are.
async fn events_of_mcp(app: &TestApp, session: &Session) -> Value {
    let stream =
        app.client.stream(&session.id, Some("0"), ash_client::StreamOptions::default()).await.expect("a stream");
    let events = Turn::read(stream).await.events();
    let servers: Vec<Value> = events
        .into_iter()
        .filter_map(|event| if let Event::McpStatus { servers } = event { Some(json!(servers)) } else { None })
        .collect();
    Value::Array(servers)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_take_effect_is_refused_by_name() {
    let app = app().await;
    let session = create(&app, plain()).await;
    let path = format!("/api/sessions/{}/messages", session.id);
    for (option, value) in [
        ("maxTurns", json!(0)),
        ("maxBudgetUsd", json!(-1)),
        ("effort", json!("enormous")),
        ("thinking", json!({ "type": "sometimes" })),
        ("outputFormat", json!({ "type": "xml" })),
        ("model", json!("")),
    ] {
        let (status, error) = app.request("POST", &path, Some(json!({ "content": "x", option: value }))).await;
        assert_eq!(status, 400, "{option}: {error}");
        assert!(error["error"].as_str().is_some_and(|error| error.contains(option)), "{error}");
    }
    assert_eq!(result(&app.say(&session, "[[count]]").await), "1");
}
