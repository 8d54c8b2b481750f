//! Random histories of a session with a queue, two processes that look after it, and everything that may die: whatever happens in
//! which order, no entry is forgotten, none is begun more often than its attempts, and they begin in their order.
//!
//! The decisions are the code's own ([`step`], [`fence`], [`EntryState::after`], [`SessionState::after`]); around them is a small
//! model of the store's rows, of a log whose end may be lost, and of a host that admits a turn once.
//! `ASH_HISTORIES` asks for more histories, `ASH_SEED` for the same ones again.

#![allow(clippy::unwrap_used, clippy::panic)]

use std::collections::{HashMap, HashSet};

use jiff::Timestamp;
use uuid::Uuid;

use super::{Ending, EntryEvent, EntryState, Facts, Logged, QueueEntry, Step, cut, fence, step};
use crate::{
    Epoch,
    id::{SessionId, TenantId, TurnId},
    session::{PausedReason, SessionEvent, SessionState},
};

/// Histories of an ordinary run.
const HISTORIES: u64 = 5_000;
/// Events of a history.
const EVENTS: u64 = 80;
/// Ticks of the model's clock that a claim is left to its owner.
const LEASE: u64 = 3;
/// Rounds after which everything has come to its end.
const ROUNDS: usize = 400;

/// `SplitMix64` (Steele, Lea and Flood 2014).
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }

    fn pick(&mut self, length: usize) -> Option<usize> {
        (length > 0).then(|| usize::try_from(self.below(length as u64)).unwrap())
    }
}

/// A turn of the log.
struct Turn {
    id: TurnId,
    /// Whether its beginning is committed.
    begun: bool,
    /// How it ended, and whether that is committed.
    ended: Option<(Ending, bool)>,
}

/// A row of the queue.
struct Row {
    entry: QueueEntry,
    /// The tick at which it may be tried, or its claim is over.
    until: u64,
}

/// What a process is doing with the queue.
enum Process {
    Idle,
    /// It claimed this one, and has not sent it yet.
    Claimed(QueueEntry),
    /// It sent this one, and waits for its beginning.
    Watching(QueueEntry),
}

/// How a message was taken.
#[derive(Debug, PartialEq)]
enum Sent {
    Taken,
    /// Its sandbox did not start: the turn is over before it began.
    Failed,
    /// The host died before it gave it to the bridge.
    Died,
    Refused,
}

struct World {
    random: Random,
    /// Nothing dies and nobody interferes.
    calm: bool,
    state: SessionState,
    epoch: Epoch,
    has_sandbox: bool,
    /// The turn that the bridge works on.
    running: Option<TurnId>,
    log: Vec<Turn>,
    /// Every turn that Claude Code was given. Never forgotten.
    given: HashSet<TurnId>,
    /// Which entry, and which attempt at it, a turn is.
    attempts: HashMap<TurnId, (usize, u32)>,
    /// The position of the entry that was begun last.
    begun: u64,
    rows: Vec<Row>,
    processes: [Process; 2],
    now: u64,
    names: u128,
}

impl World {
    fn new(seed: u64, calm: bool) -> Self {
        Self {
            random: Random(seed),
            calm,
            state: SessionState::Active,
            epoch: Epoch(1),
            has_sandbox: true,
            running: None,
            log: Vec::new(),
            given: HashSet::new(),
            attempts: HashMap::new(),
            begun: 0,
            rows: Vec::new(),
            processes: [Process::Idle, Process::Idle],
            now: 0,
            names: 0,
        }
    }

    fn name(&mut self) -> TurnId {
        self.names += 1;
        TurnId(Uuid::from_u128(self.names))
    }

    fn opens(&mut self, has_sandbox: bool) {
        self.epoch = self.epoch.next().unwrap();
        self.has_sandbox = has_sandbox;
    }

