//! What a session spends, and whether the model takes its credential, as people see it in the resource's status.

use ash_e2e::{cluster::Cluster, harness::Turn};
use serde_json::{Value, json};

use crate::tenant::{Tenant, session};

/// What a turn's result says was spent since the one before: tokens read and written, US dollars.
fn said(turn: &Turn) -> (u64, u64, f64) {
    let result = turn.messages("result").pop().unwrap_or_else(|| panic!("no result: {:?}", turn.names()));
    let models = result["model_usage_since_last_result"].as_object().unwrap();
    models.values().fold((0, 0, 0.0), |(input, output, dollars), model| {
        let tokens = |name: &str| model[name].as_u64().unwrap();
        (input + tokens("inputTokens"), output + tokens("outputTokens"), dollars + model["costUSD"].as_f64().unwrap())
    })
}

#[test]
fn a_sessions_status_has_its_turns_tokens_and_cost_and_says_that_its_key_is_refused() {
    let Some(cluster) = Cluster::shared() else { return };
    let tenant = Tenant::of_rest(&cluster);
    tenant.agent("spender", &json!({}));
    tenant.apply(&session("spends", "spender", &json!({})));
    tenant.wait("session/spends", "condition=Ready");
    let status = || tenant.json(&["get", "session", "spends"])["status"].clone();
    let id = tenant.done(&["get", "session", "spends", "-o", "jsonpath={.metadata.uid}"]);
    let suspend = |on: bool, state: &str| {
        let patch = json!({ "spec": { "suspend": on } }).to_string();
        tenant.done(&["patch", "session", "spends", "--type=merge", "-p", &patch]);
        tenant.wait("session/spends", &format!("jsonpath={{.status.state}}={state}"));
    };
    let check = |turns: &[(u64, u64, f64)]| {
        let status = status();
        assert_eq!(status["turns"], turns.len(), "{status}");
        assert_eq!(status["tokens"]["input"], turns.iter().map(|turn| turn.0).sum::<u64>(), "{status}");
        assert_eq!(status["tokens"]["output"], turns.iter().map(|turn| turn.1).sum::<u64>(), "{status}");
        let dollars: f64 = turns.iter().map(|turn| turn.2).sum();
        let cost = status["costUsd"].as_f64().unwrap();
        assert!((cost - dollars).abs() < 1e-5, "{cost} is not {dollars}: {status}");
    };

    let first = said(&tenant.say(&id, "[[usage: 1000 20]] [[text: one]]"));
    let second = said(&tenant.say(&id, "[[usage: 3000 50]] [[text: two]]"));
    assert!(first.0 >= 1000 && first.2 > 0.0 && second.0 >= 3000, "{first:?} {second:?}");
    suspend(true, "paused");
    check(&[first, second]);
    // Another process of Claude Code goes on, and takes up the sum of the one before: what was counted is not counted again.
    suspend(false, "active");
    let third = said(&tenant.say(&id, "[[usage: 2000 30]] [[text: three]]"));
    assert!(third.2 > 0.0 && third.2 < second.2, "it cost less: {third:?} after {second:?}");

    // The API takes no credential for this turn, and the next one goes well.
    let reason = |wanted: &str| {
        cluster.eventually(&format!("the session says {wanted}"), |_| {
            let conditions = status()["conditions"].as_array()?.clone();
            let ready = conditions.into_iter().find(|one| one["type"] == "Ready")?;
            (ready["reason"] == wanted).then_some(ready)
        })
    };
    let refused = said(&tenant.say(&id, "[[error: 403]]"));
    let ready: Value = reason("ModelCredentialRefused");
    assert_eq!(ready["status"], "False", "{ready}");
    tenant.wait("session/spends", "condition=Stalled");
    let described = tenant.done(&["describe", "session", "spends"]);
    assert!(described.contains("403"), "{described}");
    let fourth = said(&tenant.say(&id, "[[usage: 2000 30]] [[text: four]]"));
    reason("Active");
    suspend(true, "paused");
    check(&[first, second, third, refused, fourth]);
    tenant.done(&["delete", "session/spends", "--timeout=60s"]);
}
