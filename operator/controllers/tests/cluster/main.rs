//! The controllers against a real API server and a real store. Pods do not run there: the test plays kubelet and runner.
//!
//! `ASH_TEST_KUBERNETES` names the folder of kube-apiserver, etcd and kubectl. Where they are missing the test says that it is
//! skipped; with `ASH_TEST_REQUIRE_KUBERNETES` set it fails.
//!
//! A life is lived again with one of its calls failing: with as many of them as [`faults::SAMPLE`], drawn anew for each run, or
//! with every one where `ASH_TEST_FAULTS` is `all`. The seed is printed; `ASH_TEST_FAULTS` takes it, to draw the same again.
#![allow(clippy::unwrap_used, clippy::type_complexity, clippy::items_after_statements, unreachable_pub)]

mod fakes;
mod faults;
mod look;
mod names;
mod rest;
mod world;

use std::{sync::atomic::Ordering, time::Duration};

use ash_core::{
    opening::OpeningReason,
    ports::{CredentialKind, PodState, Resources as _},
    session::{PausedReason, SessionEvent, SessionState},
};
use futures::{StreamExt as _, future::LocalBoxFuture, stream};
use serde_json::json;

use ash_test_kubernetes::Server;
use faults::Faults;
use world::World;

/// Scenarios that run together.
const TOGETHER: usize = 12;

