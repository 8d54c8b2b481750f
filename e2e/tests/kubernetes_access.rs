//! `ash` with nothing but a kubeconfig, and a server that takes the cluster's tokens: on a real API server, with its own roles.
//!
//! It has no nodes, so a port cannot be forwarded here: the server is reached by its address. The journeys on a whole cluster
//! forward one.

use std::{
    net::TcpListener,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use ash_client::Client;
use ash_e2e::harness::{TestApp, eventually, program};
use ash_test_kubernetes::Server;

/// What the server needs, and no more; what a person needs in `team` and in the namespace of the installation; what may be done
/// for `team` (everything), `second` (reading) and `third` (nothing).
const MANIFESTS: &str = r#"
apiVersion: v1
kind: List
items:
- { apiVersion: v1, kind: Namespace, metadata: { name: team } }
- { apiVersion: v1, kind: Namespace, metadata: { name: second } }
- { apiVersion: v1, kind: Namespace, metadata: { name: third } }
- { apiVersion: v1, kind: Namespace, metadata: { name: ash-system } }
- { apiVersion: v1, kind: ServiceAccount, metadata: { name: ash-client, namespace: team } }
- { apiVersion: v1, kind: ServiceAccount, metadata: { name: ash-client, namespace: second } }
- { apiVersion: v1, kind: ServiceAccount, metadata: { name: ash-client, namespace: third } }
- { apiVersion: v1, kind: ServiceAccount, metadata: { name: leaving, namespace: team } }
- apiVersion: rbac.authorization.k8s.io/v1
  kind: ClusterRole
  metadata: { name: ash-api }
  rules:
  - { apiGroups: [authentication.k8s.io], resources: [tokenreviews], verbs: [create] }
  - { apiGroups: [authorization.k8s.io], resources: [subjectaccessreviews], verbs: [create] }
- apiVersion: rbac.authorization.k8s.io/v1
  kind: ClusterRoleBinding
  metadata: { name: ash-api }
  roleRef: { apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: ash-api }
  subjects: [{ kind: User, name: server }]
- apiVersion: rbac.authorization.k8s.io/v1
  kind: Role
  metadata: { name: ash-client, namespace: team }
  rules: [{ apiGroups: [ash.dev], resources: [agents, sessions], verbs: [get, list, create, update, delete] }]
- apiVersion: rbac.authorization.k8s.io/v1
  kind: RoleBinding
  metadata: { name: ash-client, namespace: team }
  roleRef: { apiGroup: rbac.authorization.k8s.io, kind: Role, name: ash-client }
  subjects: [{ kind: ServiceAccount, name: ash-client, namespace: team }, { kind: ServiceAccount, name: leaving, namespace: team }]
- apiVersion: rbac.authorization.k8s.io/v1
  kind: Role
  metadata: { name: ash-client, namespace: second }
  rules: [{ apiGroups: [ash.dev], resources: [agents, sessions], verbs: [get, list] }]
- apiVersion: rbac.authorization.k8s.io/v1
  kind: RoleBinding
  metadata: { name: ash-client, namespace: second }
  roleRef: { apiGroup: rbac.authorization.k8s.io, kind: Role, name: ash-client }
  subjects: [{ kind: ServiceAccount, name: ash-client, namespace: second }]
- apiVersion: rbac.authorization.k8s.io/v1
  kind: Role
  metadata: { name: token, namespace: team }
  rules: [{ apiGroups: [""], resources: [serviceaccounts/token], resourceNames: [ash-client], verbs: [create] }]
- apiVersion: rbac.authorization.k8s.io/v1
  kind: RoleBinding
  metadata: { name: token, namespace: team }
  roleRef: { apiGroup: rbac.authorization.k8s.io, kind: Role, name: token }
  subjects: [{ kind: User, name: person }]
"#;

/// A person at a terminal, with a kubeconfig.
struct Person {
    kubeconfig: PathBuf,
    folder: tempfile::TempDir,
    url: String,
}

impl Person {
    fn run(&self, context: &str, arguments: &[&str]) -> Output {
        Command::new(program("ash"))
            .args(["--context", context])
            .args(arguments)
            .env_clear()
            .env("KUBECONFIG", &self.kubeconfig)
            .env("ASH_API_KEY", "ash_of_another_server")
            .current_dir(self.folder.path())
            .stdin(Stdio::null())
            .output()
            .expect("ash")
    }

    /// Runs a command for a namespace at the server's address; what it printed.
    fn done(&self, namespace: &str, arguments: &[&str]) -> String {
        let output = self.at_url("person", namespace, arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).expect("text")
    }

    fn at_url(&self, context: &str, namespace: &str, arguments: &[&str]) -> Output {
        self.run(context, &[&["--url", &self.url, "--namespace", namespace], arguments].concat())
    }

    /// Runs a command that fails, and has to say these words.
    fn refused(output: &Output, words: &[&str]) {
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        for word in words {
            assert!(said.contains(word), "{word:?} is not in: {said}");
        }
    }
}

/// A kubeconfig for people, and one for the server, whose own context is the current one.
fn kubeconfigs(server: &Server) -> (PathBuf, PathBuf) {
    let kubeconfig = server.kubeconfig();
    let own = kubeconfig.with_file_name("server-kubeconfig");
    let text = std::fs::read_to_string(&kubeconfig).expect("a kubeconfig");
    std::fs::write(&own, text + "current-context: server\n").expect("a kubeconfig");
    (kubeconfig, own)
}

/// A folder with an agent.
fn folder_with_an_agent() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::create_dir(folder.path().join("greeter")).expect("a folder");
    std::fs::write(folder.path().join("greeter/CLAUDE.md"), "You greet.\n").expect("a file");
    folder
}

