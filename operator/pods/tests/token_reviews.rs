//! Whose a token is, asked of a real API server: tokens that it made for pods, and others.
//!
//! `ASH_TEST_KUBERNETES` names the folder of kube-apiserver, etcd and kubectl. Where they are missing the test says that it is
//! skipped; with `ASH_TEST_REQUIRE_KUBERNETES` set it fails.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use ash_core::ports::{PodIdentity, ReviewError, TokenReviews as _};
use ash_pods::token_reviews::ApiServerReviews;
use ash_test_kubernetes::Server;
use kube::{Client, Config};

/// The API server keeps what it said of a token for 10 s.
const NOTICED: Duration = Duration::from_secs(60);

const OBJECTS: &str = r"
apiVersion: v1
kind: Namespace
metadata: { name: team }
---
apiVersion: v1
kind: ServiceAccount
metadata: { name: default, namespace: team }
---
apiVersion: v1
kind: Node
metadata: { name: n1 }
---
apiVersion: v1
kind: Pod
metadata: { name: agent-1, namespace: team }
spec: { nodeName: n1, serviceAccountName: default, containers: [{ name: sandbox, image: none }] }
---
apiVersion: v1
kind: Pod
metadata: { name: nowhere, namespace: team }
spec: { serviceAccountName: default, containers: [{ name: sandbox, image: none }] }
---
apiVersion: v1
kind: ServiceAccount
metadata: { name: runner, namespace: team }
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRole
metadata: { name: runner }
rules: [{ apiGroups: [authentication.k8s.io], resources: [tokenreviews], verbs: [create] }]
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata: { name: runner }
roleRef: { apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: runner }
subjects: [{ kind: ServiceAccount, name: runner, namespace: team }]
";

fn token(server: &Server, arguments: &[&str]) -> String {
    let all: Vec<&str> = ["create", "token", "-n", "team"].into_iter().chain(arguments.iter().copied()).collect();
    server.done(&all, None).trim().to_owned()
}

/// The reviews, asked with this token.
fn reviews(server: &Server, token: &str) -> ApiServerReviews {
    let mut config = Config::new(server.url().parse().unwrap());
    config.accept_invalid_certs = true;
    config.auth_info.token = Some(token.to_owned().into());
    ApiServerReviews::of(Client::try_from(config).unwrap())
}

#[tokio::test]
async fn a_token_names_its_pod_on_a_real_api_server() {
    let Some(server) = Server::start() else { return };
    server.done(&["apply", "-f", "-"], Some(OBJECTS));
    let uid = server.done(&["get", "pod", "agent-1", "-n", "team", "-o", "jsonpath={.metadata.uid}"], None);
    let of_pod = |pod| {
        let name = format!("--bound-object-name={pod}");
        token(&server, &["default", "--audience=ash-runner", "--bound-object-kind=Pod", &name])
    };
    // With the one right that a runner has.
    let own = token(&server, &["runner"]);
    let reviews = reviews(&server, &own);
    let pod = of_pod("agent-1");
    let identity = PodIdentity { namespace: "team".into(), pod: "agent-1".into(), pod_uid: uid, node: "n1".into() };
    assert_eq!(reviews.review(&pod).await, Ok(identity));

    let unbound = token(&server, &["default", "--audience=ash-runner"]);
    let for_the_server = token(&server, &["default", "--bound-object-kind=Pod", "--bound-object-name=agent-1"]);
    let (head, _) = pod.rsplit_once('.').unwrap();
    let forged = format!("{head}.{}", "A".repeat(342));
    for wrong in [&unbound, &for_the_server, &forged, &of_pod("nowhere"), "nonsense", ""] {
        let refused = reviews.review(wrong).await;
        assert!(matches!(refused, Err(ReviewError::Refused(_))), "{refused:?}");
    }
    // A pod that is gone takes its tokens with it, as soon as the API server's caches have noticed.
    let gone = server.kubectl(&["delete", "pod", "agent-1", "-n", "team", "--grace-period=0", "--force"], None);
    assert!(gone.status.success());
    let deadline = Instant::now() + NOTICED;
    while !matches!(reviews.review(&pod).await, Err(ReviewError::Refused(_))) {
        assert!(Instant::now() < deadline, "the token outlives its pod");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    drop(server);
    let error = reviews.review(&pod).await.unwrap_err();
    assert!(matches!(error, ReviewError::Unavailable(_)) && !error.to_string().contains(head), "{error}");
}
