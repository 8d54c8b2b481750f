//! Claims, epochs, acknowledgements and their loss, checked over every interleaving of a store, two runners, a session with a bridge
//! on each of them, and whoever calls a runner lost: what is checked is the code's own [`Fence`] and [`Intake`].
//!
//! What is sent stays on the way: it comes never, once, or again and again, at any time. A runner dies and starts again at any time,
//! with or without its bridge.

use std::collections::BTreeSet;

use ash_protocol::{Entry, EntryFlags, EntryKind, Epoch, Sequence};
use bytes::Bytes;
use stateright::{Checker as _, Model, Property};

use super::{Appends, Fence};
use crate::intake::{Admission, Intake};

/// Epochs and entries of an epoch that are looked at.
const EPOCHS: u32 = 3;
const ENTRIES: u32 = 2;
const RUNNERS: usize = 2;

/// What is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Message {
    /// A runner, or whoever calls one lost, opens an epoch: for a bridge on the runner, or without one.
    Open {
        by: Option<usize>,
        expected: Epoch,
        last_committed: Sequence,
        claims: bool,
    },
    /// The runner claimed the session in this epoch.
    Claimed {
        by: usize,
        epoch: Epoch,
    },
    Append {
        by: usize,
        after: Sequence,
        last: Sequence,
    },
    /// Everything up to here is committed.
    Committed {
        by: usize,
        last: Sequence,
    },
}

/// A bridge: what it wrote and keeps is behind what was acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Bridge {
    last: Sequence,
    acknowledged: Sequence,
}

/// A runner's side of the session.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Host {
    intake: Intake,
    committed: Sequence,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
