//! Sandbox pods.

use std::{collections::HashSet, sync::Arc, time::Duration};

use ash_core::{
    agent::Agent,
    fleet::RunnerId,
    id::{SandboxId, SessionId},
    ports::{FleetStore, OpenEpoch, PodIdentity, PodSandbox, PodState, StoreError},
};
use jiff::Timestamp;

use super::{Database, joined, new_runner, older, row, runner};
use crate::contract::fixtures::{agent, new_session, opening_of, tenant};

pub fn pod(agent: &Agent, session: Option<SessionId>) -> PodSandbox {
    let id = SandboxId::new();
    PodSandbox {
        id,
        tenant: agent.tenant.clone(),
        pod: format!("tester-{}", &id.0.simple().to_string()[22..]),
        pod_uid: None,
        agent: agent.id,
        agent_version: agent.version.number,
        pool: "default".to_owned(),
        session,
        state: PodState::Starting,
        runner: None,
        node: None,
        created_at: Timestamp::UNIX_EPOCH,
        changed_at: Timestamp::UNIX_EPOCH,
    }
}

pub fn identity(pod: &PodSandbox) -> PodIdentity {
    PodIdentity {
        namespace: pod.tenant.0.clone(),
        pod: pod.pod.clone(),
        pod_uid: format!("uid of {}", pod.pod),
        node: "node".to_owned(),
    }
}

async fn warm(store: &dyn FleetStore, agent: &Agent, runner: &RunnerId) -> PodSandbox {
    let pod = pod(agent, None);
    store.add_pod(pod.clone()).await.unwrap();
    let admitted = store.admit_pod(&identity(&pod), runner).await.unwrap().unwrap();
    assert!(store.pod_is_warm(pod.id).await.unwrap());
    admitted
}

async fn claim(store: &dyn FleetStore, agent: &Agent, session: SessionId) -> Option<PodSandbox> {
    store.claim_warm(&agent.tenant, agent.id, agent.version.number, session).await.unwrap()
}

pub async fn an_agent_keeps_how_long_its_sessions_may_be_idle<D: Database>() {
    let database = D::fresh().await;
    let store = database.store().await;
    let agent = agent(&*store, &tenant("a")).await;
    let kept = async || store.idle_timeout(&agent.tenant, agent.id).await.unwrap();
    assert_eq!(kept().await, None);
    for seconds in [900, 900, 10] {
        let timeout = Duration::from_secs(seconds);
        store.set_idle_timeout(&agent.tenant, agent.id, timeout).await.unwrap();
        assert_eq!(kept().await, Some(timeout));
    }
    assert_eq!(store.idle_timeout(&tenant("b"), agent.id).await.unwrap(), None, "another tenant's");
    let again = store.deploy_agent(crate::contract::fixtures::deployment(&agent.tenant, "tester")).await.unwrap();
    assert_eq!((again.id, kept().await), (agent.id, Some(Duration::from_secs(10))), "a new version changes nothing");
}