async fn start() -> Option<(Server, TestApp, Person)> {
    let server = Server::start()?;
    server.done(&["apply", "-f", "-"], Some(MANIFESTS));
    let (kubeconfig, own) = kubeconfigs(&server);
    let app = TestApp::builder()
        .argument("--kubernetes-auth")
        .variable("ASH_NAMESPACES", "default,team,second,third")
        .variable("KUBECONFIG", own.to_str().expect("a path"))
        .start()
        .await;
    let person = Person { kubeconfig, folder: folder_with_an_agent(), url: format!("http://{}", app.address()) };
    Some((server, app, person))
}

/// A token as `kubectl create token` makes it.
fn token(server: &Server, account: &str, audience: Option<&str>) -> String {
    let audience = audience.map(|audience| format!("--audience={audience}"));
    let mut arguments = vec!["create", "token", account, "--namespace", "team", "--duration", "10m"];
    arguments.extend(audience.as_deref());
    server.done(&arguments, None).trim().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn people_with_a_kubeconfig_work_in_their_namespaces() {
    let Some((mut server, app, person)) = start().await else { return };
    every_command_works(&person);
    rights_are_those_of_roles(&person);
    what_is_wrong_with_the_cluster_is_said(&server, &person);
    tokens_are_for_ash_alone(&server, &app).await;
    the_api_server_is_away(&mut server, &app, &person).await;
}

fn every_command_works(person: &Person) {
    assert!(person.done("team", &["health"]).contains("ok"));
    person.done("team", &["deploy", "greeter"]);
    assert!(person.done("team", &["agent", "list"]).contains("greeter"));
    let id = person.done("team", &["session", "create", "greeter"]).trim().to_owned();
    let said = person.done("team", &["session", "send", &id, "[[text: good morning]]"]);
    assert!(said.contains("good morning"), "{said}");
    assert!(person.done("team", &["session", "list"]).contains(&id));
    person.done("team", &["session", "end", &id]);
    // Another namespace is another tenant, whose people see nothing of it.
    assert!(!person_of("second", person, &["agent", "list"]).contains("greeter"));
}

/// What somebody who may ask for any token sees in a namespace.
fn person_of(namespace: &str, person: &Person, arguments: &[&str]) -> String {
    let output = person.at_url("admin", namespace, arguments);
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("text")
}

fn rights_are_those_of_roles(person: &Person) {
    let deploy = person.at_url("admin", "second", &["deploy", "greeter"]);
    Person::refused(
        &deploy,
        &[
            "may not create agents.ash.dev in the namespace second",
            "kubectl auth can-i create agents.ash.dev --namespace second --as system:serviceaccount:second:ash-client",
        ],
    );
    let list = person.at_url("admin", "third", &["session", "list"]);
    Person::refused(&list, &["may not list sessions.ash.dev in the namespace third"]);
    // A namespace that the server does not serve, whatever may be done there.
    let list = person.at_url("admin", "ash-system", &["--service-account", "ash-client", "agent", "list"]);
    Person::refused(&list, &["there is no service account ash-client in the namespace ash-system"]);
    let list = person.at_url("admin", "kube-system", &["--service-account", "default", "agent", "list"]);
    Person::refused(&list, &["there is no service account default", "kubectl create serviceaccount default"]);
}

fn what_is_wrong_with_the_cluster_is_said(server: &Server, person: &Person) {
    let list: &[&str] = &["agent", "list"];
    Person::refused(&person.run("elsewhere", list), &["no context \"elsewhere\"", "admin, person, server, nobody"]);
    Person::refused(&person.run("nobody", list), &["the cluster does not know you", "kubectl auth whoami"]);
    let elsewhere = person.at_url("person", "second", list);
    Person::refused(&elsewhere, &["you may not create serviceaccounts/token in the namespace second", "can-i"]);
    // Without an address: where Ash is, and whether it can be reached there.
    let team = |context: &str| person.run(context, &[&["--namespace", "team"], list].concat());
    Person::refused(&team("person"), &["you may not get services in the namespace ash-system"]);
    Person::refused(&team("admin"), &["there is no Service ash in the namespace ash-system", "--release-namespace"]);
    let service = r#"{"apiVersion":"v1","kind":"Service","metadata":{"name":"ash","namespace":"ash-system"},
        "spec":{"selector":{"app":"ash"},"ports":[{"name":"http","port":4100}]}}"#;
    server.done(&["apply", "-f", "-"], Some(service));
    Person::refused(
        &team("admin"),
        &["no pod behind the Service ash in the namespace ash-system is ready", "kubectl get pods"],
    );
    // A pod that is ready as far as the API server knows, on a node that is not there.
    let pod = r#"{"apiVersion":"v1","kind":"Pod","metadata":{"name":"api","namespace":"ash-system","labels":{"app":"ash"}},
        "spec":{"nodeName":"nowhere","containers":[{"name":"api","image":"x"}]}}"#;
    server.done(&["apply", "-f", "-"], Some(pod));
    let status = r#"{"status":{"conditions":[{"type":"Ready","status":"True"}]}}"#;
    server.done(&["patch", "pod", "api", "-n", "ash-system", "--subresource=status", "-p", status], None);
    Person::refused(&team("admin"), &["the connection through the cluster to pod api failed"]);
    let role = ["create", "role", "reader", "-n", "ash-system", "--verb=get,list", "--resource=services,pods"];
    server.done(&role, None);
    server.done(&["create", "rolebinding", "reader", "-n", "ash-system", "--role=reader", "--user=person"], None);
    Person::refused(&team("person"), &["you may not create pods/portforward in the namespace ash-system", "can-i"]);
    let nowhere = person.folder.path().join("no-kubeconfig");
    let output = Command::new(program("ash"))
        .args(["--context", "admin", "agent", "list"])
        .env_clear()
        .env("KUBECONFIG", Path::new(&nowhere))
        .output()
        .expect("ash");
    Person::refused(&output, &["no kubeconfig can be used", "KUBECONFIG"]);
}

