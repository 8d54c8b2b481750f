//! What came on a session's stream and not every reader has taken yet, within a bound. No I/O.
//!
//! Whoever falls out of it reads the log, and what the log does not have yet from a stream of its own.

use std::collections::VecDeque;

use ash_core::{Sequence, ports::Batch};

use crate::limits::{BATCH_BYTES, FEED_BYTES, FEED_KEPT_BYTES};

/// What an item takes beside its entries.
const ITEM_BYTES: usize = 64;

/// Entries that came at once, and how things were then.
#[derive(Debug)]
struct Item {
    batch: Batch,
    bytes: usize,
    through: Sequence,
    in_progress: bool,
    /// Readers that have not taken it.
    readers: usize,
}

/// What a reader takes.
#[derive(Debug, Default)]
pub(crate) struct Taken {
    pub(crate) batch: Batch,
    pub(crate) through: Sequence,
    pub(crate) in_progress: bool,
}

/// Where a reader is: the number of the item that comes next.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Place(u64);

/// What a reader has not taken was left out for the sake of the bound.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Behind;

#[derive(Debug)]
pub(crate) struct Tail {
    items: VecDeque<Item>,
    /// The number of the first item.
    first: u64,
    /// Everything that came behind this entry is in the items.
    begins: Sequence,
    /// Everything up to this entry came.
    through: Sequence,
    /// Whether a turn was in progress when it did; unknown at first.
    in_progress: Option<bool>,
    bytes: usize,
    readers: usize,
}

impl Tail {
    /// Of a stream on which everything up to an entry came, and whether a turn is in progress, where that is known.
    pub(crate) fn behind(position: Sequence, in_progress: Option<bool>) -> Self {
        Self {
            items: VecDeque::new(),
            first: 0,
            begins: position,
            through: position,
            in_progress,
            bytes: 0,
            readers: 0,
        }
    }

    fn end(&self) -> u64 {
        self.first + self.items.len() as u64
    }

    /// Takes what came; gives whether that is news.
    pub(crate) fn push(&mut self, batch: Batch, through: Sequence, in_progress: bool) -> bool {
        let through = through.max(self.through);
        if batch.is_empty() && through == self.through && self.in_progress == Some(in_progress) {
            self.trim();
            return false;
        }
        (self.through, self.in_progress) = (through, Some(in_progress));
        let bytes = ITEM_BYTES + batch.iter().map(|logged| logged.entry.body.len() + ITEM_BYTES).sum::<usize>();
        self.bytes += bytes;
        self.items.push_back(Item { batch, bytes, through, in_progress, readers: self.readers });
        self.trim();
        true
    }

    /// Leaves out what all have taken, but for a little that helps others to join, and what is over the bound. The last item stays
    /// for who has not taken it, whatever its size.
    fn trim(&mut self) {
        let kept = if self.in_progress == Some(false) { 0 } else { FEED_KEPT_BYTES };
        while let Some(front) = self.items.front() {
            let is_taken = front.readers == 0 && self.bytes > kept;
            let is_over = self.bytes > FEED_BYTES && self.items.len() > 1;
            if !is_taken && !is_over {
                break;
            }
            self.bytes -= front.bytes;
            self.begins = front.through;
            self.first += 1;
            self.items.pop_front();
        }
    }

    /// A place for a reader that has everything up to an entry; `None` where something behind that is not here any more.
    pub(crate) fn join(&mut self, position: Sequence) -> Option<Place> {
        if position < self.begins {
            return None;
        }
        let had = self.items.partition_point(|item| item.through <= position);
        self.items.iter_mut().skip(had).for_each(|item| item.readers += 1);
        self.readers += 1;
        Some(Place(self.first + had as u64))
    }

    /// Whether there is more for a reader at a place, which has everything up to an entry, or a turn is in progress; `None` while
    /// nothing came that says so.
    pub(crate) fn progress(&self, place: &Place, position: Sequence) -> Option<bool> {
        if self.has_more(place) || self.through < position { Some(true) } else { self.in_progress }
    }

    /// Whether something came that a reader has not taken.
    pub(crate) fn has_more(&self, place: &Place) -> bool {
        place.0 < self.end()
    }

    /// What there is for a reader, up to a batch's size beyond the first item; `None` where it has everything.
    pub(crate) fn take(&mut self, place: &mut Place) -> Result<Option<Taken>, Behind> {
        let Some(from) = place.0.checked_sub(self.first) else { return Err(Behind) };
        let mut taken: Option<Taken> = None;
        let mut bytes = 0;
        for item in self.items.iter_mut().skip(usize::try_from(from).unwrap_or(usize::MAX)) {
            if taken.is_some() && bytes + item.bytes > BATCH_BYTES {
                break;
            }
            bytes += item.bytes;
            item.readers -= 1;
            place.0 += 1;
            let taken = taken.get_or_insert_default();
            taken.batch.extend(item.batch.iter().cloned());
            (taken.through, taken.in_progress) = (item.through, item.in_progress);
        }
        self.trim();
        Ok(taken)
    }

