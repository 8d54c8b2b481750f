//! Runners and coordinators.

use std::time::Duration;

use ash_core::{
    id::TenantId,
    ports::{Load, StoreError, StoreTime},
};
use uuid::Uuid;

use super::{Database, joined, new_runner, older, row, runner};
use crate::contract::fixtures::{agent, deployment, tenant};

pub async fn a_runner_registers_lives_and_leaves<D: Database>() {
    let database = D::fresh().await;
    let store = database.store().await;
    let id = runner("one");
    assert!(!store.runner_lives(&id, Load::default()).await.unwrap());
    store.register_runner(new_runner(&id, 8)).await.unwrap();
    let registered = row(&*store, &id).await.unwrap();
    assert_eq!((registered.capacity, registered.used, registered.ready, registered.cordoned), (8, 0, false, false));
    assert_eq!((&*registered.address, &*registered.pool, &*registered.node), ("http://127.0.0.1:1", "default", "node"));
    let load = Load { running: 3, max_capacity: 8, ..Load::default() };
    assert!(store.runner_lives(&id, load).await.unwrap());
    let living = row(&*store, &id).await.unwrap();
    assert_eq!((living.load, living.ready, living.version), (load, true, registered.version));
    assert!(living.silent < Duration::from_secs(10), "{:?}", living.silent);
    // The same life says the same again: it stays ready, and what it said stays.
    store.register_runner(new_runner(&id, 9)).await.unwrap();
    let again = row(&*store, &id).await.unwrap();
    assert_eq!((again.ready, again.load, again.capacity), (true, load, 9));
    assert!(again.version > living.version, "its capacity may be less");
    assert!(store.remove_runner(&id, None).await.unwrap());
    assert!(!store.remove_runner(&id, None).await.unwrap());
    assert!(store.runners().await.unwrap().is_empty());
}

pub async fn a_new_life_takes_over_and_the_old_one_is_refused<D: Database>() {
    let database = D::fresh().await;
    let store = database.store().await;
    let old = joined(&*store, "one", 8).await;
    let new = runner("one");
    store.register_runner(new_runner(&new, 4)).await.unwrap();
    assert!(!store.runner_lives(&old, Load::default()).await.unwrap());
    assert!(!store.remove_runner(&old, None).await.unwrap());
    assert!(!row(&*store, &new).await.unwrap().ready, "it did not say yet that it lives");
    let refused = store.register_runner(new_runner(&old, 8)).await;
    assert!(matches!(&refused, Err(StoreError::Conflict(why)) if why.contains("one")), "{refused:?}");
    assert!(store.runner_lives(&new, Load::default()).await.unwrap());
    assert_eq!(store.runners().await.unwrap().len(), 1);
}

pub async fn only_a_silent_runner_is_lost<D: Database>() {
    let database = D::fresh().await;
    let store = database.store().await;
    let (quiet, heard) = (joined(&*store, "quiet", 8).await, joined(&*store, "heard", 8).await);
    database.execute(&older("runners", "heard_at", Duration::from_secs(16))).await;
    assert!(row(&*store, &quiet).await.unwrap().silent >= Duration::from_secs(16));
    assert!(store.runner_lives(&heard, Load::default()).await.unwrap());
    let silence = Some(Duration::from_secs(15));
    assert!(!store.remove_runner(&heard, silence).await.unwrap(), "it was heard meanwhile");
    assert!(store.remove_runner(&quiet, silence).await.unwrap());
    assert!(!store.runner_lives(&quiet, Load::default()).await.unwrap());
}

pub async fn nobody_is_lost_while_a_coordinator_may_have_heard_it<D: Database>() {
    let database = D::fresh().await;
    let store = database.store().await;
    let quiet = joined(&*store, "quiet", 8).await;
    let (own, other) = (Uuid::new_v4(), Uuid::new_v4());
    store.coordinator_lives(other).await.unwrap();
    database.execute(&older("runners", "heard_at", Duration::from_secs(200))).await;
    database.execute(&older("coordinators", "seen_at", Duration::from_secs(10))).await;
    store.coordinator_lives(own).await.unwrap();
    let silence = Some(Duration::from_secs(15));
    assert!(!store.remove_runner(&quiet, silence).await.unwrap());
    database.execute(&older("coordinators", "seen_at", Duration::from_secs(66))).await;
    store.coordinator_lives(own).await.unwrap();
    assert!(store.remove_runner(&quiet, silence).await.unwrap(), "the other answers nobody any more");
}

