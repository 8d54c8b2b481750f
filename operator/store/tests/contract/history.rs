//! Random histories of a session, against a model that is simple enough to be believed.

use std::collections::BTreeMap;

use ash_core::{
    Entry, EntryKind, Epoch, Sequence,
    id::TurnId,
    ports::{Append, Store, StoreError, TurnRecord},
    session::Session,
    transcript::Transcript,
};
use proptest::{prelude::*, strategy::ValueTree, test_runner::TestRunner};
use uuid::Uuid;

use super::{
    Database,
    fixtures::{entry, log_after, now, opening_of, result, session, transcript_part, user},
};

/// Histories that are tried.
const HISTORIES: usize = 40;

/// What an entry of a batch is.
#[derive(Debug, Clone, Copy)]
enum Kind {
    User(u8),
    Line,
    Partial,
    Transcript(u8),
    Result,
}

#[derive(Debug, Clone)]
enum Step {
    /// Opens an epoch; expects an epoch that is so far off, and interrupts the open turn or not.
    Open { off: u32, interrupts: bool },
    /// Appends behind an entry that is so far off.
    Append { off: u32, kinds: Vec<Kind> },
    /// Appends what was appended last once more.
    Repeat,
    /// Reads from so far behind the end.
    Read { back: usize, max_bytes: usize },
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let kind = prop_oneof![
        (0u8..4).prop_map(Kind::User),
        Just(Kind::Line),
        Just(Kind::Partial),
        (0u8..20).prop_map(Kind::Transcript),
        Just(Kind::Result),
    ];
    let off = || prop_oneof![4 => Just(0u32), 1 => 1u32..3];
    let step = prop_oneof![
        2 => (off(), any::<bool>()).prop_map(|(off, interrupts)| Step::Open { off, interrupts }),
        5 => (off(), prop::collection::vec(kind, 1..12)).prop_map(|(off, kinds)| Step::Append { off, kinds }),
        1 => Just(Step::Repeat),
        2 => (0usize..40, 0usize..600).prop_map(|(back, max_bytes)| Step::Read { back, max_bytes }),
    ];
    prop::collection::vec(step, 1..30)
}

/// What the store should hold.
#[derive(Default)]
struct Model {
    epoch: Epoch,
    last: Sequence,
    entries: Vec<Entry>,
    turns: BTreeMap<TurnId, TurnRecord>,
}

impl Model {
    fn visible(&self, after: Sequence) -> Vec<Entry> {
        let seen = |entry: &&Entry| entry.sequence > after && entry.kind != EntryKind::Transcript;
        self.entries.iter().filter(seen).cloned().collect()
    }

    fn transcript(&self) -> Option<Transcript> {
        let parts = self.entries.iter().filter(|entry| entry.kind == EntryKind::Transcript);
        Transcript::assemble(parts.map(|entry| entry.body.as_ref()))
    }

    fn unfinished(&self) -> Option<TurnId> {
        let open = self.turns.iter().filter(|(_, record)| record.last.is_none());
        open.max_by_key(|(_, record)| record.first).map(|(turn, _)| *turn)
    }

    fn take(&mut self, entries: &[Entry], turns: &[Option<TurnId>]) {
        for (entry, turn) in entries.iter().zip(turns) {
            if let Some(turn) = turn {
                self.turns.entry(*turn).or_insert(TurnRecord { first: entry.sequence, last: None });
            }
            if entry.ends_turn() {
                for record in self.turns.values_mut().filter(|record| record.last.is_none()) {
                    record.last = Some(entry.sequence);
                }
            }
            self.last = entry.sequence;
            self.entries.push(entry.clone());
        }
    }
}

pub async fn random_histories_agree_with_the_model<D: Database>() {
    let database = D::fresh().await;
    let store = database.store();
    let mut runner = TestRunner::default();
    for _ in 0..HISTORIES {
        let steps = steps().new_tree(&mut runner).unwrap().current();
        let session = session(&*store).await;
        let mut model = Model::default();
        let mut previous = None;
        for step in &steps {
            carry_out(&*store, &session, &mut model, &mut previous, step, &steps).await;
        }
        check(&*store, &session, &model, &steps).await;
    }
}

