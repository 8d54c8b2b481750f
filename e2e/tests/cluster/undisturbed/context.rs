//! `ash --context`: people outside of the cluster, with a kubeconfig and nothing else.

use std::{
    fs,
    io::{BufRead as _, BufReader, Read as _, Write as _},
    process::{Output, Stdio},
    thread,
};

use ash_e2e::{
    cluster::{Cluster, Outside, SYSTEM_NAMESPACE},
    harness::program,
};
use serde_json::{Value, json};

use crate::tenant::Tenant;

/// The namespace of the accounts that stand for people here.
const PEOPLE: &str = "people";
/// Deltas of a turn that goes on while API processes go.
const DELTAS: usize = 2000;

/// A person at a terminal, who names a context in each command.
struct Person<'a> {
    machine: &'a Outside,
    context: &'static str,
    namespace: &'static str,
}

impl Person<'_> {
    fn command(&self, arguments: &[&str]) -> std::process::Command {
        let mut command = self.machine.command(program("ash"));
        command.args(["--context", self.context, "--namespace", self.namespace]).args(arguments);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    /// Runs a command that succeeds; what it printed.
    fn done(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "ash {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    }

    /// The same as JSON.
    fn json(&self, arguments: &[&str]) -> Value {
        serde_json::from_str(&self.done(&[&["--json"], arguments].concat())).unwrap()
    }

    /// Runs a command that fails, and says these words.
    fn refused(&self, arguments: &[&str], words: &[&str]) {
        let output = self.run(arguments);
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "ash {arguments:?}: {said}");
        for word in words {
            assert!(said.contains(word), "ash {arguments:?}: {word:?} is not in: {said}");
        }
    }
}

/// A machine outside, with the contexts `developer` (the role `edit` in team-a, and the way through a forwarded port, as the
/// documentation has it) and `nobody` (a user of the cluster with no right at all).
fn outside(cluster: &Cluster) -> Outside {
    let account = |name: &str| json!({ "apiVersion": "v1", "kind": "ServiceAccount", "metadata": { "name": name, "namespace": PEOPLE } });
    let namespace = json!({ "apiVersion": "v1", "kind": "Namespace", "metadata": { "name": PEOPLE } });
    cluster.apply(&namespace.to_string());
    let mut machine = cluster.outside();
    for name in ["developer", "nobody"] {
        cluster.apply(&account(name).to_string());
        machine.add(name, cluster.done(&["create", "token", name, "-n", PEOPLE, "--duration=1h"]).trim());
    }
    let binding = |namespace: &str, kind: &str, role: &str| {
        let manifest = json!({
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "RoleBinding",
            "metadata": { "name": "developer", "namespace": namespace },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": kind, "name": role },
            "subjects": [{ "kind": "ServiceAccount", "name": "developer", "namespace": PEOPLE }],
        });
        cluster.apply(&manifest.to_string());
    };
    binding("team-a", "ClusterRole", "edit");
    binding(SYSTEM_NAMESPACE, "Role", "ash-port-forward");
    fs::create_dir(machine.home().join("greeter")).unwrap();
    fs::write(machine.home().join("greeter/CLAUDE.md"), "You greet.\n").unwrap();
    machine
}

/// The names of the API's pods that are ready.
fn api_pods(cluster: &Cluster) -> Vec<String> {
    let selector = "app.kubernetes.io/component=api";
    let pods = cluster.json(&["get", "pods", "-n", SYSTEM_NAMESPACE, "-l", selector]);
    let ready = |pod: &&Value| {
        let conditions = pod["status"]["conditions"].as_array();
        pod["metadata"]["deletionTimestamp"].is_null()
            && conditions.is_some_and(|all| all.iter().any(|one| one["type"] == "Ready" && one["status"] == "True"))
    };
    let pods = pods["items"].as_array().unwrap().iter().filter(ready);
    pods.map(|pod| pod["metadata"]["name"].as_str().unwrap().to_owned()).collect()
}

#[test]
fn a_developer_with_a_kubeconfig_deploys_and_talks() {
    // Nodes are cordoned, and API processes deleted.
    let Some(cluster) = Cluster::alone() else { return };
    let tenant = Tenant::of_rest(&cluster);
    let machine = outside(&cluster);
    let developer = Person { machine: &machine, context: "developer", namespace: "team-a" };
    works_with_agents_and_sessions(&developer, &tenant);
    a_stream_goes_on_at_another_process(&developer, &tenant);
    nobody_is_told_what_is_missing(&developer, &machine);
    the_fleet_is_for_those_who_may_see_it(&developer, &tenant);
    tenant.done(&["delete", "agent", "greeter", "--timeout=60s"]);
    cluster.done(&["delete", "namespace", PEOPLE, "--timeout=60s"]);
}

fn works_with_agents_and_sessions(developer: &Person<'_>, tenant: &Tenant<'_>) {
    assert!(developer.done(&["deploy", "greeter"]).contains("greeter"));
    tenant.wait("agent/greeter", "condition=Ready");
    assert!(developer.done(&["agent", "list"]).contains("greeter"));
    let id = developer.done(&["session", "create", "greeter"]);
    assert!(tenant.resource(&id).is_some(), "the session is a resource of the namespace");
    assert_eq!(developer.done(&["session", "send", &id, "[[text: good morning]]"]), "good morning");
    assert!(developer.done(&["session", "list", "--agent", "greeter"]).contains(&id));
    let mut chat = developer.command(&["chat", "greeter", "--session", &id]).stdin(Stdio::piped()).spawn().unwrap();
    chat.stdin.take().unwrap().write_all(b"[[count]]\n[[text: and goodbye]]\n").unwrap();
    let output = chat.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(said.split_whitespace().collect::<Vec<_>>(), ["2", "and", "goodbye"]);
    developer.done(&["session", "end", &id]);
}

