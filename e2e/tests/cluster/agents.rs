//! What people do with agents and sessions in a cluster: several of both, changes of a manifest, the pool, sleep, an image of their
//! own, gVisor.

use ash_e2e::cluster::Cluster;
use serde_json::{Value, json};

use crate::{
    images::{self, Image},
    tenant::{Tenant, agent, bash, session},
};

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}")).to_owned()
}

impl Tenant<'_> {
    /// A field of an object; empty where it has none.
    fn field(&self, object: &str, path: &str) -> String {
        self.done(&["get", object, "-o", &format!("jsonpath={{{path}}}")])
    }

    /// The sandboxes of an agent that wait for a session and run.
    fn warm(&self, agent: &str) -> Vec<String> {
        let selector = format!("ash.dev/agent={agent}");
        let pods = self.json(&["get", "pods", "-l", &selector]);
        let pods = pods["items"].as_array().unwrap().iter();
        let warm = pods.filter(|pod| {
            pod["metadata"]["labels"]["ash.dev/warm"] == "true" && pod["metadata"]["deletionTimestamp"].is_null()
        });
        warm.map(|pod| text(&pod["metadata"]["name"])).collect()
    }
}

/// Two tenants have an agent of one name. What each is, is not seen by the other; the key of REST calls is one tenant's.
#[test]
fn tenants_share_nothing_but_the_names_of_their_agents() {
    let Some(cluster) = Cluster::shared() else { return };
    let (ours, theirs) = (Tenant::of_rest(&cluster), Tenant::named(&cluster, "team-b"));
    ours.agent("guide", &json!({ "systemPrompt": "You guide team A." }));
    ours.agent("second", &json!({ "systemPrompt": "You are the second." }));
    theirs.agent("guide", &json!({ "systemPrompt": "You guide team B." }));
    let message = json!({ "message": { "content": "[[text: B was here]]" } });
    theirs.apply(&session("theirs", "guide", &message));
    let [first, second] = ["guide", "second"].map(|agent| ours.create(agent).id);
    assert!(ours.answer(&first, "[[echo-system]]").contains("You guide team A."));
    assert!(ours.answer(&second, "[[echo-system]]").contains("You are the second."));
    theirs.wait("session/theirs", "condition=MessageTaken");
    let id = theirs.field("session/theirs", ".metadata.uid");
    let client = ours.client();
    let (found, listed) = cluster.run(async {
        let found = client.session(&id).await;
        (found, client.sessions(&ash_client::SessionQuery::default()).await.unwrap())
    });
    assert!(found.is_err(), "another tenant's session is there: {found:?}");
    assert!(listed.iter().all(|session| session.id != id), "another tenant's session is listed");
    assert!(theirs.resource(&first).is_none(), "the session is in its own namespace");
    let pod = theirs.field("session/theirs", ".status.pod");
    assert!(theirs.has(&format!("pod/{pod}")) && !ours.has(&format!("pod/{pod}")), "{pod}");
    // What people see with no plug-in.
    let table = ours.done(&["get", "agents"]);
    for column in ["NAME", "VERSION", "READY", "REASON", "WARM", "ACTIVE", "ASLEEP", "AGE"] {
        assert!(table.contains(column), "{table}");
    }
    let table = theirs.done(&["get", "sessions", "-o", "wide"]);
    for column in ["AGENT", "STATE", "READY", "REASON", "TURNS", "COST", "NODE", "RUNNER", "POD", "VERSION", "URL"] {
        assert!(table.contains(column), "{table}");
    }
    assert!(table.contains("guide") && table.contains("active"), "{table}");
    // An agent goes with its pool; its sessions stay.
    theirs.done(&["delete", "agent", "guide", "--timeout=60s"]);
    cluster.eventually("the pool of a deleted agent goes", |_| theirs.warm("guide").is_empty().then_some(()));
    assert!(theirs.has(&format!("pod/{pod}")), "the session keeps its sandbox");
    assert!(ours.has("agent/guide"));
    theirs.done(&["delete", "session", "theirs", "--timeout=60s"]);
}

