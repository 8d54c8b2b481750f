//! Sessions.

use std::collections::HashSet;

use ash_core::{
    Epoch, Sequence,
    id::{AgentId, SandboxId, SessionId},
    opening::{Opening, OpeningReason},
    ports::{NewSession, OpenEpoch, SessionFilter, StoreError},
    session::{PausedReason, SessionState},
};

use super::{
    Database,
    fixtures::{agent, deployment, new_session, now, opening_of, tenant},
};

pub async fn a_session_comes_back_as_it_was_made<D: Database>() {
    let mut database = D::fresh().await;
    let store = database.store();
    let agent = agent(&*store, &tenant("a")).await;
    let mut new = new_session(&agent);
    new.metadata = [("team".to_owned(), "blue 'quoted' ünï".to_owned())].into();
    new.options.environment = [("A".to_owned(), "1".to_owned())].into();
    let (made, is_new) = store.create_session(new.clone()).await.unwrap();
    assert!(is_new);
    assert_eq!((made.id, &made.tenant, &made.agent_name), (new.id, &new.tenant, &new.agent_name));
    assert_eq!((&made.options, &made.metadata), (&new.options, &new.metadata));
    assert_eq!((made.epoch, made.last, made.sandbox), (Epoch::NONE, Sequence::START, None));
    assert_eq!(made.state, SessionState::Active);
    assert_eq!(now(&*store, &made).await, made);
    assert!(store.session_exists(made.id).await.unwrap());
    assert!(!store.session_exists(SessionId::new()).await.unwrap());
    assert_eq!(store.session(&tenant("a"), SessionId::new()).await.unwrap(), None);
    drop(store);
    database.reopen().await;
    assert_eq!(now(&*database.store(), &made).await, made);
}

pub async fn an_idempotency_key_finds_the_first_session<D: Database>() {
    let database = D::fresh().await;
    let store = database.store();
    let (of_a, of_b) = (agent(&*store, &tenant("a")).await, agent(&*store, &tenant("b")).await);
    let with_key = |new: NewSession| NewSession { idempotency_key: Some("key".to_owned()), ..new };
    assert_eq!(store.session_of_key(&tenant("a"), "key").await.unwrap(), None);
    let (first, _) = store.create_session(with_key(new_session(&of_a))).await.unwrap();
    assert_eq!(store.session_of_key(&tenant("a"), "key").await.unwrap().as_ref(), Some(&first));
    assert_eq!(store.session_of_key(&tenant("b"), "key").await.unwrap(), None);
    let (again, is_new) = store.create_session(with_key(new_session(&of_a))).await.unwrap();
    assert_eq!((&again, is_new), (&first, false));
    let (elsewhere, is_new) = store.create_session(with_key(new_session(&of_b))).await.unwrap();
    assert!(is_new);
    assert_ne!(elsewhere.id, first.id);
    let opened = store.open_epoch(opening_of(&first)).await.unwrap();
    store.delete_agent(&tenant("a"), "tester").await.unwrap();
    let (again, is_new) = store.create_session(with_key(new_session(&of_a))).await.unwrap();
    assert_eq!((again, is_new), (opened, false), "as it is now, also without its agent");
}

pub async fn the_same_idempotency_key_at_once_makes_one_session<D: Database>() {
    let database = D::fresh().await;
    let agent = agent(&*database.store(), &tenant("a")).await;
    let tasks: Vec<_> = (0..30)
        .map(|_| {
            let (store, mut new) = (database.store(), new_session(&agent));
            new.idempotency_key = Some("key".to_owned());
            tokio::spawn(async move { store.create_session(new).await.unwrap() })
        })
        .collect();
    let (mut ids, mut made) = (HashSet::new(), 0);
    for task in tasks {
        let (session, is_new) = task.await.unwrap();
        ids.insert(session.id);
        made += u32::from(is_new);
    }
    assert_eq!((ids.len(), made), (1, 1));
}

pub async fn a_session_needs_its_agent<D: Database>() {
    let database = D::fresh().await;
    let store = database.store();
    let agent = agent(&*store, &tenant("a")).await;
    let nobody = NewSession { agent: AgentId::new(), ..new_session(&agent) };
    assert!(matches!(store.create_session(nobody).await, Err(StoreError::NotFound(_))));
    let no_version = NewSession { agent_version: 9, ..new_session(&agent) };
    assert!(store.create_session(no_version).await.is_err());
}

pub async fn an_id_is_used_once<D: Database>() {
    let database = D::fresh().await;
    let store = database.store();
    let agent = agent(&*store, &tenant("a")).await;
    let new = new_session(&agent);
    let (made, _) = store.create_session(new.clone()).await.unwrap();
    assert!(matches!(store.create_session(new).await, Err(StoreError::Conflict(_))));
    assert_eq!(now(&*store, &made).await, made);
}

