//! Agents whose files are in Git: cloned in a pod of their namespace, from servers as people have them.

mod server;

use std::os::unix::fs::symlink;

use ash_e2e::cluster::{Authority, Cluster};
use serde_json::{Value, json};

use self::server::{Repositories, Server};
use crate::tenant::{Tenant, agent, bash};

/// The namespace in which the servers of these tests have names.
const SERVERS: &str = "ash-system";

/// An agent of a repository, without a pool that waits for it to be ready.
fn from_git(name: &str, source: &Value) -> Value {
    let mut agent = agent(name, &json!({ "warm": { "min": 0, "max": 1 } }));
    agent["spec"]["source"] = json!({ "git": source });
    agent
}

/// A name for a server that pods find.
fn named(cluster: &Cluster, name: &str, server: &Server) -> String {
    cluster.expose(SERVERS, name, server.port);
    format!("{}:{}", host(name), server.port)
}

fn host(name: &str) -> String {
    format!("{name}.{SERVERS}.svc")
}

impl Tenant<'_> {
    /// Deploys an agent from Git, and waits until it has this version.
    fn cloned(&self, name: &str, source: &Value, version: u32) -> Value {
        self.apply(&from_git(name, source));
        self.cluster.eventually(&format!("{name} has version {version}"), |_| {
            let agent = self.json(&["get", &format!("agent/{name}")]);
            let is_new = agent["status"]["observedGeneration"] == agent["metadata"]["generation"];
            (is_new && agent["status"]["version"] == version && ready(&agent)["status"] == "True").then_some(agent)
        })
    }

    /// What is wrong with an agent, as its condition says it: the message for this reason.
    fn not_cloned(&self, name: &str, reason: &str) -> String {
        let agent = self.cluster.eventually(&format!("{name} says {reason}"), |_| {
            let agent = self.json(&["get", &format!("agent/{name}")]);
            (ready(&agent)["reason"] == reason).then_some(agent)
        });
        ready(&agent)["message"].as_str().unwrap().to_owned()
    }

    /// The pods that clone, or have cloned, for these agents.
    fn clones(&self, agents: &str) -> Vec<String> {
        let selector = format!("app.kubernetes.io/component=git-clone,ash.dev/agent in ({agents})");
        let pods = self.done(&["get", "pods", "-l", &selector, "-o", "name"]);
        pods.lines().map(str::to_owned).collect()
    }

    /// Runs a command in a new session of an agent; what it printed. The model has to be told what CLAUDE.md says.
    fn in_session(&self, agent: &str, told: &str, command: &str) -> String {
        let session = self.create(agent);
        let mark = format!("mark-{}", session.id);
        let said = self.answer(&session.id, &bash(&format!("{command} # {mark}")));
        let requests = self.installation.model.requests();
        let of_session = requests.iter().map(|request| request.json().to_string()).filter(|text| text.contains(&mark));
        assert!(of_session.into_iter().any(|text| text.contains(told)), "the model was not told {told:?}");
        let client = self.client();
        self.cluster.run(async { client.end_session(&session.id).await.unwrap() });
        said
    }
}

