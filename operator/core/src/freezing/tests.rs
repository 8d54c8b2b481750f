//! What must hold of freezing: alone, and beside the coordinators that call runners lost.

#![allow(clippy::unwrap_used)]

use std::time::Duration;

use proptest::prelude::*;
use uuid::Uuid;

use super::{FREEZE_AFTER, Freezing, MARGIN, News, Order, RESTART_SERVED};
use crate::{
    fleet::RunnerId,
    loss::{LOST_AFTER, OWN_ROW, OwnWrites, RESTART, lost},
    ports::{CoordinatorRow, Load, RunnerRow},
};

fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

#[test]
fn nobody_answers_and_it_freezes_before_it_can_be_lost() {
    assert_eq!((FREEZE_AFTER, MARGIN), (seconds(10), seconds(5)));
    assert!(FREEZE_AFTER + MARGIN <= LOST_AFTER && RESTART_SERVED + MARGIN <= RESTART);
    let mut runner = Freezing::registered(seconds(0));
    assert_eq!(runner.learn(News::Heard { begun: seconds(5), written: true }, seconds(6)), None);
    assert_eq!(runner.learn(News::Time, seconds(14)), None);
    assert!(runner.serves(seconds(14)) && !runner.serves(seconds(15)), "also before anybody looked at the clock");
    assert_eq!(runner.learn(News::Time, seconds(15)), Some(Order::Freeze));
    assert_eq!((runner.learn(News::Time, seconds(16)), runner.until()), (None, None));
}

#[test]
fn only_what_was_written_thaws() {
    let mut runner = Freezing::registered(seconds(0));
    assert_eq!(runner.learn(News::Heard { begun: seconds(9), written: false }, seconds(9)), None);
    assert_eq!(runner.until(), Some(seconds(19)), "it keeps one going that serves");
    assert_eq!(runner.learn(News::Time, seconds(19)), Some(Order::Freeze));
    assert_eq!(runner.learn(News::Heard { begun: seconds(20), written: false }, seconds(20)), None);
    assert!(!runner.serves(seconds(20)));
    assert_eq!(runner.learn(News::Heard { begun: seconds(8), written: true }, seconds(21)), None, "it is too old");
    assert_eq!(runner.learn(News::Heard { begun: seconds(20), written: true }, seconds(22)), Some(Order::Thaw));
    assert_eq!(runner.until(), Some(seconds(30)));
}

#[test]
fn an_answer_that_comes_after_the_time_was_up_counts_only_if_it_was_written() {
    let mut runner = Freezing::registered(seconds(0));
    assert_eq!(runner.learn(News::Heard { begun: seconds(9), written: false }, seconds(11)), Some(Order::Freeze));
    let mut runner = Freezing::registered(seconds(0));
    assert_eq!(
        runner.learn(News::Heard { begun: seconds(9), written: true }, seconds(11)),
        None,
        "nothing was stopped"
    );
    assert!(runner.serves(seconds(11)));
}

#[test]
fn an_announced_restart_is_served_to_its_end_and_thaws_nothing() {
    let mut runner = Freezing::registered(seconds(0));
    assert_eq!(runner.learn(News::Announced { begun: seconds(2) }, seconds(3)), None);
    assert_eq!(runner.until(), Some(seconds(2) + RESTART_SERVED));
    assert_eq!(runner.learn(News::Heard { begun: seconds(4), written: true }, seconds(5)), None);
    assert_eq!(runner.until(), Some(seconds(2) + RESTART_SERVED), "a heartbeat takes nothing back");
    let mut frozen = Freezing::registered(seconds(0));
    assert_eq!(frozen.learn(News::Announced { begun: seconds(12) }, seconds(13)), Some(Order::Freeze));
    assert_eq!(frozen.learn(News::Announced { begun: seconds(13) }, seconds(14)), None);
    assert!(!frozen.serves(seconds(14)));
}

#[test]
fn whoever_was_called_lost_goes_on_when_it_has_given_up_what_is_served_elsewhere() {
    let mut runner = Freezing::registered(seconds(0));
    assert_eq!(runner.learn(News::Time, seconds(20)), Some(Order::Freeze));
    assert_eq!(runner.learn(News::Unregistered, seconds(30)), None);
    assert!(runner.has_to_register());
    // Its registration came to the store, and the answer was lost: its heartbeats are written.
    assert_eq!(runner.learn(News::Heard { begun: seconds(31), written: true }, seconds(31)), None);
    assert!(!runner.serves(seconds(31)));
    assert_eq!(runner.learn(News::Registered { begun: seconds(32) }, seconds(33)), Some(Order::Thaw));
    assert_eq!((runner.until(), runner.has_to_register()), (Some(seconds(42)), false));
}