pub async fn listings_filter_and_page<D: Database>() {
    let database = D::fresh().await;
    let store = database.store();
    let a = tenant("a");
    let one = agent(&*store, &a).await;
    let two = store.deploy_agent(deployment(&a, "two")).await.unwrap();
    let mut made = Vec::new();
    for n in 0..7 {
        let mut new = new_session(if n % 2 == 0 { &one } else { &two });
        new.metadata = [("n".to_owned(), n.to_string()), ("all".to_owned(), "yes".to_owned())].into();
        made.push(store.create_session(new).await.unwrap().0);
    }
    let paused = OpenEpoch { state: SessionState::Paused(PausedReason::Idle), ..opening_of(&made[0]) };
    made[0] = store.open_epoch(paused).await.unwrap();
    let filter = |limit, offset| SessionFilter { limit, offset, ..SessionFilter::default() };
    let newest_first: Vec<_> = made.iter().rev().cloned().collect();
    let all = store.sessions(&a, &filter(100, 0)).await.unwrap();
    assert_eq!((&all.sessions, all.total), (&newest_first, 7));
    let page = store.sessions(&a, &filter(3, 5)).await.unwrap();
    assert_eq!((&page.sessions[..], page.total), (&newest_first[5..], 7));
    assert_eq!(store.sessions(&a, &filter(0, 0)).await.unwrap().sessions.len(), 1, "the least is one");
    let by = |filter: SessionFilter| {
        let (store, a) = (store.clone(), a.clone());
        async move { store.sessions(&a, &filter).await.unwrap().total }
    };
    assert_eq!(by(SessionFilter { agent: Some("two".to_owned()), ..filter(9, 0) }).await, 3);
    assert_eq!(by(SessionFilter { state: Some("paused".to_owned()), ..filter(9, 0) }).await, 1);
    assert_eq!(by(SessionFilter { state: Some("nonsense".to_owned()), ..filter(9, 0) }).await, 0);
    let metadata = |pairs: &[(&str, &str)]| SessionFilter {
        metadata: pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect(),
        ..filter(9, 0)
    };
    assert_eq!(by(metadata(&[("all", "yes")])).await, 7);
    assert_eq!(by(metadata(&[("all", "yes"), ("n", "3")])).await, 1);
    assert_eq!(by(metadata(&[("all", "no")])).await, 0);
}

pub async fn tenants_do_not_see_each_others_sessions<D: Database>() {
    let database = D::fresh().await;
    let store = database.store();
    let of_a = agent(&*store, &tenant("a")).await;
    let (session, _) = store.create_session(new_session(&of_a)).await.unwrap();
    assert_eq!(store.session(&tenant("b"), session.id).await.unwrap(), None);
    let filter = SessionFilter { limit: 10, ..SessionFilter::default() };
    assert_eq!(store.sessions(&tenant("b"), &filter).await.unwrap().total, 0);
    assert_eq!(now(&*store, &session).await, session);
}

pub async fn placed_and_active_sessions_are_counted_over_all_tenants<D: Database>() {
    let database = D::fresh().await;
    let store = database.store();
    let mut placed = Vec::new();
    for name in ["a", "b"] {
        let agent = agent(&*store, &tenant(name)).await;
        store.create_session(new_session(&agent)).await.unwrap();
        let (session, _) = store.create_session(new_session(&agent)).await.unwrap();
        placed.push(store.open_epoch(opening_of(&session)).await.unwrap());
    }
    assert_eq!(store.placed_sessions().await.unwrap(), placed);
    assert_eq!(store.count_active_sessions().await.unwrap(), 4);
    let left = OpenEpoch {
        session: placed[0].id,
        expected: placed[0].epoch,
        state: SessionState::Error,
        error: Some("it could not start".to_owned()),
        sandbox: None::<SandboxId>,
        opening: Opening {
            reason: OpeningReason::Failed,
            last_committed: placed[0].last,
            interrupted: None,
            message: None,
            recovered: None,
            sandbox: None,
        },
    };
    let failed = store.open_epoch(left).await.unwrap();
    assert_eq!((failed.state, failed.error.as_deref()), (SessionState::Error, Some("it could not start")));
    assert_eq!(now(&*store, &failed).await, failed);
    assert_eq!(store.placed_sessions().await.unwrap(), placed[1..]);
    assert_eq!(store.count_active_sessions().await.unwrap(), 3);
}

pub async fn hundreds_at_once_all_succeed<D: Database>() {
    let database = D::fresh().await;
    let agent = agent(&*database.store(), &tenant("a")).await;
    let tasks: Vec<_> = (0..400)
        .map(|_| {
            let (store, new) = (database.store(), new_session(&agent));
            tokio::spawn(async move { store.create_session(new).await.unwrap().0 })
        })
        .collect();
    for task in tasks {
        let session = task.await.unwrap();
        assert_eq!(now(&*database.store(), &session).await, session);
    }
    assert_eq!(database.store().count_active_sessions().await.unwrap(), 400);
}
