//! The chart on a real API server, which has no nodes: what it takes, whom it lets do what, an upgrade, an uninstall.
//! Without nodes no hook runs; the journeys on a cluster run them.

use std::{fs, path::Path};

use ash_test_kubernetes::Server;

use crate::tools::{NAMESPACE, Tools, chart, renderings};

/// The namespaces that the renderings put something into.
const NAMESPACES: &[&str] = &["team-a", "team-b", "a", "b"];

struct Installation {
    tools: Tools,
    server: Server,
}

impl Installation {
    fn start() -> Option<Self> {
        let tools = Tools::find()?;
        let installation = Self { tools, server: Server::start()? };
        for name in NAMESPACES.iter().chain(&[NAMESPACE]) {
            installation.server.done(&["create", "namespace", name], None);
            // Every workload that would not be let in is a warning, and a warning is a failure.
            let levels = ["enforce", "warn"].map(|level| format!("pod-security.kubernetes.io/{level}=restricted"));
            installation.server.done(&["label", "namespace", name, &levels[0], &levels[1]], None);
        }
        Some(installation)
    }

    fn helm(&self, arguments: &[&str]) -> (bool, String) {
        let url = self.server.url();
        let mut all = vec!["--kube-apiserver", &url, "--kube-token", "admin", "--kube-insecure-skip-tls-verify"];
        all.extend(["--namespace", NAMESPACE]);
        all.extend(arguments);
        let output = self.tools.helm(&all);
        let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        (output.status.success(), text)
    }

    fn helm_done(&self, arguments: &[&str]) -> String {
        let (success, text) = self.helm(arguments);
        assert!(success, "helm {arguments:?}: {text}");
        text
    }

    /// Whether an account of the chart may do something.
    fn may(&self, account: &str, namespace: &str, question: &[&str]) -> bool {
        let who = format!("--as=system:serviceaccount:{NAMESPACE}:{account}");
        let mut arguments = vec!["auth", "can-i", "--namespace", namespace, &who];
        arguments.extend(question);
        self.server.kubectl(&arguments, None).status.success()
    }
}

#[test]
fn a_real_api_server_takes_it_all() {
    let Some(installation) = Installation::start() else { return };
    let Installation { tools, server } = &installation;
    // Definitions of others first, so that what is of their kinds is looked at.
    let others: Vec<_> = tools.schemas.read_dir().unwrap().map(|entry| entry.unwrap().path()).collect();
    for path in others.iter().filter(|path| path.extension().is_some_and(|end| end == "yaml")) {
        server.done(&["apply", "--server-side", "-f", path.to_str().unwrap()], None);
    }
    server.await_kinds("httproutes,servicemonitors,prometheusrules");
    for values in renderings() {
        let text = tools.rendered(&values.iter().map(String::as_str).collect::<Vec<_>>());
        server.done(&["apply", "--server-side", "--dry-run=server", "-f", "-"], Some(&text));
    }
    for folder in ["config/base", "config/overlays/kind", "config/overlays/dev"] {
        server.done(
            &["apply", "--server-side", "--force-conflicts", "--dry-run=server", "-f", "-"],
            Some(&tools.kustomized(folder)),
        );
    }

    installs_upgrades_and_goes(&installation);
}

fn installs_upgrades_and_goes(installation: &Installation) {
    let Installation { server, .. } = installation;
    let older = tempfile::tempdir().unwrap();
    copy(&chart(), older.path());
    let definition = older.path().join("files/crds/ash.dev_sessions.yaml");
    let text = fs::read_to_string(&definition).unwrap();
    let from = "    - ses\n";
    assert!(text.contains(from));
    fs::write(&definition, text.replace(from, "    - older\n")).unwrap();

    let said = installation.helm_done(&["install", "ash", older.path().to_str().unwrap()]);
    assert!(said.contains("create secret generic ash-keys") && said.contains("ash.dev/node-pool=default"), "{said}");
    let names = || server.done(&["get", "crd", "sessions.ash.dev", "-o", "jsonpath={.spec.names.shortNames}"], None);
    assert_eq!(names(), r#"["older"]"#);
    the_authorizer_agrees(installation);

    // An upgrade brings the definitions, and leaves what is there.
    let sample = crate::tools::top().join("config/samples");
    server.await_kinds("agents,sessions");
    server.done(&["apply", "-k", sample.to_str().unwrap()], None);
    let chart = chart();
    installation.helm_done(&["upgrade", "ash", chart.to_str().unwrap(), "--set", "api.replicas=3"]);
    assert_eq!(names(), r#"["ses"]"#);
    let replicas =
        server.done(&["get", "deployment", "ash-api", "-n", NAMESPACE, "-o", "jsonpath={.spec.replicas}"], None);
    assert_eq!(replicas, "3");

    // The definitions outlive the release, and with them what people made; a release that comes back takes them over.
    installation.helm_done(&["uninstall", "ash", "--no-hooks"]);
    assert_eq!(left(server), ["agents.ash.dev", "sessions.ash.dev"]);
    assert!(server.done(&["get", "agents,sessions", "-o", "name"], None).contains("agent.ash.dev/assistant"));
    let set = "crds.keep=false,namespaces[0].name=made,namespaces[0].create=true,defaultNamespace=made";
    installation.helm_done(&["install", "ash", chart.to_str().unwrap(), "--set", set]);
    // A namespace that the chart makes lets only restricted pods in, and outlives it.
    let pod =
        "apiVersion: v1\nkind: Pod\nmetadata: {name: a, namespace: made}\nspec: {containers: [{name: a, image: a}]}\n";
    let said = server.refused(&["apply", "-f", "-"], Some(pod));
    assert!(said.contains("violates PodSecurity \"restricted:latest\""), "{said}");
    installation.helm_done(&["uninstall", "ash", "--no-hooks"]);
    server.done(&["get", "namespace", "made"], None);
    // The API server removes what is of a definition's kind before the definition.
    let definitions = ["crd/agents.ash.dev", "crd/sessions.ash.dev"];
    server.done(&["wait", "--for=delete", definitions[0], definitions[1], "--timeout=60s"], None);
    assert_eq!(left(server), Vec::<String>::new());
}

/// All objects of the chart that are there, by name.
fn left(server: &Server) -> Vec<String> {
    let kinds = "deployments,daemonsets,services,serviceaccounts,roles,rolebindings,clusterroles,clusterrolebindings,\
                 networkpolicies,poddisruptionbudgets,secrets,configmaps,leases,customresourcedefinitions";
    let path = "jsonpath={range .items[*]}{.metadata.name}{\"\\n\"}{end}";
    let selector = "app.kubernetes.io/name=ash";
    let text = server.done(&["get", kinds, "--all-namespaces", "--selector", selector, "-o", path], None);
    text.lines().map(str::to_owned).collect()
}

fn copy(from: &Path, to: &Path) {
    for entry in from.read_dir().unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            fs::create_dir(&target).unwrap();
            copy(&entry.path(), &target);
        } else {
            fs::copy(entry.path(), target).unwrap();
        }
    }
}