#[test]
fn whoever_is_superseded_is_over() {
    let mut runner = Freezing::registered(seconds(0));
    assert_eq!(runner.learn(News::Superseded, seconds(1)), Some(Order::End));
    for news in [News::Heard { begun: seconds(2), written: true }, News::Time, News::Superseded] {
        assert_eq!((runner.learn(news, seconds(2)), runner.serves(seconds(2))), (None, false));
    }
}

fn news() -> impl Strategy<Value = (News, u64)> {
    let begun = 0u64..40;
    let news = prop_oneof![
        4 => (begun.clone(), any::<bool>()).prop_map(|(ago, written)| (ago, Some(written))),
        1 => begun.prop_map(|ago| (ago, None)),
    ];
    (news, 0u64..30).prop_map(|((ago, written), pause)| {
        let begun = seconds(ago);
        (written.map_or(News::Announced { begun }, |written| News::Heard { begun, written }), pause)
    })
}

proptest! {
    /// Whatever it hears, late or twice or in another order: it is told to freeze and to thaw in turns, it serves in between only, and
    /// never for longer than the newest thing that it heard allows.
    #[test]
    fn orders_follow_each_other_and_nothing_is_served_in_between(history in prop::collection::vec(news(), 0..60)) {
        let mut now = seconds(40);
        let mut runner = Freezing::registered(now);
        let (mut stopped, mut allowed) = (false, now + FREEZE_AFTER);
        for (news, pause) in history {
            now += seconds(pause);
            let order = runner.learn(News::Time, now);
            stopped ^= order.is_some();
            prop_assert!(order.is_none_or(|order| order == Order::Freeze) && stopped != runner.serves(now));
            // What is said to have begun some time ago.
            let news = match news {
                News::Heard { begun, written } => News::Heard { begun: now.saturating_sub(begun), written },
                News::Announced { begun } => News::Announced { begun: now.saturating_sub(begun) },
                other => other,
            };
            let order = runner.learn(news, now);
            prop_assert_eq!(order.is_some(), stopped == runner.serves(now));
            if order.is_some() {
                prop_assert_eq!(order, Some(if stopped { Order::Thaw } else { Order::Freeze }));
                let may_thaw = matches!(news, News::Heard { written: true, .. });
                prop_assert!(order != Some(Order::Thaw) || may_thaw);
            }
            stopped ^= order.is_some();
            allowed = allowed.max(match news {
                News::Heard { begun, .. } => begun + FREEZE_AFTER,
                News::Announced { begun } => begun + RESTART_SERVED,
                _ => allowed,
            });
            prop_assert!(!runner.serves(allowed));
        }
    }
}

/// A quarter of a second.
const TICKS: u64 = 4;
const COORDINATORS: usize = 3;

fn ticks(ticks: u64) -> Duration {
    Duration::from_millis(ticks * 1000 / TICKS)
}

fn id(number: usize) -> Uuid {
    Uuid::from_u128(100 + number as u128)
}

/// A time in which somebody does not reach somebody.
type Cut = (usize, u64, u64);

/// What happens to a fleet.
#[derive(Debug, Clone)]
struct Faults {
    /// Which coordinator does not reach the store.
    store: Vec<Cut>,
    /// Which coordinator the runner does not reach.
    network: Vec<Cut>,
    /// How long everything takes, drawn one after the other.
    delays: Vec<u8>,
    /// When the runner is told to stop.
    stopped: Option<u64>,
}

fn faults() -> impl Strategy<Value = Faults> {
    let cut = || prop::collection::vec((0..COORDINATORS, 0u64..400 * TICKS, 1u64..120 * TICKS), 0..8);
    (cut(), cut(), prop::collection::vec(any::<u8>(), 64..256), prop::option::of(40 * TICKS..400 * TICKS))
        .prop_map(|(store, network, delays, stopped)| Faults { store, network, delays, stopped })
}

/// What happens when its time comes.
#[derive(Debug, Clone, Copy)]
enum Event {
    /// A coordinator's own row, and before it whom it heard, come to the store.
    RowLands {
        of: usize,
        begun: u64,
        flushed: Option<u64>,
    },
    /// The coordinator learns that.
    RowWritten {
        of: usize,
        begun: u64,
        flushed: Option<u64>,
    },
    RowFailed {
        of: usize,
    },
    /// A heartbeat comes to a coordinator.
    Arrives {
        at: usize,
        begun: u64,
    },
    /// ... and from there to the store.
    BeatLands,
    /// The coordinator answers it.
    Decides {
        at: usize,
        begun: u64,
        written: bool,
        number: u64,
    },
    Answered {
        begun: u64,
        written: bool,
    },
    Restarts {
        begun: u64,
    },
}

