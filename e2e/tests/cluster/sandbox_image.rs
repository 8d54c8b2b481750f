//! The image of sandboxes runs where only `restricted` pods may.

use ash_e2e::cluster::{Cluster, Namespace};
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
    if !cluster.kubectl(&["get", "runtimeclass", "gvisor"], None).status.success() {
        // Only a cluster that somebody else made may be without.
        return;
    }
    let namespace = cluster.namespace("gvisor");
    let mut pod = pod("look", &["bash", "-c", &format!("dmesg | head -n 3\n{LOOK}")]);
    pod["spec"]["runtimeClassName"] = json!("gvisor");
    runs_in(&namespace, &pod);
    let said = namespace.logs("look");
    assert!(said.contains("gVisor"), "another kernel answers: {said}");
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
