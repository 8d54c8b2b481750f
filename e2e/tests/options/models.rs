//! Options that only some models take: what Claude Code would ignore without a word is refused, everything else is seen in the
//! model's request.

use ash_client::{CreateSession, Thinking, TurnOptions};
use serde_json::{Value, json};

use crate::{CLAUDE_MD, app, create, plain, say_with};

/// Options that only some models take, as a message says them.
const OF_THE_MODEL: [(&str, &str, &str); 5] = [
    ("off", "thinking", r#"{"type":"disabled"}"#),
    ("budget", "thinking", r#"{"type":"enabled","budgetTokens":2048}"#),
    ("adaptive", "thinking", r#"{"type":"adaptive"}"#),
    ("low", "effort", r#""low""#),
    ("max", "effort", r#""max""#),
];

/// Which of them Claude Code ignores for a model, without a word: these have to be refused.
const IGNORED: [(&str, &[&str]); 16] = [
    ("default", &["off", "budget"]),
    ("opus", &["off", "budget"]),
    ("sonnet", &["off", "budget"]),
    ("haiku", &["off", "budget"]),
    ("claude-opus-5-5", &["off", "budget"]),
    ("claude-fable-5-2", &["off", "budget"]),
    ("claude-opus-5", &["budget"]),
    ("claude-opus-4-7", &["budget"]),
    ("claude-opus-4-6[1m]", &["budget"]),
    ("claude-sonnet-4-6", &["budget"]),
    ("claude-opus-4-5", &["adaptive", "max"]),
    ("claude-sonnet-4-5", &["adaptive", "low", "max"]),
    ("claude-haiku-4-5-20251001", &["adaptive", "low", "max"]),
    ("claude-sonnet-4-0", &["adaptive", "low", "max"]),
    ("claude-3-5-haiku-20241022", &["budget", "adaptive", "low", "max"]),
    ("a-model-of-our-own", &["budget"]),
];

/// Whether the model was asked for it.
fn is_asked(request: &Value, name: &str) -> bool {
    let thinking = &request["thinking"];
    match name {
        "off" => thinking.is_null() || thinking["type"] == "disabled",
        "budget" => thinking["type"] == "enabled" && thinking["budget_tokens"] == 2048,
        "adaptive" => thinking["type"] == "adaptive",
        effort => request["output_config"]["effort"] == effort,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_option_that_a_model_would_ignore_is_refused() {
    let app = app().await;
    let session = create(&app, plain()).await;
    let path = format!("/api/sessions/{}/messages", session.id);
    for (model, ignored) in IGNORED {
        for (name, option, value) in OF_THE_MODEL {
            let value: Value = serde_json::from_str(value).expect("JSON");
            let mut body = json!({ "content": "[[text: x]]", option: value });
            if model != "default" {
                body["model"] = json!(model);
            }
            if ignored.contains(&name) {
                let (status, error) = app.request("POST", &path, Some(body)).await;
                let error = error["error"].as_str().unwrap_or_default().to_owned();
                assert_eq!((status, error.split(' ').next()), (400, Some(option)), "{model} {name}: {error}");
            } else {
                let options = serde_json::from_value(body).expect("options");
                let turn = say_with(&app, &session, "[[text: x]]", options).await;
                assert_eq!(turn.error(), None, "{model} {name}");
                let request = app.last_request();
                assert!(
                    is_asked(&request, name),
                    "{model} {name}: {} {}",
                    request["thinking"],
                    request["output_config"]
                );
            }
        }
    }
    // Another model would be asked in its place.
    for model in ["claude-opus-4-1", "Claude-Opus-4-0[1m]"] {
        let (status, error) = app.request("POST", &path, Some(json!({ "content": "x", "model": model }))).await;
        assert!(error["error"].as_str().is_some_and(|error| error.starts_with("model ")), "{status} {error}");
        let of_a_session = CreateSession { model: Some(model.to_owned()), ..plain() };
        assert_eq!(app.client.create_session(&of_a_session).await.expect_err("a refusal").status(), Some(400));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_model_that_the_folder_or_the_sub_agent_names() {
    let app = app().await;
    let settings = (".claude/settings.json", r#"{"model":"claude-sonnet-4-5"}"#);
    app.deploy("of-the-folder", &[CLAUDE_MD, settings]).await;
    let of_folder = CreateSession { agent: "of-the-folder".to_owned(), ..CreateSession::default() };
    let subagents = json!({ "small": { "description": "d", "prompt": "p", "model": "claude-haiku-4-5" } });
    let of_agent =
        CreateSession { subagents: subagents.as_object().cloned(), initial_agent: Some("small".to_owned()), ..plain() };
    for (session, model) in [(of_folder, "claude-sonnet-4-5"), (of_agent, "claude-haiku-4-5")] {
        let session = create(&app, session).await;
        app.say(&session, "[[text: x]]").await;
        assert_eq!(app.last_request()["model"], model);
        // One turn with another model: then it is this one again.
        let opus = TurnOptions { model: Some("opus".to_owned()), ..TurnOptions::default() };
        say_with(&app, &session, "[[text: x]]", opus).await;
        assert_ne!(app.last_request()["model"], model);
        let off = TurnOptions { thinking: Some(Thinking::Disabled {}), ..TurnOptions::default() };
        say_with(&app, &session, "[[text: x]]", off).await;
        assert_eq!((app.last_request()["model"].as_str(), is_asked(&app.last_request(), "off")), (Some(model), true));
        let path = format!("/api/sessions/{}/messages", session.id);
        let (status, error) = app.request("POST", &path, Some(json!({ "content": "x", "effort": "low" }))).await;
        assert_eq!(status, 400, "{error}");
    }
}