pub async fn a_pod_is_admitted_warmed_claimed_and_deleted<D: Database>() {
    let database = D::fresh().await;
    let store = database.store().await;
    let one = joined(&*store, "one", 8).await;
    let agent = agent(&*store, &tenant("a")).await;
    let pod = pod(&agent, None);
    store.add_pod(pod.clone()).await.unwrap();
    assert!(matches!(store.add_pod(pod.clone()).await, Err(StoreError::Conflict(_))));
    let session = SessionId::new();
    assert_eq!(claim(&*store, &agent, session).await, None, "it is not warm");
    let admitted = store.admit_pod(&identity(&pod), &one).await.unwrap().unwrap();
    assert_eq!((admitted.id, admitted.state), (pod.id, PodState::Starting));
    assert_eq!((admitted.runner.as_ref(), admitted.node.as_deref()), (Some(&one), Some("node")));
    assert_eq!(admitted.pod_uid, Some(identity(&pod).pod_uid));
    assert!(store.pod_is_warm(pod.id).await.unwrap() && store.pod_is_warm(pod.id).await.unwrap());
    let claimed = claim(&*store, &agent, session).await.unwrap();
    assert_eq!((claimed.id, claimed.session, claimed.state), (pod.id, Some(session), PodState::Claimed));
    assert_eq!(claimed.runner, Some(one.clone()));
    assert_eq!(claim(&*store, &agent, SessionId::new()).await, None);
    assert_eq!(claim(&*store, &agent, session).await, Some(claimed.clone()), "it has one already");
    assert_eq!(store.pod_of(session).await.unwrap(), Some(claimed.clone()));
    assert!(!store.pod_is_warm(pod.id).await.unwrap() && !store.delete_unclaimed_pod(pod.id).await.unwrap());
    assert_eq!(store.pods(Some(&tenant("a"))).await.unwrap(), [claimed]);
    assert_eq!(store.pods(Some(&tenant("b"))).await.unwrap(), []);
    assert!(store.delete_pod(pod.id).await.unwrap() && !store.delete_pod(pod.id).await.unwrap());
    assert_eq!(store.pod_of(session).await.unwrap(), None);
    assert_eq!(store.admit_pod(&identity(&pod), &one).await.unwrap(), None, "it goes away");
    let next = warm(&*store, &agent, &one).await;
    assert_eq!(claim(&*store, &agent, session).await.unwrap().id, next.id, "the session gets another");
    store.remove_pod(pod.id).await.unwrap();
    assert_eq!(store.pods(None).await.unwrap().len(), 1);
}

pub async fn a_pod_made_for_a_session_is_its_own<D: Database>() {
    let database = D::fresh().await;
    let store = database.store().await;
    let one = joined(&*store, "one", 8).await;
    let agent = agent(&*store, &tenant("a")).await;
    let session = SessionId::new();
    let own = pod(&agent, Some(session));
    store.add_pod(own.clone()).await.unwrap();
    assert!(matches!(store.add_pod(pod(&agent, Some(session))).await, Err(StoreError::Conflict(_))));
    assert!(!store.delete_unclaimed_pod(own.id).await.unwrap());
    // A warm one that appears meanwhile is not taken beside it.
    warm(&*store, &agent, &one).await;
    assert_eq!(claim(&*store, &agent, session).await.unwrap().id, own.id);
    let admitted = store.admit_pod(&identity(&own), &one).await.unwrap().unwrap();
    assert_eq!((admitted.session, admitted.state), (Some(session), PodState::Claimed));
    assert!(!store.pod_is_warm(own.id).await.unwrap());
}

pub async fn a_pod_counts_once_from_its_admission_to_its_end<D: Database>() {
    let database = D::fresh().await;
    let store = database.store().await;
    let one = joined(&*store, "one", 8).await;
    let agent = agent(&*store, &tenant("a")).await;
    let (session, _) = store.create_session(new_session(&agent)).await.unwrap();
    let used = async || row(&*store, &one).await.unwrap().used;
    let pod = pod(&agent, Some(session.id));
    store.add_pod(pod.clone()).await.unwrap();
    assert_eq!(used().await, 0, "nobody knows on which node it will be");
    store.admit_pod(&identity(&pod), &one).await.unwrap().unwrap();
    assert_eq!(used().await, 1, "its Claude Code starts");
    let open = OpenEpoch { sandbox: Some(pod.id), ..opening_of(&session) };
    store.open_epoch_on(open, &one.name).await.unwrap();
    assert_eq!(used().await, 1);
}

