//! Reviews by a real API server, with its own tokens and roles.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use ash_core::ports::{AccessError, AccessResource::*, AccessReviews as _, Verb::*, Who};
use ash_pods::access::KubernetesAccess;
use ash_test_kubernetes::Server;
use kube::{Client, Config};
use secrecy::SecretString;

/// Reviews, asked for as one of the API server's users.
fn reviews(server: &Server, user: &str) -> KubernetesAccess {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let mut config = Config::new(server.url().parse().unwrap());
    config.accept_invalid_certs = true;
    config.auth_info.token = Some(user.to_owned().into());
    KubernetesAccess::new(Client::try_from(config).unwrap())
}

fn token(server: &Server, arguments: &[&str]) -> SecretString {
    server.done(&[&["create", "token", "default"], arguments].concat(), None).trim().to_owned().into()
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_and_rights_are_the_clusters() {
    let Some(mut server) = Server::start() else { return };
    let rights = ["create", "clusterrole", "reviewer", "--verb=create", "--resource=tokenreviews,subjectaccessreviews"];
    server.done(&rights, None);
    server.done(&["create", "clusterrolebinding", "reviewer", "--clusterrole=reviewer", "--user=server"], None);
    server.done(&["create", "namespace", "team"], None);
    server.done(&["create", "serviceaccount", "default", "--namespace", "team"], None);
    let reviews_of = |user: &str| reviews(&server, user);
    let access = reviews_of("server");

    // Whose it is.
    let ours = token(&server, &["--namespace", "team", "--audience", "ash"]);
    let who = access.review(&ours).await.unwrap().unwrap();
    assert_eq!(who.service_account(), Some(("team", "default")));
    assert!(who.uid.is_some() && who.groups.contains(&"system:serviceaccounts:team".to_owned()), "{who:?}");
    assert!(who.extra.contains_key("authentication.kubernetes.io/credential-id"), "{who:?}");
    for other in [&["--namespace", "team"][..], &["--namespace", "team", "--audience", "ash-runner"]] {
        let reason = access.review(&token(&server, other)).await.unwrap().unwrap_err();
        assert!(!reason.is_empty(), "{other:?}");
    }
    // The API server's own users have tokens without an audience.
    assert!(access.review(&SecretString::from("admin")).await.unwrap().is_err());

    // What somebody may do: in a namespace, and in the whole cluster.
    let may = async |who: &Who, verb, resource, namespace| access.may(who, verb, resource, namespace).await.unwrap();
    assert!(!may(&who, Get, Sessions, Some("team")).await);
    let role = r#"{"apiVersion":"rbac.authorization.k8s.io/v1","kind":"List","items":[
        {"apiVersion":"rbac.authorization.k8s.io/v1","kind":"Role","metadata":{"name":"ash","namespace":"team"},
         "rules":[{"apiGroups":["ash.dev"],"resources":["sessions","credentials"],"verbs":["get"]}]},
        {"apiVersion":"rbac.authorization.k8s.io/v1","kind":"ClusterRole","metadata":{"name":"runners"},
         "rules":[{"apiGroups":["ash.dev"],"resources":["runners"],"verbs":["list"]}]}]}"#;
    server.done(&["apply", "-f", "-"], Some(role));
    server.done(&["create", "rolebinding", "ash", "-n", "team", "--role=ash", "--serviceaccount=team:default"], None);
    server.done(&["create", "clusterrolebinding", "r", "--clusterrole=runners", "--group=people"], None);
    assert!(may(&who, Get, Sessions, Some("team")).await && may(&who, Get, Credentials, Some("team")).await);
    assert!(!may(&who, Update, Sessions, Some("team")).await && !may(&who, Get, Sessions, Some("default")).await);
    let person = Who { user: "jane".to_owned(), uid: None, groups: vec!["people".to_owned()], extra: BTreeMap::new() };
    assert!(may(&person, List, Runners, None).await && !may(&person, Update, Runners, None).await);

    // An account that is gone has no valid token. The API server remembers one that it has seen for 10 s.
    let unseen = token(&server, &["--namespace", "team", "--audience", "ash"]);
    server.done(&["delete", "serviceaccount", "default", "--namespace", "team"], None);
    assert!(access.review(&unseen).await.unwrap().is_err());

    // Who may not ask says so, and how that is mended; nobody there is another error.
    let error = reviews_of("person").review(&ours).await.unwrap_err();
    assert!(matches!(error, AccessError::Forbidden(_)) && error.to_string().contains("tokenreviews"), "{error}");
    let error = reviews_of("person").may(&who, Get, Sessions, None).await.unwrap_err();
    assert!(matches!(error, AccessError::Forbidden(_)), "{error}");
    server.stop_api_server();
    assert!(matches!(access.review(&ours).await, Err(AccessError::Unavailable(_))));
    assert!(matches!(access.may(&who, Get, Sessions, None).await, Err(AccessError::Unavailable(_))));
}
