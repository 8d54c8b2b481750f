//! From an earlier commit of this repository to this tree, with sessions that talk; and out of the cluster again.

use std::path::Path;

use ash_client::Session;
use ash_e2e::cluster::{Cluster, Release, SYSTEM_NAMESPACE};
use serde_json::{Value, json};

use crate::{
    tenant::{Tenant, bash, session},
    undisturbed::faults::{begun, disturbed, pod_of},
};

/// The release from which the upgrade starts: the first commit of this repository whose chart held conversations on a
/// cluster.
const EARLIER: &str = "a5f234c4adc779c0964c97442a4323dd3ff8a687";
/// Deltas of the turns that run while everything is replaced: far more than it takes.
const DELTAS: usize = 6000;
/// The image of the control plane in this tree.
const THIS_TREE: &str = "localhost/ash:dev";
/// What is in the release's namespace that Helm did not put there: Kubernetes itself, and who installs.
const OTHERS: [&str; 9] = [
    "configmap/authorities",
    "configmap/kube-root-ca.crt",
    "endpointslice.discovery.k8s.io/model-test",
    "endpointslice.discovery.k8s.io/postgres-test",
    "secret/ash-database",
    "secret/ash-keys",
    "service/model",
    "service/postgres",
    "serviceaccount/default",
];

impl Tenant<'_> {
    /// The image that a session's sandbox runs in.
    fn image_of(&self, session: &Session) -> String {
        let pod = pod_of(self, session);
        self.done(&["get", "pod", &pod, "-o", "jsonpath={.spec.containers[0].image}"])
    }

    fn suspend(&self, name: &str, on: bool) {
        let patch = json!({ "spec": { "suspend": on } }).to_string();
        self.done(&["patch", "session", name, "--type=merge", "-p", &patch]);
        let condition = format!("jsonpath={{.status.state}}={}", if on { "paused" } else { "active" });
        self.wait(&format!("session/{name}"), &condition);
    }
}

/// Everything in a namespace but what happens by itself, as `kind/name`.
fn objects(cluster: &Cluster, namespace: &str) -> Vec<String> {
    let kinds = cluster.done(&["api-resources", "--namespaced", "--verbs=list", "-o", "name"]);
    let kinds: Vec<&str> = kinds.lines().filter(|kind| !kind.starts_with("events")).collect();
    let listed = cluster.done(&["get", &kinds.join(","), "-n", namespace, "-o", "name", "--ignore-not-found"]);
    listed.lines().map(str::to_owned).collect()
}

/// What of a release is in the whole cluster, by its labels: the definitions and the tenants' namespaces are kept.
fn of_release(cluster: &Cluster) -> Vec<String> {
    let kinds = cluster.done(&["api-resources", "--verbs=list", "-o", "name"]);
    let kinds: Vec<&str> = kinds.lines().filter(|kind| !kind.starts_with("events")).collect();
    let mut found = Vec::new();
    for label in ["app.kubernetes.io/name=ash", "app.kubernetes.io/managed-by=ash"] {
        let listed = cluster.done(&["get", &kinds.join(","), "-A", "-l", label, "-o", "name", "--ignore-not-found"]);
        let kept = |name: &&str| name.starts_with("namespace/") || name.starts_with("customresourcedefinition.");
        found.extend(listed.lines().filter(|name| !kept(name)).map(str::to_owned));
    }
    found
}

#[test]
fn sessions_go_on_through_an_upgrade_and_an_uninstall_leaves_nothing_of_ash() {
    let Some(cluster) = Cluster::own() else { return };
    let Some(release) = Release::of(EARLIER) else { return };
    cluster.install_earlier(&release);
    let (tenant, other) = (Tenant::of_rest(&cluster), Tenant::named(&cluster, "team-b"));
    let sessions = before(&tenant, &other);
    side_by_side(&tenant, &sessions);
    upgraded(&tenant, &sessions);
    uninstalled(&cluster, &[&tenant, &other]);
    // Whoever installs again finds the sessions as they were.
    cluster.upgrade();
    // The API's Service is another one, at another address.
    let tenant = Tenant::of_rest(&cluster);
    assert_eq!(tenant.answer_in_time(&sessions[0].id, "[[count]]"), "6");
    uninstalled(&cluster, &[&tenant, &other]);
    // Nothing of people's own waits for an operator that is gone: neither a namespace nor the definitions.
    cluster.done(&["delete", "namespace", "team-a", "--timeout=60s"]);
    assert!(other.has("session/applied"));
    cluster.done(&["delete", "crd", "agents.ash.dev", "sessions.ash.dev", "--timeout=60s"]);
    cluster.done(&["delete", "namespace", "team-b", SYSTEM_NAMESPACE, "--timeout=120s"]);
}

