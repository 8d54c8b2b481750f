//! Messages that wait, and options that change, in the installed chart with the real Claude Code: over REST and in the resource.

use ash_client::{Message, SessionChanges};
use ash_e2e::{cluster::Cluster, harness::Turn};
use serde_json::{Value, json};

use crate::tenant::Tenant;

#[test]
fn what_waits_wakes_its_session_and_options_change_from_both_sides() {
    let Some(cluster) = Cluster::shared() else { return };
    let tenant = Tenant::of_rest(&cluster);
    tenant.agent("queued", &json!({}));
    let session = tenant.create("queued");
    assert_eq!(tenant.answer(&session.id, "[[text: begin]]"), "begin");
    let client = tenant.client();
    // A turn that lasts until its session is put aside.
    cluster.run(async {
        let message = Message::text("[[text: occupied]] [[delay: 600s]] [[text: never]]");
        let mut stream = client.send_message(&session.id, &message).await.unwrap();
        Turn::default().read_until(&mut stream, "text_delta").await;
        for name in ["one", "two"] {
            let waiting = Message::text(format!("(m-{name}) [[text: answered]]"));
            assert_eq!(client.queue_message(&session.id, &waiting, name).await.unwrap().status, "pending");
        }
    });
    let resource = tenant.resource(&session.id).expect("the session is a resource");
    let name = format!("session/{}", resource["metadata"]["name"].as_str().unwrap());
    let patch = |spec: Value| {
        let patch = json!({ "spec": spec }).to_string();
        tenant.done(&["patch", &name, "--type=merge", "-p", &patch]);
    };
    let statuses = || -> Vec<String> {
        let entries = cluster.run(async { client.queue(&session.id).await.unwrap() });
        entries.into_iter().map(|entry| entry.status).collect()
    };
    patch(json!({ "suspend": true }));
    cluster.eventually("the session is paused", |cluster| {
        (cluster.run(async { client.session(&session.id).await.unwrap() }).status == "paused").then_some(())
    });
    assert_eq!(statuses(), ["pending", "pending"], "a person has put it aside");
    patch(json!({ "suspend": false }));
    cluster.eventually("what waited has run", |_| (statuses() == ["completed", "completed"]).then_some(()));
    let history = tenant.answer(&session.id, "[[history]]");
    assert_eq!((history.matches("(m-one)").count(), history.matches("(m-two)").count()), (1, 1), "{history}");
    assert!(history.find("(m-one)") < history.find("(m-two)"), "{history}");

    let asked = || -> Value { serde_json::from_str(&tenant.answer(&session.id, "[[request]]")).unwrap() };
    let changes = SessionChanges { model: Some(Some("claude-haiku-4-5".to_owned())), ..SessionChanges::default() };
    cluster.run(async { client.configure_session(&session.id, &changes).await.unwrap() });
    assert_eq!(asked()["model"], "claude-haiku-4-5");
    assert_eq!(tenant.resource(&session.id).unwrap()["spec"]["options"]["model"], "claude-haiku-4-5");
    patch(json!({ "options": { "model": "claude-sonnet-4-5", "disallowedTools": ["Read"] } }));
    cluster.eventually("the session has what its resource has", |cluster| {
        let now = cluster.run(async { client.session(&session.id).await.unwrap() });
        (now.other["model"] == "claude-sonnet-4-5").then_some(())
    });
    let request = asked();
    assert_eq!(request["model"], "claude-sonnet-4-5");
    assert!(!request["tools"].to_string().contains("\"Read\""), "{request}");
    cluster.run(async { client.end_session(&session.id).await.unwrap() });
}
