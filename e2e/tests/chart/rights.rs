//! What the chart's accounts may do: exactly what is written here.

use serde_json::Value;

use crate::tools::{Tools, objects, texts};

/// Role and namespace (none: in the whole cluster), group, kinds, names where only those, verbs.
const RIGHTS: &[&str] = &[
    "ash-system-ash-api in the cluster: authentication.k8s.io tokenreviews: create",
    "ash-system-ash-api in the cluster: authorization.k8s.io subjectaccessreviews: create",
    "ash-system-ash-runner in the cluster: authentication.k8s.io tokenreviews: create",
    "ash-api in default: ash.dev agents,sessions: create,get,list,watch,patch,delete",
    "ash-client in default: ash.dev agents,sessions: get,list,create,update,delete",
    "ash-operator in ash-system: coordination.k8s.io leases: create",
    "ash-operator in ash-system: coordination.k8s.io leases [ash-operator]: get,update,patch",
    "ash-operator in ash-system: core serviceaccounts [ash-operator]: get",
    "ash-operator in ash-system: core services: get",
    "ash-operator in ash-system: core pods: list",
    "ash-operator in default: ash.dev agents: get,list,watch,patch",
    "ash-operator in default: ash.dev sessions: get,list,watch,patch,delete",
    "ash-operator in default: ash.dev agents/status,sessions/status: get,patch",
    "ash-operator in default: ash.dev agents/finalizers,sessions/finalizers: update",
    "ash-operator in default: core pods: create,get,list,watch,patch,delete",
    "ash-operator in default: core pods/log: get",
    "ash-operator in default: core configmaps: get",
    "ash-operator in default: core secrets: get",
    "ash-operator in default: core,events.k8s.io events: create,patch",
    "ash-operator in default: core events: list",
    "ash-operator in default: networking.k8s.io networkpolicies [ash-sandboxes,ash-git-clone]: get,create,patch",
];

/// Who has which role.
const BINDINGS: &[&str] = &[
    "ash-system/ash-api has ash-system-ash-api in the cluster",
    "ash-system/ash-runner has ash-system-ash-runner in the cluster",
    "ash-system/ash-api has ash-api in default",
    "default/ash-client has ash-client in default",
    "ash-system/ash-operator has ash-operator in ash-system",
    "ash-system/ash-operator has ash-operator in default",
];

fn place(object: &Value) -> String {
    format!("in {}", object["metadata"]["namespace"].as_str().unwrap_or("the cluster"))
}

fn rights(objects: &[Value]) -> Vec<String> {
    let mut found = Vec::new();
    for role in objects.iter().filter(|object| object["kind"] == "Role" || object["kind"] == "ClusterRole") {
        let name = role["metadata"]["name"].as_str().unwrap();
        for rule in role["rules"].as_array().unwrap() {
            let groups: Vec<_> = texts(&rule["apiGroups"])
                .into_iter()
                .map(|group| if group.is_empty() { "core" } else { group })
                .collect();
            let names = texts(&rule["resourceNames"]);
            let only = if names.is_empty() { String::new() } else { format!(" [{}]", names.join(",")) };
            let (kinds, verbs) = (texts(&rule["resources"]).join(","), texts(&rule["verbs"]).join(","));
            found.push(format!("{name} {}: {} {kinds}{only}: {verbs}", place(role), groups.join(",")));
        }
    }
    found
}

fn bindings(objects: &[Value]) -> Vec<String> {
    let mut found = Vec::new();
    for binding in objects.iter().filter(|object| object["kind"].as_str().unwrap().ends_with("RoleBinding")) {
        for subject in binding["subjects"].as_array().unwrap() {
            assert_eq!(subject["kind"], "ServiceAccount");
            let (namespace, name) = (subject["namespace"].as_str().unwrap(), subject["name"].as_str().unwrap());
            let role = binding["roleRef"]["name"].as_str().unwrap();
            found.push(format!("{namespace}/{name} has {role} {}", place(binding)));
        }
    }
    found
}

fn sorted(mut lines: Vec<String>) -> Vec<String> {
    lines.sort();
    lines
}

#[test]
fn the_rights_are_these_and_no_others() {
    let Some(tools) = Tools::find() else { return };
    let objects = objects(&tools.rendered(&[]));
    assert_eq!(sorted(rights(&objects)), sorted(RIGHTS.iter().map(ToString::to_string).collect()));
    assert_eq!(sorted(bindings(&objects)), sorted(BINDINGS.iter().map(ToString::to_string).collect()));
}

#[test]
fn no_right_is_a_wildcard_and_secrets_can_be_confined_to_names() {
    let Some(tools) = Tools::find() else { return };
    let set = "namespaces[0].name=a,namespaces[1].name=b,namespaces[1].secretNames={model,git},defaultNamespace=a";
    let lines = rights(&objects(&tools.rendered(&["--set", set])));
    assert!(
        lines.iter().all(|line| !line.contains('*') && !line.contains("escalate") && !line.contains("impersonate"))
    );
    assert!(lines.iter().filter(|line| line.contains("secrets")).all(|line| line.ends_with(": get")));
    assert!(lines.contains(&"ash-operator in b: core secrets [model,git]: get".to_owned()), "{lines:#?}");
    assert!(lines.iter().all(|line| !line.starts_with("ash-runner")), "{lines:#?}");
    // Those for people are no account's.
    let with_people = objects(&tools.rendered(&["--set", "aggregateRoles=true"]));
    assert_eq!(rights(&with_people).len(), RIGHTS.len() + 4);
    assert_eq!(bindings(&with_people).len(), BINDINGS.len());
    let with_port = objects(&tools.rendered(&["--set", "portForwardRole=true"]));
    let of_port: Vec<_> = rights(&with_port).into_iter().filter(|line| line.starts_with("ash-port-forward")).collect();
    assert_eq!(
        of_port,
        [
            "ash-port-forward in ash-system: core services [ash]: get",
            "ash-port-forward in ash-system: core pods: list",
            "ash-port-forward in ash-system: core pods/portforward: get,create",
        ]
    );
    assert_eq!(bindings(&with_port).len(), BINDINGS.len());
}

#[test]
fn the_clients_account_is_in_each_namespace_or_in_none() {
    let Some(tools) = Tools::find() else { return };
    let set = "namespaces[0].name=a,namespaces[1].name=b,defaultNamespace=a";
    let accounts = |more: &str| {
        let objects = objects(&tools.rendered(&["--set", &format!("{set}{more}")]));
        let accounts = objects.iter().filter(|object| object["metadata"]["name"] == "ash-client");
        accounts.filter(|object| object["kind"] == "ServiceAccount").cloned().collect::<Vec<_>>()
    };
    let there = accounts("");
    let namespaces: Vec<_> = there.iter().map(|account| &account["metadata"]["namespace"]).collect();
    assert_eq!(namespaces, ["a", "b"]);
    assert!(there.iter().all(|account| account["automountServiceAccountToken"] == false));
    assert_eq!(accounts(",clientAccount=false"), Vec::<Value>::new());
}
