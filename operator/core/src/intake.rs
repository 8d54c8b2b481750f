//! What a host accepts from a bridge: only the next number of the current epoch, within bounds.
//!
//! A bridge is an untrusted client (the agent runs under the same uid and may impersonate it). Whoever impersonates one gains
//! its own session's log and nothing else.

use ash_protocol::{
    Entry, EntryFlags, EntryKind, Epoch, Sequence,
    entry::{MAX_LINE_BYTES, MAX_UNACKNOWLEDGED_BYTES},
};

/// What an entry costs in memory beside its body: counted, because otherwise empty ones would be free. The bridge counts alike.
pub const ENTRY_COST_BYTES: usize = 64;

/// Bytes that are taken and not committed at the most: what a bridge may send unacknowledged, a line, and some room.
pub const MAX_PENDING_BYTES: usize = MAX_UNACKNOWLEDGED_BYTES + MAX_LINE_BYTES + (1 << 20);

/// The gate that entries of one bridge pass.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Intake {
    epoch: Epoch,
    last: Sequence,
    pending_bytes: usize,
}

/// What becomes of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// It is the next one: take it.
    Accepted,
    /// It was taken before: a bridge that reconnects sends again what was not acknowledged.
    Repeated,
}

/// Why an entry is refused. The connection is closed: its bridge is broken or impersonated.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It belongs to another epoch.
    #[error("an entry of epoch {0}, which is not the session's current one")]
    Epoch(Epoch),
    /// It leaves a gap.
    #[error("entry {got} does not follow {last}")]
    Gap {
        /// What came.
        got: Sequence,
        /// The last one that was taken.
        last: Sequence,
    },
    /// Something that only the store writes.
    #[error("an entry that only the store may write")]
    Reserved,
    /// More than a bridge may send before it is acknowledged.
    #[error("more unacknowledged bytes than a bridge may send")]
    Overrun,
}

impl Intake {
    /// A gate for a bridge that got as far as `last` in `epoch`.
    pub fn new(epoch: Epoch, last: Sequence) -> Self {
        Self { epoch, last, pending_bytes: 0 }
    }

    /// The last entry taken.
    pub fn last(&self) -> Sequence {
        self.last
    }

    /// Bytes taken and not committed yet.
    pub fn pending_bytes(&self) -> usize {
        self.pending_bytes
    }

    /// Decides about an entry.
    pub fn admit(&mut self, entry: &Entry) -> Result<Admission, Refused> {
        if entry.sequence.epoch() != self.epoch {
            return Err(Refused::Epoch(entry.sequence.epoch()));
        }
        if entry.kind == EntryKind::Opening || entry.flags.contains(EntryFlags::FOR_PARTIALS) {
            return Err(Refused::Reserved);
        }
        if entry.sequence <= self.last {
            return Ok(Admission::Repeated);
        }
        if Some(entry.sequence) != self.last.next() {
            return Err(Refused::Gap { got: entry.sequence, last: self.last });
        }
        let pending = self.pending_bytes + entry.body.len() + ENTRY_COST_BYTES;
        if pending > MAX_PENDING_BYTES {
            return Err(Refused::Overrun);
        }
        self.last = entry.sequence;
        self.pending_bytes = pending;
        Ok(Admission::Accepted)
    }

    /// Says that so many bytes of what was taken are committed.
    pub fn committed(&mut self, bytes: usize) {
        self.pending_bytes = self.pending_bytes.saturating_sub(bytes);
    }
}

#[cfg(test)]
mod tests {
    use ash_protocol::{Entry, EntryFlags, EntryKind, Epoch};
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::{Admission, ENTRY_COST_BYTES, Intake, MAX_PENDING_BYTES, Refused};

    fn entry(epoch: u32, n: u32) -> Entry {
        Entry {
            sequence: Epoch(epoch).sequence(n),
            kind: EntryKind::Claude,
            flags: EntryFlags::default(),
            body: Bytes::from_static(b"{}"),
        }
    }

    proptest! {
        #[test]
        fn whatever_arrives_the_accepted_numbers_have_no_gap_and_no_repeat(
            arrivals in prop::collection::vec((1u32..4, 1u32..12), 0..200),
        ) {
            let mut intake = Intake::new(Epoch(2), Epoch(2).opening());
            let mut next = 2;
            for (epoch, n) in arrivals {
                if intake.admit(&entry(epoch, n)) == Ok(Admission::Accepted) {
                    prop_assert_eq!((epoch, n), (2, next));
                    next += 1;
                }
            }
        }
    }

    proptest! {
        #[test]
        fn what_is_taken_and_not_committed_is_bounded(steps in prop::collection::vec((0usize..64, any::<bool>()), 0..40)) {
            let mut intake = Intake::new(Epoch(2), Epoch(2).opening());
            let (mut n, mut pending) = (2, 0);
            // Bodies share one buffer: only their lengths count here.
            let buffer = Bytes::from(vec![0; 64 << 20]);
            for (mebibytes, commits) in steps {
                let next = Entry { body: buffer.slice(..mebibytes << 20), ..entry(2, n) };
                let bytes = next.body.len() + ENTRY_COST_BYTES;
                match intake.admit(&next) {
                    Ok(_) => (n, pending) = (n + 1, pending + bytes),
                    Err(refused) => {
                        prop_assert_eq!(refused, Refused::Overrun);
                        prop_assert!(pending + bytes > MAX_PENDING_BYTES);
                    }
                }
                prop_assert!(pending <= MAX_PENDING_BYTES);
                prop_assert_eq!(intake.pending_bytes(), pending);
                if commits {
                    intake.committed(pending);
                    pending = 0;
                }
            }
        }
    }

    #[test]
    fn a_bridge_cannot_open_an_epoch() {
        let mut opening = entry(2, 2);
        opening.kind = EntryKind::Opening;
        assert_eq!(Intake::new(Epoch(2), Epoch(2).opening()).admit(&opening), Err(Refused::Reserved));
        let mut in_place_of_partials = entry(2, 2);
        in_place_of_partials.flags = EntryFlags::FOR_PARTIALS;
        assert_eq!(Intake::new(Epoch(2), Epoch(2).opening()).admit(&in_place_of_partials), Err(Refused::Reserved));
    }
}