    /// The whole log is written.
    fn commit(&mut self) {
        for turn in &mut self.log {
            turn.begun = true;
            if let Some((_, committed)) = &mut turn.ended {
                *committed = true;
            }
        }
    }

    fn end_turn(&mut self, ending: Ending, committed: bool) {
        if let Some(id) = self.running.take() {
            self.log.iter_mut().find(|turn| turn.id == id).unwrap().ended = Some((ending, committed));
        }
    }

    /// Bridge and host are gone: what was not committed never was, and a turn that had begun is over.
    fn lose(&mut self) {
        if !self.has_sandbox {
            return;
        }
        self.log.retain(|turn| turn.begun);
        for turn in &mut self.log {
            if !matches!(turn.ended, Some((_, true))) {
                turn.ended = Some((Ending::Cut("lost".to_owned(), true), true));
            }
        }
        self.running = None;
        self.state = self.state.after(SessionEvent::Pause(PausedReason::Lost)).unwrap();
        self.opens(false);
    }

    /// The session leaves its sandbox in peace, for an event.
    fn leave(&mut self, event: SessionEvent) {
        let Ok(state) = self.state.after(event) else { return };
        if state == self.state {
            return;
        }
        self.end_turn(Ending::Cut("put aside".to_owned(), false), true);
        self.commit();
        self.state = state;
        self.opens(false);
    }

    /// A host takes a message.
    fn send(&mut self, turn: TurnId) -> Sent {
        if self.state.after(SessionEvent::Message).is_err() {
            return Sent::Refused;
        }
        if self.log.iter().any(|known| known.id == turn) {
            return Sent::Taken;
        }
        if self.running.is_some() {
            return Sent::Refused;
        }
        if !self.has_sandbox {
            let trouble = if self.calm { 9 } else { self.random.below(10) };
            if trouble == 0 {
                self.state = self.state.after(SessionEvent::Fail).unwrap();
                self.opens(false);
                return Sent::Failed;
            }
            self.state = self.state.after(SessionEvent::Message).unwrap();
            self.opens(true);
            if trouble == 1 {
                return Sent::Died;
            }
        }
        self.running = Some(turn);
        self.give(turn);
        self.log.push(Turn { id: turn, begun: false, ended: None });
        Sent::Taken
    }

    /// Claude Code is given a turn: never one that it was given before, of an entry only the attempt that was claimed, and of
    /// entries never a later one before an earlier one.
    fn give(&mut self, turn: TurnId) {
        assert!(self.given.insert(turn), "a turn was given to Claude Code twice");
        let Some((which, attempt)) = self.attempts.get(&turn) else { return };
        let entry = &self.rows[*which].entry;
        assert_eq!((entry.state, entry.attempt), (EntryState::Processing, *attempt), "{entry:?}");
        if *attempt == 1 {
            assert!(entry.position > self.begun, "entries begin in their order: {entry:?}");
            self.begun = entry.position;
        }
    }

    fn logged(&self, turn: TurnId) -> Logged {
        match self.log.iter().find(|known| known.id == turn && known.begun) {
            None => Logged::Nothing,
            Some(Turn { ended: Some((ending, true)), .. }) => Logged::Ended(ending.clone()),
            Some(_) => Logged::Begun,
        }
    }

    fn facts(&self, row: &Row) -> Facts {
        let is_open = |turn: &Turn| turn.begun && !matches!(turn.ended, Some((_, true)));
        Facts {
            state: self.state,
            epoch: self.epoch,
            has_sandbox: self.has_sandbox,
            turn_runs: self.log.iter().any(is_open),
            attempt: self.logged(row.entry.turn()),
            is_due: row.until <= self.now,
        }
    }

