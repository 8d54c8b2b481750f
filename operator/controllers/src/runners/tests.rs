//! Sandboxes spread over nodes, also those that are on their way.

#![allow(clippy::unwrap_used)]

use std::{cell::RefCell, collections::HashMap, time::Duration};

use ash_core::{
    fleet::RunnerId,
    ports::{Load, RunnerRow},
};
use uuid::Uuid;

use super::{Room, is_better_elsewhere, room};

fn runner(node: &str, used: u32) -> RunnerRow {
    RunnerRow {
        id: RunnerId { name: node.parse().unwrap(), incarnation: Uuid::from_u128(7) },
        address: String::new(),
        pool: "default".to_owned(),
        node: node.to_owned(),
        release: String::new(),
        capacity: 4,
        used,
        load: Load::default(),
        cordoned: false,
        ready: true,
        silent: Duration::ZERO,
        restarting: None,
        version: 1,
    }
}

#[test]
fn those_that_wait_spread_over_the_nodes_as_sessions_do() {
    let runners = [runner("one", 0), runner("two", 0)];
    let sent = RefCell::new(HashMap::<String, u32>::new());
    let on_the_way = |node: &str| sent.borrow().get(node).copied().unwrap_or_default();
    for _ in 0..4 {
        let Room::Near(node) = room(&runners, "default", on_the_way) else { panic!("there is room") };
        *sent.borrow_mut().entry(node).or_default() += 1;
    }
    assert_eq!(*sent.borrow(), HashMap::from([("one".to_owned(), 2), ("two".to_owned(), 2)]));
    let near = |one, two| room(&[runner("one", one), runner("two", two)], "default", |_| 0);
    assert_eq!(near(3, 0), Room::Near("two".to_owned()));
    assert_eq!(near(4, 4), Room::Full);
    assert_eq!(room(&runners, "another", |_| 0), Room::NoRunner);
    let cordoned = RunnerRow { cordoned: true, ..runner("one", 0) };
    assert_eq!(room(&[cordoned], "default", |_| 0), Room::NoRunner);
}

#[test]
fn what_a_full_runner_refuses_goes_where_there_is_room() {
    let better = |one, two| {
        let rows = [runner("one", one), runner("two", two)];
        is_better_elsewhere(&rows, &rows[0].id, "default", |_| 0)
    };
    assert!(better(5, 3));
    assert!(!better(4, 0), "it has a place");
    assert!(!better(5, 4), "nobody has");
}