async fn tokens_are_for_ash_alone(server: &Server, app: &TestApp) {
    let url = format!("http://{}", app.address());
    let agents = async |token: &str| Client::new(&url, Some(&token.into())).expect("a client").agents().await;
    let ours = token(server, "ash-client", Some("ash"));
    assert_eq!(agents(&ours).await.expect("a token for ash").len(), 1);
    // The API server takes none of ours, and Ash none of its.
    let said = server.kubectl(&["auth", "whoami", "--token", &ours], None);
    let said = String::from_utf8_lossy(&said.stderr).into_owned();
    assert!(said.contains("Unauthorized") || said.contains("provide credentials"), "{said}");
    for audience in [None, Some("ash-runner")] {
        let refused = agents(&token(server, "ash-client", audience)).await.expect_err("a token for others");
        assert_eq!(refused.status(), Some(401));
        assert!(refused.to_string().contains("--audience ash"), "{refused}");
    }
    // One whose signature is not the cluster's.
    let (signed, _) = ours.rsplit_once('.').expect("a signature");
    assert_eq!(agents(&format!("{signed}.AAAA")).await.expect_err("a forged token").status(), Some(401));
    // One whose account is gone.
    let orphan = token(server, "leaving", Some("ash"));
    server.done(&["delete", "serviceaccount", "leaving", "--namespace", "team"], None);
    let refused = agents(&orphan).await.expect_err("a token of nobody");
    assert_eq!(refused.status(), Some(401));
    assert!(refused.to_string().contains("the cluster does not accept this token"), "{refused}");
    // Keys go on working.
    assert!(app.client.agents().await.expect("the key").is_empty());
}

async fn the_api_server_is_away(server: &mut Server, app: &TestApp, person: &Person) {
    let url = format!("http://{}", app.address());
    let known = token(server, "ash-client", Some("ash"));
    let unknown = token(server, "ash-client", Some("ash"));
    let known = Client::new(&url, Some(&known.into())).expect("a client");
    let unknown = Client::new(&url, Some(&unknown.into())).expect("a client");
    assert_eq!(known.agents().await.expect("agents").len(), 1);
    server.stop_api_server();
    assert_eq!(known.agents().await.expect("agents, from what is known").len(), 1);
    let refused = unknown.agents().await.expect_err("nobody to ask");
    assert_eq!(refused.status(), Some(503));
    assert!(refused.to_string().contains("the Kubernetes API server does not answer"), "{refused}");
    assert!(refused.hint().is_some_and(|hint| hint.contains("try again in 2 s")), "{:?}", refused.hint());
    assert!(app.client.agents().await.is_ok());
    Person::refused(&person.at_url("person", "team", &["agent", "list"]), &["the cluster does not answer", "readyz"]);
}

