//! Who reaches whom: `NetworkPolicy` is enforced, and tests and pods find each other.

use std::{
    io::Read as _,
    net::{SocketAddr, TcpStream},
    time::Duration,
};

use ash_e2e::{
    cluster::{Cluster, MODEL_SERVICE, Namespace},
    model::{Script, ScriptedModel},
};
use ash_test_postgres::Postgres;
use sqlx::{Connection as _, PgConnection};

use crate::pods::{SERVER, pod};

/// No pod of the namespace may be reached or reach anything.
const DENY: &str = r#"{
  "apiVersion": "networking.k8s.io/v1",
  "kind": "NetworkPolicy",
  "metadata": { "name": "deny" },
  "spec": { "podSelector": {}, "policyTypes": ["Ingress", "Egress"] }
}"#;

/// Whether a pod can open a connection.
fn connects(namespace: &Namespace<'_>, pod: &str, host: &str, port: u16) -> bool {
    namespace.exec(pod, &["timeout", "2", "bash", "-c", &format!("exec 3<>/dev/tcp/{host}/{port}")]).0
}

#[test]
fn a_default_deny_policy_is_enforced() {
    let Some(cluster) = Cluster::shared() else { return };
    let namespace = cluster.namespace("policy");
    namespace.apply(&pod("server", &["perl", "-e", SERVER]).to_string());
    namespace.apply(&pod("client", &["sleep", "infinity"]).to_string());
    namespace.wait("pod/server", "condition=Ready");
    namespace.wait("pod/client", "condition=Ready");
    let server = namespace.done(&["get", "pod", "server", "-o", "jsonpath={.status.podIP}"]);
    let api = cluster.done(&["get", "service", "kubernetes", "-n", "default", "-o", "jsonpath={.spec.clusterIP}"]);
    cluster.eventually("the pods reach each other", |_| connects(&namespace, "client", &server, 8080).then_some(()));
    assert!(connects(&namespace, "client", &api, 443), "without a policy the API server is reached");

    namespace.apply(DENY);
    cluster.eventually("the policy is enforced", |_| (!connects(&namespace, "client", &server, 8080)).then_some(()));
    assert!(!connects(&namespace, "client", &api, 443), "the API server is not reached");
    let outside: SocketAddr = format!("{server}:8080").parse().unwrap();
    let reached = cluster.inside(|| TcpStream::connect_timeout(&outside, Duration::from_secs(2)).is_ok());
    // Kubelets probe pods, so a node reaches those that are on it; one of another node may not.
    let node = namespace.done(&["get", "pod", "server", "-o", "jsonpath={.spec.nodeName}"]);
    assert!(node == "node1" || !reached, "the server on {node} is reached from node1");
}

#[test]
fn a_pod_reaches_what_a_test_listens_on() {
    let Some(cluster) = Cluster::shared() else { return };
    let namespace = cluster.namespace("outside");
    let address = SocketAddr::new(cluster.host_address(), 0);
    let model = cluster.inside(|| ScriptedModel::start_on(address, Script::directives())).unwrap();
    let postgres = cluster.inside(|| Postgres::start_on(address, "a password"));
    let database = postgres.address().unwrap();
    cluster.expose(namespace.name(), MODEL_SERVICE, model.address().port());
    cluster.expose(namespace.name(), "postgres", database.port());
    namespace.apply(&pod("client", &["sleep", "infinity"]).to_string());
    namespace.wait("pod/client", "condition=Ready");
    for (name, port) in [(MODEL_SERVICE, model.address().port()), ("postgres", database.port())] {
        let host = format!("{name}.{}.svc", namespace.name());
        cluster.eventually("the pod reaches it by its name", |_| {
            connects(&namespace, "client", &host, port).then_some(())
        });
    }

    let connect = |password: &str| {
        let url = format!("postgres://ash:{password}@{database}/postgres");
        cluster.run(async move { PgConnection::connect(&url).await })
    };
    assert!(connect("wrong").is_err(), "the password counts");
    assert!(connect("a%20password").is_ok());
}

#[test]
fn a_test_reaches_a_service() {
    let Some(cluster) = Cluster::shared() else { return };
    let namespace = cluster.namespace("service");
    namespace.apply(&pod("server", &["perl", "-e", SERVER]).to_string());
    namespace.done(&["expose", "pod", "server", "--port=8080"]);
    namespace.wait("pod/server", "condition=Ready");
    let said = cluster.eventually("the Service answers", |cluster| {
        // Each time anew: what forwards a port ends with the first connection that fails.
        let service = cluster.endpoint(namespace.name(), "server", 8080);
        cluster.inside(|| {
            let mut said = String::new();
            TcpStream::connect(service.address).ok()?.read_to_string(&mut said).ok()?;
            (!said.is_empty()).then_some(said)
        })
    });
    assert_eq!(said, "hello\n");
}
