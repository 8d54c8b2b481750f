//! A session over the real protocol on the real Claude Code, against the scripted model.
#![allow(clippy::unwrap_used, clippy::missing_panics_doc)]

mod support;

use ash_e2e::model::{RequestKind, Script, ScriptedModel};
use ash_protocol::{
    EntryKind,
    message::{BridgeEvent, Claimed, Decision, Request, Resolution, RestartReason, Warmed},
    options::{Effort, SessionOptions, Thinking, TurnOptions},
};
use serde_json::{Value, json};
use support::{Connection, Sandbox, real_claude};

fn start(model: &ScriptedModel) -> Sandbox {
    Sandbox::start(real_claude(), &[("ANTHROPIC_BASE_URL", &model.base_url()), ("CLAUDE_CODE_MAX_RETRIES", "2")])
}

async fn session(model: &ScriptedModel, options: SessionOptions) -> (Sandbox, Connection) {
    let mut sandbox = start(model);
    let connection = sandbox.session(options).await;
    (sandbox, connection)
}

fn options(value: Value) -> SessionOptions {
    serde_json::from_value(value).unwrap()
}

fn of_turn(value: Value) -> TurnOptions {
    serde_json::from_value(value).unwrap()
}

/// What the model was asked last.
fn asked(model: &ScriptedModel) -> Value {
    let requests = model.all_requests();
    let last = requests.iter().rfind(|request| request.kind == RequestKind::Turn).unwrap();
    last.json()
}

fn restarts(sandbox: &Sandbox) -> usize {
    sandbox.events().iter().filter(|event| matches!(event, BridgeEvent::ClaudeRestarted { .. })).count()
}

#[tokio::test]
async fn a_rehearsed_process_takes_a_session_and_works_with_its_environment() {
    let model = ScriptedModel::start(Script::directives()).unwrap();
    let mut sandbox = start(&model);
    let mut connection = sandbox.connect().await;
    let mut warm = sandbox.warm();
    warm.rehearse = true;
    let warmed: Warmed = connection.ask(&mut sandbox, Request::Warm(Box::new(warm))).await.unwrap();
    assert!(warmed.rehearsed);
    let bound = connection
        .bind(&mut sandbox, options(json!({"environment": {"ASH_TEST": "it's \"here\"\n$HOME"}})))
        .await
        .unwrap();
    assert_eq!(bound.how, Claimed::Live);
    assert!(sandbox.journal.is_empty());

    let text = r#"[[tool: Bash {"command":"printf %s \"$ASH_TEST\""}]] [[result]]"#;
    let result = connection.turn(&mut sandbox, 1, text).await;
    assert_eq!(result["result"], "it's \"here\"\n$HOME");
    let result = connection.turn(&mut sandbox, 2, "second [[history]]").await;
    let history = result["result"].as_str().unwrap().to_owned();
    assert!(history.contains("printf") && history.contains("second") && !history.contains("rehearsal"), "{history}");
    assert_eq!(restarts(&sandbox), 0);

    // The log's transcript is the file, and every complete message of the log is in it.
    let (conversation, transcript) = sandbox.transcript().unwrap();
    let folder = ash_bridge::claude::transcript::folder(&sandbox.home().join(".claude"), &sandbox.workspace());
    let files = std::fs::read_dir(&folder).unwrap().map(|file| file.unwrap().path());
    let files: Vec<_> = files.filter(|file| file.is_file()).collect();
    assert_eq!(files, [ash_bridge::claude::transcript::file(&folder, conversation)], "rehearsals leave nothing");
    assert!(std::fs::read(&files[0]).unwrap().starts_with(&transcript));
    let transcript = String::from_utf8(transcript).unwrap();
    for line in sandbox.claude_lines().iter().filter(|line| line["type"] == "assistant") {
        assert!(transcript.contains(line["uuid"].as_str().unwrap()));
    }
}

