//! The definitions on a real API server: what it accepts, what it refuses and with which words, and what kubectl shows.
//!
//! `ASH_TEST_KUBERNETES` names the folder of kube-apiserver, etcd and kubectl. Where they are missing the test says that it is
//! skipped; with `ASH_TEST_REQUIRE_KUBERNETES` set it fails.
#![allow(clippy::unwrap_used)]

use std::{
    fs,
    path::{Path, PathBuf},
};

use ash_test_kubernetes::Server;

/// The least number of wrong manifests that are tried.
const WRONG_MANIFESTS: usize = 30;

#[test]
fn the_definitions_hold_on_a_real_api_server() {
    let Some(server) = Server::start() else { return };
    let crds = top().join("crds");
    let crds = crds.to_str().unwrap();
    let mut definitions = server.done(&["apply", "--server-side", "-k", crds], None);
    assert_eq!(definitions.lines().count(), 2, "{definitions}");
    server.done(
        &["wait", "--for=condition=Established", "crd/agents.ash.dev", "crd/sessions.ash.dev", "--timeout=60s"],
        None,
    );
    definitions = server.done(&["get", "crd", "-o", "jsonpath={.items[*].status.conditions[*].type}"], None);
    assert!(!definitions.contains("NonStructuralSchema"), "{definitions}");

    good_manifests_are_accepted(&server);
    wrong_manifests_are_refused_with_their_sentence(&server);
    the_fullest_manifests_are_within_the_cost_of_their_rules(&server);
    defaults_are_filled_in(&server);
    applying_again_changes_nothing(&server);
    explain_is_the_manual(&server);
    the_warm_pool_scales(&server);
    status_columns_selectors_and_wait(&server);
    managers_of_different_entries_do_not_fight(&server);
}

fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// The YAML files of a folder, in order.
fn manifests(folder: &Path) -> Vec<(PathBuf, String)> {
    let mut paths: Vec<PathBuf> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.retain(|path| path.extension().is_some_and(|end| end == "yaml") && !path.ends_with("kustomization.yaml"));
    paths.sort();
    paths.into_iter().map(|path| (path.clone(), fs::read_to_string(path).unwrap())).collect()
}

fn good_manifests_are_accepted(server: &Server) {
    let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/accepted");
    for (_, text) in manifests(&own) {
        // Documents of one file are changes of one object, each of which is allowed.
        for document in text.split("\n---\n") {
            server.done(&["apply", "-f", "-"], Some(document));
        }
    }
    server.done(&["apply", "-k", top().join("config/samples").to_str().unwrap()], None);
}