    /// A reader goes away.
    pub(crate) fn leave(&mut self, place: &Place) {
        let from = usize::try_from(place.0.saturating_sub(self.first)).unwrap_or(usize::MAX);
        self.items.iter_mut().skip(from).for_each(|item| item.readers -= 1);
        self.readers -= 1;
        self.trim();
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::sync::Arc;

    use ash_core::{Entry, EntryFlags, EntryKind, ports::LoggedEntry};
    use proptest::prelude::*;

    use super::*;

    fn batch(from: u64, count: u64, bytes: usize) -> Batch {
        let entry = |n| Entry {
            sequence: Sequence(n),
            kind: EntryKind::Claude,
            flags: EntryFlags(0),
            body: vec![0; bytes].into(),
        };
        (from + 1..=from + count).map(|n| Arc::new(LoggedEntry::new(entry(n)))).collect()
    }

    /// What a reader does or what comes.
    #[derive(Debug, Clone)]
    enum Act {
        Come(u64, usize),
        Say(bool),
        Join(u64),
        Take(usize),
        Leave(usize),
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            4 => (0_u64..4, prop_oneof![9 => 1_usize..2000, 1 => 200_000_usize..700_000]).prop_map(|(n, b)| Act::Come(n, b)),
            1 => any::<bool>().prop_map(Act::Say),
            2 => (0_u64..6).prop_map(Act::Join),
            4 => (0_usize..8).prop_map(Act::Take),
            1 => (0_usize..8).prop_map(Act::Leave),
        ]
    }

    struct Reader {
        place: Place,
        /// The last entry that it has.
        has: u64,
    }

    proptest! {
        /// Each reader gets every entry behind the one that it came with, once and in order, or is told that it is behind; and the
        /// bound holds whatever they do.
        #[test]
        fn readers_get_everything_once_or_are_told(acts in prop::collection::vec(act(), 1..200)) {
            let mut tail = Tail::behind(Sequence(0), None);
            let mut readers: Vec<Reader> = Vec::new();
            let (mut last, mut in_progress, mut largest) = (0_u64, true, 0);
            for act in acts {
                match act {
                    Act::Come(count, bytes) => {
                        let batch = batch(last, count, bytes);
                        largest = largest.max(usize::try_from(count).unwrap() * (bytes + ITEM_BYTES) + ITEM_BYTES);
                        last += count;
                        tail.push(batch, Sequence(last), in_progress);
                    }
                    Act::Say(progress) => {
                        in_progress = progress;
                        tail.push(Batch::new(), Sequence(last), in_progress);
                    }
                    Act::Join(back) => {
                        let has = last.saturating_sub(back);
                        if let Some(place) = tail.join(Sequence(has)) {
                            prop_assert_eq!(tail.progress(&place, Sequence(has)).is_none(), tail.in_progress.is_none());
                            readers.push(Reader { place, has });
                        }
                    }
                    Act::Take(at) if at < readers.len() => {
                        let reader = &mut readers[at];
                        match tail.take(&mut reader.place) {
                            Ok(Some(taken)) => {
                                // What it had already, of a batch that it came in the middle of, it leaves out.
                                let had = reader.has;
                                for logged in taken.batch.iter().filter(|logged| logged.entry.sequence.0 > had) {
                                    reader.has += 1;
                                    prop_assert_eq!(logged.entry.sequence.0, reader.has);
                                }
                                prop_assert_eq!(taken.through.0, reader.has.max(taken.through.0));
                            }
                            Ok(None) => prop_assert_eq!(reader.has, last),
                            Err(Behind) => {
                                let reader = readers.remove(at);
                                tail.leave(&reader.place);
                            }
                        }
                    }
                    Act::Leave(at) if at < readers.len() => {
                        let reader = readers.remove(at);
                        tail.leave(&reader.place);
                    }
                    Act::Take(_) | Act::Leave(_) => {}
                }
                prop_assert!(tail.bytes <= FEED_BYTES.max(largest));
                prop_assert_eq!(tail.bytes, tail.items.iter().map(|item| item.bytes).sum::<usize>());
            }
            for reader in &readers {
                tail.leave(&reader.place);
            }
            tail.push(Batch::new(), Sequence(last), false);
            tail.push(Batch::new(), Sequence(last), false);
            prop_assert_eq!((tail.items.len(), tail.readers), (0, 0), "nothing is kept for nobody");
        }
    }
}