#[tokio::test]
async fn interrupts_approvals_and_deaths_on_one_session() {
    let model = ScriptedModel::start(Script::directives()).unwrap();
    let (mut sandbox, mut connection) = session(&model, options(json!({"permissionMode": "default"}))).await;

    connection.admit(&mut sandbox, 1, "[[pace: 20ms]] [[burst: 2000]]", TurnOptions::default()).await.unwrap();
    connection.until(&mut sandbox, |sandbox, _| sandbox.partials() > 5).await;
    let _: () = connection.ask(&mut sandbox, Request::Interrupt { turn: None }).await.unwrap();
    connection.until(&mut sandbox, |sandbox, _| sandbox.turns_ended() == 1).await;
    assert_eq!(sandbox.results()[0]["subtype"], "error_during_execution");

    let text = r#"[[tool: Bash {"command":"touch made; echo done"}]] [[result]]"#;
    connection.admit(&mut sandbox, 2, text, TurnOptions::default()).await.unwrap();
    let asked_for = |sandbox: &Sandbox| {
        sandbox.events().into_iter().find_map(|event| match event {
            BridgeEvent::PermissionRequest { id, tool_name, .. } => Some((id, tool_name)),
            _ => None,
        })
    };
    connection.until(&mut sandbox, |sandbox, _| asked_for(sandbox).is_some()).await;
    let (permission, tool) = asked_for(&sandbox).unwrap();
    assert_eq!(tool, "Bash");
    assert!(!sandbox.workspace().join("made").exists());
    let decision: Decision = serde_json::from_value(json!({"behavior": "allow"})).unwrap();
    let _: () = connection.ask(&mut sandbox, Request::Answer { permission, decision }).await.unwrap();
    connection.until(&mut sandbox, |sandbox, _| sandbox.turns_ended() == 2).await;
    assert!(sandbox.workspace().join("made").exists());
    assert!(
        sandbox
            .events()
            .iter()
            .any(|event| matches!(event, BridgeEvent::PermissionResolved { resolution: Resolution::Allowed, .. }))
    );

    connection.admit(&mut sandbox, 3, "third [[pace: 20ms]] [[burst: 2000]]", TurnOptions::default()).await.unwrap();
    let before = sandbox.partials();
    connection.until(&mut sandbox, |sandbox, _| sandbox.partials() > before + 5).await;
    let claude = rustix::process::Pid::from_raw(i32::try_from(sandbox.claude_pid().unwrap()).unwrap()).unwrap();
    rustix::process::kill_process(claude, rustix::process::Signal::KILL).unwrap();
    connection.until(&mut sandbox, |sandbox, _| sandbox.turns_ended() == 3).await;
    assert!(sandbox.events().iter().any(|event| matches!(event, BridgeEvent::TurnFailed { .. })));
    // The host is gone meanwhile, and comes back in the middle of a turn.
    drop(connection);
    let mut connection = sandbox.connect().await;
    let before = sandbox.partials();
    connection
        .admit(&mut sandbox, 4, "fourth [[pace: 2ms]] [[history]] [[burst: 100]]", TurnOptions::default())
        .await
        .unwrap();
    connection.until(&mut sandbox, |sandbox, _| sandbox.partials() > before + 20).await;
    drop(connection);
    let mut connection = sandbox.connect().await;
    connection.until(&mut sandbox, |sandbox, _| sandbox.turns_ended() == 4).await;
    let shown = asked(&model)["messages"].to_string();
    assert!(shown.contains("touch made") && shown.contains("fourth"), "the conversation was resumed: {shown}");
    let deltas = sandbox.journal.iter().filter(|entry| entry.kind == EntryKind::Partial);
    let text: String = deltas
        .skip(before)
        .filter_map(|entry| {
            let line: Value = serde_json::from_slice(&entry.body).unwrap();
            Some(line["event"]["delta"]["text"].as_str()?.to_owned())
        })
        .collect();
    assert!(text.ends_with("98 99 ") || text.ends_with("98 99"), "{text}");
    assert!(matches!(
        sandbox.events().iter().rfind(|event| matches!(event, BridgeEvent::ClaudeRestarted { .. })),
        Some(BridgeEvent::ClaudeRestarted { reason: RestartReason::Died })
    ));
}

