//! The image of sandboxes runs where only `restricted` pods may.

use std::net::SocketAddr;

use ash_e2e::{
    cluster::{Cluster, MODEL_SERVICE, Namespace},
    model::{Script, ScriptedModel},
};
use serde_json::{Value, json};

use crate::pods::pod;

/// Says who it is, what is there, and what it may write.
const LOOK: &str = r#"
echo "user $(id -u):$(id -g)"
echo "claude $(claude --version)"
echo "bridge $(ash-bridge 2>&1)"
git --version && rg --version | head -n 1
touch /root-is-writable 2>/dev/null && echo "the root can be written" || echo "the root cannot be written"
touch "$HOME/file" /tmp/file /workspace/file && echo "the folders can be written"
ls /var/run/secrets/kubernetes.io 2>/dev/null && echo "there is a token" || echo "there is no token"
"#;

/// The version that is installed at build.
const CLAUDE_CODE: &str = include_str!("../../../bridge-image/claude-code.version");

/// Whether there is gVisor: only a cluster that somebody else made may be without.
fn has_gvisor(cluster: &Cluster) -> bool {
    cluster.kubectl(&["get", "runtimeclass", "gvisor"], None).status.success()
}

fn runs_in(namespace: &Namespace<'_>, pod: &Value) {
    namespace.apply(&pod.to_string());
    namespace.wait("pod/look", "jsonpath={.status.phase}=Succeeded");
    let said = namespace.logs("look");
    let expected = [
        "user 1000:1000",
        &format!("claude {} (Claude Code)", CLAUDE_CODE.trim()),
        "usage: ash-bridge",
        "git version",
        "ripgrep",
        "the root cannot be written",
        "the folders can be written",
        "there is no token",
    ];
    for expected in expected {
        assert!(said.contains(expected), "{expected} is not in: {said}");
    }
}

#[test]
fn bridge_and_claude_code_run_in_a_restricted_pod() {
    let Some(cluster) = Cluster::shared() else { return };
    let namespace = cluster.namespace("image");
    runs_in(&namespace, &pod("look", &["bash", "-c", LOOK]));
}

#[test]
fn bridge_and_claude_code_run_in_a_user_namespace() {
    let Some(cluster) = Cluster::shared() else { return };
    let namespace = cluster.namespace("user-namespace");
    let mut pod = pod("look", &["bash", "-c", LOOK]);
    pod["spec"]["hostUsers"] = json!(false);
    runs_in(&namespace, &pod);
}

#[test]
fn bridge_and_claude_code_run_under_gvisor() {
    let Some(cluster) = Cluster::shared() else { return };
    if !has_gvisor(&cluster) {
        return;
    }
    let namespace = cluster.namespace("gvisor");
    let mut pod = pod("look", &["bash", "-c", &format!("dmesg | head -n 3\n{LOOK}")]);
    pod["spec"]["runtimeClassName"] = json!("gvisor");
    runs_in(&namespace, &pod);
    let said = namespace.logs("look");
    assert!(said.contains("gVisor"), "another kernel answers: {said}");
}

/// Asks Claude Code for a tool call; its result is the answer.
const ASK: &str =
    r#"claude -p '[[tool: Bash {"command":"echo made | tee /workspace/file"}]] [[result]]' --allowedTools Bash"#;

#[test]
fn claude_code_uses_a_tool_in_restricted_pods_with_and_without_gvisor() {
    let Some(cluster) = Cluster::shared() else { return };
    let namespace = cluster.namespace("claude");
    let address = SocketAddr::new(cluster.host_address(), 0);
    let model = cluster.inside(|| ScriptedModel::start_on(address, Script::directives())).unwrap();
    cluster.expose(namespace.name(), MODEL_SERVICE, model.address().port());
    let url = format!("http://{MODEL_SERVICE}.{}.svc:{}", namespace.name(), model.address().port());
    for (name, runtime) in [("plain", None), ("gvisor", Some("gvisor"))] {
        if runtime.is_some() && !has_gvisor(&cluster) {
            continue;
        }
        let mut pod = pod(name, &["bash", "-c", ASK]);
        pod["spec"]["runtimeClassName"] = json!(runtime);
        pod["spec"]["containers"][0]["env"] = json!([
            { "name": "ANTHROPIC_BASE_URL", "value": url },
            { "name": "ANTHROPIC_API_KEY", "value": "offline" },
        ]);
        namespace.apply(&pod.to_string());
        namespace.wait(&format!("pod/{name}"), "jsonpath={.status.phase}=Succeeded");
        let said = namespace.logs(name);
        assert!(said.contains("made"), "{name}: {said}");
    }
    assert!(model.turn_requests() >= 2, "the call and its result: {}", model.turn_requests());
}

#[test]
fn a_pod_that_is_not_restricted_is_refused() {
    let Some(cluster) = Cluster::shared() else { return };
    let namespace = cluster.namespace("refused");
    let mut pod = pod("look", &["true"]);
    pod["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"] = json!(true);
    let said = namespace.refused(&["apply", "-f", "-"], Some(&pod.to_string()));
    assert!(said.contains("allowPrivilegeEscalation"), "{said}");
}
