//! Requests with Kubernetes tokens, with a cluster that the test plays.
#![allow(clippy::unwrap_used)]

mod support;

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Mutex},
};

use ash_api::{AccessConfig, ApiConfig};
use ash_core::{
    id::TenantId,
    ports::{AccessError, AccessResource, AccessReviews, Verb, Who},
};
use async_trait::async_trait;
use axum::body::Body;
use base64::{Engine as _, prelude::BASE64_URL_SAFE_NO_PAD};
use http::Request;
use secrecy::{ExposeSecret as _, SecretString};
use serde_json::json;
use support::{Answer, KEY, Server};
use tokio::{sync::Semaphore, time::Duration};

/// A cluster of one user, `ci` of the namespace `team`.
struct Cluster {
    /// What the user may do: verb, resource, namespace.
    rights: Mutex<BTreeSet<(String, String, String)>>,
    /// The tokens that are reviewed as valid.
    valid: Mutex<BTreeSet<String>>,
    user: Mutex<String>,
    away: Mutex<bool>,
    reviews: Mutex<Vec<String>>,
    asked: Mutex<Vec<String>>,
    /// A place for each review that may end.
    gate: Semaphore,
}

#[async_trait]
impl AccessReviews for Cluster {
    async fn review(&self, token: &SecretString) -> Result<Result<Who, String>, AccessError> {
        self.reviews.lock().unwrap().push(token.expose_secret().to_owned());
        let _place = self.gate.acquire().await.unwrap();
        if *self.away.lock().unwrap() {
            return Err(AccessError::Unavailable("connection refused".to_owned()));
        }
        let user = self.user.lock().unwrap().clone();
        let who = Who { user, uid: None, groups: vec!["g".to_owned()], extra: BTreeMap::new() };
        Ok(if self.valid.lock().unwrap().contains(token.expose_secret()) {
            Ok(who)
        } else {
            Err("it has ended".to_owned())
        })
    }

    async fn may(
        &self,
        who: &Who,
        verb: Verb,
        resource: AccessResource,
        namespace: Option<&str>,
    ) -> Result<bool, AccessError> {
        assert_eq!(who.groups, ["g"]);
        let right = (verb.to_string(), resource.to_string(), namespace.unwrap_or("*").to_owned());
        self.asked.lock().unwrap().push(format!("{} {} {}", right.0, right.1, right.2));
        if *self.away.lock().unwrap() {
            return Err(AccessError::Unavailable("connection refused".to_owned()));
        }
        Ok(self.rights.lock().unwrap().contains(&right))
    }
}

fn token(audience: &str, number: u32) -> String {
    let part = |text: &str| BASE64_URL_SAFE_NO_PAD.encode(text);
    format!("{}.{}.{}", part("{}"), part(&json!({ "aud": [audience], "jti": number }).to_string()), part("s"))
}

async fn start() -> (Arc<Cluster>, Server) {
    start_with(&["team", "default", "second"], "default").await
}

async fn start_with(namespaces: &[&str], default_namespace: &str) -> (Arc<Cluster>, Server) {
    let cluster = Arc::new(Cluster {
        rights: Mutex::default(),
        valid: Mutex::new([token("ash", 1)].into()),
        user: Mutex::new("system:serviceaccount:team:ci".to_owned()),
        away: Mutex::default(),
        reviews: Mutex::default(),
        asked: Mutex::default(),
        gate: Semaphore::new(64),
    });
    let access = AccessConfig {
        reviews: Arc::clone(&cluster) as _,
        namespaces: namespaces.iter().map(ToString::to_string).collect(),
        default_namespace: default_namespace.to_owned(),
    };
    (cluster, Server::with(ApiConfig { access: Some(access), ..ApiConfig::default() }).await)
}

impl Cluster {
    fn allow(&self, verbs: &[&str], resource: &str, namespace: &str) {
        let rights = verbs.iter().map(|verb| ((*verb).to_owned(), resource.to_owned(), namespace.to_owned()));
        self.rights.lock().unwrap().extend(rights);
    }

    fn reviews(&self) -> usize {
        self.reviews.lock().unwrap().len()
    }
}

async fn call(server: &Server, token: &str, namespace: Option<&str>, method: &str, path: &str, body: &str) -> Answer {
    let mut request = Request::builder().method(method).uri(path).header("authorization", format!("Bearer {token}"));
    if let Some(namespace) = namespace {
        request = request.header("ash-namespace", namespace);
    }
    server.send(request.header("content-type", "application/json").body(Body::from(body.to_owned())).unwrap()).await
}

const AGENT: &str = r#"{"name":"a","systemPrompt":"You are a test."}"#;

