//! What a manifest means in Ash's own words.
#![allow(clippy::unwrap_used)]
#![allow(clippy::needless_pass_by_value, reason = "a literal reads best where it stands")]

use ash_core::{agent::NetworkPolicy, environment, id::SessionId};
use ash_crd::{AgentSpec, FirstMessage, PermissionMode, SessionSpec, Unusable, resolve};
use ash_protocol::options as protocol;
use serde_json::{Value, json};

fn agent(more: Value) -> AgentSpec {
    let mut spec = json!({ "source": { "bundle": { "digest": "a" } } });
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    serde_json::from_value(spec).unwrap()
}

fn session(more: Value) -> SessionSpec {
    let mut spec = json!({ "agent": "one" });
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    serde_json::from_value(spec).unwrap()
}

#[test]
fn an_agent_has_the_defaults_of_its_schema() {
    let spec = serde_json::to_value(agent(json!({}))).unwrap();
    let definition = &ash_crd::definitions()[0];
    let schema = definition.spec.versions[0].schema.as_ref().unwrap().open_api_v3_schema.as_ref().unwrap();
    let fields = schema.properties.as_ref().unwrap()["spec"].properties.as_ref().unwrap();
    for (name, field) in fields {
        let default = field.default.as_ref().map(|default| &default.0);
        assert!(default.is_none() || default == spec.get(name), "{name}: {default:?} {:?}", spec.get(name));
    }
    assert_eq!(agent(json!({})).idle_timeout.to_std().as_secs(), 900);
}

#[test]
fn settings_of_an_agent() {
    let spec = agent(json!({
        "model": "opus", "systemPrompt": "Be brief.", "limits": { "maxTurns": 3, "maxBudgetUsd": 0.5 }, "config": { "a": 1 },
        "modelCredential": { "secretKeyRef": { "name": "keys", "key": "model" } },
        "sandbox": { "network": { "mode": "allowlist", "hosts": ["github.com"] }, "env": [
            { "name": "A", "value": "1" },
            { "name": "TOKEN", "valueFrom": { "secretKeyRef": { "name": "keys", "key": "token" } } },
        ] },
    }));
    let settings = spec.settings("helper");
    assert_eq!(settings.model.as_deref(), Some("opus"));
    assert_eq!(settings.network, NetworkPolicy::Allowlist { hosts: vec!["github.com".to_owned()] });
    assert_eq!(settings.env, [("A".to_owned(), "1".to_owned())].into());
    assert_eq!(settings.secret_environment.as_deref(), Some("environment/helper"));
    assert_eq!(settings.credential.as_deref(), Some("secret/keys/model"));
    assert_eq!(agent(json!({})).settings("helper").secret_environment, None);
    assert_eq!(settings.config.unwrap()["a"], 1);
    assert_eq!(spec.turn_defaults().max_turns, Some(3));
    assert_eq!(spec.turn_defaults().max_budget_usd, Some(0.5));
}

#[test]
fn a_sessions_variables_stand_over_its_agents() {
    let variables = json!([{ "name": "A", "value": "1" }, { "name": "B", "value": "1" }]);
    let settings = agent(json!({ "sandbox": { "env": variables } })).settings("helper");
    let spec = session(json!({ "options": { "permissionMode": "plan", "env": [{ "name": "B", "value": "2" }] } }));
    let own = resolve(&spec.options.env, |_| None).unwrap();
    let options = spec.options(&settings, own);
    assert_eq!(options.permission_mode, protocol::PermissionMode::Plan);
    assert_eq!(options.environment.into_values().collect::<Vec<_>>(), ["1", "2"]);
}