async fn carry_out(
    store: &dyn Store,
    session: &Session,
    model: &mut Model,
    previous: &mut Option<Append>,
    step: &Step,
    history: &[Step],
) {
    let overtaken = StoreError::Overtaken { session: session.id, epoch: model.epoch, last: model.last };
    match step {
        Step::Open { off, interrupts } => {
            let mut open = opening_of(session);
            open.expected = Epoch(model.epoch.0 + off);
            open.opening.last_committed = model.last;
            open.opening.interrupted = if *interrupts { model.unfinished().map(|turn| turn.0) } else { None };
            let opening = open.opening.clone();
            let outcome = store.open_epoch(open).await;
            if *off > 0 {
                assert_eq!(outcome, Err(overtaken), "{history:?}");
                return;
            }
            model.epoch = Epoch(model.epoch.0 + 1);
            let entry = opening.entry(model.epoch);
            assert_eq!(outcome.unwrap().last, entry.sequence, "{history:?}");
            if let Some(turn) = opening.interrupted.and_then(|turn| model.turns.get_mut(&TurnId(turn))) {
                turn.last = Some(entry.sequence);
            }
            model.last = entry.sequence;
            model.entries.push(entry);
        }
        Step::Append { off, kinds } if model.epoch > Epoch::NONE => {
            let after = Sequence(model.last.0 + u64::from(*off));
            let (entries, turns) = batch(session, after, kinds);
            let append = Append { session: session.id, after, entries: entries.clone() };
            let outcome = store.append(vec![append.clone()]).await.pop().unwrap();
            if *off > 0 {
                assert_eq!(outcome, Err(overtaken), "{history:?}");
                return;
            }
            assert_eq!(outcome, Ok(()), "{history:?}");
            model.take(&entries, &turns);
            *previous = Some(append);
        }
        Step::Repeat => {
            let Some(append) = previous.clone() else { return };
            let same_epoch = append.after.epoch() == model.epoch;
            let outcome = store.append(vec![append]).await.pop().unwrap();
            assert_eq!(outcome, if same_epoch { Ok(()) } else { Err(overtaken) }, "{history:?}");
        }
        Step::Append { .. } => {}
        Step::Read { back, max_bytes } => {
            let from = model.entries.len().saturating_sub(*back);
            let after = model.entries[..from].last().map_or(Sequence::START, |entry| entry.sequence);
            let read = log_after(store, session.id, after, *max_bytes).await;
            assert_eq!(read, model.visible(after), "{history:?}");
        }
    }
}

fn batch(session: &Session, after: Sequence, kinds: &[Kind]) -> (Vec<Entry>, Vec<Option<TurnId>>) {
    let epoch = after.epoch();
    (after.n() + 1..)
        .zip(kinds)
        .map(|(n, kind)| match *kind {
            Kind::User(turn) => {
                let turn = TurnId::from_idempotency_key(session.id, &turn.to_string());
                (user(epoch, n, turn.0), Some(turn))
            }
            Kind::Line => (entry(epoch, n, EntryKind::Claude, format!("{{\"n\":{n}}}")), None),
            Kind::Partial => (entry(epoch, n, EntryKind::Partial, "x".repeat(n as usize % 70)), None),
            Kind::Transcript(offset) => {
                let conversation = Uuid::from_u128(u128::from(offset % 2));
                let body = transcript_part(conversation, u64::from(offset / 3), b"abc");
                (entry(epoch, n, EntryKind::Transcript, body), None)
            }
            Kind::Result => (result(epoch, n), None),
        })
        .unzip()
}

async fn check(store: &dyn Store, session: &Session, model: &Model, history: &[Step]) {
    let stored = now(store, session).await;
    assert_eq!((stored.epoch, stored.last), (model.epoch, model.last), "{history:?}");
    assert_eq!(log_after(store, session.id, Sequence::START, 300).await, model.visible(Sequence::START), "{history:?}");
    assert_eq!(store.transcript(session.id).await.unwrap(), model.transcript(), "{history:?}");
    assert_eq!(store.unfinished_turn(session.id).await.unwrap(), model.unfinished(), "{history:?}");
    for (turn, record) in &model.turns {
        assert_eq!(store.turn(session.id, *turn).await.unwrap().as_ref(), Some(record), "{history:?}");
    }
}