fn wrong_manifests_are_refused_with_their_sentence(server: &Server) {
    let wrong = manifests(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/refused"));
    assert!(wrong.len() >= WRONG_MANIFESTS);
    for (path, text) in wrong {
        let path = path.display();
        let (first, rest) = text.split_once('\n').unwrap();
        let sentence = first.strip_prefix("# refused: ").unwrap_or_else(|| panic!("{path} does not say its sentence"));
        let documents: Vec<&str> = rest.split("\n---\n").collect();
        let (last, before) = documents.split_last().unwrap();
        for document in before {
            server.done(&["apply", "-f", "-"], Some(document));
        }
        for dry_run in ["--dry-run=server", "--dry-run=none"] {
            let said = server.refused(&["apply", dry_run, "-f", "-"], Some(last));
            assert!(said.contains(sentence), "{path} is refused, but not with its sentence: {said}");
            assert!(!said.contains("failed rule"), "{path} meets a rule without a sentence: {said}");
        }
    }
}

/// The API server bounds what the rules of one object may cost when they run: lists that are full must stay below it.
fn the_fullest_manifests_are_within_the_cost_of_their_rules(server: &Server) {
    let text = |length: usize, n: usize| format!("{n:0>5}{}", "a".repeat(length - 5));
    let env: Vec<_> = (0..256)
        .map(|n| {
            let name = format!("A{}", text(255, n));
            if n % 2 == 0 {
                return serde_json::json!({ "name": name, "value": "x".repeat(512) });
            }
            let secret = serde_json::json!({ "name": text(253, n), "key": text(253, n) });
            serde_json::json!({ "name": name, "valueFrom": { "secretKeyRef": secret } })
        })
        .collect();
    let mut files: Vec<_> = (0..255)
        .map(|n| serde_json::json!({ "path": text(511, n).replace("aaaaaaaa", "aaaaaaa/") + "b", "text": "x".repeat(512) }))
        .collect();
    files.push(serde_json::json!({ "path": "CLAUDE.md", "text": "x" }));
    let hosts: Vec<_> =
        (0..256).map(|n| format!("*.{}:443", [text(59, n), text(59, n), text(59, n)].join("."))).collect();
    let agent = serde_json::json!({
        "apiVersion": "ash.dev/v1alpha1", "kind": "Agent", "metadata": { "name": "full" },
        "spec": {
            "source": { "inline": { "files": files } },
            "sandbox": { "env": &env, "network": { "mode": "allowlist", "hosts": hosts } },
        },
    });
    server.done(&["apply", "--server-side", "-f", "-"], Some(&agent.to_string()));
    let words: Vec<_> = (0..256).map(|n| text(1024, n)).collect();
    let mut session = serde_json::json!({
        "apiVersion": "ash.dev/v1alpha1", "kind": "Session", "metadata": { "name": "full" },
        "spec": {
            "agent": "full",
            "message": { "content": "x".repeat(262_144) },
            "options": { "env": env, "allowedTools": words, "systemPrompt": "x".repeat(262_144) },
        },
    });
    server.done(&["apply", "--server-side", "-f", "-"], Some(&session.to_string()));
    // Rules that compare with what was there run on a change only.
    session["spec"]["suspend"] = true.into();
    server.done(&["apply", "--server-side", "-f", "-"], Some(&session.to_string()));
}

fn defaults_are_filled_in(server: &Server) {
    let get =
        |kind: &str, name: &str, path: &str| server.done(&["get", kind, name, "-o", &format!("jsonpath={path}")], None);
    assert_eq!(get("agent", "config-map", "{.spec.sandbox.network.mode}"), "public");
    assert_eq!(get("agent", "config-map", "{.spec.sandbox.nodePool}"), "default");
    assert_eq!(get("agent", "config-map", "{.spec.sandbox.workspaceSizeLimit}"), "10Gi");
    assert_eq!(get("agent", "config-map", "{.spec.warm}"), r#"{"demandWindow":"2m","min":1}"#);
    assert_eq!(get("agent", "config-map", "{.spec.idleTimeout}"), "15m");
    assert_eq!(get("agent", "everything", "{.spec.warm}"), r#"{"demandWindow":"24h","max":0,"min":0}"#);
    assert_eq!(get("session", "first-conversation", "{.spec.suspend}{.spec.end}"), "falsefalse");
    let seconds = get("session", "first-conversation", "{.spec.ttlAfterEnd}");
    assert_eq!(seconds, "168h");
    // What the operator reads is what its types can hold.
    for (kind, name) in [("agent", "everything"), ("agent", "assistant")] {
        let text = server.done(&["get", kind, name, "-o", "json"], None);
        let agent: ash_crd::Agent = serde_json::from_str(&text).unwrap();
        assert_eq!(agent.metadata.name.as_deref(), Some(name));
    }
    let text = server.done(&["get", "session", "everything", "-o", "json"], None);
    let session: ash_crd::Session = serde_json::from_str(&text).unwrap();
    assert_eq!(session.spec.options.allowed_tools.unwrap()[1], "Bash(git *)");
    assert!(session.spec.options.mcp_servers.unwrap()["docs"]["headers"]["X-Team"] == "blue");
}

fn applying_again_changes_nothing(server: &Server) {
    let version =
        || server.done(&["get", "agents,sessions", "-o", "jsonpath={.items[*].metadata.resourceVersion}"], None);
    let before = version();
    server.done(&["apply", "-k", top().join("config/samples").to_str().unwrap()], None);
    assert_eq!(version(), before);
}

fn explain_is_the_manual(server: &Server) {
    for (field, words) in [
        ("agent", "An Agent is a folder of files for Claude Code"),
        ("agent.spec.source.git.revision", "a full commit id says exactly which files"),
        ("agent.spec.sandbox.network.mode", "to any public address"),
        ("agent.spec.sandbox.imagePullPolicy", "As Kubernetes decides by the tag"),
        ("agent.status.conditions.reason", "docs/conditions.md has every reason"),
        ("ses.spec.end", "the session ends for good"),
        ("ses.spec.message.effort", "low, medium, high or max"),
        ("ses.status.pausedReason", "its next message wakes it"),
    ] {
        let text = server.done(&["explain", field], None).split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(text.contains(words), "{field}: {text}");
    }
}

fn the_warm_pool_scales(server: &Server) {
    server.done(&["scale", "agent/assistant", "--replicas=3"], None);
    assert_eq!(
        server.done(&["get", "ag", "assistant", "-o", "jsonpath={.spec.warm}"], None),
        r#"{"demandWindow":"2m","max":5,"min":3}"#
    );
    let said = server.refused(&["scale", "agent/assistant", "--replicas=9"], None);
    assert!(said.contains("warm.min is greater than warm.max: lower min or raise max"), "{said}");
    let selector = ash_crd::names::warm_selector("assistant");
    let status = format!(r#"{{"status":{{"warm":2,"selector":"{selector}"}}}}"#);
    server.done(&["patch", "agent", "assistant", "--subresource=status", "--type=merge", "-p", &status], None);
    let scale = server.done(&["get", "--raw=/apis/ash.dev/v1alpha1/namespaces/default/agents/assistant/scale"], None);
    let scale: serde_json::Value = serde_json::from_str(&scale).unwrap();
    assert_eq!(scale["spec"]["replicas"], 3);
    assert_eq!(scale["status"], serde_json::json!({ "replicas": 2, "selector": selector }));
}

fn status_columns_selectors_and_wait(server: &Server) {
    use ash_core::session::{PausedReason, SessionState};
    use ash_crd::{Reason, SessionStatus, condition};

    let mut status = SessionStatus {
        observed_generation: Some(1),
        node: Some("node-7".to_owned()),
        runner: Some("runner-7".to_owned()),
        turns: 4,
        cost_usd: 0.125,
        started_at: Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::UNIX_EPOCH)),
        ..SessionStatus::default()
    };
    status.set_state(SessionState::Paused(PausedReason::Idle));
    condition::report(&mut status.conditions, Reason::Asleep, "Unused for 15m.", 1, jiff::Timestamp::UNIX_EPOCH);
    let body = serde_json::json!({ "status": status }).to_string();
    server.done(&["patch", "ses", "first-conversation", "--subresource=status", "--type=merge", "-p", &body], None);

    server.done(&["wait", "--for=condition=Ready", "ses/first-conversation", "--timeout=10s"], None);
    let table = server.done(&["get", "ses", "-o", "wide"], None);
    let row = table.lines().find(|line| line.starts_with("first-conversation")).unwrap();
    for cell in ["assistant", "paused", "True", "Asleep", "4", "0.125", "node-7", "runner-7"] {
        assert!(row.split_whitespace().any(|word| word == cell), "{cell}: {row}");
    }
    for selector in ["status.state=paused", "status.pausedReason=idle", "status.node=node-7", "status.runner=runner-7"]
    {
        let found = server.done(&["get", "ses", "-o", "name", "--field-selector", selector], None);
        assert_eq!(found.trim(), "session.ash.dev/first-conversation", "{selector}");
    }
    let found =
        server.done(&["get", "ses", "-o", "name", "--field-selector", "spec.agent=assistant,spec.suspend=false"], None);
    assert_eq!(found.lines().count(), 1, "{found}");
    let found = server.done(&["get", "ag", "-o", "name", "--field-selector", "spec.sandbox.nodePool=gpu"], None);
    assert_eq!(found.trim(), "agent.ash.dev/everything");
    let both = server.done(&["get", "ash", "-o", "name"], None);
    assert!(both.contains("agent.ash.dev/assistant") && both.contains("session.ash.dev/first-conversation"), "{both}");

    // The spec is not the status's to change, nor the other way round.
    let said = server.refused(
        &[
            "patch",
            "ses",
            "first-conversation",
            "--subresource=status",
            "--type=merge",
            "-p",
            r#"{"status":{"state":"asleep"}}"#,
        ],
        None,
    );
    assert!(said.contains("supported values"), "{said}");
}

fn managers_of_different_entries_do_not_fight(server: &Server) {
    let agent = |variable: &str| {
        format!(
            "apiVersion: ash.dev/v1alpha1\nkind: Agent\nmetadata:\n  name: shared\nspec:\n  source:\n    configMap:\n      name: \
             files\n  sandbox:\n    env:\n      - name: {variable}\n        value: x\n"
        )
    };
    server.done(&["apply", "--server-side", "--field-manager=one", "-f", "-"], Some(&agent("ONE")));
    server.done(&["apply", "--server-side", "--field-manager=two", "-f", "-"], Some(&agent("TWO")));
    let names = server.done(&["get", "ag", "shared", "-o", "jsonpath={.spec.sandbox.env[*].name}"], None);
    assert_eq!(names, "ONE TWO");
    let condition = |kind: &str| {
        format!(
            "apiVersion: ash.dev/v1alpha1\nkind: Agent\nmetadata:\n  name: shared\nstatus:\n  conditions:\n    - type: {kind}\n      \
             status: \"True\"\n      reason: Deployed\n      message: x\n      lastTransitionTime: 2026-01-01T00:00:00Z\n"
        )
    };
    for (manager, kind) in [("one", "Ready"), ("two", "PoolReady")] {
        let manager = format!("--field-manager={manager}");
        server.done(&["apply", "--server-side", "--subresource=status", &manager, "-f", "-"], Some(&condition(kind)));
    }
    let types = server.done(&["get", "ag", "shared", "-o", "jsonpath={.status.conditions[*].type}"], None);
    assert_eq!(types, "Ready PoolReady");
}
