//! Which runner has which session.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use ash_core::{
    fleet::{RunnerId, RunnerName},
    id::SessionId,
    opening::{Opening, OpeningReason},
    placement::{Offer, Stage, Want, spread},
    ports::{FleetStore, OpenEpoch, Reserved, StoreError},
    session::{PausedReason, Session, SessionState},
};

use super::{Database, joined, older, row, runner};
use crate::contract::fixtures::{agent, new_session, now, opening_of, session, tenant};

async fn at(store: &dyn FleetStore, session: SessionId) -> Option<(RunnerName, Stage)> {
    store.routes(&[session]).await.unwrap().pop().unwrap().at
}

fn closing_of(session: &Session, state: SessionState) -> OpenEpoch {
    let opening = Opening {
        reason: OpeningReason::Lost,
        last_committed: session.last,
        interrupted: None,
        message: None,
        recovered: None,
        sandbox: None,
    };
    OpenEpoch { session: session.id, expected: session.epoch, state, error: None, sandbox: None, opening }
}

async fn reserve(store: &dyn FleetStore, session: SessionId, id: &RunnerId) -> Reserved {
    let version = row(store, id).await.unwrap().version;
    store.reserve(&[session], id, version).await.unwrap()
}

pub async fn a_place_is_reserved_once_and_given_back<D: Database>() {
    let database = D::fresh().await;
    let store = database.store().await;
    let (one, two) = (joined(&*store, "one", 8).await, joined(&*store, "two", 8).await);
    let (first, second) = (session(&*store).await.id, session(&*store).await.id);
    assert_eq!(at(&*store, first).await, None);
    let version = row(&*store, &one).await.unwrap().version;
    assert_eq!(store.reserve(&[first], &one, version).await.unwrap(), Reserved::Taken(vec![first]));
    assert_eq!(at(&*store, first).await, Some((one.name.clone(), Stage::Reserved)));
    assert_eq!(store.reserve(&[second], &one, version).await.unwrap(), Reserved::Stale, "the same offer is good once");
    assert_eq!(at(&*store, second).await, None);
    assert_eq!(row(&*store, &one).await.unwrap().used, 1);
    assert_eq!(reserve(&*store, first, &two).await, Reserved::Taken(vec![]), "it has a place");
    let version = row(&*store, &two).await.unwrap().version;
    let taken = store.reserve(&[first, second, SessionId::new()], &two, version).await.unwrap();
    assert_eq!(taken, Reserved::Taken(vec![second]));
    store.release(first).await.unwrap();
    assert_eq!(at(&*store, first).await, None, "it never had a sandbox, so that nothing of it is there");
    assert_eq!((row(&*store, &one).await.unwrap().used, row(&*store, &two).await.unwrap().used), (0, 1));
    store.cordon_runner(&two.name, true).await.unwrap();
    assert_eq!(reserve(&*store, first, &two).await, Reserved::Stale, "no new ones go there");
    let gone = runner("one");
    assert_eq!(store.reserve(&[first], &gone, 1).await.unwrap(), Reserved::Stale, "another life");
}

async fn place(store: &dyn FleetStore, session: SessionId) -> u32 {
    let mut rounds = 0;
    loop {
        rounds += 1;
        let rows = store.runners().await.unwrap();
        let offers: Vec<Offer> = rows
            .into_iter()
            .map(|row| Offer { runner: row.id, capacity: row.capacity, used: row.used, version: row.version })
            .collect();
        let offer = &offers[spread(&offers, &[Want::Free])[0].unwrap()];
        match store.reserve(&[session], &offer.runner, offer.version).await.unwrap() {
            Reserved::Taken(taken) => {
                assert_eq!(taken, [session]);
                return rounds;
            }
            Reserved::Stale => {}
        }
    }
}

pub async fn a_hundred_at_once_spread_evenly<D: Database>() {
    let database = D::fresh().await;
    let (store, beside) = (database.store().await, database.beside().await);
    for name in ["one", "two", "three"] {
        joined(&*store, name, 64).await;
    }
    let agent = agent(&*store, &tenant("a")).await;
    let mut tasks = Vec::new();
    for number in 0..100 {
        let id = store.create_session(new_session(&agent)).await.unwrap().0.id;
        let store = Arc::clone(if number % 2 == 0 { &store } else { &beside });
        tasks.push(tokio::spawn(async move { place(&*store, id).await }));
    }
    let mut rounds = 0;
    for task in tasks {
        rounds += task.await.unwrap();
    }
    let used: BTreeMap<String, u32> =
        store.runners().await.unwrap().into_iter().map(|row| (row.id.name.to_string(), row.used)).collect();
    let mut counts: Vec<u32> = used.into_values().collect();
    counts.sort_unstable();
    assert_eq!(counts, [33, 33, 34], "after {rounds} decisions");
}