#[test]
fn names_of_modes_are_those_of_the_protocol() {
    for name in ["bypassPermissions", "default", "acceptEdits", "plan"] {
        let ours: PermissionMode = serde_json::from_value(json!(name)).unwrap();
        let theirs: protocol::PermissionMode = serde_json::from_value(json!(name)).unwrap();
        assert_eq!(protocol::PermissionMode::from(ours), theirs);
    }
    for name in ["low", "medium", "high", "max"] {
        let ours: ash_crd::Effort = serde_json::from_value(json!(name)).unwrap();
        let theirs: protocol::Effort = serde_json::from_value(json!(name)).unwrap();
        assert_eq!(protocol::Effort::from(ours), theirs);
    }
}

#[test]
fn secrets_are_read_where_they_are_named_and_never_shown() {
    let spec = agent(json!({
        "modelCredential": { "secretKeyRef": { "name": "model", "key": "k" } },
        "sandbox": { "env": [
            { "name": "PLAIN", "value": "hush" },
            { "name": "TOKEN", "valueFrom": { "secretKeyRef": { "name": "github", "key": "token" } } },
        ] },
    }));
    let names: Vec<&str> = spec.secret_keys().map(|reference| reference.name.as_str()).collect();
    assert_eq!(names, ["github", "model"]);
    let read = resolve(&spec.sandbox.env, |reference| (reference.key == "token").then(|| "value".to_owned())).unwrap();
    assert_eq!(read["TOKEN"], "value");
    let missing = resolve(&spec.sandbox.env, |_| None).unwrap_err();
    assert!(matches!(&missing, Unusable::SecretMissing { name, .. } if name == "github"));
    assert_eq!(missing.reason().as_str(), "SecretNotFound");
    assert!(!format!("{spec:?}").contains("hush"));
    let long = resolve(&spec.sandbox.env, |_| Some("x".repeat(environment::MAX_VALUE_BYTES + 1))).unwrap_err();
    assert_eq!(long.reason().as_str(), "EnvironmentRefused");
}

#[test]
fn the_first_message_is_one_turn_whoever_sends_it() {
    let id = SessionId::new();
    assert_eq!(FirstMessage::turn(id), FirstMessage::turn(id));
    assert_ne!(FirstMessage::turn(id), FirstMessage::turn(SessionId::new()));
    let spec = session(json!({ "message": {
        "content": "hi", "maxTurns": 2, "effort": "high", "thinking": { "type": "enabled", "budgetTokens": 9 },
        "outputFormat": { "type": "json_schema", "schema": { "type": "object" } },
    } }));
    let defaults = agent(json!({ "limits": { "maxTurns": 9, "maxBudgetUsd": 1.5 } })).turn_defaults();
    let options = spec.message.unwrap().options(&defaults).unwrap();
    assert_eq!((options.max_turns, options.max_budget_usd), (Some(2), Some(1.5)));
    assert_eq!(options.thinking, Some(protocol::Thinking::Enabled { budget_tokens: Some(9) }));
    assert_eq!(options.output_format.unwrap().schema.get(), r#"{"type":"object"}"#);
}

#[test]
fn a_warm_pool_always_has_bounds() {
    let bounds = |warm: Value| agent(json!({ "warm": warm })).warm.bounds();
    assert_eq!(bounds(json!({})), 1..=10);
    assert_eq!(bounds(json!({ "min": 20 })), 20..=20);
    assert_eq!(bounds(json!({ "min": 0, "max": 0 })), 0..=0);
}

#[test]
fn scaling_makes_no_new_version_and_another_model_does() {
    let spec = agent(json!({ "model": "opus" }));
    let scaled = agent(json!({
        "model": "opus", "warm": { "min": 7, "max": 9 }, "idleTimeout": "1h", "description": "x", "slug": "y",
    }));
    assert_eq!(spec.versioned(), scaled.versioned());
    for other in [
        json!({ "model": "haiku" }),
        json!({ "model": "opus", "systemPrompt": "x" }),
        json!({ "model": "opus", "sandbox": { "image": "x" } }),
        json!({ "model": "opus", "limits": { "maxTurns": 1 } }),
        json!({ "model": "opus", "config": {} }),
    ] {
        assert_ne!(agent(other.clone()).versioned(), spec.versioned(), "{other}");
    }
}