fn ready(agent: &Value) -> Value {
    let conditions = agent["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.into_iter().find(|one| one["type"] == "Ready").unwrap_or_default()
}

#[test]
fn an_agent_is_what_git_has_at_its_revision() {
    let Some(cluster) = Cluster::shared() else { return };
    let tenant = Tenant::of_rest(&cluster);
    let repositories = Repositories::new();
    repositories.make("public/agents");
    repositories.write("public/agents", "helper/CLAUDE.md", "You are the first helper.\n");
    repositories.write("public/agents", "helper/hooks/run", "#!/bin/sh\n");
    repositories.write("public/agents", "README.md", "Not of the agent.\n");
    symlink("CLAUDE.md", repositories.work("public/agents").join("helper/AGENTS.md")).unwrap();
    let first = repositories.commit("public/agents", "v1");
    repositories.write("public/agents", "helper/CLAUDE.md", "You are the second helper.\n");
    let second = repositories.commit("public/agents", "v2");
    let server = server::http(&cluster, &repositories, None);
    let url = format!("http://{}/public/agents.git", named(&cluster, "git-public", &server));
    let source = |revision: &str| json!({ "url": url, "revision": revision, "path": "helper" });

    let agent = tenant.cloned("from-git", &source("v1"), 1);
    assert_eq!(agent["status"]["commit"], first.as_str());
    let digest = agent["status"]["digest"].clone();
    let listing = "cat CLAUDE.md AGENTS.md; ls -a; git log 2>&1";
    let said = tenant.in_session("from-git", "You are the first helper.", listing);
    assert_eq!(
        said.matches("You are the first helper.").count(),
        2,
        "a link that stays inside is read through: {said}"
    );
    assert!(!said.contains("README.md") && said.contains("not a git repository"), "{said}");
    cluster.eventually("the clone leaves nothing", |_| tenant.clones("from-git").is_empty().then_some(()));

    // A session keeps its version; new ones get what the branch has now, then what an older commit had.
    let kept = tenant.create("from-git");
    let agent = tenant.cloned("from-git", &source("main"), 2);
    assert_eq!(agent["status"]["commit"], second.as_str());
    let said = tenant.in_session("from-git", "You are the second helper.", "cat CLAUDE.md");
    assert!(said.contains("second helper"), "{said}");
    assert!(tenant.answer(&kept.id, &bash("cat CLAUDE.md")).contains("first helper"));
    let agent = tenant.cloned("from-git", &source(&first), 3);
    assert_eq!((&agent["status"]["commit"], &agent["status"]["digest"]), (&json!(first), &digest));
    cluster.eventually("the clones leave nothing", |_| tenant.clones("from-git").is_empty().then_some(()));

    // A revision that is not there is said with Git's own words; sessions of the version before go on.
    tenant.apply(&from_git("from-git", &source("v9")));
    let message = tenant.not_cloned("from-git", "GitRevisionNotFound");
    assert!(message.contains("v9"), "{message}");
    assert!(tenant.answer(&kept.id, &bash("cat CLAUDE.md")).contains("first helper"));
    tenant.cloned("from-git", &source("v2"), 4);
    let client = tenant.client();
    cluster.run(async { client.end_session(&kept.id).await.unwrap() });
    tenant.done(&["delete", "agent", "from-git", "--timeout=60s"]);
    cluster.eventually("nothing is left", |_| tenant.clones("from-git").is_empty().then_some(()));
}

#[test]
fn what_a_repository_cannot_give_is_said_and_links_out_of_it_are_refused() {
    let Some(cluster) = Cluster::shared() else { return };
    let tenant = Tenant::named(&cluster, "team-b");
    let repositories = Repositories::new();
    repositories.make("public/odd");
    let work = repositories.work("public/odd");
    repositories.write("public/odd", "none/README.md", "No agent.\n");
    for (folder, target) in [("leaves", "/etc/passwd"), ("above", "../none/README.md"), ("broken", "nowhere")] {
        repositories.write("public/odd", &format!("{folder}/CLAUDE.md"), "You are odd.\n");
        symlink(target, work.join(folder).join("link")).unwrap();
    }
    symlink("/etc", work.join("outside")).unwrap();
    let mut bytes = vec![0; 7 << 20];
    fastrand::fill(&mut bytes);
    repositories.make("public/big");
    repositories.write("public/big", "large/CLAUDE.md", "You are large.\n");
    repositories.write("public/big", "large/data", &bytes);
    // What hardly fits, and what fits since it can be compressed.
    bytes.truncate(6_200_000);
    repositories.write("public/big", "fits/CLAUDE.md", "You fit.\n");
    repositories.write("public/big", "fits/data", &bytes);
    repositories.write("public/big", "fits/text", "All work and no play.\n".repeat(1 << 20));
    repositories.commit("public/odd", "v1");
    repositories.commit("public/big", "v1");
    let server = server::http(&cluster, &repositories, None);
    let address = named(&cluster, "git-odd", &server);
    let source = |path: &str| {
        let repository = if ["large", "fits"].contains(&path) { "big" } else { "odd" };
        json!({ "url": format!("http://{address}/public/{repository}.git"), "path": path })
    };
    let named = |path: &str| format!("odd-{path}");
    for path in ["none", "leaves", "above", "broken", "outside", "missing", "large"] {
        tenant.apply(&from_git(&named(path), &source(path)));
    }
    tenant.apply(&from_git("odd-repository", &json!({ "url": format!("http://{address}/public/nothing.git") })));
    tenant.apply(&from_git("odd-server", &json!({ "url": format!("http://{}:1/x.git", host("git-odd")) })));
    for (agent, reason, words) in [
        ("odd-none", "ClaudeMdMissing", "CLAUDE.md"),
        ("odd-leaves", "BundleInvalid", "./link\" is a link that leaves the folder"),
        ("odd-above", "BundleInvalid", "./link\" is a link that leaves the folder"),
        ("odd-broken", "BundleInvalid", "./link\" is a link to nothing"),
        ("odd-outside", "BundleInvalid", "a link that leaves the repository"),
        ("odd-missing", "GitRevisionNotFound", "no folder missing"),
        ("odd-large", "BundleInvalid", "more than 6 MiB"),
        ("odd-repository", "GitRevisionNotFound", "not found"),
        ("odd-server", "GitUnreachable", "git-odd"),
    ] {
        let message = tenant.not_cloned(agent, reason);
        assert!(message.contains(words), "{agent}: {message}");
    }
    let described = tenant.done(&["describe", "agent", "odd-large"]);
    assert!(described.contains("BundleInvalid") && described.contains("ash deploy"), "{described}");
    tenant.apply(&from_git("odd-fits", &source("fits")));
    tenant.wait("agent/odd-fits", "condition=Ready");
    // What is not from Git any more leaves no pod of Git behind.
    tenant.apply(&{
        let mut agent = agent("odd-none", &json!({ "warm": { "min": 0, "max": 1 } }));
        agent["spec"]["source"]["git"] = Value::Null;
        agent
    });
    tenant.wait("agent/odd-none", "condition=Ready");
    cluster.eventually("the clone that failed goes", |_| tenant.clones("odd-none").is_empty().then_some(()));
    let agents = tenant.done(&["get", "agents", "-o", "name"]);
    let odd: Vec<&str> = agents.lines().filter(|agent| agent.contains("/odd-")).collect();
    let names: Vec<&str> = odd.iter().filter_map(|agent| agent.split('/').nth(1)).collect();
    let names = names.join(",");
    tenant.done(&[&["delete", "--timeout=60s"], odd.as_slice()].concat());
    cluster.eventually("nothing is left", |_| tenant.clones(&names).is_empty().then_some(()));
}

#[test]
fn private_repositories_are_cloned_with_a_password_or_a_deploy_key() {
    let Some(cluster) = Cluster::shared() else { return };
    let tenant = Tenant::of_rest(&cluster);
    let repositories = Repositories::new();
    repositories.make("private/agent");
    repositories.write("private/agent", "CLAUDE.md", "You are the private agent.\n");
    repositories.commit("private/agent", "v1");
    let certificate = tenant.installation.authority.certificate(&host("git-private"));
    let server = server::http(&cluster, &repositories, Some(&certificate));
    let url = format!("https://{}/private/agent.git", named(&cluster, "git-private", &server));
    let secret = |name: &str, data: &Value| {
        tenant
            .apply(&json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": name }, "stringData": data }));
    };
    let with = |secret: &str| json!({ "url": url, "secretRef": { "name": secret } });
    secret("git-wrong", &json!({ "username": "agent", "password": "open" }));
    tenant.apply(&from_git("no-secret", &json!({ "url": url })));
    tenant.apply(&from_git("missing-secret", &with("git-later")));
    tenant.apply(&from_git("wrong-secret", &with("git-wrong")));
    for (agent, reason, words) in [
        ("no-secret", "GitAccessDenied", "git-private"),
        ("missing-secret", "SecretNotFound", "git-later"),
        ("wrong-secret", "GitAccessDenied", "git-private"),
    ] {
        let message = tenant.not_cloned(agent, reason);
        assert!(message.contains(words) && !message.contains("sesame"), "{agent}: {message}");
    }
    // The credential goes to the server of the URL alone, wherever that sends.
    secret("git-right", &json!({ "username": "agent", "password": "sesame" }));
    let moved = json!({ "url": url.replace("/private/", "/moved/"), "secretRef": { "name": "git-right" } });
    tenant.apply(&from_git("moved", &moved));
    let message = tenant.not_cloned("moved", "GitUnreachable");
    assert!(message.contains("spec.source.git.url"), "{message}");
    tenant.done(&["delete", "agent", "moved", "--timeout=60s"]);
    // Both go on by themselves once the Secrets are right.
    secret("git-later", &json!({ "username": "agent", "password": "sesame" }));
    secret("git-wrong", &json!({ "username": "agent", "password": "sesame" }));
    // By then a deploy key has been tried.
    if let Some((server, key)) = server::ssh(&cluster, &repositories, &host("git-ssh")) {
        let path = repositories.path().join("private/agent.git");
        let url = format!("ssh://git@{}{}", named(&cluster, "git-ssh", &server), path.display());
        secret("deploy-key", &json!({ "ssh-privatekey": key.private.trim_end(), "known_hosts": key.known_hosts }));
        let (host, _) = key.known_hosts.split_once(' ').unwrap();
        let another = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA";
        secret("another-host", &json!({ "ssh-privatekey": key.private, "known_hosts": format!("{host} {another}\n") }));
        secret("no-hosts", &json!({ "ssh-privatekey": key.private }));
        let by_key = |secret: &str| json!({ "url": url, "revision": "v1", "secretRef": { "name": secret } });
        tenant.apply(&from_git("other-host", &by_key("another-host")));
        tenant.apply(&from_git("unknown-host", &by_key("no-hosts")));
        tenant.cloned("by-key", &by_key("deploy-key"), 1);
        let said = tenant.in_session("by-key", "You are the private agent.", "cat CLAUDE.md; ls /credential /tmp");
        assert!(said.contains("private agent") && !said.contains("/tmp/key"), "{said}");
        assert!(tenant.not_cloned("other-host", "GitAccessDenied").contains("Host key verification failed"));
        assert!(tenant.not_cloned("unknown-host", "GitAccessDenied").contains("ssh-keyscan"));
        tenant.done(&["delete", "agent", "by-key", "other-host", "unknown-host", "--timeout=60s"]);
    }
    tenant.cloned("missing-secret", &with("git-later"), 1);
    let said = tenant.in_session("missing-secret", "You are the private agent.", "cat CLAUDE.md");
    assert!(said.contains("private agent"), "{said}");
    tenant.cloned("wrong-secret", &with("git-wrong"), 1);
    tenant.done(&["delete", "agent", "no-secret", "missing-secret", "wrong-secret", "--timeout=60s"]);
    cluster.eventually("nothing is left", |_| {
        tenant.clones("no-secret,missing-secret,wrong-secret,by-key,other-host,unknown-host").is_empty().then_some(())
    });
}

/// An authority that only the Secret names, as people have it for a server of their own.
#[test]
fn a_secret_can_name_the_authority_of_its_server() {
    let Some(cluster) = Cluster::shared() else { return };
    let tenant = Tenant::named(&cluster, "team-b");
    let repositories = Repositories::new();
    repositories.make("private/agent");
    repositories.write("private/agent", "CLAUDE.md", "You are behind an authority.\n");
    repositories.commit("private/agent", "v1");
    let authority = Authority::new().unwrap();
    let server = server::http(&cluster, &repositories, Some(&authority.certificate(&host("git-own"))));
    let url = format!("https://{}/private/agent.git", named(&cluster, "git-own", &server));
    let secret = |more: &Value| {
        let mut data = json!({ "username": "agent", "password": "sesame" });
        data.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        tenant.apply(
            &json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "git-own" }, "stringData": data }),
        );
    };
    let source = json!({ "url": url, "secretRef": { "name": "git-own" } });
    secret(&json!({}));
    tenant.apply(&from_git("trusting", &source));
    let message = tenant.not_cloned("trusting", "GitUnreachable");
    assert!(message.contains("certificate"), "{message}");
    secret(&json!({ "ca.crt": authority.text() }));
    tenant.cloned("trusting", &source, 1);
    tenant.done(&["delete", "agent", "trusting", "--timeout=60s"]);
}