/// Each API process is replaced while a turn is read through one of them.
fn a_stream_goes_on_at_another_process(developer: &Person<'_>, tenant: &Tenant<'_>) {
    let cluster = tenant.cluster;
    let id = developer.done(&["session", "create", "greeter"]);
    let message = format!("[[pace: 10ms]] [[burst: {DELTAS}]]");
    let mut send = developer.command(&["session", "send", &id, &message]).spawn().unwrap();
    let mut output = BufReader::new(send.stdout.take().unwrap());
    let mut said = Vec::new();
    for _ in 0..20 {
        output.read_until(b' ', &mut said).unwrap();
    }
    let reading = thread::spawn(move || {
        output.read_to_end(&mut said).unwrap();
        String::from_utf8(said).unwrap()
    });
    let old = api_pods(cluster);
    assert_eq!(old.len(), 2, "{old:?}");
    for pod in &old {
        cluster.done(&["delete", "pod", pod, "-n", SYSTEM_NAMESPACE, "--grace-period=1"]);
        cluster.eventually("another API process is ready", |cluster| {
            let pods = api_pods(cluster);
            (pods.len() == 2 && !pods.contains(pod)).then_some(())
        });
    }
    assert!(send.try_wait().unwrap().is_none(), "the turn was over before both API processes had gone");
    let said = reading.join().unwrap();
    let output = send.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let expected: Vec<String> = (0..DELTAS).map(|number| number.to_string()).collect();
    assert_eq!(said.split_whitespace().collect::<Vec<_>>(), expected, "nothing is lost, and nothing comes twice");
    assert_eq!(developer.done(&["session", "send", &id, "[[count]]"]), "2");
    developer.done(&["session", "end", &id]);
}

fn nobody_is_told_what_is_missing(developer: &Person<'_>, machine: &Outside) {
    let nobody = Person { machine, context: "nobody", namespace: "team-a" };
    let token = "you may not create serviceaccounts/token in the namespace team-a";
    nobody.refused(&["agent", "list"], &[token, "kubectl auth can-i create serviceaccounts/token"]);
    // Somebody who may speak for an account that has no rights in Ash.
    let as_default = |arguments: &[&str], words: &[&str]| {
        developer.refused(&[&["--service-account", "default"], arguments].concat(), words);
    };
    as_default(
        &["deploy", "greeter"],
        &[
            "may not create agents.ash.dev in the namespace team-a",
            "kubectl auth can-i create agents.ash.dev --namespace team-a --as system:serviceaccount:team-a:default",
        ],
    );
    as_default(&["session", "list"], &["may not list sessions.ash.dev in the namespace team-a"]);
    let elsewhere = Person { machine, context: "developer", namespace: "team-b" };
    elsewhere.refused(&["agent", "list"], &["serviceaccounts/token in the namespace team-b"]);
}

fn the_fleet_is_for_those_who_may_see_it(developer: &Person<'_>, tenant: &Tenant<'_>) {
    let cluster = tenant.cluster;
    developer.refused(&["runner", "list"], &["may not list runners.ash.dev"]);
    let status = developer.done(&["status"]);
    assert!(status.contains("coordinator") && !status.contains("node1"), "{status}");
    let rights = json!({ "apiVersion": "v1", "kind": "List", "items": [
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRole",
            "metadata": { "name": "ash-fleet" },
            "rules": [{ "apiGroups": ["ash.dev"], "resources": ["runners"], "verbs": ["list", "update"] }],
        },
        {
            "apiVersion": "rbac.authorization.k8s.io/v1",
            "kind": "ClusterRoleBinding",
            "metadata": { "name": "ash-fleet" },
            "roleRef": { "apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "ash-fleet" },
            "subjects": [{ "kind": "ServiceAccount", "name": "ash-client", "namespace": "team-a" }],
        },
    ]});
    cluster.apply(&rights.to_string());
    // A refusal is remembered for some seconds.
    cluster
        .eventually("the runners may be seen", |_| developer.run(&["runner", "list"]).status.success().then_some(()));
    let runners = developer.json(&["runner", "list"]);
    let names: Vec<&str> =
        runners["runners"].as_array().unwrap().iter().filter_map(|one| one["name"].as_str()).collect();
    assert_eq!(names, ["node1", "node2"]);
    let state = |node: &str| {
        let runners = developer.json(&["runner", "list"]);
        let runner = runners["runners"].as_array().unwrap().iter().find(|one| one["name"] == node).unwrap().clone();
        runner["status"].as_str().unwrap().to_owned()
    };
    let status = developer.done(&["status"]);
    assert!(status.contains("2 ready of 2") && status.contains("node2"), "{status}");

    // New sessions go elsewhere, cold ones and warm ones.
    cluster.eventually("the right to cordon is known", |_| {
        developer.run(&["runner", "cordon", "node2"]).status.success().then_some(())
    });
    assert_eq!(state("node2"), "cordoned");
    assert!(developer.done(&["status"]).contains("1 ready of 2"));
    for _ in 0..3 {
        let id = developer.done(&["session", "create", "greeter"]);
        assert_eq!(developer.done(&["session", "send", &id, "[[count]]"]), "1");
        let node = cluster.eventually("its status names the node", |_| {
            tenant.resource(&id)?["status"]["node"].as_str().map(str::to_owned)
        });
        assert_eq!(node, "node1");
        developer.done(&["session", "end", &id]);
    }
    developer.done(&["runner", "uncordon", "node2"]);
    assert_eq!(state("node2"), "ready");
    developer.refused(&["runner", "cordon", "node9"], &["Runner not found"]);
    cluster.done(&["delete", "clusterrole/ash-fleet", "clusterrolebinding/ash-fleet"]);
}
