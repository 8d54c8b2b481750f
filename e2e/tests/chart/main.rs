//! The chart and the plain manifests: what they render, what they refuse, and what a real API server says to them.
#![allow(clippy::unwrap_used)]

mod installed;
mod metrics;
mod rights;
mod schemas;
mod tools;

use std::{collections::BTreeSet, fs, process::Command};

use ash_e2e::harness::program;
use serde_json::Value;
use tools::{NAMESPACE, Tools, chart, objects, renderings, texts, top};

#[test]
fn the_chart_is_of_this_release() {
    let text = fs::read_to_string(chart().join("Chart.yaml")).unwrap();
    let about = &objects(&text)[0];
    assert_eq!(about["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(about["appVersion"], env!("CARGO_PKG_VERSION"));
}

#[test]
fn lint_has_nothing_to_say() {
    let Some(tools) = Tools::find() else { return };
    for values in renderings() {
        let mut arguments = vec!["lint", "--strict", "--namespace", NAMESPACE];
        arguments.extend(values.iter().map(String::as_str));
        let chart = chart();
        arguments.push(chart.to_str().unwrap());
        let output = tools.helm(&arguments);
        assert!(output.status.success(), "{values:?}: {}", String::from_utf8_lossy(&output.stdout));
    }
}

#[test]
fn all_that_is_rendered_fits_the_schemas_of_its_kind() {
    let Some(tools) = Tools::find() else { return };
    let schemas = tempfile::tempdir().unwrap();
    schemas::write(&tools, schemas.path());
    for values in renderings() {
        let text = tools.rendered(&values.iter().map(String::as_str).collect::<Vec<_>>());
        tools.conforms(schemas.path(), &text).unwrap_or_else(|wrong| panic!("{values:?}: {wrong}"));
    }
    for folder in ["config/base", "config/overlays/kind", "config/overlays/dev", "config/samples"] {
        tools.conforms(schemas.path(), &tools.kustomized(folder)).unwrap_or_else(|wrong| panic!("{folder}: {wrong}"));
    }
    // And the check is one: what does not fit is found.
    let text = tools.rendered(&[]);
    for (from, to) in
        [("replicas: 2", "replica: 2"), ("internalTrafficPolicy: Local", "internalTrafficPolicy: [Local]")]
    {
        assert!(text.contains(from));
        assert!(tools.conforms(schemas.path(), &text.replace(from, to)).is_err(), "{to} was not found");
    }
}

#[test]
fn the_plain_manifests_are_what_the_chart_renders() {
    let Some(_) = Tools::find() else { return };
    let folder = tempfile::tempdir().unwrap();
    let fresh = folder.path().join("ash.yaml");
    let status = Command::new(top().join("scripts/render-config.sh")).arg(&fresh).status().unwrap();
    assert!(status.success());
    let same = fs::read(fresh).unwrap() == fs::read(top().join("config/base/ash.yaml")).unwrap();
    assert!(same, "config/base/ash.yaml is stale: run `make generate` and commit the result");
}

#[test]
fn wrong_values_are_refused_with_a_sentence() {
    let Some(tools) = Tools::find() else { return };
    for (value, sentence) in [
        ("replicas=3", "additional properties 'replicas' not allowed"),
        ("api.replica=3", "at '/api': additional properties 'replica' not allowed"),
        ("api.replicas=two", "at '/api/replicas': got string, want integer"),
        ("api.service.type=External", "value must be one of 'ClusterIP', 'NodePort', 'LoadBalancer'"),
        ("image.pullPolicy=Sometimes", "value must be one of 'Always', 'IfNotPresent', 'Never'"),
        ("image.registry=https://registry.example", "at '/image/registry'"),
        ("image.sandbox.digest=latest", "does not match pattern '^(sha256:[0-9a-f]{64})?$'"),
        ("image.controlPlane.repository=ash:1", "at '/image/controlPlane/repository'"),
        ("runAsUser=0", "at '/runAsUser': minimum: got 0, want 1"),
        ("namespaces=default", "at '/namespaces': got string, want array"),
        ("namespaces[0].name=Team_A", "at '/namespaces/0/name'"),
        ("pools.GPU.capacity=1", "'GPU' does not match pattern"),
        ("pools.gpu.capacty=1", "additional properties 'capacty' not allowed"),
        ("pools.default.capacity=0", "minimum: got 0, want 1"),
        ("log.format=text", "value must be one of 'json', 'pretty'"),
        ("proxy.httpsProxy=proxy.example:3128", "at '/proxy/httpsProxy'"),
        ("serviceMonitor.interval=30", "at '/serviceMonitor/interval'"),
        (
            "defaultNamespace=elsewhere",
            "defaultNamespace: \"elsewhere\" is not served. Use one of namespaces (default), or add it",
        ),
        (
            "namespaces[0].name=default,namespaces[1].name=a,defaultNamespace=a",
            "\"default\" can only be served as defaultNamespace, which is \"a\"",
        ),
        (
            "namespaces[0].name=ash-system",
            "is the release's own namespace. Sandboxes must not run beside the control plane",
        ),
        ("namespaces[1].name=default,namespaces[0].name=default", "\"default\" is there twice. Remove one."),
        ("ingress.enabled=true", "ingress: name at least one host in ingress.hosts"),
        ("httpRoute.enabled=true", "httpRoute: name the Gateway in httpRoute.parentRefs"),
        ("proxy.secret.name=a", "proxy.secret: say which key of the Secret \"a\" has the proxy's URL."),
        (
            "proxy.secret.name=a,proxy.secret.key=b,proxy.httpsProxy=http://c",
            "both say where the proxy is. Remove one.",
        ),
    ] {
        let output = tools.render(&["--set", value]);
        assert!(!output.status.success(), "{value} was taken");
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(said.contains(sentence), "{value}: {said}");
    }
}

/// The pods of all workloads of a rendering, by the name of their workload.
fn pods(text: &str) -> Vec<(String, Value)> {
    let pod = |object: &Value| {
        let spec = if object["kind"] == "Pod" { &object["spec"] } else { &object["spec"]["template"]["spec"] };
        spec.is_object().then(|| (object["metadata"]["name"].as_str().unwrap().to_owned(), spec.clone()))
    };
    objects(text).iter().filter_map(pod).collect()
}

fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    ["initContainers", "containers"].into_iter().flat_map(|list| pod[list].as_array().into_iter().flatten())
}

#[test]
fn every_pod_is_restricted() {
    let Some(tools) = Tools::find() else { return };
    let texts_of =
        renderings().into_iter().map(|values| tools.rendered(&values.iter().map(String::as_str).collect::<Vec<_>>()));
    for text in texts_of.chain([tools.kustomized("config/overlays/kind")]) {
        let pods = pods(&text);
        assert!(pods.len() >= 4);
        for (name, pod) in pods {
            assert_eq!(pod["securityContext"]["runAsNonRoot"], true, "{name}");
            assert_eq!(pod["securityContext"]["seccompProfile"]["type"], "RuntimeDefault", "{name}");
            for shared in ["hostNetwork", "hostPID", "hostIPC"] {
                assert!(pod.get(shared).is_none(), "{name}");
            }
            for volume in pod["volumes"].as_array().into_iter().flatten() {
                let kinds = ["secret", "emptyDir", "configMap", "projected"];
                assert!(kinds.iter().any(|kind| volume.get(kind).is_some()), "{name}: {volume}");
            }
            for container in containers(&pod) {
                let context = &container["securityContext"];
                assert_eq!(context["allowPrivilegeEscalation"], false, "{name}");
                assert_eq!(context["readOnlyRootFilesystem"], true, "{name}");
                assert_eq!(texts(&context["capabilities"]["drop"]), ["ALL"], "{name}");
                assert!(context["capabilities"].get("add").is_none(), "{name}");
                assert_ne!(context["runAsUser"], 0, "{name}");
                assert!(container["resources"]["requests"]["memory"].is_string(), "{name}");
            }
        }
    }
}

/// A variable that nobody reads is a setting that does nothing.
#[test]
fn every_variable_is_one_that_its_command_reads() {
    let Some(tools) = Tools::find() else { return };
    let mut seen = 0;
    for values in renderings() {
        let text = tools.rendered(&values.iter().map(String::as_str).collect::<Vec<_>>());
        for (name, pod) in pods(&text) {
            let container = &pod["containers"][0];
            let command = texts(&container["command"]);
            assert_eq!(command[0], "ash", "{name}");
            let output = Command::new(program("ash")).arg(command[1]).arg("--help").output().unwrap();
            assert!(output.status.success(), "{name}: {}", String::from_utf8_lossy(&output.stderr));
            let help = String::from_utf8(output.stdout).unwrap();
            let known: BTreeSet<_> =
                help.split("[env:").skip(1).filter_map(|rest| rest.trim_start().split(['=', ']']).next()).collect();
            let given = container["env"].as_array().into_iter().flatten().map(|one| one["name"].as_str().unwrap());
            let unread: Vec<_> = given.filter(|name| name.starts_with("ASH_") && !known.contains(name)).collect();
            assert!(unread.is_empty(), "`ash {}` of {name} does not read {unread:?}", command[1]);
            seen += known.len();
        }
    }
    assert!(seen > 0);
}

/// A process has the keys that it needs and no other.
#[test]
fn a_runner_is_given_neither_the_database_nor_a_key_but_the_fleets() {
    let Some(tools) = Tools::find() else { return };
    let pods = pods(&tools.rendered(&[]));
    let (_, runner) = pods.iter().find(|(name, _)| name == "ash-runner-default").unwrap();
    let text = runner.to_string();
    for word in ["ash-database", "DATABASE_URL", "token-key", "credential-key", "api-key", "ANTHROPIC_API_KEY"] {
        assert!(!text.contains(word), "{word}");
    }
    let keys = runner["volumes"].as_array().unwrap().iter().find(|volume| volume["name"] == "keys").unwrap();
    assert_eq!(keys["secret"]["items"].as_array().unwrap().len(), 1);
    assert_eq!(keys["secret"]["items"][0]["key"], "fleet-secret");
}

#[test]
fn every_image_comes_from_the_one_registry_and_a_digest_stands_over_a_tag() {
    let Some(tools) = Tools::find() else { return };
    let text = tools.rendered(&["--values", chart().join("ci/everything-values.yaml").to_str().unwrap()]);
    let pods = pods(&text);
    let images = pods.iter().flat_map(|(_, pod)| containers(pod)).map(|container| container["image"].as_str().unwrap());
    for image in images {
        let rest = image.strip_prefix("registry.example:5000/mirror/ash/").unwrap_or_else(|| panic!("{image}"));
        assert!(rest.starts_with("ash@sha256:0123") || rest == "ash-bridge:1.2.3", "{image}");
    }
}

/// What is on the nodes before a sandbox needs it is what the operator has its pods run.
#[test]
fn the_image_that_runners_bring_is_the_sandboxes() {
    let Some(tools) = Tools::find() else { return };
    let texts =
        renderings().into_iter().map(|values| tools.rendered(&values.iter().map(String::as_str).collect::<Vec<_>>()));
    for text in texts.chain(["kind", "dev"].map(|name| tools.kustomized(&format!("config/overlays/{name}")))) {
        let pods = pods(&text);
        let (_, operator) = pods.iter().find(|(name, _)| name == "ash-operator").unwrap();
        let variables = operator["containers"][0]["env"].as_array().unwrap();
        let named = &variables.iter().find(|variable| variable["name"] == "ASH_BRIDGE_IMAGE").unwrap()["value"];
        for (name, runner) in pods.iter().filter(|(name, _)| name.starts_with("ash-runner-")) {
            assert_eq!(&runner["initContainers"][0]["image"], named, "{name}");
        }
    }
}

#[test]
fn a_sandbox_reaches_its_runner_and_nothing_else() {
    let Some(tools) = Tools::find() else { return };
    let values = chart().join("ci/openshift-values.yaml");
    let objects = objects(&tools.rendered(&["--values", values.to_str().unwrap()]));
    let policies: Vec<_> = objects
        .iter()
        .filter(|object| object["kind"] == "NetworkPolicy" && object["metadata"]["name"] == "ash-sandboxes")
        .collect();
    let namespaces: Vec<_> = policies.iter().map(|policy| policy["metadata"]["namespace"].as_str().unwrap()).collect();
    assert_eq!(namespaces, ["a", "b"], "also where those of the release's own namespace are turned off");
    for policy in policies {
        let spec = &policy["spec"];
        assert_eq!(texts(&spec["policyTypes"]), ["Ingress", "Egress"]);
        assert!(spec.get("ingress").is_none());
        let labels = &spec["podSelector"]["matchLabels"];
        assert_eq!(labels[ash_crd::names::MANAGED_BY], ash_crd::names::MANAGER);
        assert_eq!(labels[ash_crd::names::COMPONENT], ash_crd::names::SANDBOX);
        assert_eq!(spec["egress"].as_array().unwrap().len(), 1);
        let egress = &spec["egress"][0];
        let ports: Vec<_> =
            egress["ports"].as_array().unwrap().iter().map(|port| port["port"].as_u64().unwrap()).collect();
        assert_eq!(ports, [4310, 4320]);
        assert_eq!(egress["to"].as_array().unwrap().len(), 1);
        assert_eq!(egress["to"][0]["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"], NAMESPACE);
        let runner = objects.iter().find(|object| object["kind"] == "DaemonSet").unwrap();
        for (label, value) in egress["to"][0]["podSelector"]["matchLabels"].as_object().unwrap() {
            assert_eq!(&runner["spec"]["template"]["metadata"]["labels"][label], value);
        }
    }
}

#[test]
fn every_service_and_policy_selects_pods_of_the_chart() {
    let Some(tools) = Tools::find() else { return };
    for values in renderings() {
        let objects = objects(&tools.rendered(&values.iter().map(String::as_str).collect::<Vec<_>>()));
        let templates: Vec<_> =
            objects.iter().map(|object| &object["spec"]["template"]["metadata"]["labels"]).collect();
        let selected = |selector: &Value| {
            let wanted = selector.as_object().unwrap();
            templates.iter().any(|labels| wanted.iter().all(|(label, value)| &labels[label] == value))
        };
        for object in &objects {
            let name = &object["metadata"]["name"];
            match object["kind"].as_str().unwrap() {
                "Service" => assert!(selected(&object["spec"]["selector"]), "{name}"),
                "PodDisruptionBudget" => assert!(selected(&object["spec"]["selector"]["matchLabels"]), "{name}"),
                "NetworkPolicy" if object["metadata"]["namespace"] == NAMESPACE => {
                    assert!(selected(&object["spec"]["podSelector"]["matchLabels"]), "{name}");
                }
                "Deployment" | "DaemonSet" => assert!(selected(&object["spec"]["selector"]["matchLabels"]), "{name}"),
                _ => {}
            }
        }
    }
}