    /// A compare-and-set of a row: what the store does with an entry that somebody looked at. Gives the entry as it is then.
    fn change(&mut self, seen: &QueueEntry, event: EntryEvent, fence: Option<Epoch>, pause: u64) -> Option<QueueEntry> {
        let now = self.now;
        let row = self.rows.iter_mut().find(|row| row.entry.id == seen.id).unwrap();
        if row.entry.version != seen.version {
            return None;
        }
        let changed = row.entry.after(event, fence, None);
        row.entry = changed.unwrap_or_else(|refused| panic!("{event:?}: {refused}"));
        row.until = now + pause;
        Some(row.entry.clone())
    }

    /// One step of a process that looks after the queue.
    fn work(&mut self, which: usize) {
        self.processes[which] = match std::mem::replace(&mut self.processes[which], Process::Idle) {
            Process::Idle => self.look(),
            Process::Claimed(entry) => match self.send(entry.turn()) {
                Sent::Taken => Process::Watching(entry),
                Sent::Failed => {
                    self.settle(&entry, &cut(&entry, "it did not start", true));
                    Process::Idle
                }
                Sent::Died => Process::Idle,
                Sent::Refused => {
                    self.change(&entry, EntryEvent::Release, None, 1);
                    Process::Idle
                }
            },
            Process::Watching(entry) => {
                let is_known = self.log.iter().any(|turn| turn.id == entry.turn());
                if !is_known {
                    // Its reader saw the opening that interrupts the turn.
                    self.settle(&entry, &cut(&entry, "it was lost", true));
                }
                Process::Idle
            }
        };
    }

    fn look(&mut self) -> Process {
        let Some(row) = self.rows.iter().find(|row| row.entry.state.is_open()) else { return Process::Idle };
        let (entry, facts) = (row.entry.clone(), self.facts(row));
        match step(&entry, &facts) {
            Step::Wait => Process::Idle,
            Step::Claim(until) => {
                assert_eq!(until, fence(&facts));
                let claimed = self.change(&entry, EntryEvent::Claim, Some(until), LEASE);
                claimed.map_or(Process::Idle, Process::Claimed)
            }
            Step::Resend => {
                let now = self.now;
                let row = self.rows.iter_mut().find(|row| row.entry.id == entry.id).unwrap();
                row.entry.version += 1;
                row.until = now + LEASE;
                Process::Claimed(row.entry.clone())
            }
            settle @ Step::Settle(..) => {
                self.settle(&entry, &settle);
                Process::Idle
            }
        }
    }

    fn settle(&mut self, entry: &QueueEntry, settled: &Step) {
        let Step::Settle(event, _) = settled else { panic!("{settled:?}") };
        self.change(entry, *event, None, 1);
    }

    /// Time passes: who is alive says that it is still at what it claimed. Writing takes less time than a claim lasts.
    fn tick(&mut self) {
        self.commit();
        self.now += 1;
        let now = self.now;
        for process in &self.processes {
            let (Process::Claimed(entry) | Process::Watching(entry)) = process else { continue };
            if let Some(row) = self.rows.iter_mut().find(|row| row.entry.id == entry.id)
                && row.entry.version == entry.version
            {
                row.until = now + LEASE;
            }
        }
    }

    fn enqueue(&mut self) {
        if self.state.after(SessionEvent::Queue).is_err() {
            return;
        }
        let id = self.name();
        let position = self.rows.len() as u64 + 1;
        let retries = if self.calm { 0 } else { u32::try_from(self.random.below(3)).unwrap() };
        let entry = QueueEntry {
            id,
            session: SessionId(Uuid::nil()),
            tenant: TenantId::default_tenant(),
            position,
            state: EntryState::Pending,
            attempt: 0,
            retries,
            fence: Epoch::NONE,
            version: 1,
            preview: String::new(),
            error: None,
            created_at: Timestamp::UNIX_EPOCH,
        };
        for attempt in 1..=retries + 2 {
            self.attempts.insert(id.of_attempt(attempt), (self.rows.len(), attempt));
        }
        self.rows.push(Row { entry, until: 0 });
    }

