//! The definitions of `crds/` and the samples of `config/`, as a person applies them.

use std::path::Path;

use ash_e2e::cluster::Cluster;

fn folder(name: &str) -> String {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..").join(name).display().to_string()
}

#[test]
fn definitions_are_installed_and_samples_are_applied() {
    let Some(cluster) = Cluster::shared() else { return };
    cluster.done(&["apply", "--server-side", "--force-conflicts", "-k", &folder("crds")]);
    for definition in ["agents.ash.dev", "sessions.ash.dev"] {
        cluster.done(&[
            "wait",
            "--for=condition=Established",
            &format!("customresourcedefinition/{definition}"),
            "--timeout=60s",
        ]);
    }
    let namespace = cluster.namespace("samples");
    namespace.done(&["apply", "-k", &folder("config/samples")]);
    let agents = namespace.json(&["get", "agents"]);
    assert_eq!(agents["items"][0]["metadata"]["name"], "assistant");
    let sessions = namespace.json(&["get", "sessions"]);
    assert_eq!(sessions["items"][0]["spec"]["agent"], "assistant");
    assert!(cluster.done(&["explain", "agent.spec.sandbox.network"]).contains("allowlist"));
}