#[tokio::test]
async fn options_of_a_turn_hold_for_that_turn() {
    let model = ScriptedModel::start(Script::directives()).unwrap();
    let (mut sandbox, mut connection) = session(&model, SessionOptions::default()).await;
    connection.turn(&mut sandbox, 1, "x").await;
    let usual = asked(&model);

    // The newest models think adaptively, whatever they are told.
    let older = "claude-haiku-4-5-20251001";
    connection
        .turn_with(&mut sandbox, 2, "x", of_turn(json!({"model": older, "thinking": {"type": "disabled"}})))
        .await;
    assert_eq!(asked(&model)["model"], older);
    assert_eq!(asked(&model)["thinking"]["type"], "disabled");
    let thinking = Thinking::Enabled { budget_tokens: Some(2048) };
    let options = TurnOptions { model: Some(older.to_owned()), thinking: Some(thinking), ..TurnOptions::default() };
    connection.turn_with(&mut sandbox, 3, "x", options).await;
    assert_eq!(asked(&model)["thinking"]["budget_tokens"], 2048);
    connection
        .turn_with(&mut sandbox, 4, "x", TurnOptions { effort: Some(Effort::Low), ..TurnOptions::default() })
        .await;
    assert_eq!(asked(&model)["output_config"]["effort"], "low");
    assert_eq!(asked(&model)["model"], usual["model"], "the model of a turn is that turn's");
    connection.turn(&mut sandbox, 5, "x").await;
    assert_eq!(asked(&model)["output_config"], usual["output_config"]);
    assert_eq!(restarts(&sandbox), 0, "none of these restarts a living process");

    let text = r#"[[tool: Bash {"command":"echo a"}]] [[tool: Bash {"command":"echo b"}]] end"#;
    let result = connection.turn_with(&mut sandbox, 6, text, of_turn(json!({"maxTurns": 1}))).await;
    assert_eq!(result["subtype"], "error_max_turns");
    let text = r#"[[usage: 1000000 1000]] [[tool: Bash {"command":"echo a"}]] [[tool: Bash {"command":"echo b"}]] end"#;
    let result = connection.turn_with(&mut sandbox, 7, text, of_turn(json!({"maxBudgetUsd": 0.01}))).await;
    assert_eq!(result["subtype"], "error_max_budget_usd");
    let result = connection.turn_with(&mut sandbox, 8, "cheap", of_turn(json!({"maxBudgetUsd": 10}))).await;
    assert_eq!(result["subtype"], "success", "a budget is a turn's own");
    let schema = json!({"type": "object", "properties": {"answer": {"type": "number"}}, "required": ["answer"]});
    let text = r#"[[tool: StructuredOutput {"answer": 42}]] end"#;
    let format = of_turn(json!({"outputFormat": {"type": "json_schema", "schema": schema}}));
    let result = connection.turn_with(&mut sandbox, 9, text, format).await;
    assert_eq!(result["structured_output"]["answer"], 42, "{result}");
    let result = connection.turn(&mut sandbox, 10, "last [[history]]").await;
    assert!(result["result"].as_str().unwrap().contains("cheap"), "restarts keep the conversation");
    assert_eq!(result.get("structured_output"), None);
}

