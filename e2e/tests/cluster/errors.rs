//! What a person reads where something is wrong: each has a reason in the conditions, and goes on once its cause is gone.

use ash_e2e::cluster::Cluster;
use serde_json::{Value, json};

use crate::{
    images::Image,
    tenant::{Tenant, agent, session},
};

impl Tenant<'_> {
    /// Waits until a condition of an object gives this reason; `kubectl describe` says it too. Its message.
    pub(crate) fn reason(&self, object: &str, condition: &str, reason: &str) -> String {
        let found = self.cluster.eventually(&format!("{object}: {condition} gives {reason}"), |_| {
            let object = self.json(&["get", object]);
            let conditions = object["status"]["conditions"].as_array()?.clone();
            conditions.into_iter().find(|one| one["type"] == condition && one["reason"] == reason)
        });
        let described = self.done(&["describe", object]);
        assert!(described.contains(reason), "{described}");
        found["message"].as_str().unwrap_or_default().to_owned()
    }

    /// The same of an agent that cannot start sandboxes.
    fn agent_fails(&self, name: &str, reason: &str) -> String {
        let message = self.reason(&format!("agent/{name}"), "Ready", reason);
        assert!(!message.is_empty(), "{name}: {reason} has no message");
        message
    }
}

const NO_GLIBC: &str = "localhost/no-glibc:1";

