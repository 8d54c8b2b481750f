//! What must hold of a fleet, whatever happens in whatever order.

#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, time::Duration};

use proptest::prelude::*;
use uuid::Uuid;

use super::{Fleet, LOST_AFTER, RESERVED_FOR, Stage, Stale, Want, choose};
use crate::{
    fleet::{Held, RunnerId},
    id::{SandboxId, SessionId},
    ports::Load,
};

fn runner(number: u8, life: u8) -> RunnerId {
    RunnerId { name: format!("runner-{number}").parse().unwrap(), incarnation: Uuid::from_u128(life.into()) }
}

fn session(number: u8) -> SessionId {
    SessionId(Uuid::from_u128(1000 + u128::from(number)))
}

fn sandbox(number: u8) -> SandboxId {
    SandboxId(Uuid::from_u128(2000 + u128::from(number)))
}

fn joined(fleet: &mut Fleet, number: u8, capacity: u32, now: Duration) {
    assert!(fleet.register(&runner(number, 1), capacity, &[], &[], now, |_| true).is_empty());
    assert!(fleet.heartbeat(&runner(number, 1), Load::default(), now));
}

#[derive(Debug, Clone)]
enum Step {
    Register { number: u8, life: u8, capacity: u32, held: Vec<u8> },
    Heartbeat { number: u8, life: u8 },
    Remove { number: u8, life: u8 },
    Reserve { session: u8, want_any: bool },
    ReserveHome { session: u8 },
    Arrived { session: u8 },
    Left { session: u8 },
    Forget { session: u8 },
    Look { seconds: u64 },
}

fn step() -> impl Strategy<Value = Step> {
    let (number, life, one) = (0u8..3, 1u8..3, 0u8..8);
    prop_oneof![
        (number.clone(), life.clone(), 0u32..5, prop::collection::vec(0u8..8, 0..4))
            .prop_map(|(number, life, capacity, held)| Step::Register { number, life, capacity, held }),
        (number.clone(), life.clone()).prop_map(|(number, life)| Step::Heartbeat { number, life }),
        (number, life).prop_map(|(number, life)| Step::Remove { number, life }),
        (one.clone(), any::<bool>()).prop_map(|(session, want_any)| Step::Reserve { session, want_any }),
        one.clone().prop_map(|session| Step::ReserveHome { session }),
        one.clone().prop_map(|session| Step::Arrived { session }),
        one.clone().prop_map(|session| Step::Left { session }),
        one.prop_map(|session| Step::Forget { session }),
        (0u64..10).prop_map(|seconds| Step::Look { seconds }),
    ]
}

proptest! {
    #[test]
    fn places_are_counted_and_a_session_has_one_writer(steps in prop::collection::vec(step(), 0..80)) {
        let mut fleet = Fleet::default();
        let mut now = Duration::ZERO;
        for step in steps {
            match step {
                Step::Register { number, life, capacity, held } => {
                    let held: Vec<Held> =
                        held.into_iter().map(|n| Held { session: session(n), sandbox: sandbox(n) }).collect();
                    let before: Vec<bool> =
                        held.iter().map(|one| fleet.may_write(&runner(number, life), one.session)).collect();
                    let knew = fleet.knows(&runner(number, life));
                    let disowned = fleet.register(&runner(number, life), capacity, &held, &[], now, |_| true);
                    for (one, before) in held.iter().zip(before) {
                        // What it could write before it can write still; what is another's is not its own now.
                        prop_assert!(!knew || before != disowned.contains(&one.session));
                        prop_assert_eq!(fleet.may_write(&runner(number, life), one.session), !disowned.contains(&one.session));
                    }
                }
                Step::Heartbeat { number, life } => {
                    let knows = fleet.knows(&runner(number, life));
                    prop_assert_eq!(fleet.heartbeat(&runner(number, life), Load::default(), now), knows);
                }
                Step::Remove { number, life } => {
                    let knew = fleet.knows(&runner(number, life));
                    let gone = fleet.remove(&runner(number, life));
                    prop_assert!(knew || gone.is_empty());
                    prop_assert!(gone.iter().all(|session| fleet.route(*session).is_none()));
                }
                Step::Reserve { session: number, want_any } => {
                    let offers = fleet.offers();
                    let want = if want_any { Want::Any } else { Want::Free };
                    if let Some(offer) = choose(&offers, want) {
                        let best = offers.iter().map(super::Offer::free).max().unwrap();
                        prop_assert_eq!(offer.free(), best);
                        prop_assert!(want_any || best > 0);
                        if fleet.reserve(session(number), offer, now).is_ok() {
                            prop_assert_eq!(&fleet.route(session(number)).unwrap().runner, &offer.runner.name);
                            // The same offer is good only once.
                            prop_assert_eq!(fleet.reserve(session(number ^ 0x80), offer, now), Err(Stale));
                        }
                    } else {
                        prop_assert!(offers.iter().all(|offer| offer.free() <= 0));
                    }
                }
                Step::ReserveHome { session: number } => {
                    let was_home = fleet.route(session(number)).is_some_and(|route| route.stage == Stage::Home);
                    prop_assert!(was_home || !fleet.reserve_home(session(number), now));
                }
                Step::Arrived { session: number } => {
                    if let Some(name) = fleet.route(session(number)).map(|route| route.runner.clone()) {
                        fleet.arrived(session(number), &name);
                    }
                }
                Step::Left { session: number } => fleet.left(session(number)),
                Step::Forget { session: number } => fleet.forget(session(number)),
                Step::Look { seconds } => {
                    now += Duration::from_secs(seconds);
                    let (lost, _) = fleet.overdue(now);
                    for one in lost {
                        fleet.remove(&one);
                        prop_assert!(!fleet.knows(&one));
                    }
                }
            }
            for offer in fleet.offers() {
                let counted = fleet.sessions_of(&offer.runner.name).count();
                prop_assert_eq!(offer.used as usize, counted);
            }
            for number in 0..8 {
                let writers = (0..3).filter(|one| {
                    let name = &runner(*one, 1).name;
                    fleet.current(name).is_some_and(|current| fleet.may_write(&current, session(number)))
                });
                let routed = fleet.route(session(number)).is_some_and(|route| route.stage != Stage::Home);
                prop_assert!(!routed || writers.count() <= 1);
            }
        }
    }

    #[test]
    fn many_deciders_spread_evenly(capacities in prop::collection::vec(40u32..60, 1..5), deciders in 1usize..8) {
        let mut fleet = Fleet::default();
        for (number, capacity) in capacities.iter().enumerate() {
            joined(&mut fleet, u8::try_from(number).unwrap(), *capacity, Duration::ZERO);
        }
        let all: u32 = capacities.iter().sum();
        let (mut placed, mut next) = (0u32, 0u8);
        // Deciders look at the same time, then act one after the other: all but one of a round decide again.
        while placed < all.min(100) {
            let looked: Vec<_> = (0..deciders).map(|_| fleet.offers()).collect();
            for offers in looked {
                let offer = choose(&offers, Want::Free).unwrap();
                if placed < all.min(100) && fleet.reserve(session(next), offer, Duration::ZERO).is_ok() {
                    placed += 1;
                    next += 1;
                }
            }
        }
        let free: Vec<i64> = fleet.offers().iter().map(super::Offer::free).collect();
        let (least, most) = (free.iter().min().unwrap(), free.iter().max().unwrap());
        let untouched = fleet.offers().iter().filter(|offer| offer.used > 0).map(super::Offer::free).max();
        prop_assert!(most - least <= 1 || untouched.is_some_and(|highest| highest - least <= 1 || *most <= highest), "{free:?}");
    }
}