/// What the golden list says, the API server says too.
fn the_authorizer_agrees(installation: &Installation) {
    for (account, namespace, question) in [
        ("ash-api", NAMESPACE, &["create", "tokenreviews.authentication.k8s.io"][..]),
        ("ash-api", "default", &["delete", "sessions.ash.dev"]),
        ("ash-operator", "default", &["create", "pods"]),
        ("ash-operator", "default", &["get", "secrets/model"]),
        ("ash-operator", "default", &["patch", "sessions.ash.dev", "--subresource=status"]),
        ("ash-operator", NAMESPACE, &["update", "leases.coordination.k8s.io/ash-operator"]),
        ("ash-operator", NAMESPACE, &["get", "services/ash-runner-of-no-pool"]),
        ("ash-operator", "default", &["get", "pods", "--subresource=log"]),
        ("ash-runner", NAMESPACE, &["create", "tokenreviews.authentication.k8s.io"]),
    ] {
        assert!(installation.may(account, namespace, question), "{account} may not {question:?} in {namespace}");
    }
    for account in ["ash-api", "ash-operator", "ash-runner"] {
        for namespace in ["default", NAMESPACE, "team-a"] {
            for question in [
                &["list", "secrets"][..],
                &["create", "pods", "--subresource=exec"],
                &["create", "serviceaccounts", "--subresource=token"],
                &["create", "rolebindings"],
                &["patch", "daemonsets"],
                &["list", "nodes"],
            ] {
                assert!(!installation.may(account, namespace, question), "{account} may {question:?} in {namespace}");
            }
        }
    }
    for (account, namespace, question) in [
        ("ash-operator", NAMESPACE, &["get", "secrets"][..]),
        ("ash-operator", NAMESPACE, &["create", "pods"]),
        ("ash-operator", NAMESPACE, &["get", "pods", "--subresource=log"]),
        ("ash-operator", NAMESPACE, &["list", "services"]),
        ("ash-operator", "team-a", &["create", "pods"]),
        ("ash-operator", "default", &["delete", "networkpolicies/ash-sandboxes"]),
        ("ash-operator", "default", &["patch", "networkpolicies/other"]),
        ("ash-operator", "default", &["delete", "agents.ash.dev"]),
        ("ash-api", "default", &["get", "pods"]),
        ("ash-api", "default", &["get", "secrets"]),
        ("ash-api", "default", &["patch", "sessions.ash.dev", "--subresource=status"]),
        ("ash-api", "team-a", &["get", "sessions.ash.dev"]),
        ("ash-runner", "default", &["get", "pods"]),
        ("ash-runner", NAMESPACE, &["get", "pods"]),
        ("ash-runner", "default", &["get", "sessions.ash.dev"]),
    ] {
        assert!(!installation.may(account, namespace, question), "{account} may {question:?} in {namespace}");
    }
    // A policy that is not there yet can be made by server-side apply, under its name and no other.
    let policy = |name: &str| {
        format!(
            "apiVersion: networking.k8s.io/v1\nkind: NetworkPolicy\nmetadata:\n  name: {name}\nspec:\n  podSelector: {{}}\n"
        )
    };
    let who = format!("--as=system:serviceaccount:{NAMESPACE}:ash-operator");
    let apply = ["apply", "--server-side", "--force-conflicts", "--field-manager=ash-operator", &who, "-f", "-"];
    let server = &installation.server;
    server.done(&["delete", "networkpolicy", "ash-git-clone"], None);
    server.done(&apply, Some(&policy("ash-git-clone")));
    server.refused(&apply, Some(&policy("anything")));
    server.done(&["delete", "networkpolicy", "ash-git-clone"], None);
}
