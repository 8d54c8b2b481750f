//! Heartbeats, leases, loss and return, checked over every interleaving of what two coordinators, their store and a runner with a
//! session do, however long that goes on: what is checked is the code's own [`Freezing`], [`OwnWrites`] and [`lost`].
//!
//! One coordinator reaches the store and may judge; whether the runner reaches it is open. The other one is cut off from either, or
//! not, at any time. Time goes in steps of a heartbeat; between two of them everything may happen in any order, once or often or
//! not at all: an own row is begun, comes to the store, or does not, or later than anybody waits for it, with or without its
//! coordinator's knowing; a heartbeat comes to a coordinator, is written or is not, and is answered or the answer is lost. States
//! differ by how long ago something was, up to the age from which it makes no difference: so there are finitely many, and all of
//! them are looked at.

use std::time::Duration;

use stateright::{Checker as _, Model, Property};
use uuid::Uuid;

use super::{Freezing, MARGIN, News, Phase};
use crate::{
    fleet::RunnerId,
    loss::{ANSWERS_UNWRITTEN, GONE_AFTER, LOST_AFTER, OwnWrites, lost},
    placement::HEARTBEAT,
    ports::{CoordinatorRow, Load, RunnerRow},
};

/// The coordinator that may be cut off.
const CUT: usize = 0;
/// The one that always writes.
const WHOLE: usize = 1;
const COORDINATORS: usize = 2;
/// How long after it was begun a row may come to the store: as long as the database works on a statement.
const LATE: Duration = Duration::from_secs(10);
/// What the clock shows, always: everything else grows older.
const NOW: Duration = Duration::from_secs(1000);