#[test]
fn what_is_wrong_with_an_agent_is_in_its_conditions_and_goes_with_its_cause() {
    let Some(cluster) = Cluster::shared() else { return };
    let tenant = Tenant::named(&cluster, "team-b");
    let wrong = |name: &str, more: Value| {
        tenant.apply(&agent(name, &more));
    };
    wrong("no-image", json!({ "sandbox": { "image": "localhost/there-is-none:1", "imagePullPolicy": "Never" } }));
    // One with a program and nothing else, as an image of musl or of static programs is to a program of glibc.
    let no_glibc = Image::new(NO_GLIBC);
    no_glibc.program("tool", "int main(void) { return 0; }\n");
    no_glibc.build("FROM scratch\nCOPY tool /bin/tool\n");
    cluster.load_image(&no_glibc.archive());
    wrong("no-glibc", json!({ "sandbox": { "image": NO_GLIBC, "imagePullPolicy": "Never" } }));
    // A RuntimeClass that is there, and whose runtime no node has.
    let class = json!({
        "apiVersion": "node.k8s.io/v1",
        "kind": "RuntimeClass",
        "metadata": { "name": "on-no-node" },
        "handler": "on-no-node",
    });
    tenant.apply(&class);
    wrong("no-handler", json!({ "sandbox": { "runtimeClassName": "on-no-node" } }));
    tenant.apply(&session("handled", "no-handler", &json!({})));
    wrong("no-gpu", json!({ "sandbox": { "resources": { "limits": { "nvidia.com/gpu": "1" } } } }));
    wrong("no-runtime", json!({ "sandbox": { "runtimeClassName": "there-is-none" } }));
    wrong("no-pool", json!({ "sandbox": { "nodePool": "there-is-none" } }));
    let secret = json!({ "name": "there-is-none-yet", "key": "word" });
    wrong("no-secret", json!({ "sandbox": { "env": [{ "name": "WORD", "valueFrom": { "secretKeyRef": secret } }] } }));
    let mut no_files = agent("no-files", &json!({ "warm": { "max": 1 } }));
    no_files["spec"]["source"] = json!({ "configMap": { "name": "not-there-yet" } });
    tenant.apply(&no_files);
    let files = |name: &str| json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name }, "data": { "README.md": "no agent" } });
    tenant.apply(&files("no-agent"));
    let mut no_claude_md = agent("no-claude-md", &json!({ "warm": { "max": 1 } }));
    no_claude_md["spec"]["source"] = json!({ "configMap": { "name": "no-agent" } });
    tenant.apply(&no_claude_md);
    tenant.apply(&session("nobodys", "there-is-none", &json!({})));
    tenant.apply(&session("early", "no-files", &json!({})));

    assert!(tenant.agent_fails("no-image", "ImagePullFailed").contains("localhost/there-is-none:1"));
    assert!(tenant.agent_fails("no-glibc", "ImageIncompatible").contains("/ash/claude"));
    assert!(tenant.agent_fails("no-handler", "PodNotStarting").contains("on-no-node"));
    assert!(tenant.reason("session/handled", "Ready", "PodNotStarting").contains("on-no-node"));
    assert!(tenant.agent_fails("no-gpu", "PodUnschedulable").contains("nvidia.com/gpu"));
    assert!(tenant.agent_fails("no-runtime", "RuntimeClassNotFound").contains("there-is-none"));
    assert!(tenant.agent_fails("no-pool", "NodePoolNotFound").contains("there-is-none"));
    tenant.agent_fails("no-secret", "SecretNotFound");
    assert!(tenant.agent_fails("no-files", "SourceNotFound").contains("not-there-yet"));
    tenant.agent_fails("no-claude-md", "ClaudeMdMissing");
    tenant.reason("session/nobodys", "Ready", "AgentNotFound");
    tenant.reason("session/early", "Ready", "AgentNotReady");
    let events = tenant.done(&["get", "events", "--field-selector", "involvedObject.kind=Agent"]);
    for reason in [
        "ImagePullFailed",
        "ImageIncompatible",
        "PodNotStarting",
        "RuntimeClassNotFound",
        "NodePoolNotFound",
        "SourceNotFound",
        "ClaudeMdMissing",
    ] {
        assert!(events.contains(reason), "no event of {reason}:\n{events}");
    }

    // Once the cause is gone, all go on by themselves.
    let mut there = files("not-there-yet");
    there["data"] = json!({ "CLAUDE.md": "You are there." });
    tenant.apply(&there);
    tenant.wait("agent/no-files", "condition=Ready");
    tenant.wait("session/early", "condition=Ready");
    tenant.apply(&agent("there-is-none", &json!({ "warm": { "min": 0, "max": 1 } })));
    tenant.wait("session/nobodys", "condition=Ready");
    let names = [
        "no-image",
        "no-glibc",
        "no-handler",
        "no-gpu",
        "no-runtime",
        "no-pool",
        "no-secret",
        "no-files",
        "no-claude-md",
        "there-is-none",
    ];
    let agents: Vec<String> = names.iter().map(|name| format!("agent/{name}")).collect();
    let mut delete: Vec<&str> =
        ["delete", "session/nobodys", "session/early", "session/handled", "runtimeclass/on-no-node", "--timeout=60s"]
            .to_vec();
    delete.extend(agents.iter().map(String::as_str));
    tenant.done(&delete);
}

/// Of a resource that no other pod asks for: one of processors would hold up every journey of the namespace.
#[test]
fn a_quota_that_is_reached_is_said_and_waited_for() {
    let Some(cluster) = Cluster::shared() else { return };
    let tenant = Tenant::named(&cluster, "team-b");
    let quota = json!({
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": { "name": "narrow" },
        "spec": { "hard": { "requests.example.com/device": "0" } },
    });
    tenant.apply(&quota);
    cluster.eventually("the quota counts", |_| {
        tenant.json(&["get", "resourcequota", "narrow"])["status"]["hard"].is_object().then_some(())
    });
    let device = json!({ "sandbox": { "resources": { "limits": { "example.com/device": "1" } } } });
    tenant.apply(&agent("bounded", &device));
    let message = tenant.agent_fails("bounded", "QuotaExceeded");
    assert!(message.contains("narrow"), "{message}");
    tenant.done(&["delete", "resourcequota", "narrow"]);
    // The pod is made now. No node has such a device.
    assert!(tenant.agent_fails("bounded", "PodUnschedulable").contains("example.com/device"));
    tenant.done(&["delete", "agent", "bounded", "--timeout=60s"]);
}