#[test]
fn the_controllers_on_a_real_api_server() {
    let Some(server) = Server::start() else { return };
    let filter = tracing_subscriber::EnvFilter::from_default_env();
    tracing_subscriber::fmt().with_env_filter(filter).with_test_writer().init();
    let crds = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../crds");
    server.done(&["apply", "--server-side", "-k", crds.to_str().unwrap()], None);
    let wait = ["wait", "--for=condition=Established", "crd/agents.ash.dev", "crd/sessions.ash.dev", "--timeout=60s"];
    server.done(&wait, None);
    server.await_kinds("agents,sessions");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    runtime.block_on(async {
        let only = std::env::var("ASH_SCENARIO").unwrap_or_default();
        let runs = |name: &str| only.is_empty() || only == name;
        let calls = if runs("life") || runs("faults") { a_life(&server, "life", Faults::default()).await } else { 0 };
        // Each has a namespace and an operator of its own.
        let server = &server;
        let mut scenarios: Vec<(&str, LocalBoxFuture<'_, ()>)> = vec![
            ("leader", Box::pin(another_operator_takes_over(server))),
            ("troubles", Box::pin(troubles_are_told(server))),
            ("credentials", Box::pin(a_session_names_a_credential(server))),
            ("orphans", Box::pin(what_belongs_to_nothing_goes(server))),
            ("unchanged", Box::pin(an_unchanged_object_is_not_written(server))),
            ("pool", Box::pin(a_pool_follows_its_demand(server))),
            ("defects", Box::pin(a_defect_stops_nothing_for_long(server))),
            ("names", Box::pin(names::agents_whose_pods_are_called_alike_own_each_its_own(server))),
            ("rest", Box::pin(rest::a_deployment_keeps_what_others_have_set(server))),
        ];
        let cases = if runs("faults") { faults::cases(calls) } else { Vec::new() };
        scenarios.extend(cases.into_iter().map(|(call, late)| {
            let name = format!("fault-{call}-{}", if late { "late" } else { "early" });
            let life = async move {
                a_life(server, &name, Faults::failing(call, late)).await;
            };
            ("faults", Box::pin(life) as LocalBoxFuture<'_, ()>)
        }));
        let wanted = scenarios.into_iter().filter(|(name, _)| runs(name)).map(|(_, scenario)| scenario);
        stream::iter(wanted).for_each_concurrent(TOGETHER, |scenario| scenario).await;
    });
}

fn agent(name: &str) -> serde_json::Value {
    json!({
        "apiVersion": "ash.dev/v1alpha1", "kind": "Agent", "metadata": { "name": name },
        "spec": {
            "source": { "inline": { "files": [{ "path": "CLAUDE.md", "text": "Be kind." }] } },
            "model": "claude-x",
            "warm": { "min": 1 },
            "modelCredential": { "secretKeyRef": { "name": "keys", "key": "model" } },
            "sandbox": { "env": [
                { "name": "PLAIN", "value": "1" },
                { "name": "TOKEN", "valueFrom": { "secretKeyRef": { "name": "keys", "key": "token" } } },
            ] },
        },
    })
}

fn session(name: &str) -> serde_json::Value {
    json!({
        "apiVersion": "ash.dev/v1alpha1", "kind": "Session", "metadata": { "name": name },
        "spec": { "agent": "helper", "message": { "content": "hello" } },
    })
}

fn secret() -> serde_json::Value {
    json!({ "apiVersion": "v1", "kind": "Secret", "metadata": { "name": "keys" }, "stringData": { "model": "sk\n", "token": "t" } })
}

/// An agent, its warm pod, a session that claims it, a pause, a resumption, an end. Gives how many calls it took.
async fn a_life(server: &Server, namespace: &str, faults: Faults) -> u64 {
    let world = World::new(server, namespace, faults).await;
    world.apply(&secret());
    world.apply(&agent("helper"));
    world.until("the agent is ready", || world.reason("agent", "helper") == "Deployed").await;
    world.until("a warm sandbox", || world.get("agent", "helper", "{.status.warm}") == "1").await;
    let rows = world.rows.all();
    assert_eq!(rows.len(), 1, "{rows:?}");
    let version = world.version("helper").await;
    assert_eq!(version.settings.env.keys().collect::<Vec<_>>(), ["PLAIN"]);
    assert_eq!(version.settings.secret_environment.as_deref(), Some("environment/helper"));
    assert_eq!(world.secret("environment/helper"), br#"{"TOKEN":"t"}"#);
    assert_eq!(world.secret(version.settings.credential.as_deref().unwrap()), b"sk");

    world.apply(&session("talk"));
    world.until("the session is active", || world.reason("session", "talk") == "Active").await;
    world
        .until("its message is taken", || {
            world.get("session", "talk", r#"{.status.conditions[?(@.type=="MessageTaken")].status}"#) == "True"
        })
        .await;
    let uid = world.get("session", "talk", "{.metadata.uid}");
    let row = world.session(&uid).await.unwrap();
    assert_eq!(row.state, SessionState::Active);
    let claimed = rows[0].id;
    assert_eq!(row.sandbox, Some(claimed), "the warm one is taken");
    assert_eq!(world.get("session", "talk", "{.status.pod}"), rows[0].pod);
    assert_eq!(world.get("session", "talk", "{.status.node}"), "node1");
    assert_eq!(world.get("session", "talk", "{.metadata.labels.ash\\.dev/session-uid}"), uid);
    let pod = &rows[0].pod;
    world
        .until("the pod is the session's", || {
            world.get("pod", pod, "{.metadata.labels.ash\\.dev/session}") == "talk"
                && world.get("pod", pod, "{.metadata.ownerReferences[*].kind}") == "Session"
        })
        .await;
    world.until("another one is warm", || world.get("agent", "helper", "{.status.warm}") != "0").await;

    world.patch("session", "talk", &json!({ "spec": { "suspend": true } }));
    world.until("it is suspended", || world.reason("session", "talk") == "Suspended").await;
    assert_eq!(world.get("session", "talk", "{.status.pausedReason}"), "person");
    world.patch("session", "talk", &json!({ "spec": { "suspend": false } }));
    world.until("it is active again", || world.reason("session", "talk") == "Active").await;

    world.kubectl(&["delete", "session", "talk", "--wait=false"]);
    world.until("it is gone", || world.get("session", "talk", "{.metadata.name}").is_empty()).await;
    world.until("its pod is gone", || world.get("pod", pod, "{.metadata.name}").is_empty()).await;
    assert_eq!(world.session(&uid).await.unwrap().state, SessionState::Ended);
    let sent = world.runner.sent.lock().unwrap().clone();
    // A repeat is the same turn.
    assert!(!sent.is_empty() && sent.iter().all(|message| message.1 == sent[0].1 && message.2 == "\"hello\""));

    world.kubectl(&["delete", "agent", "helper", "--wait=false"]);
    world.until("the agent is gone", || world.get("agent", "helper", "{.metadata.name}").is_empty()).await;
    world.until("no pod is left", || world.names("pod").is_empty()).await;
    world.until("no row is left", || world.rows.all().is_empty()).await;
    let calls = world.faults.calls();
    world.end().await;
    calls
}

async fn an_unchanged_object_is_not_written(server: &Server) {
    let world = World::new(server, "unchanged", Faults::default()).await;
    world.apply(&secret());
    world.apply(&agent("helper"));
    world.apply(&session("talk"));
    world.until("the session is active", || world.reason("session", "talk") == "Active").await;
    world
        .until("the pool is full", || {
            world.get("agent", "helper", r#"{.status.conditions[?(@.type=="PoolReady")].status}"#) == "True"
                && world.get("agent", "helper", "{.status.active}") == "1"
                && world.get("session", "talk", r#"{.status.conditions[?(@.type=="MessageTaken")].status}"#) == "True"
        })
        .await;
    world.settle().await;
    let versions = |world: &World| world.get("agent,session,pod", "-A", "{.items[*].metadata.resourceVersion}");
    let (before, log) = (versions(&world), world.faults.log.lock().unwrap().clone());
    // Another operator looks at everything, and so does the same one.
    let world = world.restart().await;
    world.apply(&agent("helper"));
    world.apply(&session("talk"));
    world.settle().await;
    let after = world.faults.log.lock().unwrap().clone();
    assert_eq!(world.faults.writes(), 0, "{after:?}");
    assert_eq!(versions(&world), before);
    // Of one session, from its beginning to its message that is taken: the finalizer, and a status for each that is looked at by
    // itself of: its agent is awaited, its pod is, it is active, its message is taken.
    let session_writes = log.iter().filter(|line| line.contains("/sessions/")).count();
    assert!(session_writes <= 5, "{log:?}");
    world.end().await;
}

async fn troubles_are_told(server: &Server) {
    let world = World::new(server, "troubles", Faults::default()).await;
    world.kubelet.send_replace(false);
    world.apply(&session("early"));
    world.until("it waits for its agent", || world.reason("session", "early") == "AgentNotFound").await;
    world.apply(&agent("helper"));
    world.until("the Secret is missed", || world.reason("agent", "helper") == "SecretNotFound").await;
    world.until("it waits for its agent's version", || world.reason("session", "early") == "AgentNotReady").await;
    world.patch("agent", "helper", &json!({ "spec": { "modelCredential": null, "sandbox": { "env": null } } }));
    world.until("pods are made", || world.names("pod").len() >= 2).await;
    let pods = world.names("pod");
    for pod in &pods {
        world.prepared(pod, "FailedCreatePodSandBox", "no runtime for \"kata\" is configured");
    }
    world.until("the session says what its node says", || world.reason("session", "early") == "PodNotStarting").await;
    world.until("and so does the agent", || world.reason("agent", "helper") == "PodNotStarting").await;
    let message = world.get("session", "early", r#"{.status.conditions[?(@.type=="Ready")].message}"#);
    assert_eq!(message, "FailedCreatePodSandBox: no runtime for \"kata\" is configured");
    for pod in &pods {
        let state = json!({ "waiting": { "reason": "ImagePullBackOff", "message": "denied" } });
        world.container(pod, "Pending", &state);
    }
    world.until("the session says why", || world.reason("session", "early") == "ImagePullFailed").await;
    world.until("the agent says why", || world.reason("agent", "helper") == "ImagePullFailed").await;
    world
        .until("there is an Event", || world.get("events", "-A", "{.items[*].reason}").contains("ImagePullFailed"))
        .await;
    // A sandbox that is killed is replaced.
    let killed = world.rows.all().into_iter().find(|row| row.session.is_some()).unwrap();
    let state = json!({ "terminated": { "reason": "OOMKilled", "exitCode": 137 } });
    world.container(&killed.pod, "Failed", &state);
    world
        .until("the session has another sandbox", || {
            world.rows.all().iter().any(|row| row.session == killed.session && row.id != killed.id)
        })
        .await;
    for pod in world.names("pod") {
        world.container(&pod, "Running", &json!({ "running": {} }));
    }
    world.kubelet.send_replace(true);
    world.until("it is active in the end", || world.reason("session", "early") == "Active").await;
    // A sandbox that is lost takes its session's place with it, and the next message wakes it.
    let row = world.rows.all().into_iter().find(|row| row.session.is_some() && row.state == PodState::Claimed).unwrap();
    world.age(row.id, Duration::from_secs(60));
    world.kubectl(&["delete", "pod", &row.pod, "--now"]);
    world
        .until("its row is over", || {
            world.rows.all().iter().all(|other| other.id != row.id || other.state == PodState::Deleting)
        })
        .await;
    world.age(row.id, Duration::from_secs(60));
    world.until("the session sleeps", || world.reason("session", "early") == "Asleep").await;
    assert_eq!(world.get("session", "early", "{.status.pausedReason}"), "lost");
    let message = world.get("session", "early", r#"{.status.conditions[?(@.type=="Ready")].message}"#);
    assert!(message.starts_with("NodeLost: ") && message.contains(&row.pod), "{message}");
    world.until("an Event says why", || world.get("events", "-A", "{.items[*].reason}").contains("NodeLost")).await;
    let row = world.session(&world.get("session", "early", "{.metadata.uid}")).await.unwrap();
    world.resources().wake_session(&row.tenant, row.id, row.epoch).await.unwrap();
    world.until("it is awake", || world.reason("session", "early") == "Active").await;
    // A pinned version that there is not; an end that stays; a removal after its time.
    let mut pinned = session("pinned");
    pinned["spec"]["version"] = 9.into();
    world.apply(&pinned);
    world.until("there is no such version", || world.reason("session", "pinned") == "VersionNotFound").await;
    world.patch("session", "early", &json!({ "spec": { "end": true } }));
    world.until("it has ended", || world.reason("session", "early") == "Ended").await;
    world.patch("session", "early", &json!({ "spec": { "ttlAfterEnd": "1s" } }));
    world.until("its time is over", || world.get("session", "early", "{.metadata.name}").is_empty()).await;
    world.end().await;
}

async fn a_pool_follows_its_demand(server: &Server) {
    let world = World::new(server, "demand", Faults::default()).await;
    let mut helper = agent("helper");
    let spec = helper["spec"].as_object_mut().unwrap();
    spec.remove("modelCredential");
    spec.remove("sandbox");
    helper["spec"]["warm"] = json!({ "min": 2, "max": 5 });
    world.apply(&helper);
    let warm = || world.rows.all().iter().filter(|row| row.state == PodState::Warm).count();
    world.until("two are warm", || warm() == 2).await;
    for n in 0..4 {
        world.apply(&session(&format!("talk-{n}")));
    }
    world.until("all are active", || (0..4).all(|n| world.reason("session", &format!("talk-{n}")) == "Active")).await;
    world.until("the pool has grown", || warm() == 5).await;
    helper["spec"]["model"] = "claude-y".into();
    world.apply(&helper);
    world
        .until("the new version's are warm, and the old one's gone", || {
            let rows = world.rows.all();
            let mine: Vec<_> =
                rows.iter().filter(|row| row.session.is_none() && row.state != PodState::Deleting).collect();
            mine.len() == 5 && mine.iter().all(|row| row.agent_version == 2 && row.state == PodState::Warm)
        })
        .await;
    // The sessions keep their version.
    assert_eq!(world.get("session", "talk-0", "{.status.agentVersion}"), "1");
    world.end().await;
}

async fn a_session_names_a_credential(server: &Server) {
    let world = World::new(server, "credentials", Faults::default()).await;
    world.apply(&secret());
    world.apply(&agent("helper"));
    let own = json!([{ "name": "OWN", "value": "session" }]);
    let with = |name: &str, credential: String| {
        let mut with = session(name);
        with["spec"]["credentialId"] = credential.into();
        with["spec"]["options"] = json!({ "env": own });
        with
    };
    let custom = br#"{"OWN":"credential","SHARED":"credential","PLAIN":"credential"}"#;
    let custom = world.put_credential(CredentialKind::Custom, custom).await;
    let key = world.put_credential(CredentialKind::AnthropicKey, b"sk-own").await;
    world.apply(&with("variables", custom.to_string()));
    world.apply(&with("key", key.to_string()));
    world.apply(&with("nothing", uuid::Uuid::new_v4().to_string()));
    world.until("there is no such credential", || world.reason("session", "nothing") == "OptionRefused").await;
    for name in ["variables", "key"] {
        world.until("it is active", || world.reason("session", name) == "Active").await;
    }
    let row = world.session(&world.get("session", "variables", "{.metadata.uid}")).await.unwrap();
    let whole = [("OWN", "session"), ("PLAIN", "credential"), ("SHARED", "credential")];
    let whole = whole.map(|(name, value)| (name.to_owned(), value.to_owned()));
    assert_eq!((row.options.environment, row.credential), (whole.into(), None), "agent, credential, session");
    let row = world.session(&world.get("session", "key", "{.metadata.uid}")).await.unwrap();
    assert_eq!(row.credential, Some(key));
    assert_eq!(world.get("session", "key", "{.status.turns}"), "0");
    let refused = json!({ "type": "result", "is_error": true, "api_error_status": 401 });
    world.take_a_turn(&row, &refused).await;
    world.until("its key is refused", || world.reason("session", "key") == "ModelCredentialRefused").await;
    assert_eq!(world.get("session", "key", r#"{.status.conditions[?(@.type=="Stalled")].status}"#), "True");
    let usage = json!({ "inputTokens": 10, "outputTokens": 20, "cacheReadInputTokens": 30, "cacheCreationInputTokens": 40, "costUSD": 0.0123 });
    let well = json!({ "type": "result", "is_error": false, "model_usage_since_last_result": { "m": usage } });
    world.take_a_turn(&world.session(&row.id.to_string()).await.unwrap(), &well).await;
    world.until("its key is good again", || world.reason("session", "key") == "Active").await;
    let spent = |field: &str| world.get("session", "key", &format!("{{.status.{field}}}"));
    assert_eq!(spent("turns"), "2");
    assert_eq!(spent("costUsd"), "0.0123");
    let tokens: serde_json::Value = serde_json::from_str(&spent("tokens")).unwrap();
    assert_eq!(tokens, json!({ "input": 10, "output": 20, "cacheRead": 30, "cacheCreation": 40 }));
    // A turn that changes nothing else is not written.
    let before = spent("turns") + &world.get("session", "key", "{.metadata.resourceVersion}");
    world.take_a_turn(&world.session(&row.id.to_string()).await.unwrap(), &well).await;
    world.settle().await;
    assert_eq!(spent("turns") + &world.get("session", "key", "{.metadata.resourceVersion}"), before);
    world.patch("session", "key", &json!({ "spec": { "suspend": true } }));
    world.until("its turns are counted", || spent("turns") == "3").await;
    // What a REST call left for the operator goes once the row has it.
    let left = "session/rest";
    world.put_credential_named(left, CredentialKind::Custom, br#"{"EXTRA":"canary"}"#).await;
    let mut rest = session("rest");
    rest["metadata"]["annotations"] = json!({ "ash.dev/environment-credential": left });
    world.apply(&rest);
    world.until("the session of REST is active", || world.reason("session", "rest") == "Active").await;
    let row = world.session(&world.get("session", "rest", "{.metadata.uid}")).await.unwrap();
    assert_eq!(row.options.environment.get("EXTRA").map(String::as_str), Some("canary"));
    world.until("its variables are in its row only", || !world.has_secret(left)).await;
    // What an agent is called beside its name takes effect without a version.
    world.patch("agent", "helper", &json!({ "spec": { "slug": "aide", "description": "Helps." } }));
    world.settle().await;
    let agent = world.agent("aide").await.expect("it is found by its slug");
    assert_eq!(
        (agent.name.as_str(), agent.description.as_deref(), agent.version.number),
        ("helper", Some("Helps."), 1)
    );
    let idle: Vec<_> = world.rows.idle.lock().unwrap().values().copied().collect();
    assert_eq!(idle, [Duration::from_secs(900)], "the agent's idleTimeout");
    world.end().await;
}

async fn what_belongs_to_nothing_goes(server: &Server) {
    let world = World::new(server, "orphans", Faults::default()).await;
    let stray = json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": { "name": "stray", "labels": {
            "app.kubernetes.io/managed-by": "ash", "app.kubernetes.io/component": "sandbox",
            "ash.dev/sandbox-id": uuid::Uuid::new_v4(),
        } },
        "spec": { "containers": [{ "name": "sandbox", "image": "x" }] },
    });
    world.apply(&stray);
    world.until("the pod without a row is gone", || world.names("pod").is_empty()).await;
    world.apply(&secret());
    world.apply(&agent("helper"));
    world.apply(&session("talk"));
    world.until("the session is active", || world.reason("session", "talk") == "Active").await;
    let uid = world.get("session", "talk", "{.metadata.uid}");
    world.apply(&session("left"));
    world.until("another session is active", || world.reason("session", "left") == "Active").await;
    let left = world.session(&world.get("session", "left", "{.metadata.uid}")).await.unwrap();
    // It is off its sandbox, and whoever took it off dies before that is said of the sandbox.
    let lost = SessionEvent::Pause(PausedReason::Lost);
    world.runner.open(&left, lost, OpeningReason::Lost, None).await.unwrap();
    // Somebody removes the finalizer while no operator looks.
    let world = world
        .away(|world| {
            world.patch("session", "talk", &json!({ "metadata": { "finalizers": null } }));
            world.kubectl(&["delete", "session", "talk"]);
            for row in world.rows.all() {
                world.age(row.id, Duration::from_secs(600));
            }
        })
        .await;
    world.until("their pods are gone", || world.rows.all().iter().all(|row| row.session.is_none())).await;
    let mut state = None;
    for _ in 0..100 {
        state = world.session(&uid).await.map(|row| row.state);
        if state == Some(SessionState::Ended) {
            break;
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(state, Some(SessionState::Ended));
    world.end().await;
}

async fn a_defect_stops_nothing_for_long(server: &Server) {
    let world = World::new(server, "defects", Faults::default()).await;
    world.apply(&secret());
    world.apply(&agent("helper"));
    world.until("a warm sandbox", || world.get("agent", "helper", "{.status.warm}") == "1").await;
    // One look at one object.
    world.rows.has_defect_of_session.store(true, Ordering::SeqCst);
    world.apply(&session("talk"));
    world.until("the session is active", || world.reason("session", "talk") == "Active").await;
    assert!(!world.rows.has_defect_of_session.load(Ordering::SeqCst));
    // A part of the operator.
    world.rows.has_defect.store(true, Ordering::SeqCst);
    world.until("it fails", || !world.rows.has_defect.load(Ordering::SeqCst)).await;
    world.apply(&session("again"));
    world.until("the operator acts again", || world.reason("session", "again") == "Active").await;
    world.until("and so does its pool", || world.get("agent", "helper", "{.status.warm}") != "0").await;
    world.end().await;
}

async fn another_operator_takes_over(server: &Server) {
    let world = World::new(server, "leader", Faults::default()).await;
    world.apply(&secret());
    world.apply(&agent("helper"));
    world.until("the agent is ready", || world.reason("agent", "helper") == "Deployed").await;
    let holder = || world.get("lease", "ash-operator", "{.spec.holderIdentity}");
    assert_eq!(holder(), "one");
    let second = world.another("two");
    // It waits; the first one is killed without a word, so its lease has to run out.
    world.kill().await;
    world.apply(&session("talk"));
    world.until("the other acts", || world.reason("session", "talk") == "Active").await;
    assert_eq!(holder(), "two");
    second.cancel();
    world.until("the lease is given back", || holder().is_empty()).await;
}
