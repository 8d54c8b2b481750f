//! Appends, prepared before they are written: checked and encoded, with what they say about turns.

use ash_core::{
    Entry, EntryKind, Epoch, Sequence,
    fence::{Appends, Fence},
    id::{SessionId, TurnId},
    ports::{Append, StoreError},
    spent::Spending,
};
use jiff::Timestamp;

use crate::{
    cache::Caches,
    codec::{self, StoredChunk},
    fault::Fault,
    rows,
    sql::Columns,
};

/// One append.
pub(crate) struct Batch {
    pub(crate) session: SessionId,
    pub(crate) after: Sequence,
    pub(crate) epoch: Epoch,
    pub(crate) last: Sequence,
    pub(crate) chunks: Vec<StoredChunk>,
    pub(crate) turns: Vec<TurnChange>,
    /// What its entries add to what the session has spent.
    pub(crate) spending: Option<Spending>,
}

/// What an entry says about turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TurnChange {
    Begins(TurnId, Sequence),
    Ends(Sequence),
}

/// What became of one append.
pub(crate) enum Appended {
    /// Its entries are there now, and when the session was active where they say so.
    Now { session: SessionId, last: Sequence, active_at: Option<Timestamp>, refused: Option<bool> },
    /// They were there.
    Before,
}

impl Appended {
    /// Tells the caches.
    pub(crate) fn tell(&self, caches: &Caches) {
        if let Self::Now { session, last, active_at, refused } = self {
            caches.session_appended(*session, *last, *active_at, *refused);
        }
    }
}

impl Batch {
    async fn prepare(append: Append) -> Result<Self, Fault> {
        let Append { session, after, entries } = append;
        let last = check(after, &entries)?;
        let mut turns: Vec<TurnChange> = entries.iter().flat_map(turn_changes).collect();
        // An end ends every turn that is open: another one right behind it changes nothing.
        turns.dedup_by(|next, previous| matches!((previous, next), (TurnChange::Ends(_), TurnChange::Ends(_))));
        let spending = Spending::of(&entries);
        let (_, chunks) = codec::encode(entries).await?;
        Ok(Self { session, after, epoch: last.epoch(), last, chunks, turns, spending })
    }

    /// Statements that write it, about.
    pub(crate) fn statements(&self) -> usize {
        1 + self.chunks.len() + self.turns.len()
    }

    /// What to say when it is written.
    pub(crate) fn appended(&self, now: Timestamp) -> Appended {
        let active_at = (!self.turns.is_empty()).then_some(now);
        let refused = self.spending.and_then(|spending| spending.refused);
        Appended::Now { session: self.session, last: self.last, active_at, refused }
    }

    /// What became of one that was not written, from the session's row.
    pub(crate) fn was_there(&self, row: &impl Columns) -> Result<Appended, Fault> {
        let (epoch, last) = (Epoch(rows::number(row, "epoch")?), rows::sequence(row, "last_sequence")?);
        match (Fence { epoch, last }).appends(self.after, self.last) {
            Appends::Before => Ok(Appended::Before),
            // It would be written now, and was not: somebody was in between.
            Appends::Now | Appends::Overtaken => Err(overtaken(self.session, epoch, last).into()),
        }
    }
}

/// Checks and encodes appends, each by itself.
pub(crate) async fn prepare(appends: Vec<Append>) -> Vec<Result<Batch, StoreError>> {
    let mut batches = Vec::with_capacity(appends.len());
    for append in appends {
        batches.push(Batch::prepare(append).await.map_err(StoreError::from));
    }
    batches
}

/// The epoch after a session's current one.
pub(crate) fn next_epoch(session: SessionId, epoch: Epoch) -> Result<Epoch, StoreError> {
    let used_up = || StoreError::Conflict(format!("session {session} has used up its epochs; start another one"));
    epoch.next().ok_or_else(used_up)
}

pub(crate) fn overtaken(session: SessionId, epoch: Epoch, last: Sequence) -> StoreError {
    StoreError::Overtaken { session, epoch, last }
}

/// Whether the entries are what an append must be; gives the last one's sequence.
fn check(after: Sequence, entries: &[Entry]) -> Result<Sequence, StoreError> {
    let mut previous = after;
    for entry in entries {
        if entry.kind == EntryKind::Opening {
            return Err(StoreError::Conflict("an opening cannot be appended: it opens an epoch".to_owned()));
        }
        if previous.next() != Some(entry.sequence) {
            return Err(StoreError::Conflict(format!("entry {} does not follow {previous}", entry.sequence)));
        }
        previous = entry.sequence;
    }
    if entries.is_empty() {
        return Err(StoreError::Conflict("an append must have entries".to_owned()));
    }
    Ok(previous)
}

fn turn_changes(entry: &Entry) -> impl Iterator<Item = TurnChange> {
    let begins = entry.begins_turn().map(|uuid| TurnChange::Begins(TurnId(uuid), entry.sequence));
    let ends = entry.ends_turn().then_some(TurnChange::Ends(entry.sequence));
    begins.into_iter().chain(ends)
}