/// Sessions of the earlier release: two that talk, one that is suspended; an applied one of another tenant.
fn before(tenant: &Tenant<'_>, other: &Tenant<'_>) -> [Session; 2] {
    tenant.agent("keeper", &json!({}));
    let sessions = [begun(tenant, "keeper"), begun(tenant, "keeper")];
    for session in &sessions {
        assert_eq!(tenant.answer(&session.id, &bash("echo kept >/workspace/note; echo done")), "done");
        assert!(tenant.image_of(session).ends_with(":earlier"));
    }
    tenant.apply(&session("suspended", "keeper", &json!({ "message": { "content": "[[text: before]]" } })));
    tenant.wait("session/suspended", "condition=MessageTaken");
    tenant.suspend("suspended", true);
    other.agent("keeper", &json!({}));
    other.apply(&session("applied", "keeper", &json!({ "message": { "content": "[[text: before]]" } })));
    other.wait("session/applied", "condition=MessageTaken");
    sessions
}

/// Processes of both releases at once, longer than an upgrade has them: this tree's API over runners and an operator of the
/// earlier release.
fn side_by_side(tenant: &Tenant<'_>, sessions: &[Session; 2]) {
    let cluster = tenant.cluster;
    cluster.done(&["set", "image", "deployment/ash-api", "-n", SYSTEM_NAMESPACE, &format!("*={THIS_TREE}")]);
    cluster.done(&["rollout", "status", "deployment/ash-api", "-n", SYSTEM_NAMESPACE, "--timeout=120s"]);
    let [first, _] = sessions;
    assert_eq!(tenant.answer(&first.id, "[[count]]"), "3");
    let new = begun(tenant, "keeper");
    let client = tenant.client();
    cluster.run(async { client.end_session(&new.id).await.unwrap() });
}

fn upgraded(tenant: &Tenant<'_>, sessions: &[Session; 2]) {
    let cluster = tenant.cluster;
    let pods = sessions.each_ref().map(|session| pod_of(tenant, session));
    // The turns run on meanwhile: their runners are replaced, and their clients' API processes.
    disturbed(tenant, sessions, DELTAS, "the upgrade", || cluster.upgrade());
    let running = cluster.json(&["get", "pods", "-n", SYSTEM_NAMESPACE, "-l", "app.kubernetes.io/name=ash"]);
    for pod in running["items"].as_array().unwrap().iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null())
    {
        assert_eq!(pod["spec"]["containers"][0]["image"], THIS_TREE, "{}", pod["metadata"]["name"]);
    }
    let definitions = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crds");
    let difference = ["diff", "--server-side", "--force-conflicts", "-k", definitions.to_str().unwrap()];
    let output = cluster.kubectl(&difference, None);
    assert!(
        output.status.success(),
        "the definitions are those of this tree: {}",
        String::from_utf8_lossy(&output.stdout)
    );

    // Each is in its sandbox of before, with what it had.
    for (session, pod) in sessions.iter().zip(&pods) {
        assert_eq!(tenant.answer(&session.id, &bash("cat /workspace/note")), "kept");
        assert_eq!((pod_of(tenant, session), tenant.image_of(session).ends_with(":earlier")), (pod.clone(), true));
    }
    tenant.suspend("suspended", false);
    let id = tenant.done(&["get", "session", "suspended", "-o", "jsonpath={.metadata.uid}"]);
    assert_eq!(tenant.answer_in_time(&id, "[[count]]"), "2");
    // What comes after the upgrade is of this tree.
    cluster.eventually("the pool is of this tree", |_| {
        let warm = tenant.json(&["get", "pods", "-l", "ash.dev/agent=keeper,ash.dev/warm=true"]);
        let warm = warm["items"].as_array().unwrap().clone();
        let is_new = |pod: &Value| pod["spec"]["containers"][0]["image"] == "localhost/ash-bridge:dev";
        (!warm.is_empty() && warm.iter().all(is_new)).then_some(())
    });
    let new = begun(tenant, "keeper");
    assert!(tenant.image_of(&new).ends_with(":dev"));
}

/// Takes the release out, and looks at what is left.
fn uninstalled(cluster: &Cluster, tenants: &[&Tenant<'_>]) {
    let mut helm = cluster.helm();
    let output = helm.args(["uninstall", "ash", "-n", SYSTEM_NAMESPACE, "--wait", "--timeout", "3m"]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // The lease goes with its account, and what Helm deletes with what owned it: a moment later.
    cluster.eventually("nothing of the release is left", |cluster| of_release(cluster).is_empty().then_some(()));
    cluster.eventually("only what others made is in its namespace", |cluster| {
        let mut left = objects(cluster, SYSTEM_NAMESPACE);
        left.sort();
        (left == OTHERS).then_some(())
    });
    for tenant in tenants {
        let left = objects(cluster, tenant.name);
        let kept = |name: &&String| {
            let own = ["agent.ash.dev/", "session.ash.dev/", "configmap/kube-root-ca.crt", "serviceaccount/default"];
            !own.iter().any(|prefix| name.starts_with(prefix))
        };
        assert_eq!(left.iter().find(kept), None, "{}: {left:?}", tenant.name);
        let resources = tenant.json(&["get", "agents,sessions"]);
        let resources = resources["items"].as_array().unwrap();
        assert!(resources.len() >= 2, "people's own stays: {left:?}");
        for resource in resources {
            assert!(
                resource["metadata"]["finalizers"].is_null(),
                "{} waits for an operator",
                resource["metadata"]["name"]
            );
        }
    }
}