    fn take_back(&mut self) {
        let Some(which) = self.random.pick(self.rows.len()) else { return };
        let entry = self.rows[which].entry.clone();
        if entry.state == EntryState::Pending {
            self.change(&entry, EntryEvent::TakeBack, None, 0).unwrap();
        } else {
            let taken_back = entry.state.after(EntryEvent::TakeBack);
            assert_eq!(taken_back.is_ok(), entry.state == EntryState::Cancelled);
        }
    }

    /// Something happens.
    fn event(&mut self) {
        match self.random.below(if self.calm { 15 } else { 24 }) {
            0..=1 => self.enqueue(),
            2..=4 => self.work(0),
            5..=7 => self.work(1),
            8..=9 => self.commit(),
            10 => self.end_turn(Ending::Result, false),
            11 => self.tick(),
            12 => self.take_back(),
            13 => {
                let plain = self.name();
                self.send(plain);
            }
            14 => {
                if self.running.is_none() {
                    self.leave(SessionEvent::Pause(PausedReason::Evicted));
                }
            }
            15 => self.lose(),
            16 => self.leave(SessionEvent::Pause(PausedReason::Person)),
            17 => self.leave(SessionEvent::Stop),
            18..=19 => {
                if let Ok(state) = self.state.after(SessionEvent::Resume)
                    && state != self.state
                {
                    self.state = state;
                    self.opens(false);
                }
            }
            20 => self.end_turn(Ending::Result, false),
            21 => self.processes[0] = Process::Idle,
            22 => self.processes[1] = Process::Idle,
            _ => {
                if self.random.below(8) == 0 {
                    self.leave(SessionEvent::End);
                }
            }
        }
    }

    /// Lets everything come to its end, with nobody in the way.
    fn come_to_rest(&mut self) {
        self.calm = true;
        if let Ok(state) = self.state.after(SessionEvent::Resume) {
            self.state = state;
        }
        for _ in 0..ROUNDS {
            if self.rows.iter().all(|row| !row.entry.state.is_open()) {
                return;
            }
            self.work(0);
            self.work(1);
            self.commit();
            self.end_turn(Ending::Result, true);
            self.tick();
        }
    }

    /// What must hold at any time, beside what is checked as it happens.
    fn check(&self) {
        for Row { entry, .. } in &self.rows {
            assert!(entry.attempt <= entry.retries + 1, "{entry:?}");
            match entry.state {
                EntryState::Completed => assert!(self.given.contains(&entry.turn()), "{entry:?}"),
                EntryState::Cancelled if entry.attempt == 0 => assert!(!self.given.contains(&entry.id), "{entry:?}"),
                _ => {}
            }
        }
    }
}

fn history(seed: u64, calm: bool) {
    let mut world = World::new(seed, calm);
    for _ in 0..EVENTS {
        world.event();
    }
    world.check();
    let queued = world.rows.len();
    world.come_to_rest();
    world.check();
    assert_eq!(world.rows.len(), queued);
    for Row { entry, .. } in &world.rows {
        assert!(!entry.state.is_open(), "it is still there: {entry:?}");
        if calm {
            assert!(matches!(entry.state, EntryState::Completed | EntryState::Cancelled), "{entry:?}");
        }
    }
}

fn histories(calm: bool) {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let seed = number("ASH_SEED").unwrap_or_else(|| Uuid::new_v4().as_u64_pair().0);
    eprintln!("ASH_SEED={seed}");
    for round in 0..number("ASH_HISTORIES").unwrap_or(HISTORIES) {
        let seed = seed.wrapping_add(round.wrapping_mul(0x2545_f491_4f6c_dd1d));
        let outcome = std::panic::catch_unwind(|| history(seed, calm));
        if let Err(panic) = outcome {
            eprintln!("history {seed}");
            std::panic::resume_unwind(panic);
        }
    }
}

#[test]
fn no_entry_is_lost_and_none_begins_twice() {
    histories(false);
}

#[test]
fn undisturbed_every_entry_runs_once() {
    histories(true);
}