/// What a coordinator of a cluster may do beside reviewing tokens, in the namespaces that are served.
const COORDINATOR: &str = r"
apiVersion: v1
kind: List
items:
- apiVersion: rbac.authorization.k8s.io/v1
  kind: ClusterRole
  metadata: { name: ash-resources }
  rules: [{ apiGroups: [ash.dev], resources: [agents, sessions], verbs: [create, get, list, watch, patch, delete] }]
- apiVersion: rbac.authorization.k8s.io/v1
  kind: RoleBinding
  metadata: { name: ash-api, namespace: team }
  roleRef: { apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: ash-resources }
  subjects: [{ kind: User, name: server }]
- apiVersion: rbac.authorization.k8s.io/v1
  kind: RoleBinding
  metadata: { name: ash-api, namespace: third }
  roleRef: { apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: ash-resources }
  subjects: [{ kind: User, name: server }]
- apiVersion: rbac.authorization.k8s.io/v1
  kind: RoleBinding
  metadata: { name: ash-client, namespace: third }
  roleRef: { apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: edit-agents }
  subjects: [{ kind: ServiceAccount, name: ash-client, namespace: third }]
- apiVersion: rbac.authorization.k8s.io/v1
  kind: ClusterRole
  metadata: { name: edit-agents }
  rules: [{ apiGroups: [ash.dev], resources: [agents], verbs: [get, list, create, update, delete] }]
";

/// A process that ends with the test.
struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A coordinator that keeps what people want in the cluster, for the namespaces `team`, which is the default tenant's, and `third`.
async fn coordinator(kubeconfig: &Path, folder: &Path) -> (Ended, String, Client) {
    let address = TcpListener::bind("127.0.0.1:0").and_then(|socket| socket.local_addr()).expect("a free port");
    let secret = folder.join("secret");
    std::fs::write(&secret, "s".repeat(40)).expect("a secret");
    let data = folder.join("data");
    let mut command = Command::new(program("ash"));
    command
        .args(["serve", "--mode=coordinator", "--kubernetes", "--fleet-listen=127.0.0.1:0", "--default-namespace=team"])
        .arg("--log=error")
        .arg(format!("--listen={address}"))
        .arg(format!("--data-dir={}", data.display()))
        .arg(format!("--fleet-secret-file={}", secret.display()))
        .env_clear()
        .env("KUBECONFIG", kubeconfig)
        .env("ASH_NAMESPACES", "team,third")
        .env("ASH_API_KEY", "ash_test_key")
        .env("ASH_TOKEN_KEY", "0f".repeat(32))
        .env("ASH_CREDENTIAL_KEY", "1e".repeat(32))
        .stdin(Stdio::null());
    let child = Ended(command.spawn().expect("a coordinator"));
    let url = format!("http://{address}");
    let client = Client::new(&url, Some(&"ash_test_key".into())).expect("a client");
    eventually("the coordinator answers", async || client.health().await.ok()).await;
    (child, url, client)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_coordinator_of_a_cluster_has_one_namespace_for_its_key_and_for_tokens() {
    let Some(server) = Server::start() else { return };
    let crds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../crds");
    server.done(&["apply", "--server-side", "-k", crds.to_str().expect("a path")], None);
    server.await_kinds("agents,sessions");
    server.done(&["apply", "-f", "-"], Some(MANIFESTS));
    server.done(&["apply", "-f", "-"], Some(COORDINATOR));
    let (kubeconfig, own) = kubeconfigs(&server);
    let folder = folder_with_an_agent();
    let (_process, url, client) = coordinator(&own, folder.path()).await;
    let person = Person { kubeconfig, folder, url };

    // What somebody deploys with a token is the key's too, and stands in the namespace that the key has.
    person.done("team", &["deploy", "greeter"]);
    assert_eq!(client.agents().await.expect("agents").len(), 1);
    let names = |namespace: &str| server.done(&["get", "agents", "-o", "name", "--namespace", namespace], None);
    assert_eq!((names("team").trim(), names("third").trim()), ("agent.ash.dev/greeter", ""));
    // Another namespace is another tenant, here and there.
    person_of("third", &person, &["deploy", "greeter"]);
    assert_eq!(names("third").trim(), "agent.ash.dev/greeter");
    client.delete_agent("greeter").await.expect("the key's own agent");
    assert_eq!((names("team").trim(), names("third").trim()), ("", "agent.ash.dev/greeter"));
    assert!(!person.done("team", &["agent", "list"]).contains("greeter"));
    assert!(person_of("third", &person, &["agent", "list"]).contains("greeter"));
}