/// What a `GitOps` controller does: applies again, changes, turns back, prunes.
#[test]
fn a_manifest_that_is_applied_again_changes_nothing_and_an_older_one_is_a_new_version() {
    let Some(cluster) = Cluster::shared() else { return };
    let tenant = Tenant::of_rest(&cluster);
    let files = |text: &str| {
        json!({
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": { "name": "keeper-files" },
            "data": { "CLAUDE.md": text },
        })
    };
    let mut manifest = agent("keeper", &json!({ "warm": { "max": 1 } }));
    manifest["spec"]["source"] = json!({ "configMap": { "name": "keeper-files" } });
    tenant.apply(&files("You keep what is first."));
    tenant.apply(&manifest);
    tenant.wait("agent/keeper", "condition=Ready");
    tenant.wait("agent/keeper", "condition=PoolReady");
    let first = tenant.field("agent/keeper", ".status.digest");
    let seen = || {
        [
            tenant.field("agent/keeper", ".metadata.generation"),
            tenant.field("agent/keeper", ".metadata.resourceVersion"),
            tenant.warm("keeper").join(" "),
        ]
    };
    // The count of warm ones is written last.
    cluster.eventually("its status counts the pool", |_| {
        (tenant.field("agent/keeper", ".status.warm") == "1").then_some(())
    });
    let before = seen();
    for _ in 0..3 {
        assert!(tenant.apply(&manifest).contains("unchanged"));
        assert!(tenant.apply(&files("You keep what is first.")).contains("unchanged"));
    }
    // Something of the same operator that comes after: it has had its time.
    let kept = tenant.create("keeper");
    assert_eq!(tenant.answer(&kept.id, "[[count]]"), "1");
    assert_eq!(seen()[0], before[0], "the generation is as it was");
    assert_eq!(tenant.field("agent/keeper", ".status.version"), "1");

    let version = |number: &str| {
        cluster.eventually("a changed source is a version", |_| {
            (tenant.field("agent/keeper", ".status.version") == number).then_some(())
        });
    };
    tenant.apply(&files("You keep what is second."));
    version("2");
    assert_ne!(tenant.field("agent/keeper", ".status.digest"), first);
    tenant.apply(&files("You keep what is first."));
    version("3");
    assert_eq!(tenant.field("agent/keeper", ".status.digest"), first, "the older files again");
    // A session keeps the version that it started with; pods of older versions do not wait.
    assert_eq!(tenant.answer(&kept.id, "[[count]]"), "2");
    let resource = tenant.resource(&kept.id).unwrap();
    assert_eq!(resource["status"]["agentVersion"], 1, "{resource}");
    cluster.eventually("the pool is of the newest version", |_| {
        let pods = tenant.json(&["get", "pods", "-l", "ash.dev/agent=keeper,ash.dev/warm=true"]);
        let pods = pods["items"].as_array().unwrap().clone();
        let newest = |pod: &Value| pod["metadata"]["labels"]["ash.dev/agent-version"] == "3";
        (!pods.is_empty() && pods.iter().all(newest)).then_some(())
    });
    tenant.done(&["delete", "agent/keeper", "configmap/keeper-files", "--timeout=60s"]);
    cluster.eventually("what is pruned goes", |_| tenant.warm("keeper").is_empty().then_some(()));
    assert_eq!(tenant.answer(&kept.id, "[[count]]"), "3", "a session outlives its agent's manifest");
    let client = tenant.client();
    cluster.run(async { client.end_session(&kept.id).await.unwrap() });
}

#[test]
fn a_pool_refills_after_claims_and_follows_kubectl_scale() {
    let Some(cluster) = Cluster::shared() else { return };
    let tenant = Tenant::of_rest(&cluster);
    tenant.agent("pooled", &json!({}));
    tenant.wait("agent/pooled", "condition=PoolReady");
    let [waiting] = tenant.warm("pooled").try_into().expect("a pool of one");
    let claimed = tenant.create("pooled");
    assert_eq!(tenant.answer(&claimed.id, "[[count]]"), "1");
    let pod = cluster.eventually("the session's pod", |_| {
        tenant.resource(&claimed.id)?["status"]["pod"].as_str().map(str::to_owned)
    });
    assert_eq!(pod, waiting, "the warm one was claimed");
    cluster.eventually("the pool refills", |_| tenant.warm("pooled").iter().any(|name| *name != waiting).then_some(()));
    tenant.done(&["scale", "agent/pooled", "--replicas=2"]);
    assert_eq!(tenant.field("agent/pooled", ".spec.warm.min"), "2");
    cluster.eventually("the pool grows", |_| (tenant.warm("pooled").len() >= 2).then_some(()));
    cluster.eventually("the status counts", |_| {
        tenant.field("agent/pooled", ".status.warm").parse::<u32>().is_ok_and(|warm| warm >= 2).then_some(())
    });
    tenant.apply(&agent("pooled", &json!({ "warm": { "min": 0, "max": 0 } })));
    cluster.eventually("the pool goes", |_| tenant.warm("pooled").is_empty().then_some(()));
    assert!(tenant.has(&format!("pod/{pod}")), "the session keeps its sandbox");
    // Without a pool a session is served too.
    let cold = tenant.create("pooled");
    assert_eq!(tenant.answer(&cold.id, "[[count]]"), "1");
    let client = tenant.client();
    for id in [&claimed.id, &cold.id] {
        cluster.run(async { client.end_session(id).await.unwrap() });
    }
}