struct Runner {
    host: Option<Host>,
    bridge: Option<Bridge>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct State {
    fence: Fence,
    /// Who wrote what, in the order of the log; an opening is nobody's.
    log: Vec<(Sequence, Option<usize>)>,
    /// The runner that has the session.
    at: Option<usize>,
    runners: [Runner; RUNNERS],
    on_the_way: BTreeSet<Message>,
    refused: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Action {
    /// A runner asks for the session as the store has it now.
    Claims(usize),
    /// Whoever judges opens an epoch for a session as the store has it now.
    CallsLost,
    /// A runner lets the session go.
    Leaves(usize),
    Arrives(Message),
    BridgeWrites(usize),
    Commits(usize),
    /// Its process is gone, and with it what it had in memory.
    Dies(usize),
    BridgeDies(usize),
    /// A runner that starts again has the session still, as the store says, and its bridge.
    StartsAgain(usize),
}

struct Log;

impl State {
    fn open(&mut self, by: Option<usize>, message: (Epoch, Sequence), claims: bool) {
        let (expected, last_committed) = message;
        let anothers = claims && self.at.is_some() && self.at != by;
        if anothers || !self.fence.opens(expected, last_committed) {
            self.refused = true;
            return;
        }
        let Some(epoch) = self.fence.epoch.next().filter(|epoch| epoch.0 <= EPOCHS) else { return };
        self.fence = Fence { epoch, last: epoch.opening() };
        self.log.push((epoch.opening(), None));
        self.at = by.filter(|_| claims);
        if let (Some(by), true) = (by, claims) {
            self.on_the_way.insert(Message::Claimed { by, epoch });
        }
    }

    fn append(&mut self, by: usize, after: Sequence, last: Sequence) {
        match self.fence.appends(after, last) {
            Appends::Now => {
                let entries = (after.n() + 1..=last.n()).map(|n| (last.epoch().sequence(n), Some(by)));
                self.log.extend(entries);
                self.fence.last = last;
            }
            Appends::Before => {}
            Appends::Overtaken => {
                self.refused = true;
                // It never can be anything else.
                self.on_the_way.remove(&Message::Append { by, after, last });
                return;
            }
        }
        self.on_the_way.insert(Message::Committed { by, last });
    }

    /// A host takes what its bridge wrote, which it sends from what was acknowledged on.
    fn take(&mut self, of: usize) {
        let Runner { host: Some(host), bridge: Some(bridge) } = &mut self.runners[of] else { return };
        let epoch = bridge.last.epoch();
        for n in bridge.acknowledged.n() + 1..=bridge.last.n() {
            let entry = Entry {
                sequence: epoch.sequence(n),
                kind: EntryKind::Claude,
                flags: EntryFlags::default(),
                body: Bytes::new(),
            };
            // One that is refused has lost its session.
            if !matches!(host.intake.admit(&entry), Ok(Admission::Accepted | Admission::Repeated)) {
                return;
            }
        }
    }

    fn arrive(&mut self, message: Message) {
        match message {
            Message::Open { by, expected, last_committed, claims } => self.open(by, (expected, last_committed), claims),
            Message::Claimed { by, epoch } => {
                let runner = &mut self.runners[by];
                // It waits for the answer to what it asked last, and for no other.
                if runner.host.is_none() && runner.bridge.is_none() {
                    let opening = epoch.opening();
                    runner.host = Some(Host { intake: Intake::new(epoch, opening), committed: opening });
                    runner.bridge = Some(Bridge { last: opening, acknowledged: opening });
                }
            }
            Message::Append { by, after, last } => self.append(by, after, last),
            Message::Committed { by, last } => {
                let Runner { host: Some(host), bridge } = &mut self.runners[by] else { return };
                if host.intake.last().epoch() != last.epoch() {
                    return;
                }
                host.committed = host.committed.max(last);
                if let Some(bridge) = bridge.as_mut().filter(|bridge| bridge.last.epoch() == last.epoch()) {
                    bridge.acknowledged = bridge.acknowledged.max(last);
                }
            }
        }
    }
}

impl Model for Log {
    type State = State;
    type Action = Action;

    fn init_states(&self) -> Vec<State> {
        let fence = Fence { epoch: Epoch::NONE, last: Sequence::START };
        let runners = [Runner::default(), Runner::default()];
        vec![State { fence, log: Vec::new(), at: None, runners, on_the_way: BTreeSet::new(), refused: false }]
    }

    fn actions(&self, state: &State, actions: &mut Vec<Action>) {
        actions.extend(state.on_the_way.iter().map(|message| Action::Arrives(*message)));
        if state.fence.epoch.0 < EPOCHS {
            actions.push(Action::CallsLost);
        }
        for (number, runner) in state.runners.iter().enumerate() {
            if runner.host.is_none() && runner.bridge.is_none() && state.fence.epoch.0 < EPOCHS {
                actions.push(Action::Claims(number));
            }
            if runner.host.is_none() && runner.bridge.is_some() {
                actions.push(Action::StartsAgain(number));
            }
            if runner.host.is_some() {
                actions.extend([Action::Commits(number), Action::Dies(number), Action::Leaves(number)]);
            }
            if let Some(bridge) = runner.bridge {
                actions.push(Action::BridgeDies(number));
                if bridge.last.n() < ENTRIES {
                    actions.push(Action::BridgeWrites(number));
                }
            }
        }
    }

    fn next_state(&self, last: &State, action: Action) -> Option<State> {
        let mut state = last.clone();
        let Fence { epoch, last: committed } = state.fence;
        match action {
            Action::Arrives(message) => state.arrive(message),
            Action::Claims(by) => {
                let open = Message::Open { by: Some(by), expected: epoch, last_committed: committed, claims: true };
                state.on_the_way.insert(open);
            }
            Action::CallsLost => {
                let open = Message::Open { by: None, expected: epoch, last_committed: committed, claims: false };
                state.on_the_way.insert(open);
            }
            Action::Leaves(by) => {
                let host = state.runners[by].host.take()?;
                // It waits until everything that it took is committed, or gives that up.
                let expected = host.intake.last().epoch();
                let open = Message::Open { by: Some(by), expected, last_committed: host.committed, claims: false };
                state.on_the_way.insert(open);
                state.runners[by].bridge = None;
            }
            Action::BridgeWrites(of) => {
                let bridge = state.runners[of].bridge.as_mut()?;
                bridge.last = bridge.last.next()?;
                state.take(of);
            }
            Action::Commits(by) => {
                let host = state.runners[by].host.as_ref()?;
                let (after, last) = (host.committed, host.intake.last());
                if after < last {
                    state.on_the_way.insert(Message::Append { by, after, last });
                }
            }
            Action::Dies(of) => state.runners[of].host = None,
            Action::BridgeDies(of) => state.runners[of].bridge = None,
            Action::StartsAgain(of) => {
                let bridge = state.runners[of].bridge?;
                if state.at == Some(of) && bridge.last.epoch() == epoch {
                    state.runners[of].host = Some(Host { intake: Intake::new(epoch, committed), committed });
                    let bridge = state.runners[of].bridge.as_mut()?;
                    bridge.acknowledged = bridge.acknowledged.max(committed);
                    state.take(of);
                } else {
                    // It is told that its session went on without it.
                    state.runners[of].bridge = None;
                }
            }
        }
        // A log never is again as it was: who expects that comes to nothing whenever it comes.
        let fence = state.fence;
        state.on_the_way.retain(|message| match message {
            Message::Open { expected, last_committed, .. } => fence.opens(*expected, *last_committed),
            _ => true,
        });
        (state != *last).then_some(state)
    }

    fn properties(&self) -> Vec<Property<Self>> {
        vec![
            Property::always("every number is written once, in order and without a gap", |_, state: &State| {
                state.log.windows(2).all(|pair| {
                    let (before, after) = (pair[0].0, pair[1].0);
                    before.next() == Some(after) || (before.epoch().next() == Some(after.epoch()) && after.n() == 1)
                })
            }),
            Property::always("an epoch has one writer", |_, state: &State| {
                (0..=EPOCHS).all(|epoch| {
                    let of = |(sequence, by): &(Sequence, Option<usize>)| by.filter(|_| sequence.epoch().0 == epoch);
                    state.log.iter().filter_map(of).collect::<BTreeSet<_>>().len() <= 1
                })
            }),
            Property::always("what a bridge was told of is in the log", |_, state: &State| {
                let bridges = state.runners.iter().filter_map(|runner| runner.bridge);
                let is_there = |bridge: Bridge| state.log.iter().any(|(sequence, _)| *sequence == bridge.acknowledged);
                bridges.into_iter().all(is_there)
            }),
            Property::sometimes("the session is on one runner after the other", |_, state: &State| {
                let writers = state.log.iter().filter_map(|(_, by)| *by);
                writers.collect::<BTreeSet<_>>().len() == RUNNERS
            }),
            Property::sometimes("a write is refused", |_, state: &State| state.refused),
            Property::sometimes("an epoch is written to its end", |_, state: &State| state.fence.last.n() == ENTRIES),
        ]
    }
}

#[test]
fn every_interleaving_leaves_one_log() {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let checker = Log.checker().threads(threads).spawn_bfs().join();
    eprintln!("{} states", checker.unique_state_count());
    checker.assert_properties();
}
