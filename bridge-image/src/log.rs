//! The bridge's half of the event log: it numbers entries, keeps them until they are acknowledged, and says when to stop.
//!
//! Pure. Rules: design.md, "Rules of the log".

use std::collections::VecDeque;

use ash_protocol::{Entry, EntryFlags, EntryKind, Epoch, Sequence, entry::MAX_UNACKNOWLEDGED_BYTES};
use bytes::Bytes;

/// What an entry costs beside its body, counted towards the bound so that short entries cannot get around it.
const ENTRY_BYTES: usize = 64;

/// The epoch has no number left: 2³² − 1 entries were written in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the session's epoch has no number left; claim another sandbox for the session")]
pub struct EpochFull;

/// The entries of one session in one epoch that are not acknowledged yet.
#[derive(Debug)]
pub struct Log {
    last: Sequence,
    kept: VecDeque<Entry>,
    /// How many of `kept`, from the front, were given out since the last [`Log::rewind`].
    sent: usize,
    bytes: usize,
    bound: usize,
}

impl Log {
    /// An empty log of an epoch; its first entry is n = 2, after the opening.
    pub fn new(epoch: Epoch) -> Self {
        Self::with_bound(epoch, MAX_UNACKNOWLEDGED_BYTES)
    }

    /// The same with another bound of unacknowledged bytes.
    pub fn with_bound(epoch: Epoch, bound: usize) -> Self {
        Self { last: epoch.opening(), kept: VecDeque::new(), sent: 0, bytes: 0, bound }
    }

    /// Writes an entry and returns its number.
    pub fn append(&mut self, kind: EntryKind, flags: EntryFlags, body: Bytes) -> Result<Sequence, EpochFull> {
        let sequence = self.last.next().ok_or(EpochFull)?;
        self.bytes += body.len() + ENTRY_BYTES;
        self.kept.push_back(Entry { sequence, kind, flags, body });
        self.last = sequence;
        Ok(sequence)
    }

    /// The last entry that was written; the epoch's opening where there is none.
    pub fn last(&self) -> Sequence {
        self.last
    }

    /// Drops what is committed. Numbers of other epochs and numbers that were never given out change nothing beyond that.
    pub fn acknowledge(&mut self, up_to: Sequence) {
        if up_to.epoch() != self.last.epoch() {
            return;
        }
        while self.kept.front().is_some_and(|entry| entry.sequence <= up_to) {
            if let Some(entry) = self.kept.pop_front() {
                self.bytes -= entry.body.len() + ENTRY_BYTES;
                self.sent = self.sent.saturating_sub(1);
            }
        }
        if self.kept.is_empty() {
            self.kept = VecDeque::new();
        }
    }

    /// Begins to give out entries anew, for a host that has just connected.
    pub fn rewind(&mut self) {
        self.sent = 0;
    }

    /// The next entry to send.
    pub fn next_unsent(&mut self) -> Option<&Entry> {
        let entry = self.kept.get(self.sent)?;
        self.sent += 1;
        Some(entry)
    }

    /// Whether there is something to send.
    pub fn has_unsent(&self) -> bool {
        self.sent < self.kept.len()
    }

    /// Bytes that are kept.
    pub fn unacknowledged_bytes(&self) -> usize {
        self.bytes
    }

    /// Whether Claude Code may not be read from.
    pub fn is_full(&self) -> bool {
        self.bytes >= self.bound
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use ash_protocol::{EntryFlags, EntryKind, Epoch, Sequence};
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::{EpochFull, Log};

    #[derive(Debug, Clone)]
    enum Act {
        Append(usize),
        Send(usize),
        Acknowledge(u32),
        Rewind,
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            (0usize..50).prop_map(Act::Append),
            (1usize..5).prop_map(Act::Send),
            (0u32..40).prop_map(Act::Acknowledge),
            Just(Act::Rewind),
        ]
    }

    proptest! {
        #[test]
        fn nothing_is_lost_doubled_or_reordered(acts in prop::collection::vec(act(), 0..120)) {
            let epoch = Epoch(3);
            let mut log = Log::new(epoch);
            let (mut written, mut acknowledged, mut cursor) = (1u32, 1u32, 1u32);
            for act in acts {
                match act {
                    Act::Append(size) => {
                        written += 1;
                        let sequence = log.append(EntryKind::Claude, EntryFlags::default(), vec![0; size].into()).unwrap();
                        prop_assert_eq!(sequence, epoch.sequence(written));
                    }
                    Act::Send(count) => {
                        for _ in 0..count {
                            cursor = cursor.max(acknowledged);
                            if let Some(entry) = log.next_unsent() { cursor += 1; prop_assert_eq!(entry.sequence, epoch.sequence(cursor)); } else { prop_assert_eq!(cursor, written); }
                        }
                    }
                    Act::Acknowledge(n) => {
                        acknowledged = acknowledged.max(n.min(written));
                        log.acknowledge(epoch.sequence(n));
                    }
                    Act::Rewind => { cursor = acknowledged; log.rewind(); }
                }
                prop_assert_eq!(log.last(), epoch.sequence(written));
                prop_assert_eq!(log.unacknowledged_bytes() == 0, written == acknowledged);
            }
        }
    }

    #[test]
    fn it_is_full_at_the_bound_and_not_after_an_acknowledgement() {
        let mut log = Log::with_bound(Epoch(1), 200);
        log.append(EntryKind::Partial, EntryFlags::default(), Bytes::from_static(&[0; 100])).unwrap();
        assert!(!log.is_full());
        log.append(EntryKind::Partial, EntryFlags::default(), Bytes::from_static(&[0; 100])).unwrap();
        assert!(log.is_full());
        log.acknowledge(Epoch(2).sequence(9));
        assert!(log.is_full(), "another epoch's number acknowledges nothing");
        log.acknowledge(Epoch(1).sequence(2));
        assert!(!log.is_full());
    }

    #[test]
    fn a_full_epoch_takes_nothing_more() {
        let mut log = Log::new(Epoch(1));
        log.last = Epoch(1).sequence(u32::MAX);
        assert_eq!(log.append(EntryKind::Claude, EntryFlags::default(), Bytes::new()), Err(EpochFull));
        assert_eq!(log.last(), Sequence((1 << 32) + u64::from(u32::MAX)));
    }
}