#[tokio::test]
async fn the_tenant_is_the_namespace_and_rights_are_those_of_roles() {
    let (cluster, server) = start().await;
    let token = token("ash", 1);
    let said = call(&server, &token, None, "GET", "/api/agents", "").await.error(403);
    let line = "kubectl auth can-i list agents.ash.dev --namespace team --as system:serviceaccount:team:ci";
    assert!(said.contains(line) && said.contains("may not list agents.ash.dev in the namespace team"), "{said}");

    cluster.allow(&["create"], "agents", "team");
    let said = call(&server, &token, None, "POST", "/api/agents", AGENT).await.error(403);
    assert!(said.contains("may not update agents.ash.dev"), "{said}");
    cluster.allow(&["create", "get", "list", "update", "delete"], "agents", "second");
    cluster.allow(&["create", "get", "list", "update", "delete"], "sessions", "second");
    let second = Some("second");
    assert_eq!(call(&server, &token, second, "POST", "/api/agents", AGENT).await.status, 201);
    let created = call(&server, &token, second, "POST", "/api/sessions", r#"{"agent":"a"}"#).await;
    assert_eq!(created.status, 201);
    let id = created.json()["session"]["id"].as_str().unwrap().to_owned();
    let session = format!("/api/sessions/{id}");
    assert_eq!(call(&server, &token, second, "POST", &format!("{session}/interrupt"), "").await.status, 200);
    assert_eq!(call(&server, &token, second, "GET", &format!("{session}/messages"), "").await.status, 200);
    assert_eq!(call(&server, &token, second, "DELETE", &session, "").await.status, 200);
    // It is that tenant's alone.
    let tenant = TenantId("second".to_owned());
    assert_eq!(ash_core::ports::AgentStore::agents(&*server.store, &tenant).await.unwrap().len(), 1);
    assert_eq!(server.get("/api/agents").await.json()["agents"], json!([]));
    cluster.allow(&["get"], "sessions", "team");
    call(&server, &token, Some("team"), "GET", &session, "").await.error(404);

    let asked = cluster.asked.lock().unwrap().clone();
    for question in ["create agents second", "update agents second", "create sessions second", "update sessions second"]
    {
        assert_eq!(asked.iter().filter(|other| *other == question).count(), 1, "{question}: {asked:?}");
    }
    assert_eq!(cluster.reviews(), 1);
    assert_eq!(server.metric("ash_api_token_reviews_total{result=\"Accepted\"}").await, 1);
}

#[tokio::test]
async fn only_served_namespaces() {
    let (cluster, server) = start().await;
    cluster.allow(&["list"], "agents", "elsewhere");
    let token = token("ash", 1);
    let said = call(&server, &token, Some("elsewhere"), "GET", "/api/agents", "").await.error(403);
    assert!(said.contains("does not serve the namespace elsewhere"), "{said}");
    for name in ["", "UPPER", "a b", "../x", &"a".repeat(64)] {
        call(&server, &token, Some(name), "GET", "/api/agents", "").await.error(400);
    }
    // A person who is no service account has to name one.
    "jane".clone_into(&mut cluster.user.lock().unwrap());
    let (cluster, server) = start().await;
    "jane".clone_into(&mut cluster.user.lock().unwrap());
    let said = call(&server, &token, None, "GET", "/api/agents", "").await.error(400);
    assert!(said.contains("which namespace?"), "{said}");
    assert!(cluster.asked.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_token_for_another_audience_is_refused_unasked() {
    let (cluster, server) = start().await;
    let said =
        call(&server, &token("https://kubernetes.default.svc", 1), None, "GET", "/api/agents", "").await.error(401);
    assert!(said.contains("is for https://kubernetes.default.svc") && said.contains("--audience ash"), "{said}");
    assert_eq!(cluster.reviews(), 0);
    let said = call(&server, &token("ash", 2), None, "GET", "/api/nothing", "").await.error(401);
    assert!(said.contains("it has ended"), "{said}");
    // Who is known learns that there is nothing.
    call(&server, &token("ash", 1), None, "GET", "/api/nothing", "").await.error(404);
    assert_eq!(server.metric("ash_api_auth_failures_total").await, 2);
}

#[tokio::test]
async fn keys_go_on_working_and_have_one_tenant() {
    let (cluster, server) = start().await;
    assert_eq!(call(&server, KEY, None, "GET", "/api/agents", "").await.status, 200);
    assert_eq!(call(&server, KEY, Some("default"), "GET", "/api/agents", "").await.status, 200);
    let said = call(&server, KEY, Some("team"), "GET", "/api/agents", "").await.error(403);
    assert!(said.contains("of the namespace default"), "{said}");
    assert_eq!(call(&server, "a.b.c", None, "GET", "/api/agents", "").await.error(401), "Invalid API key");
    assert_eq!(cluster.reviews(), 0);
    // Without a cluster, a token is a key that nobody knows.
    let plain = Server::new().await;
    assert_eq!(call(&plain, &token("ash", 1), None, "GET", "/api/agents", "").await.error(401), "Invalid API key");
}

#[tokio::test]
async fn keys_of_the_default_tenant_are_of_the_default_namespace() {
    let (cluster, server) = start_with(&["team", "second"], "team").await;
    cluster.allow(&["list"], "agents", "team");
    cluster.allow(&["list"], "agents", "second");
    server.deploy("a").await;
    let tenant = TenantId::default_tenant();
    assert_eq!(ash_core::ports::AgentStore::agents(&*server.store, &tenant).await.unwrap().len(), 1);
    // Those with a token for that namespace see the same.
    let seen = async |namespace| {
        let answer = call(&server, &token("ash", 1), namespace, "GET", "/api/agents", "").await;
        answer.json()["agents"].as_array().unwrap().len()
    };
    assert_eq!((seen(None).await, seen(Some("team")).await, seen(Some("second")).await), (1, 1, 0));
    call(&server, &token("ash", 1), Some("default"), "GET", "/api/agents", "").await.error(403);
    // The key's namespace has that name, too.
    assert_eq!(call(&server, KEY, Some("team"), "GET", "/api/agents", "").await.status, 200);
    let said = call(&server, KEY, Some("default"), "GET", "/api/agents", "").await.error(403);
    assert!(said.contains("of the namespace team"), "{said}");
}

#[tokio::test]
async fn runners_have_no_namespace() {
    let (cluster, server) = start().await;
    let token = token("ash", 1);
    let said = call(&server, &token, None, "GET", "/api/runners", "").await.error(403);
    assert!(
        said.contains("may not list runners.ash.dev in the whole cluster") && said.contains("ClusterRole"),
        "{said}"
    );
    // A right in a namespace is none for all of them.
    cluster.allow(&["list"], "runners", "team");
    call(&server, &token, Some("team"), "GET", "/api/runners", "").await.error(403);
    let (cluster, server) = start().await;
    cluster.allow(&["list"], "runners", "*");
    for namespace in [None, Some("team"), Some("elsewhere")] {
        assert_eq!(call(&server, &token, namespace, "GET", "/api/runners", "").await.status, 200);
    }
}

#[tokio::test(start_paused = true)]
async fn answers_are_kept_for_a_while_and_then_asked_for_again() {
    let (cluster, server) = start().await;
    let token = token("ash", 1);
    let list = async || call(&server, &token, None, "GET", "/api/agents", "").await;
    list().await.error(403);
    cluster.allow(&["list"], "agents", "team");
    list().await.error(403);
    tokio::time::advance(Duration::from_secs(5)).await;
    assert_eq!(list().await.status, 200);

    // What was accepted goes on while the cluster is away.
    *cluster.away.lock().unwrap() = true;
    tokio::time::advance(Duration::from_secs(54)).await;
    assert_eq!(list().await.status, 200);
    let answer = call(&server, &token, None, "POST", "/api/agents", AGENT).await;
    let said = answer.error(503);
    assert_eq!(answer.headers["retry-after"], "2");
    assert!(
        said.contains("API server does not answer: connection refused") && said.contains("running turns go on"),
        "{said}"
    );
    tokio::time::advance(Duration::from_secs(1)).await;
    list().await.error(503);
    list().await.error(503);
    assert_eq!(cluster.reviews(), 2);

    // It comes back; the token has ended meanwhile.
    *cluster.away.lock().unwrap() = false;
    cluster.valid.lock().unwrap().clear();
    tokio::time::advance(Duration::from_secs(1)).await;
    list().await.error(401);
    cluster.valid.lock().unwrap().insert(token.clone());
    list().await.error(401);
    assert_eq!(cluster.reviews(), 3);
    tokio::time::advance(Duration::from_secs(5)).await;
    assert_eq!(list().await.status, 200);
    assert_eq!(server.metric("ash_api_token_reviews_total{result=\"Failed\"}").await, 1);
}

#[tokio::test]
async fn many_requests_with_one_token_are_one_review() {
    let (cluster, server) = start().await;
    cluster.allow(&["list"], "agents", "team");
    let held = cluster.gate.acquire_many(64).await.unwrap();
    let server = Arc::new(server);
    let requests: Vec<_> = (0..50)
        .map(|_| {
            let server = Arc::clone(&server);
            tokio::spawn(async move { call(&server, &token("ash", 1), None, "GET", "/api/agents", "").await.status })
        })
        .collect();
    while cluster.reviews() == 0 {
        tokio::task::yield_now().await;
    }
    drop(held);
    for request in requests {
        assert_eq!(request.await.unwrap(), 200);
    }
    assert_eq!((cluster.reviews(), cluster.asked.lock().unwrap().len()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_flood_of_tokens_asks_for_a_bounded_number_of_reviews() {
    let (cluster, server) = start().await;
    let _held = cluster.gate.acquire_many(64).await.unwrap();
    let server = Arc::new(server);
    let requests: Vec<_> = (100..200)
        .map(|number| {
            let server = Arc::clone(&server);
            tokio::spawn(
                async move { call(&server, &token("ash", number), None, "GET", "/api/agents", "").await.status },
            )
        })
        .collect();
    // The others wait in vain for a place: 5 s of the clock that the test winds.
    while requests.iter().filter(|request| request.is_finished()).count() < 68 {
        tokio::time::advance(Duration::from_millis(500)).await;
        tokio::task::yield_now().await;
    }
    for request in requests {
        if request.is_finished() {
            assert_eq!(request.await.unwrap(), 503);
        } else {
            request.abort();
        }
    }
    assert_eq!(cluster.reviews(), 32);
    assert_eq!(server.metric("ash_api_access_reviews_crowded_total").await, 68);
}