#[derive(Debug, Clone, Copy, Default)]
struct Coordinator {
    writes: OwnWrites,
    /// Its row in the store.
    row: Option<u64>,
    /// The number of the last heartbeat that came, and whether it is not known to be in the store.
    beats: u64,
    unwritten: bool,
    is_writing: bool,
    next_row: u64,
}

/// Coordinators, their store, and one runner.
struct Fleet {
    faults: Faults,
    drawn: usize,
    now: u64,
    events: Vec<(u64, Event)>,
    coordinators: [Coordinator; COORDINATORS],
    heard_at: u64,
    restarting_until: Option<u64>,
    lost: bool,
    runner: Freezing,
    next_beat: u64,
}

impl Fleet {
    fn new(faults: Faults) -> Self {
        Self {
            faults,
            drawn: 0,
            now: 0,
            events: Vec::new(),
            coordinators: [Coordinator::default(); COORDINATORS],
            heard_at: 0,
            restarting_until: None,
            lost: false,
            runner: Freezing::registered(Duration::ZERO),
            next_beat: 0,
        }
    }

    fn draw(&mut self, below: u64) -> u64 {
        self.drawn += 1;
        u64::from(self.faults.delays[self.drawn % self.faults.delays.len()]) % below
    }

    fn is_cut(cuts: &[Cut], of: usize, at: u64) -> bool {
        cuts.iter().any(|(one, from, length)| *one == of && (*from..from + length).contains(&at))
    }

    fn store_cut(&self, of: usize, at: u64) -> bool {
        Self::is_cut(&self.faults.store, of, at)
    }

    /// A message between the runner and a coordinator: when it comes, unless it is lost.
    fn sent(&mut self, between: usize) -> Option<u64> {
        let comes = self.now + self.draw(2 * TICKS);
        let lost = |at| Self::is_cut(&self.faults.network, between, at);
        (!lost(self.now) && !lost(comes)).then_some(comes)
    }

    fn at(&mut self, at: u64, event: Event) {
        self.events.push((at, event));
    }

    fn write_rows(&mut self) {
        for of in 0..COORDINATORS {
            let Coordinator { is_writing, next_row, unwritten, beats, .. } = self.coordinators[of];
            if is_writing || next_row > self.now {
                continue;
            }
            self.coordinators[of].is_writing = true;
            let (begun, gives_up) = (self.now, self.now + 3 * TICKS);
            let flushed = unwritten.then_some(beats);
            if self.store_cut(of, begun) {
                self.at(gives_up, Event::RowFailed { of });
                continue;
            }
            // Some take longer than they are waited for.
            let takes = if self.draw(4) == 0 { self.draw(10 * TICKS) } else { self.draw(3 * TICKS) };
            let lands = begun + takes;
            self.at(lands, Event::RowLands { of, begun, flushed });
            if lands < gives_up && !self.store_cut(of, lands) {
                self.at(lands, Event::RowWritten { of, begun, flushed });
            } else {
                self.at(gives_up, Event::RowFailed { of });
            }
        }
    }

    fn beat(&mut self) {
        if self.next_beat > self.now {
            return;
        }
        let begun = self.now;
        let first = usize::try_from(self.draw(3)).unwrap();
        let asked = 1 + usize::try_from(self.draw(3)).unwrap();
        for step in 0..asked {
            let at = (first + step) % COORDINATORS;
            if let Some(comes) = self.sent(at) {
                self.at(comes, Event::Arrives { at, begun });
            }
        }
        self.next_beat = self.now + 1 + self.draw(6 * TICKS);
    }

    fn announce(&mut self) {
        if self.faults.stopped == Some(self.now) {
            let begun = self.now;
            if let Some(comes) = self.sent(0)
                && !self.store_cut(0, comes)
            {
                self.at(comes, Event::Restarts { begun });
            }
        }
    }

    fn tell(&mut self, news: News) {
        self.runner.learn(news, ticks(self.now));
    }