pub async fn a_session_is_opened_by_its_runner_only<D: Database>() {
    let database = D::fresh().await;
    let store = database.store().await;
    let (one, two) = (joined(&*store, "one", 8).await, joined(&*store, "two", 8).await);
    let new = session(&*store).await;
    assert_eq!(reserve(&*store, new.id, &one).await, Reserved::Taken(vec![new.id]));
    let refused = store.open_epoch_on(opening_of(&new), &two.name).await;
    assert!(matches!(refused, Err(StoreError::Overtaken { .. })), "{refused:?}");
    let live = store.open_epoch_on(opening_of(&new), &one.name).await.unwrap();
    let route = store.routes(&[new.id]).await.unwrap().pop().unwrap();
    assert_eq!(route.at, Some((one.name.clone(), Stage::Live)));
    assert_eq!((route.epoch, route.last, route.sandbox), (live.epoch, live.last, live.sandbox));
    assert_eq!(
        (row(&*store, &one).await.unwrap().used, store.sessions_on(&one.name).await.unwrap()),
        (1, vec![live.clone()])
    );
    let refused = store.open_epoch_on(opening_of(&live), &two.name).await;
    assert!(matches!(refused, Err(StoreError::Overtaken { .. })), "{refused:?}");
    // Asleep, its files are where they were; another may have it then.
    let asleep =
        store.open_epoch_on(closing_of(&live, SessionState::Paused(PausedReason::Idle)), &one.name).await.unwrap();
    assert_eq!(at(&*store, new.id).await, Some((one.name.clone(), Stage::Home)));
    assert_eq!(row(&*store, &one).await.unwrap().used, 0);
    assert_eq!(reserve(&*store, new.id, &two).await, Reserved::Taken(vec![new.id]));
    store.release(new.id).await.unwrap();
    let moved = store.open_epoch_on(opening_of(&asleep), &two.name).await.unwrap();
    assert_eq!(at(&*store, new.id).await, Some((two.name.clone(), Stage::Live)));
    let ended = store.open_epoch(closing_of(&moved, SessionState::Ended)).await.unwrap();
    assert_eq!(at(&*store, new.id).await, None);
    assert_eq!(reserve(&*store, new.id, &one).await, Reserved::Taken(vec![]), "it has ended");
    assert_eq!(now(&*store, &ended).await, ended);
}

pub async fn the_sessions_of_a_gone_runner_are_abandoned_and_adopted<D: Database>() {
    let database = D::fresh().await;
    let store = database.store().await;
    let (one, two) = (joined(&*store, "one", 8).await, joined(&*store, "two", 8).await);
    let mut on_one = Vec::new();
    for _ in 0..2 {
        let new = session(&*store).await;
        on_one.push(store.open_epoch_on(opening_of(&new), &one.name).await.unwrap());
    }
    let new = session(&*store).await;
    let on_two = store.open_epoch_on(opening_of(&new), &two.name).await.unwrap();
    // One that an earlier release placed names no runner.
    let nobodys = store.open_epoch(opening_of(&session(&*store).await)).await.unwrap();
    assert_eq!(store.abandoned_sessions().await.unwrap(), std::slice::from_ref(&nobodys));
    let sandboxes = [on_one[0].sandbox.unwrap(), on_two.sandbox.unwrap(), nobodys.sandbox.unwrap()];
    let adopted = store.adopt(&one.name, &sandboxes).await.unwrap();
    assert_eq!(adopted, [on_one[0].clone(), on_one[1].clone(), nobodys.clone()], "not the other runner's");
    assert!(store.abandoned_sessions().await.unwrap().is_empty());
    assert!(store.remove_runner(&one, None).await.unwrap());
    let abandoned = store.abandoned_sessions().await.unwrap();
    assert_eq!(abandoned, adopted);
    for row in &abandoned {
        store.open_epoch(closing_of(row, SessionState::Paused(PausedReason::Lost))).await.unwrap();
    }
    assert!(store.abandoned_sessions().await.unwrap().is_empty());
    assert_eq!(store.sessions_on(&two.name).await.unwrap(), [on_two]);
}

pub async fn a_reservation_ends_by_itself<D: Database>() {
    let database = D::fresh().await;
    let store = database.store().await;
    let (one, two) = (joined(&*store, "one", 8).await, joined(&*store, "two", 8).await);
    let new = session(&*store).await;
    assert_eq!(reserve(&*store, new.id, &one).await, Reserved::Taken(vec![new.id]));
    database.execute(&older("sessions", "reserved_until", Duration::from_secs(121))).await;
    assert_eq!(row(&*store, &one).await.unwrap().used, 0);
    assert_eq!(at(&*store, new.id).await, Some((one.name.clone(), Stage::Home)));
    assert_eq!(reserve(&*store, new.id, &two).await, Reserved::Taken(vec![new.id]));
    assert_eq!(at(&*store, new.id).await, Some((two.name.clone(), Stage::Reserved)));
}