pub async fn an_announced_restart_is_no_loss<D: Database>() {
    let database = D::fresh().await;
    let store = database.store().await;
    let id = joined(&*store, "one", 8).await;
    assert!(store.runner_restarts(&id, Duration::from_secs(60)).await.unwrap());
    database.execute(&older("runners", "heard_at", Duration::from_secs(30))).await;
    let restarting = row(&*store, &id).await.unwrap();
    assert!(restarting.restarting.is_some_and(|left| left > Duration::from_secs(10)) && !restarting.ready);
    assert!(!store.remove_runner(&id, Some(Duration::from_secs(15))).await.unwrap());
    // A heartbeat from before comes after it: the restart stays announced, and nothing new goes there.
    assert!(store.runner_lives(&id, Load::default()).await.unwrap());
    let late = row(&*store, &id).await.unwrap();
    assert!(late.restarting.is_some_and(|left| left > Duration::from_secs(10)) && !late.ready, "{late:?}");
    database.execute(&older("runners", "restarting_until", Duration::from_secs(60))).await;
    assert_eq!(row(&*store, &id).await.unwrap().restarting, Some(Duration::ZERO));
    assert!(store.runner_lives(&id, Load::default()).await.unwrap());
    assert!(row(&*store, &id).await.unwrap().ready, "it did not restart after all");
    // Its successor is a runner like any other.
    let next = runner("one");
    store.register_runner(new_runner(&next, 8)).await.unwrap();
    assert_eq!(row(&*store, &next).await.unwrap().restarting, None);
    database.execute(&older("runners", "heard_at", Duration::from_secs(30))).await;
    assert!(store.remove_runner(&next, Some(Duration::from_secs(15))).await.unwrap());
}

pub async fn a_cordon_stays<D: Database>() {
    let database = D::fresh().await;
    let store = database.store().await;
    let id = joined(&*store, "one", 8).await;
    assert!(!store.cordon_runner(&runner("nobody").name, true).await.unwrap());
    assert!(store.cordon_runner(&id.name, true).await.unwrap());
    let next = runner("one");
    store.register_runner(new_runner(&next, 8)).await.unwrap();
    assert!(row(&*store, &next).await.unwrap().cordoned, "a restart does not lift it");
    assert!(store.cordon_runner(&id.name, false).await.unwrap());
    assert!(!row(&*store, &next).await.unwrap().cordoned);
}

pub async fn coordinators_see_each_other<D: Database>() {
    let database = D::fresh().await;
    let (one, two) = (database.store().await, database.beside().await);
    let (first, second) = (Uuid::from_u128(1), Uuid::from_u128(2));
    assert_eq!(one.coordinator_lives(first).await.unwrap().len(), 1);
    let both = two.coordinator_lives(second).await.unwrap();
    assert_eq!(both.iter().map(|row| row.id).collect::<Vec<_>>(), [first, second]);
    database.execute(&older("coordinators", "seen_at", Duration::from_secs(9))).await;
    let rows = one.coordinator_lives(first).await.unwrap();
    assert!(rows[0].silent < Duration::from_secs(5) && rows[1].silent >= Duration::from_secs(9), "{rows:?}");
    two.remove_coordinator(second).await.unwrap();
    assert_eq!(one.coordinator_lives(first).await.unwrap().len(), 1);
    // One that died long ago is forgotten.
    two.coordinator_lives(second).await.unwrap();
    database.execute(&older("coordinators", "seen_at", Duration::from_secs(3600))).await;
    one.coordinator_lives(first).await.unwrap();
    assert_eq!(one.coordinator_lives(first).await.unwrap().len(), 1);
}

pub async fn a_row_that_comes_late_says_when_it_was_begun<D: Database>() {
    let database = D::fresh().await;
    let store = database.store().await;
    let (id, silence) = (Uuid::new_v4(), Duration::from_secs(9));
    let now = store.store_time().await.unwrap();
    let begun = StoreTime(now.0 - u64::try_from(silence.as_millis()).unwrap());
    let late = store.coordinator_lived(id, begun).await.unwrap();
    assert!(late[0].silent >= silence, "{late:?}");
    assert!(store.coordinator_lived(id, now).await.unwrap()[0].silent < silence);
    let later = store.coordinator_lived(id, begun).await.unwrap();
    assert!(later[0].silent < silence, "what was begun before takes nothing back: {later:?}");
}

pub async fn current_versions_are_those_of_all_tenants<D: Database>() {
    let database = D::fresh().await;
    let store = database.store().await;
    let nothing = store.agents_stamp().await.unwrap();
    assert_eq!(nothing.count, 0);
    let of_a = agent(&*store, &tenant("a")).await;
    store.deploy_agent(deployment(&tenant("b"), "tester")).await.unwrap();
    let second = store.deploy_agent(deployment(&tenant("b"), "tester")).await.unwrap();
    let versions = store.current_versions().await.unwrap();
    assert_eq!(versions, [of_a.version, second.version]);
    let stamp = store.agents_stamp().await.unwrap();
    assert_eq!((stamp.count, stamp.updated_ms > 0), (2, true));
    assert!(store.delete_agent(&tenant("a"), "tester").await.unwrap());
    assert_ne!(store.agents_stamp().await.unwrap(), stamp);
    assert_eq!(store.current_versions().await.unwrap().len(), 1);
    assert_eq!(store.credentials(&TenantId::default_tenant()).await.unwrap(), []);
}