    fn happen(&mut self, event: Event) {
        match event {
            Event::RowLands { of, begun, flushed } => {
                if flushed.is_some() && !self.lost {
                    self.heard_at = self.now;
                }
                // The row says when its writing was begun, before anybody was written who was heard.
                let row = &mut self.coordinators[of].row;
                *row = Some(row.map_or(begun, |row| row.max(begun)));
            }
            Event::RowWritten { of, begun, flushed } => {
                let coordinator = &mut self.coordinators[of];
                coordinator.writes.wrote(ticks(begun));
                if flushed == Some(coordinator.beats) {
                    coordinator.unwritten = false;
                }
                coordinator.is_writing = false;
                coordinator.next_row = self.now + OWN_ROW.as_secs() * TICKS;
            }
            Event::RowFailed { of } => {
                let coordinator = &mut self.coordinators[of];
                coordinator.writes.failed();
                coordinator.is_writing = false;
                coordinator.next_row = self.now + OWN_ROW.as_secs() * TICKS;
            }
            Event::Arrives { at, begun } => {
                let coordinator = &mut self.coordinators[at];
                coordinator.beats += 1;
                coordinator.unwritten = true;
                let (number, gives_up) = (coordinator.beats, self.now + 2 * TICKS);
                if self.store_cut(at, self.now) {
                    return self.at(gives_up, Event::Decides { at, begun, written: false, number });
                }
                let lands = self.now + self.draw(4 * TICKS);
                self.at(lands, Event::BeatLands);
                let written = lands < gives_up && !self.store_cut(at, lands);
                self.at(if written { lands } else { gives_up }, Event::Decides { at, begun, written, number });
            }
            Event::BeatLands if self.lost => {}
            Event::BeatLands => self.heard_at = self.now,
            Event::Decides { at, begun, written, number } => {
                // Whoever is not registered any more is told so, and registers again.
                if written && self.lost {
                    return;
                }
                let coordinator = &mut self.coordinators[at];
                if written && coordinator.beats == number {
                    coordinator.unwritten = false;
                }
                if !written && !coordinator.writes.may_answer_unwritten(ticks(self.now)) {
                    return;
                }
                if let Some(comes) = self.sent(at) {
                    self.at(comes, Event::Answered { begun, written });
                }
            }
            Event::Answered { begun, written } => self.tell(News::Heard { begun: ticks(begun), written }),
            Event::Restarts { .. } if self.lost => {}
            Event::Restarts { begun } => {
                self.restarting_until = Some(self.now + RESTART.as_secs() * TICKS);
                self.tell(News::Announced { begun: ticks(begun) });
            }
        }
    }

    fn runner_row(&self) -> RunnerRow {
        let restarting = self.restarting_until.map(|until| ticks(until.saturating_sub(self.now)));
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
            silent: ticks(self.now - self.heard_at),
            restarting,
            version: 1,
        }
    }

    /// Whether some coordinator calls the runner lost.
    fn is_called_lost(&self) -> bool {
        let silent = |(number, one): (usize, &Coordinator)| {
            Some(CoordinatorRow { id: id(number), silent: ticks(self.now - one.row?) })
        };
        let rows: Vec<CoordinatorRow> = self.coordinators.iter().enumerate().filter_map(silent).collect();
        let runner = [self.runner_row()];
        (0..COORDINATORS).filter(|of| !self.store_cut(*of, self.now)).any(|of| {
            let writes = &self.coordinators[of].writes;
            !lost(id(of), writes, ticks(self.now), &runner, &rows).is_empty()
        })
    }

    /// Lets a quarter of a second pass.
    fn step(&mut self) -> Result<(), TestCaseError> {
        self.now += 1;
        self.write_rows();
        self.beat();
        self.announce();
        while let Some(next) = self.events.iter().position(|(at, _)| *at <= self.now) {
            let (_, event) = self.events.remove(next);
            self.happen(event);
        }
        self.tell(News::Time);
        if !self.lost && self.is_called_lost() {
            self.lost = true;
            let stopped = self.runner.until + MARGIN;
            prop_assert!(
                ticks(self.now) >= stopped,
                "lost at {:?}, served until {:?}",
                ticks(self.now),
                self.runner.until
            );
        }
        prop_assert!(!self.lost || !self.runner.serves(ticks(self.now)), "it serves at {:?}", ticks(self.now));
        Ok(())
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1024))]

    /// Whoever does not reach whom, however long that lasts and whatever comes late: a runner has stopped for [`MARGIN`] when it is
    /// called lost, and never serves again after that.
    #[test]
    fn nobody_is_called_lost_who_serves(faults in faults()) {
        let mut fleet = Fleet::new(faults);
        for _ in 0..500 * TICKS {
            fleet.step()?;
        }
    }
}
