//! Sessions of the installed chart with the real Claude Code: by manifest, over REST, and either seen from the other side.

use ash_e2e::cluster::Cluster;
use serde_json::json;

use crate::tenant::{Tenant, session};

#[test]
fn a_session_made_over_rest_is_a_resource_and_ends_as_one() {
    let Some(cluster) = Cluster::shared() else { return };
    let tenant = Tenant::of_rest(&cluster);
    tenant.agent("rested", &json!({}));
    let session = tenant.create("rested");
    assert_eq!(tenant.answer(&session.id, "[[text: one two three]]"), "one two three");
    let said = tenant.answer(&session.id, r#"[[tool: Bash {"command":"id -u; pwd"}]] [[result]]"#);
    assert_eq!(said.split_whitespace().collect::<Vec<_>>(), ["1000", "/workspace"]);
    let resource = tenant.resource(&session.id).expect("the session is a resource");
    let name = resource["metadata"]["name"].as_str().unwrap();
    tenant.wait(&format!("session/{name}"), "condition=Ready");
    let resource = tenant.resource(&session.id).unwrap();
    assert_eq!(resource["status"]["state"], "active", "{resource}");
    let pod = resource["status"]["pod"].as_str().expect("its pod").to_owned();
    assert!(tenant.has(&format!("pod/{pod}")));
    let client = tenant.client();
    cluster.run(async { client.end_session(&session.id).await.unwrap() });
    cluster.eventually("the pod of an ended session goes", |_| (!tenant.has(&format!("pod/{pod}"))).then_some(()));
    cluster.eventually("the resource says that it ended", |_| {
        (tenant.resource(&session.id)?["status"]["state"] == "ended").then_some(())
    });
}

#[test]
fn an_applied_session_takes_its_message_once_and_talks_over_rest() {
    let Some(cluster) = Cluster::shared() else { return };
    let tenant = Tenant::of_rest(&cluster);
    tenant.agent("applied", &json!({}));
    tenant.apply(&session("first", "applied", &json!({ "message": { "content": "[[text: taken]]" } })));
    tenant.wait("session/first", "condition=Ready");
    tenant.wait("session/first", "condition=MessageTaken");
    let id = tenant.done(&["get", "session", "first", "-o", "jsonpath={.metadata.uid}"]);
    let first = tenant.whole(&id);
    assert_eq!((first.result().as_deref(), first.names().last()), (Some("taken"), Some(&"done")));
    assert_eq!(tenant.answer(&id, "[[count]]"), "2");
    let pod = tenant.done(&["get", "session", "first", "-o", "jsonpath={.status.pod}"]);
    tenant.done(&["delete", "session", "first", "--wait", "--timeout=60s"]);
    cluster.eventually("its pod goes", |_| (!tenant.has(&format!("pod/{pod}"))).then_some(()));
    let client = tenant.client();
    let ended = cluster.run(async { client.session(&id).await.unwrap() });
    assert_eq!(ended.status, "ended");
}