#[test]
fn a_session_is_suspended_from_either_side_and_keeps_its_pod_and_its_conversation() {
    let Some(cluster) = Cluster::shared() else { return };
    let tenant = Tenant::of_rest(&cluster);
    tenant.agent("sleeper", &json!({}));
    tenant.apply(&session("sleeps", "sleeper", &json!({ "ttlAfterEnd": "5s" })));
    tenant.wait("session/sleeps", "condition=Ready");
    tenant.wait("session/sleeps", "jsonpath={.status.state}=active");
    let id = tenant.field("session/sleeps", ".metadata.uid");
    assert_eq!(tenant.answer(&id, &bash("echo kept >/workspace/note; echo done")), "done");
    let pod = tenant.field("session/sleeps", ".status.pod");
    let suspend = |on: bool| {
        let patch = json!({ "spec": { "suspend": on } }).to_string();
        tenant.done(&["patch", "session", "sleeps", "--type=merge", "-p", &patch]);
    };
    let refused = || {
        let client = tenant.client();
        cluster.run(async { client.send_message(&id, &ash_client::Message::text("[[count]]")).await }).is_err()
    };
    suspend(true);
    tenant.wait("session/sleeps", "jsonpath={.status.state}=paused");
    tenant.wait("session/sleeps", "condition=Ready");
    assert!(refused(), "a suspended session takes no message");
    suspend(false);
    tenant.wait("session/sleeps", "jsonpath={.status.state}=active");
    assert_eq!(tenant.answer(&id, "[[count]]"), "2", "the conversation is kept");
    let client = tenant.client();
    let paused = cluster.run(async { client.pause_session(&id).await.unwrap() });
    assert_eq!(paused.status, "paused");
    assert_eq!(tenant.field("session/sleeps", ".spec.suspend"), "true");
    tenant.wait("session/sleeps", "jsonpath={.status.state}=paused");
    assert!(refused());
    let resumed = cluster.run(async { client.resume_session(&id).await.unwrap() });
    assert!(["active", "starting"].contains(&resumed.status.as_str()), "{}", resumed.status);
    assert_ne!(tenant.field("session/sleeps", ".spec.suspend"), "true");
    assert_eq!(tenant.answer(&id, &bash("cat /workspace/note")), "kept");
    assert_eq!(tenant.answer(&id, "[[count]]"), "4");
    assert_eq!(tenant.field("session/sleeps", ".status.pod"), pod, "the pod is kept");
    // Its end, and what becomes of the resource.
    tenant.done(&["patch", "session", "sleeps", "--type=merge", "-p", r#"{"spec":{"end":true}}"#]);
    tenant.done(&["wait", "session/sleeps", "--for=delete", "--timeout=60s"]);
    let ended = cluster.run(async { client.session(&id).await.unwrap() });
    assert_eq!(ended.status, "ended", "the history stays");
}

/// An image of a team's own, with a tool of its own: on the base of ours, without bridge and Claude Code.
fn own_image() -> Image {
    let base = images::base();
    let image = Image::new(OWN_IMAGE);
    image.file("forecast", "#!/bin/sh\necho \"sunny, says $TEAM\"\n");
    image.build(&format!("FROM {base}\nCOPY --chmod=755 forecast /usr/local/bin/forecast\n"));
    image
}

const OWN_IMAGE: &str = "localhost/forecasts:1";

#[test]
fn an_agent_works_in_an_image_of_its_own() {
    let Some(cluster) = Cluster::shared() else { return };
    let tenant = Tenant::of_rest(&cluster);
    cluster.load_image(&own_image().archive());
    let sandbox = json!({
        "image": OWN_IMAGE,
        "imagePullPolicy": "Never",
        "env": [{ "name": "TEAM", "value": "team A" }],
    });
    tenant.apply(&agent("forecaster", &json!({ "sandbox": sandbox, "warm": { "max": 1 } })));
    tenant.wait("agent/forecaster", "condition=Ready");
    let session = tenant.create("forecaster");
    assert_eq!(tenant.answer(&session.id, &bash("forecast")), "sunny, says team A");
    assert_eq!(tenant.answer(&session.id, &bash("command -v claude || ls /ash")).trim(), "/ash/claude");
}

#[test]
fn a_session_runs_under_gvisor() {
    let Some(cluster) = Cluster::shared() else { return };
    if !cluster.kubectl(&["get", "runtimeclass", "gvisor"], None).status.success() {
        return;
    }
    let tenant = Tenant::of_rest(&cluster);
    tenant.agent("enclosed", &json!({ "sandbox": { "runtimeClassName": "gvisor" }, "warm": { "max": 1 } }));
    let session = tenant.create("enclosed");
    let said = tenant.answer(&session.id, &bash("dmesg | head -n 3; id -u"));
    assert!(said.contains("gVisor") && said.contains("1000"), "another kernel answers: {said}");
    assert_eq!(tenant.answer(&session.id, "[[count]]"), "2");
}
