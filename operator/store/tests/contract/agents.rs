//! Agents, versions and bundles.

use std::collections::HashSet;

use ash_core::{
    agent::{AgentSettings, NetworkPolicy},
    id::AgentId,
    ports::{DeployAgent, StoreError},
};
use bytes::Bytes;

use super::{
    Database,
    fixtures::{agent, deployment, new_session, noise, tenant},
};

pub async fn deploying_makes_an_agent_and_its_versions<D: Database>() {
    let database = D::fresh().await;
    let store = database.store();
    let a = tenant("a");
    let settings = AgentSettings {
        system_prompt: Some("be kind".to_owned()),
        env: [("K".to_owned(), "v".to_owned())].into(),
        network: NetworkPolicy::Allowlist { hosts: vec!["example.com".to_owned()] },
        ..AgentSettings::default()
    };
    let first = store
        .deploy_agent(DeployAgent {
            settings: settings.clone(),
            description: Some("d".into()),
            ..deployment(&a, "one")
        })
        .await
        .unwrap();
    assert_eq!((first.version.number, &first.version.settings), (1, &settings));
    assert_eq!(store.agent(&a, "one").await.unwrap().as_ref(), Some(&first));
    let second = store.deploy_agent(deployment(&a, "one")).await.unwrap();
    assert_eq!((second.id, second.version.number), (first.id, 2));
    assert_eq!((second.description.as_deref(), second.created_at), (Some("d"), first.created_at));
    assert_eq!(store.agent(&a, "one").await.unwrap(), Some(second.clone()));
    assert_eq!(store.agent_version(&a, first.id, 1).await.unwrap(), Some(first.version.clone()));
    assert_eq!(store.agent_version(&a, first.id, 2).await.unwrap(), Some(second.version.clone()));
    assert_eq!(store.agent_version(&a, first.id, 3).await.unwrap(), None);
    assert_eq!(store.agent_version(&a, AgentId::new(), 1).await.unwrap(), None);
    let other = store.deploy_agent(deployment(&a, "another")).await.unwrap();
    assert_eq!(store.agents(&a).await.unwrap(), [other, second]);
}

pub async fn an_agent_is_found_by_name_and_slug<D: Database>() {
    let database = D::fresh().await;
    let store = database.store();
    let a = tenant("a");
    let with_slug = |slug: &str| DeployAgent { slug: Some(slug.to_owned()), ..deployment(&a, "one") };
    let first = store.deploy_agent(with_slug("short")).await.unwrap();
    assert_eq!(store.agent(&a, "short").await.unwrap(), Some(first));
    let kept = store.deploy_agent(deployment(&a, "one")).await.unwrap();
    assert_eq!(kept.slug.as_deref(), Some("short"));
    assert_eq!(store.agent(&a, "short").await.unwrap(), Some(kept));
    let changed = store.deploy_agent(with_slug("shorter")).await.unwrap();
    assert_eq!(store.agent(&a, "shorter").await.unwrap(), Some(changed.clone()));
    assert_eq!(store.agent(&a, "short").await.unwrap(), None);
    let same = store.deploy_agent(with_slug("one")).await.unwrap();
    assert_eq!(store.agent(&a, "one").await.unwrap(), Some(same));
}

pub async fn a_taken_slug_or_name_is_a_conflict<D: Database>() {
    let database = D::fresh().await;
    let store = database.store();
    let a = tenant("a");
    let one =
        store.deploy_agent(DeployAgent { slug: Some("short".to_owned()), ..deployment(&a, "one") }).await.unwrap();
    for slug in ["one", "short"] {
        let taken = DeployAgent { slug: Some(slug.to_owned()), ..deployment(&a, "two") };
        assert!(matches!(store.deploy_agent(taken).await, Err(StoreError::Conflict(_))), "{slug}");
    }
    assert!(matches!(store.deploy_agent(deployment(&a, "short")).await, Err(StoreError::Conflict(_))));
    assert_eq!(store.agents(&a).await.unwrap(), [one], "a refused deployment leaves nothing");
    let elsewhere = DeployAgent { slug: Some("short".to_owned()), ..deployment(&tenant("b"), "one") };
    store.deploy_agent(elsewhere).await.unwrap();
}

pub async fn a_deleted_agent_is_gone_and_its_versions_stay<D: Database>() {
    let database = D::fresh().await;
    let store = database.store();
    let a = tenant("a");
    let old = agent(&*store, &a).await;
    let (session, _) = store.create_session(new_session(&old)).await.unwrap();
    assert!(!store.delete_agent(&tenant("b"), "tester").await.unwrap());
    assert!(store.delete_agent(&a, "tester").await.unwrap());
    assert!(!store.delete_agent(&a, "tester").await.unwrap());
    assert_eq!(store.agent(&a, "tester").await.unwrap(), None);
    assert_eq!(store.agents(&a).await.unwrap(), []);
    assert!(matches!(store.create_session(new_session(&old)).await, Err(StoreError::NotFound(_))));
    let version = store.agent_version(&a, session.agent, session.agent_version).await.unwrap().unwrap();
    assert_eq!(version, old.version);
    assert!(store.bundle(&a, &version.digest).await.unwrap().is_some());
    let new = store.deploy_agent(deployment(&a, "tester")).await.unwrap();
    assert_ne!(new.id, old.id);
    assert_eq!(new.version.number, 1);
    assert_eq!(store.agent(&a, "tester").await.unwrap(), Some(new));
}

