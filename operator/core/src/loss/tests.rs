//! What must hold of calling a runner lost, whoever can write when.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use proptest::prelude::*;
use uuid::Uuid;

use super::{ANSWERS_UNWRITTEN, LOST_AFTER, OwnWrites, lost};
use crate::{
    fleet::RunnerId,
    ports::{CoordinatorRow, Load, RunnerRow},
};

const COORDINATORS: usize = 3;

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn runner(silent: u64, restarting: Option<u64>) -> RunnerRow {
    RunnerRow {
        id: RunnerId { name: "one".parse().unwrap(), incarnation: Uuid::from_u128(7) },
        address: String::new(),
        pool: String::new(),
        node: String::new(),
        release: String::new(),
        capacity: 1,
        used: 0,
        load: Load::default(),
        cordoned: false,
        ready: true,
        silent: seconds(silent),
        restarting: restarting.map(seconds),
        version: 1,
    }
}

fn id(number: usize) -> Uuid {
    Uuid::from_u128(100 + number as u128)
}

fn writing(since: u64, until: u64) -> OwnWrites {
    let mut writes = OwnWrites::default();
    (since..=until).step_by(2).for_each(|second| writes.wrote(seconds(second)));
    writes
}

proptest! {
    /// A runner that some coordinator answers, written or not, at least every 5 s, is never called lost: whichever coordinators
    /// are cut off from the store, for however long, and whichever of them it talks to.
    #[test]
    fn whoever_is_answered_is_not_lost(
        cut in prop::collection::vec((0usize..COORDINATORS, 0u64..400, 1u64..200), 0..8),
        talks in prop::collection::vec(0usize..COORDINATORS, 100),
    ) {
        let is_cut = |coordinator: usize, now: u64| {
            cut.iter().any(|(one, from, length)| *one == coordinator && (*from..from + length).contains(&now))
        };
        let mut writes = [OwnWrites::default(); COORDINATORS];
        let mut rows: [Option<u64>; COORDINATORS] = [None; COORDINATORS];
        let mut unwritten: [Option<u64>; COORDINATORS] = [None; COORDINATORS];
        let (mut heard, mut talking) = (0u64, 0);
        for now in 0..400u64 {
            for coordinator in 0..COORDINATORS {
                if now % 2 == coordinator as u64 % 2 {
                    if is_cut(coordinator, now) {
                        writes[coordinator].failed();
                    } else {
                        // Whom it heard comes first.
                        heard = heard.max(unwritten[coordinator].take().unwrap_or(0));
                        writes[coordinator].wrote(seconds(now));
                        rows[coordinator] = Some(now);
                    }
                }
            }
            if now % 5 == 0 {
                // It stays where it is answered, and asks the others where it is not: one that nobody answers freezes.
                let first = if now % 50 == 0 { talks[usize::try_from(now / 5).unwrap()] } else { talking };
                let answers = |one: usize| {
                    (rows[one].is_some() && !is_cut(one, now)) || writes[one].may_answer_unwritten(seconds(now))
                };
                match (0..COORDINATORS).map(|step| (first + step) % COORDINATORS).find(|one| answers(*one)) {
                    Some(one) => {
                        talking = one;
                        if is_cut(one, now) {
                            unwritten[one] = Some(now);
                        } else {
                            heard = now;
                        }
                    }
                    None => return Ok(()),
                }
            }
            let coordinators: Vec<CoordinatorRow> = rows.iter().enumerate().filter_map(|(number, seen)| {
                Some(CoordinatorRow { id: id(number), silent: seconds(now - (*seen)?) })
            }).collect();
            for coordinator in (0..COORDINATORS).filter(|one| !is_cut(*one, now)) {
                let found = lost(id(coordinator), &writes[coordinator], seconds(now), &[runner(now - heard, None)], &coordinators);
                prop_assert!(found.is_empty(), "at {now}, heard {heard}");
            }
        }
    }

    /// One that nobody hears is called lost in the end, whoever of the coordinators died.
    #[test]
    fn whoever_is_not_heard_is_lost_in_the_end(died in prop::collection::vec(0u64..100, 0..3)) {
        let writes = writing(0, 300);
        let mut coordinators = vec![CoordinatorRow { id: id(0), silent: Duration::ZERO }];
        coordinators.extend(died.iter().enumerate().map(|(number, at)| CoordinatorRow { id: id(number + 1), silent: seconds(300 - at) }));
        prop_assert_eq!(lost(id(0), &writes, seconds(300), &[runner(200, None)], &coordinators).len(), 1);
    }
}

#[test]
fn only_who_could_write_all_the_time_may_say_so() {
    let own = [CoordinatorRow { id: id(0), silent: Duration::ZERO }];
    let say = |writes: &OwnWrites, now| lost(id(0), writes, seconds(now), &[runner(60, None)], &own).len();
    assert_eq!(say(&writing(0, 14), 14), 0, "it writes for too short a time");
    assert_eq!(say(&writing(0, 16), 16), 1);
    assert_eq!(say(&writing(0, 16), 30), 0, "its last write was long ago");
    let mut gap = writing(0, 16);
    gap.failed();
    gap.wrote(seconds(18));
    assert_eq!(say(&gap, 18), 0, "a write failed");
    let mut slow = writing(0, 16);
    slow.wrote(seconds(23));
    assert_eq!(say(&slow, 23), 0, "it was away");
    assert_eq!(lost(id(0), &writing(0, 16), seconds(16), &[runner(60, None)], &[]).len(), 0, "its row is gone");
}

#[test]
fn nobody_is_lost_while_a_coordinator_may_have_heard_it() {
    let say = |silent| {
        let rows = [
            CoordinatorRow { id: id(0), silent: Duration::ZERO },
            CoordinatorRow { id: id(1), silent: seconds(silent) },
        ];
        lost(id(0), &writing(0, 100), seconds(100), &[runner(60, None)], &rows).len()
    };
    assert_eq!([5, 6, 74, 75].map(say), [1, 0, 0, 1]);
}

#[test]
fn silence_has_its_bounds() {
    let own = [CoordinatorRow { id: id(0), silent: Duration::ZERO }];
    let say = |runner: RunnerRow| lost(id(0), &writing(0, 100), seconds(100), &[runner], &own).len();
    assert_eq!(say(runner(LOST_AFTER.as_secs() - 1, None)), 0);
    assert_eq!(say(runner(LOST_AFTER.as_secs(), None)), 1);
    assert_eq!(say(runner(40, Some(20))), 0, "it announced a restart");
    assert_eq!(say(runner(61, Some(0))), 1);
    let writes = writing(0, 100);
    assert!(writes.may_answer_unwritten(seconds(99) + ANSWERS_UNWRITTEN));
    assert!(!writes.may_answer_unwritten(seconds(100) + ANSWERS_UNWRITTEN));
    assert!(!OwnWrites::default().may_answer_unwritten(Duration::ZERO), "one that never wrote answers nobody");
}
