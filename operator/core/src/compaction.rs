//! Compaction: which partial messages of a finished turn need not be kept, because a complete message stands for them.
//!
//! Partials between two complete lines of Claude Code are a *range*. It may go once a complete message stands for what it said: an
//! `assistant` line, or the bridge's word that the call was made again. A range that says nothing (the stops behind a complete
//! message) may go with any complete line. What nothing stands for, as when a turn is cut off in the middle of a sentence, stays.

use ash_protocol::{
    Entry, EntryFlags, EntryKind, Sequence,
    claude::{Line, PartialLine},
    message::BridgeEvent,
};
use bytes::Bytes;

/// Partials that are dropped: all of them from one sequence through another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Dropped {
    /// The first.
    pub from: Sequence,
    /// The last.
    pub to: Sequence,
}

impl Dropped {
    /// What stands in the log in their place, at the last one's sequence: the bridge's word for partials that do not count any more,
    /// which readers of every release know.
    ///
    /// # Panics
    /// Never: the JSON of this type has string keys only.
    #[allow(clippy::expect_used, reason = "serialising our own type to memory cannot fail")]
    pub fn entry(self) -> Entry {
        let event = BridgeEvent::Superseded { from: self.from, to: self.to };
        Entry {
            sequence: self.to,
            kind: EntryKind::Bridge,
            flags: EntryFlags::FOR_PARTIALS,
            body: Bytes::from(serde_json::to_vec(&event).expect("an event has string keys")),
        }
    }

    /// The partials that an entry of [`Self::entry`] stands for; `None` for any other.
    pub fn read(entry: &Entry) -> Option<Self> {
        if entry.kind != EntryKind::Bridge || !entry.flags.contains(EntryFlags::FOR_PARTIALS) {
            return None;
        }
        match serde_json::from_slice(&entry.body) {
            Ok(BridgeEvent::Superseded { from, to }) => Some(Self { from, to }),
            _ => None,
        }
    }
}

/// Finds what may be dropped in the entries of one finished turn, given in order. Holds positions, no entries.
#[derive(Debug, Default)]
pub struct Compaction {
    open: Option<Dropped>,
    /// Whether something was said in the open range.
    has_content: bool,
    dropped: Vec<Dropped>,
}

impl Compaction {
    /// Looks at the next entry.
    pub fn take(&mut self, entry: &Entry) {
        if let Some(dropped) = Dropped::read(entry) {
            // A compaction that was cut off had decided this much: what it did not come to is seen without what it dropped behind it.
            while self.dropped.pop_if(|range| range.from >= dropped.from).is_some() {}
            (self.open, self.has_content) = (None, false);
            self.dropped.push(dropped);
            return;
        }
        match entry.kind {
            EntryKind::Partial => {
                self.extend(Dropped { from: entry.sequence, to: entry.sequence }, has_content(&entry.body));
            }
            EntryKind::Claude => match stands_for(&entry.body) {
                Stands::ForContent => self.close(),
                Stands::ForNothing if !self.has_content => self.close(),
                Stands::ForNothing => {}
            },
            EntryKind::Bridge if matches!(serde_json::from_slice(&entry.body), Ok(BridgeEvent::Superseded { .. })) => {
                self.close();
            }
            EntryKind::Opening => (self.open, self.has_content) = (None, false),
            EntryKind::Bridge | EntryKind::User | EntryKind::Transcript => {}
        }
    }

    /// What may be dropped, in order.
    pub fn finish(self) -> Vec<Dropped> {
        self.dropped
    }

    fn extend(&mut self, by: Dropped, has_content: bool) {
        self.open = Some(Dropped { from: self.open.map_or(by.from, |open| open.from), to: by.to });
        self.has_content |= has_content;
    }

    fn close(&mut self) {
        self.dropped.extend(self.open.take());
        self.has_content = false;
    }
}

/// What becomes of the entries of a batch's partial chunk, in order, when `dropped` is dropped; `None` where nothing changes.
pub fn rewrite(entries: &[Entry], dropped: &[Dropped]) -> Option<Vec<Entry>> {
    let range_of = |entry: &Entry| {
        let at = dropped.partition_point(|range| range.to < entry.sequence);
        dropped.get(at).filter(|range| range.from <= entry.sequence && entry.kind == EntryKind::Partial)
    };
    let kept: Vec<Entry> = entries
        .iter()
        .filter_map(|entry| match range_of(entry) {
            None => Some(entry.clone()),
            Some(range) if range.to == entry.sequence => Some(range.entry()),
            Some(_) => None,
        })
        .collect();
    (kept != entries).then_some(kept)
}

enum Stands {
    ForContent,
    ForNothing,
}

fn stands_for(line: &[u8]) -> Stands {
    match Line::parse(line) {
        Ok(Line::Other(kind)) if kind == "assistant" => Stands::ForContent,
        _ => Stands::ForNothing,
    }
}

/// Whether a partial says something that a reader would miss. One that cannot be read might.
fn has_content(line: &[u8]) -> bool {
    const OF_CONTENT: [&str; 2] = ["content_block_start", "content_block_delta"];
    serde_json::from_slice::<PartialLine<'_>>(line).map_or(true, |line| OF_CONTENT.contains(&line.event.kind.as_ref()))
}

#[cfg(test)]
#[path = "compaction_tests.rs"]
mod tests;
