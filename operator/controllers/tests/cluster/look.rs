//! Looks at objects as `kubectl get -o jsonpath` prints them, without a process for each of a thousand looks.

use std::sync::mpsc;

use kube::Client;
use serde_json::Value;
use tokio::{runtime::Handle, task::block_in_place};

/// Where the API server has the objects of a kind.
fn place(kind: &str) -> (&'static str, &'static str) {
    match kind {
        "agent" => ("apis/ash.dev/v1alpha1", "agents"),
        "session" => ("apis/ash.dev/v1alpha1", "sessions"),
        "lease" => ("apis/coordination.k8s.io/v1", "leases"),
        "pod" => ("api/v1", "pods"),
        "events" => ("api/v1", "events"),
        kind => panic!("no scenario looks at {kind}"),
    }
}

/// A part of an object, or of all objects of these kinds where none is named; empty where it is not there.
pub fn look(client: &Client, namespace: &str, kinds: &str, name: Option<&str>, path: &str) -> String {
    let get = |kind: &str| {
        let (group, kind) = place(kind);
        let name = name.map_or_else(String::new, |name| format!("/{name}"));
        let request = http::Request::get(format!("/{group}/namespaces/{namespace}/{kind}{name}"));
        let request = request.body(Vec::new()).unwrap();
        // Most who look are no async function. Not by `block_on`: inside of another it takes that one's wake-ups.
        let (answer, answered) = mpsc::channel();
        let client = client.clone();
        Handle::current().spawn(async move { answer.send(client.request::<Value>(request).await) });
        block_in_place(|| answered.recv()).ok()?.ok()
    };
    let found = kinds.split(',').filter_map(get).flat_map(|object| {
        let parts = part(&object, path.trim_start_matches('{').trim_end_matches('}'));
        parts.into_iter().map(printed).collect::<Vec<_>>()
    });
    found.collect::<Vec<_>>().join(" ")
}

fn printed(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), ToOwned::to_owned)
}

/// What a path leads to: fields, whose dots are escaped; `[*]`, and `[?(@.FIELD=="TEXT")]`.
fn part<'a>(value: &'a Value, path: &str) -> Vec<&'a Value> {
    if let Some(path) = path.strip_prefix('.') {
        let end = (1..path.len())
            .find(|&at| path[at..].starts_with(['.', '[']) && !path[..at].ends_with('\\'))
            .unwrap_or(path.len());
        let field = path[..end].replace("\\.", ".");
        return value.get(field).map_or_else(Vec::new, |value| part(value, &path[end..]));
    }
    let Some((condition, path)) = path.strip_prefix('[').and_then(|path| path.split_once(']')) else {
        assert!(path.is_empty(), "no scenario has such a path: {path}");
        return vec![value];
    };
    let wanted = condition.strip_prefix("?(@.").and_then(|rest| rest.strip_suffix("\")")?.split_once("==\""));
    let elements = value.as_array().into_iter().flatten();
    let elements = elements.filter(|element| wanted.is_none_or(|(field, text)| element[field] == text));
    elements.flat_map(|element| part(element, path)).collect()
}

#[test]
fn a_path_leads_where_kubectl_goes() {
    let object = serde_json::json!({
        "metadata": { "labels": { "ash.dev/session": "talk" } },
        "status": { "warm": 1, "conditions": [{ "type": "Ready", "reason": "Active" }, { "type": "Stalled" }] },
    });
    let at = |path: &str| part(&object, path).into_iter().map(printed).collect::<Vec<_>>().join(" ");
    assert_eq!(at(r".metadata.labels.ash\.dev/session"), "talk");
    assert_eq!(at(".status.warm"), "1");
    assert_eq!(at(r#".status.conditions[?(@.type=="Ready")].reason"#), "Active");
    assert_eq!(at(".status.conditions[*].type"), "Ready Stalled");
    assert_eq!(at(".status.pod"), "");
}