/// How old something may be before it makes no difference how much older it is.
fn oldest(age: Duration) -> Duration {
    NOW.saturating_sub(age + HEARTBEAT)
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
struct Coordinator {
    writes: OwnWrites,
    /// Its row in the store.
    row: Option<Duration>,
    /// It heard the runner, and does not know that this is written.
    unwritten: bool,
    /// It writes its row: whether it writes before that whom it heard.
    writing: Option<bool>,
    /// When a row was begun that was given up and may still come, behind whom it heard until then.
    late: Option<(Duration, bool)>,
    /// A heartbeat of this moment is with it; whether another one came after the row's writing was begun.
    hears: bool,
    heard_since: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    coordinators: [Coordinator; COORDINATORS],
    heard_at: Duration,
    runner: Freezing,
    /// Whether the store has it; one that was called lost it has not.
    registered: bool,
    /// Whether its session has gone on elsewhere, and whether the runner thinks that it has it.
    moved: bool,
    holds: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    BeginRow,
    /// ... comes to the store, and its coordinator learns that, or does not.
    RowLands {
        known: bool,
    },
    RowFails,
    RowLandsLate,
    BeatArrives,
    /// ... is written, and the answer comes, or does not.
    BeatWritten {
        at: usize,
        answered: bool,
    },
    /// ... is not written, and answered all the same where that may be.
    BeatUnwritten {
        answered: bool,
    },
    /// A heartbeat comes to who knows that the runner is not registered, and is answered.
    BeatRefused,
    /// The runner registers, and is told whether the session is its own, or that answer is lost.
    Registers {
        answered: bool,
    },
    Lose,
    SessionMoves,
    TimePasses,
}

impl State {
    fn coordinator_rows(&self) -> Vec<CoordinatorRow> {
        let rows = self.coordinators.iter().enumerate();
        rows.filter_map(|(number, one)| Some(CoordinatorRow { id: id(number), silent: NOW.saturating_sub(one.row?) }))
            .collect()
    }

    /// Whether a coordinator would call the runner lost now.
    fn can_be_lost(&self) -> bool {
        if !self.registered {
            return false;
        }
        let (rows, runner) = (self.coordinator_rows(), [runner_row(NOW.saturating_sub(self.heard_at))]);
        (0..COORDINATORS).any(|of| !lost(id(of), &self.coordinators[of].writes, NOW, &runner, &rows).is_empty())
    }

    fn serves(&self) -> bool {
        self.runner.serves(NOW)
    }

    fn pass_time(&mut self) {
        for one in &mut self.coordinators {
            // Who waits for the store longer than that has given up, whatever becomes of it.
            if let Some(flushes) = one.writing.take() {
                one.writes.failed();
                one.late = Some((NOW, flushes));
            }
            let late = one.late.map(|(begun, flushes)| (begun.saturating_sub(HEARTBEAT), flushes));
            one.late = late.filter(|(begun, _)| *begun + LATE >= NOW);
            (one.hears, one.heard_since) = (false, false);
            one.writes = one.writes.aged(HEARTBEAT, oldest(LOST_AFTER), oldest(ANSWERS_UNWRITTEN));
            one.row = one.row.map(|row| row.saturating_sub(HEARTBEAT).max(oldest(GONE_AFTER)));
        }
        self.coordinators[WHOLE].writes.wrote(NOW);
        self.coordinators[WHOLE].row = Some(NOW);
        self.heard_at = self.heard_at.saturating_sub(HEARTBEAT).max(oldest(LOST_AFTER));
        self.runner.until = self.runner.until.saturating_sub(HEARTBEAT);
        self.runner.learn(News::Time, NOW);
        if self.runner.phase != Phase::Serving {
            // How long ago it froze makes no difference beyond the margin.
            self.runner.until = self.runner.until.max(NOW.saturating_sub(MARGIN));
        }
    }
}

fn id(number: usize) -> Uuid {
    Uuid::from_u128(1 + number as u128)
}

#[allow(clippy::unwrap_used)]
fn runner_row(silent: Duration) -> RunnerRow {
    RunnerRow {
        id: RunnerId { name: "one".parse().unwrap(), incarnation: Uuid::nil() },
        address: String::new(),
        pool: String::new(),
        node: String::new(),
        release: String::new(),
        capacity: 1,
        used: 0,
        load: Load::default(),
        cordoned: false,
        ready: true,
        silent,
        restarting: None,
        version: 1,
    }
}

struct Fleet;

impl Model for Fleet {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let mut coordinators = [Coordinator::default(); COORDINATORS];
        coordinators[WHOLE].writes.wrote(NOW);
        coordinators[WHOLE].row = Some(NOW);
        let runner = Freezing::registered(NOW);
        vec![State { coordinators, heard_at: NOW, runner, registered: true, moved: false, holds: true }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        actions.push(Action::TimePasses);
        if state.can_be_lost() {
            actions.push(Action::Lose);
        }
        let either = [true, false];
        let cut = &state.coordinators[CUT];
        if cut.writing.is_some() {
            actions.push(Action::RowFails);
            actions.extend(either.map(|known| Action::RowLands { known }));
        } else {
            actions.push(Action::BeginRow);
        }
        actions.extend(cut.late.map(|_| Action::RowLandsLate));
        if state.registered {
            actions.extend(either.map(|answered| Action::BeatWritten { at: WHOLE, answered }));
        } else {
            actions.push(Action::BeatRefused);
        }
        if state.runner.has_to_register() {
            actions.extend(either.map(|answered| Action::Registers { answered }));
        }
        // Those of a runner that is not registered are taken off it, by and by.
        if !state.registered && !state.moved {
            actions.push(Action::SessionMoves);
        }
        if cut.hears {
            actions.extend(either.map(|answered| Action::BeatUnwritten { answered }));
            if state.registered {
                actions.extend(either.map(|answered| Action::BeatWritten { at: CUT, answered }));
            }
        } else {
            actions.push(Action::BeatArrives);
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        let cut = &mut state.coordinators[CUT];
        match action {
            Action::TimePasses => state.pass_time(),
            Action::Lose => state.registered = false,
            Action::SessionMoves => state.moved = true,
            Action::BeatRefused => drop(state.runner.learn(News::Unregistered, NOW)),
            Action::Registers { answered } => {
                (state.registered, state.heard_at) = (true, NOW);
                if answered {
                    state.holds &= !state.moved;
                    state.runner.learn(News::Registered { begun: NOW }, NOW);
                }
            }
            Action::BeginRow => (cut.writing, cut.heard_since) = (Some(cut.unwritten), false),
            Action::RowLands { known } => {
                let flushes = cut.writing.take()?;
                cut.row = Some(NOW);
                if known {
                    cut.writes.wrote(NOW);
                    cut.unwritten &= !flushes || cut.heard_since;
                } else {
                    cut.writes.failed();
                }
                if flushes && state.registered {
                    state.heard_at = NOW;
                }
            }
            Action::RowFails => {
                cut.writing = None;
                cut.writes.failed();
            }
            Action::RowLandsLate => {
                let (begun, flushes) = cut.late.take()?;
                cut.row = Some(cut.row.map_or(begun, |row| row.max(begun)));
                if flushes && state.registered {
                    state.heard_at = state.heard_at.max(begun);
                }
            }
            Action::BeatArrives => (cut.hears, cut.unwritten, cut.heard_since) = (true, true, cut.writing.is_some()),
            Action::BeatWritten { at, answered } => {
                if at == CUT {
                    (cut.hears, cut.unwritten) = (false, false);
                }
                state.heard_at = NOW;
                if answered {
                    state.runner.learn(News::Heard { begun: NOW, written: true }, NOW);
                }
            }
            Action::BeatUnwritten { answered } => {
                cut.hears = false;
                if answered && cut.writes.may_answer_unwritten(NOW) {
                    state.runner.learn(News::Heard { begun: NOW, written: false }, NOW);
                }
            }
        }
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("whoever can be called lost has stopped for a while", |_, state: &State| {
                !state.can_be_lost() || state.runner.until + MARGIN <= NOW
            }),
            Property::always("nobody serves a session that is served elsewhere", |_, state: &State| {
                !(state.moved && state.holds && state.serves())
            }),
            Property::sometimes("a runner that was lost serves again", |_, state: &State| {
                state.moved && state.serves()
            }),
            Property::sometimes("a runner that was lost comes back to its session", |_, state: &State| {
                !state.registered && !state.moved && state.runner.has_to_register()
            }),
            Property::sometimes("a runner that was not heard in the store for long serves", |_, state: &State| {
                state.serves() && NOW.saturating_sub(state.heard_at) >= LOST_AFTER
            }),
            Property::sometimes("a runner is frozen and not lost", |_, state: &State| {
                state.runner.phase == Phase::Frozen && !state.can_be_lost()
            }),
        ]
    }
}

#[test]
fn every_interleaving_keeps_the_two_apart() {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let checker = Fleet.checker().threads(threads).spawn_bfs().join();
    eprintln!("{} states", checker.unique_state_count());
    checker.assert_properties();
}