pub async fn another_pod_node_or_old_runner_is_not_admitted<D: Database>() {
    let database = D::fresh().await;
    let store = database.store().await;
    let one = joined(&*store, "one", 8).await;
    let agent = agent(&*store, &tenant("a")).await;
    let pod = pod(&agent, None);
    let admit = async |identity: PodIdentity, by: &RunnerId| store.admit_pod(&identity, by).await.unwrap().is_some();
    // The pod may be fine: it dials again.
    let waits = async |by: &RunnerId| matches!(store.admit_pod(&identity(&pod), by).await, Err(StoreError::Unavailable(why)) if why.contains("registers"));
    assert!(!admit(identity(&pod), &one).await, "it has no row");
    store.add_pod(pod.clone()).await.unwrap();
    assert!(!admit(PodIdentity { namespace: "b".to_owned(), ..identity(&pod) }, &one).await);
    assert!(waits(&runner("stranger")).await, "a runner that is not registered");
    assert!(admit(identity(&pod), &one).await && admit(identity(&pod), &one).await);
    assert!(!admit(PodIdentity { pod_uid: "another".to_owned(), ..identity(&pod) }, &one).await);
    assert!(!admit(PodIdentity { node: "another".to_owned(), ..identity(&pod) }, &one).await);
    // A later life of the node's runner takes over, and the one before cannot take it back.
    let next = runner("one");
    store.register_runner(new_runner(&next, 8)).await.unwrap();
    assert!(waits(&one).await);
    assert!(admit(identity(&pod), &next).await);
    assert_eq!(store.pods(None).await.unwrap()[0].runner, Some(next));
}

pub async fn warm_ones_of_runners_that_cannot_be_used_are_not_claimed<D: Database>() {
    let database = D::fresh().await;
    let store = database.store().await;
    let agent = agent(&*store, &tenant("a")).await;
    let (cordoned, usable) = (joined(&*store, "cordoned", 8).await, joined(&*store, "usable", 8).await);
    warm(&*store, &agent, &cordoned).await;
    store.cordon_runner(&cordoned.name, true).await.unwrap();
    assert_eq!(claim(&*store, &agent, SessionId::new()).await, None);
    let good = warm(&*store, &agent, &usable).await;
    assert!(store.claim_warm(&agent.tenant, agent.id, 9, SessionId::new()).await.unwrap().is_none(), "another version");
    assert_eq!(claim(&*store, &agent, SessionId::new()).await.unwrap().id, good.id);
    warm(&*store, &agent, &usable).await;
    database.execute(&older("runners", "heard_at", Duration::from_secs(20))).await;
    assert_eq!(claim(&*store, &agent, SessionId::new()).await, None, "its runner is silent");
}

pub async fn a_hundred_claimants_share_thirty<D: Database>() {
    let database = D::fresh().await;
    let (store, beside) = (database.store().await, database.beside().await);
    let agent = Arc::new(agent(&*store, &tenant("a")).await);
    for name in ["one", "two", "three"] {
        let id = joined(&*store, name, 64).await;
        for _ in 0..10 {
            warm(&*store, &agent, &id).await;
        }
    }
    let tasks: Vec<_> = (0..100)
        .map(|number| {
            let (store, agent) = (Arc::clone(if number % 2 == 0 { &store } else { &beside }), Arc::clone(&agent));
            tokio::spawn(async move { claim(&*store, &agent, SessionId::new()).await })
        })
        .collect();
    let (mut claimed, mut refused) = (HashSet::new(), 0);
    for task in tasks {
        match task.await.unwrap() {
            Some(pod) => assert!(claimed.insert(pod.id), "{} was claimed twice", pod.id),
            None => refused += 1,
        }
    }
    assert_eq!((claimed.len(), refused), (30, 70));
}

pub async fn deleting_and_claiming_race_for_one<D: Database>() {
    let database = D::fresh().await;
    let (store, beside) = (database.store().await, database.beside().await);
    let one = joined(&*store, "one", 8).await;
    let agent = agent(&*store, &tenant("a")).await;
    for _ in 0..20 {
        let pod = warm(&*store, &agent, &one).await;
        let session = SessionId::new();
        let (claimed, deleted) =
            tokio::join!(claim(&*store, &agent, session), async { beside.delete_unclaimed_pod(pod.id).await.unwrap() });
        assert_ne!(claimed.is_some(), deleted, "one of both");
        store.remove_pod(pod.id).await.unwrap();
    }
}