pub async fn a_bundle_is_stored_once_and_comes_back_whole<D: Database>() {
    let mut database = D::fresh().await;
    let store = database.store();
    let a = tenant("a");
    // Longer than any chunk, and no multiple of one.
    let bytes = Bytes::from(noise(1, 3_500_001));
    let digest = "1b".repeat(32);
    let large = DeployAgent { digest: digest.clone(), bundle: bytes.clone(), ..deployment(&a, "one") };
    store.deploy_agent(large.clone()).await.unwrap();
    assert_eq!(store.bundle(&a, &digest).await.unwrap(), Some(bytes.clone()));
    let again = DeployAgent { bundle: Bytes::from_static(b"packed otherwise"), ..large };
    store.deploy_agent(again).await.unwrap();
    assert_eq!(store.bundle(&a, &digest).await.unwrap(), Some(bytes.clone()), "the first upload stays");
    assert_eq!(store.bundle(&tenant("b"), &digest).await.unwrap(), None);
    assert_eq!(store.bundle(&a, "ff").await.unwrap(), None);
    let empty = DeployAgent { digest: "2c".repeat(32), bundle: Bytes::new(), ..deployment(&a, "empty") };
    store.deploy_agent(empty).await.unwrap();
    assert_eq!(store.bundle(&a, &"2c".repeat(32)).await.unwrap(), Some(Bytes::new()));
    drop(store);
    database.reopen().await;
    assert_eq!(database.store().bundle(&a, &digest).await.unwrap(), Some(bytes));
}

pub async fn tenants_do_not_see_each_others_agents<D: Database>() {
    let database = D::fresh().await;
    let store = database.store();
    let (a, b) = (tenant("a"), tenant("b"));
    let of_a = agent(&*store, &a).await;
    assert_eq!(store.agent(&b, "tester").await.unwrap(), None);
    assert_eq!(store.agents(&b).await.unwrap(), []);
    assert_eq!(store.agent_version(&b, of_a.id, 1).await.unwrap(), None);
    let of_b = agent(&*store, &b).await;
    assert_ne!(of_a.id, of_b.id);
    assert!(store.delete_agent(&b, "tester").await.unwrap());
    assert_eq!(store.agent(&a, "tester").await.unwrap(), Some(of_a.clone()));
    let mut stolen = new_session(&of_a);
    stolen.tenant = b;
    assert!(store.create_session(stolen).await.is_err());
}

pub async fn the_same_agent_deployed_at_once_gets_a_version_each<D: Database>() {
    let database = D::fresh().await;
    let store = database.store();
    let a = tenant("a");
    let tasks: Vec<_> = (0..20)
        .map(|_| {
            let (store, deploy) = (database.store(), deployment(&a, "one"));
            tokio::spawn(async move { store.deploy_agent(deploy).await.unwrap().version.number })
        })
        .collect();
    let mut numbers = HashSet::new();
    for task in tasks {
        numbers.insert(task.await.unwrap());
    }
    assert_eq!(numbers, (1..=20).collect());
    assert_eq!(store.agent(&a, "one").await.unwrap().unwrap().version.number, 20);
    assert_eq!(store.bundle(&a, &"0a".repeat(32)).await.unwrap(), Some(Bytes::from_static(b"a bundle")));
}

pub async fn an_agent_is_described_without_a_version<D: Database>() {
    let database = D::fresh().await;
    let store = database.store();
    let a = tenant("a");
    let one = store.deploy_agent(deployment(&a, "one")).await.unwrap();
    let describe = async |slug: Option<&str>, description: Option<&str>| {
        store.describe_agent(&a, &one.name, slug.map(Into::into), description.map(Into::into)).await
    };
    assert!(store.agent(&a, "one").await.unwrap().is_some(), "it is cached");
    let described = describe(Some("short"), Some("The first.")).await.unwrap();
    assert_eq!(described.version, one.version, "no version");
    assert_eq!((described.slug.as_deref(), described.description.as_deref()), (Some("short"), Some("The first.")));
    assert_eq!(store.agent(&a, "one").await.unwrap(), Some(described.clone()));
    assert_eq!(store.agent(&a, "short").await.unwrap(), Some(described));
    let other = describe(Some("shorter"), None).await.unwrap();
    assert_eq!(other.description.as_deref(), Some("The first."), "what is not said stays");
    assert_eq!(store.agent(&a, "short").await.unwrap(), None, "the old slug is free");
    assert_eq!(store.agent(&a, "shorter").await.unwrap(), Some(other.clone()));
    store.deploy_agent(deployment(&a, "two")).await.unwrap();
    assert!(matches!(describe(Some("two"), None).await, Err(StoreError::Conflict(_))));
    assert_eq!(store.agent(&a, "one").await.unwrap(), Some(other), "a slug that is taken changes nothing");
    let nobody = "nobody".parse().unwrap();
    assert!(matches!(store.describe_agent(&a, &nobody, None, None).await, Err(StoreError::NotFound(_))));
}