#[tokio::test]
async fn options_of_a_session_hold_for_every_turn() {
    let model = ScriptedModel::start(Script::directives()).unwrap();
    let mut sandbox = start(&model);
    let workspace = sandbox.workspace();
    let server = r#"echo $ASH_TEST > seen; while read -r line; do case "$line" in *'"method":"initialize"'*)
        echo '{"jsonrpc":"2.0","id":0,"result":{"protocolVersion":"2025-06-18","capabilities":{},"serverInfo":{"name":"s","version":"1"}}}';;
        esac; done"#;
    let servers = json!({"mcpServers": {"folder": {"command": "sh", "args": ["-c", server]}}});
    std::fs::write(workspace.join(".mcp.json"), servers.to_string()).unwrap();
    let mut connection = sandbox.connect().await;
    let warm = Request::Warm(Box::new(sandbox.warm()));
    let _: Warmed = connection.ask(&mut sandbox, warm).await.unwrap();
    let bound = connection
        .bind(
            &mut sandbox,
            options(json!({
                "model": "sonnet",
                "systemPrompt": "You are a lighthouse.",
                "permissionMode": "default",
                "allowedTools": ["Bash(touch:*)"],
            })),
        )
        .await
        .unwrap();
    assert_eq!(bound.how, Claimed::Live);
    let text = r#"[[tool: Bash {"command":"touch allowed"}]] end"#;
    connection.turn(&mut sandbox, 1, text).await;
    assert!(workspace.join("allowed").exists());
    assert!(asked(&model)["model"].as_str().unwrap().contains("sonnet"));
    assert!(asked(&model)["system"].to_string().contains("lighthouse"));
    assert_eq!(restarts(&sandbox), 0);

    let configure = |value: Value| Request::Configure { options: options(value) };
    let more = json!({
        "model": "sonnet",
        "permissionMode": "plan",
        "disallowedTools": ["WebFetch"],
        "betas": ["context-1m-2025-08-07"],
        "subagents": {"keeper": {"description": "Keeps the light", "prompt": "You keep the light."}},
        "environment": {"ASH_TEST": "told"},
        "mcpServers": {"broken": {"command": "/nowhere/server"}},
    });
    let _: () = connection.ask(&mut sandbox, configure(more)).await.unwrap();
    let result = connection.turn(&mut sandbox, 2, "x").await;
    assert_eq!(result["subtype"], "success", "{result}");
    assert!(!asked(&model)["system"].to_string().contains("lighthouse"));
    assert!(!asked(&model)["tools"].to_string().contains("WebFetch"));
    let init = sandbox.claude_lines().into_iter().rfind(|line| line["subtype"] == "init").unwrap();
    assert_eq!(init["permissionMode"], "plan");
    assert!(init["agents"].to_string().contains("keeper"), "{}", init["agents"]);
    assert!(init["tools"].to_string().contains("Bash"));
    assert_eq!(std::fs::read_to_string(workspace.join("seen")).unwrap().trim(), "told");
    assert!(
        sandbox
            .events()
            .iter()
            .any(|event| matches!(event, BridgeEvent::McpServersFailed { servers } if servers.contains_key("broken")))
    );
    let _: () = connection.ask(&mut sandbox, configure(json!({"permissionMode": "bypassPermissions"}))).await.unwrap();
    connection.turn(&mut sandbox, 3, r#"[[tool: Bash {"command":"touch bypassed"}]] end"#).await;
    assert!(workspace.join("bypassed").exists());
}

#[tokio::test]
async fn a_cut_model_call_supersedes_its_partials() {
    let model = ScriptedModel::start(Script::directives()).unwrap();
    let (mut sandbox, mut connection) = session(&model, SessionOptions::default()).await;
    connection.turn(&mut sandbox, 1, "[[cut: 5 x1]] [[text: one two three four five six seven eight]]").await;
    let superseded: Vec<_> = sandbox
        .events()
        .into_iter()
        .filter_map(|event| match event {
            BridgeEvent::Superseded { from, to } => Some((from, to)),
            _ => None,
        })
        .collect();
    assert_eq!(superseded.len(), 1);
    let (from, to) = superseded[0];
    let text: String = sandbox
        .journal
        .iter()
        .filter(|entry| entry.kind == EntryKind::Partial && !(from..=to).contains(&entry.sequence))
        .filter_map(|entry| {
            let line: Value = serde_json::from_slice(&entry.body).unwrap();
            Some(line["event"]["delta"]["text"].as_str()?.to_owned())
        })
        .collect();
    assert_eq!(text.trim(), "one two three four five six seven eight");
}