#[test]
fn a_hundred_at_once_spread_evenly() {
    let mut fleet = Fleet::default();
    for number in 0..3 {
        joined(&mut fleet, number, 64, Duration::ZERO);
    }
    for number in 0..100 {
        let offers = fleet.offers();
        fleet.reserve(session(number), choose(&offers, Want::Free).unwrap(), Duration::ZERO).unwrap();
    }
    let used: BTreeMap<_, _> = fleet.offers().into_iter().map(|offer| (offer.runner.name, offer.used)).collect();
    let mut used: Vec<u32> = used.into_values().collect();
    used.sort_unstable();
    assert_eq!(used, [33, 33, 34]);
}

#[test]
fn a_silent_runner_is_lost_and_a_looker_that_was_away_accuses_nobody() {
    let mut fleet = Fleet::default();
    joined(&mut fleet, 0, 4, Duration::ZERO);
    let offers = fleet.offers();
    fleet.reserve(session(1), &offers[0], Duration::ZERO).unwrap();
    fleet.arrived(session(1), &runner(0, 1).name);
    for second in 0..15 {
        assert!(fleet.overdue(Duration::from_secs(second)).0.is_empty());
    }
    // The looker was stopped for a minute: everybody gets another chance.
    let mut later = Fleet::default();
    joined(&mut later, 0, 4, Duration::ZERO);
    later.overdue(Duration::ZERO);
    assert!(later.overdue(Duration::from_secs(60)).0.is_empty());
    let (lost, _) = fleet.overdue(LOST_AFTER);
    assert_eq!(lost, [runner(0, 1)]);
    assert_eq!(fleet.remove(&lost[0]), [session(1)]);
    assert!(!fleet.may_write(&runner(0, 1), session(1)));
    // It comes back: what the store does not have on its sandbox any more is not its own.
    let held = Held { session: session(1), sandbox: sandbox(1) };
    assert_eq!(fleet.register(&runner(0, 1), 4, &[held], &[], LOST_AFTER, |_| false), [session(1)]);
}

#[test]
fn a_restarted_coordinator_waits_for_the_runners_to_come_back() {
    let held = Held { session: session(1), sandbox: sandbox(1) };
    let mut fleet = Fleet::new([held, Held { session: session(2), sandbox: sandbox(2) }]);
    joined(&mut fleet, 0, 4, Duration::ZERO);
    let offers = fleet.offers();
    assert_eq!(fleet.reserve(session(1), &offers[0], Duration::ZERO), Err(Stale));
    assert!(fleet.is_awaited(session(1)));
    assert!(fleet.register(&runner(1, 1), 4, &[held], &[], Duration::ZERO, |_| true).is_empty());
    assert_eq!(fleet.route(session(1)).unwrap().runner, runner(1, 1).name);
    fleet.overdue(Duration::from_secs(14));
    assert_eq!(fleet.overdue(LOST_AFTER).1, [session(2)]);
    assert!(!fleet.is_awaited(session(2)));
}

#[test]
fn a_place_that_nobody_took_is_free_again() {
    let mut fleet = Fleet::default();
    joined(&mut fleet, 0, 1, Duration::ZERO);
    let offers = fleet.offers();
    fleet.reserve(session(1), &offers[0], Duration::ZERO).unwrap();
    assert_eq!(choose(&fleet.offers(), Want::Free), None);
    assert!(choose(&fleet.offers(), Want::Any).is_some());
    fleet.overdue(RESERVED_FOR);
    assert_eq!(fleet.offers()[0].free(), 1);
    assert!(fleet.reserve_home(session(1), RESERVED_FOR));
}
