//! Chunks: how entries are stored, many in one row.
//!
//! A batch of entries becomes up to three chunks, one per [`ChunkClass`], so that partials can later be dropped by dropping
//! rows. Every chunk names the last sequence of its whole batch; a batch is read whole and merged by sequence.
//!
//! Each entry is stored as: n within the epoch (4 bytes), kind (1), flags (1), length (4), all little endian, then the body.

use ash_protocol::{Entry, EntryFlags, EntryKind, Epoch, Sequence};
use bytes::{Buf, BufMut, Bytes, BytesMut};

const ENTRY_HEADER_BYTES: usize = 10;

/// How long what a chunk holds is worth keeping.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum ChunkClass {
    /// Complete messages, user messages, openings, the bridge's own events: history.
    Complete = 0,
    /// Partial messages: superseded by complete ones.
    Partial = 1,
    /// The conversation's transcript: internal.
    Transcript = 2,
}

impl ChunkClass {
    /// The class of an entry's kind.
    pub fn of(kind: EntryKind) -> Self {
        match kind {
            EntryKind::Partial => Self::Partial,
            EntryKind::Transcript => Self::Transcript,
            EntryKind::Opening | EntryKind::Claude | EntryKind::User | EntryKind::Bridge => Self::Complete,
        }
    }
}

/// Entries of one class out of one batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Chunk {
    /// Its class.
    pub class: ChunkClass,
    /// Its first entry.
    pub first: Sequence,
    /// Its last entry.
    pub last: Sequence,
    /// The encoded entries, not compressed.
    pub body: Bytes,
}

/// Why a stored chunk cannot be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ChunkError {
    /// The bytes end in the middle of an entry.
    #[error("a stored chunk is cut short; the database is damaged: restore it from a backup")]
    Truncated,
    /// A kind of entry that this release does not know.
    #[error("a stored chunk has an entry of unknown kind {0}; it was written by a newer release: update this one")]
    UnknownKind(u8),
}

/// Encodes a batch of entries of one epoch, in order, as its chunks.
pub fn encode(entries: &[Entry]) -> Vec<Chunk> {
    let classes = [ChunkClass::Complete, ChunkClass::Partial, ChunkClass::Transcript];
    let of_class = |class| encode_as(class, entries.iter().filter(move |entry| ChunkClass::of(entry.kind) == class));
    classes.into_iter().filter_map(of_class).collect()
}

/// Encodes entries of one epoch, in order, as one chunk of a class; `None` where there are none.
pub fn encode_as<'e>(class: ChunkClass, entries: impl Iterator<Item = &'e Entry> + Clone) -> Option<Chunk> {
    let (first, last) = (entries.clone().next()?.sequence, entries.clone().last()?.sequence);
    let size = entries.clone().map(|entry| ENTRY_HEADER_BYTES + entry.body.len()).sum();
    let mut body = BytesMut::with_capacity(size);
    for entry in entries {
        body.put_u32_le(entry.sequence.n());
        body.put_u8(entry.kind.byte());
        body.put_u8(entry.flags.0);
        body.put_u32_le(u32::try_from(entry.body.len()).unwrap_or(u32::MAX));
        body.put_slice(&entry.body);
    }
    Some(Chunk { class, first, last, body: body.freeze() })
}

/// Decodes the entries of one chunk. `epoch` is that of its sequences.
pub fn decode(epoch: Epoch, mut body: Bytes) -> Result<Vec<Entry>, ChunkError> {
    let mut entries = Vec::new();
    while body.has_remaining() {
        if body.remaining() < ENTRY_HEADER_BYTES {
            return Err(ChunkError::Truncated);
        }
        let sequence = epoch.sequence(body.get_u32_le());
        let kind_byte = body.get_u8();
        let kind = EntryKind::from_byte(kind_byte).ok_or(ChunkError::UnknownKind(kind_byte))?;
        let flags = EntryFlags(body.get_u8());
        let length = body.get_u32_le() as usize;
        if body.remaining() < length {
            return Err(ChunkError::Truncated);
        }
        entries.push(Entry { sequence, kind, flags, body: body.split_to(length) });
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use ash_protocol::{Entry, EntryFlags, EntryKind, Epoch};
    use bytes::Bytes;
    use proptest::prelude::*;

    use super::{ChunkClass, decode, encode};

    fn batch() -> impl Strategy<Value = Vec<Entry>> {
        let entry = (0u8..=5, any::<u8>(), prop::collection::vec(any::<u8>(), 0..50));
        (1u32..1000, prop::collection::vec(entry, 1..40)).prop_map(|(start, entries)| {
            (start..)
                .zip(entries)
                .map(|(n, (kind, flags, body))| Entry {
                    sequence: Epoch(3).sequence(n),
                    kind: EntryKind::from_byte(kind).unwrap(),
                    flags: EntryFlags(flags),
                    body: Bytes::from(body),
                })
                .collect()
        })
    }

    proptest! {
        #[test]
        fn a_batch_comes_back_merged(batch in batch()) {
            let chunks = encode(&batch);
            prop_assert!(chunks.len() <= 3);
            let mut back: Vec<Entry> =
                chunks.into_iter().flat_map(|chunk| decode(Epoch(3), chunk.body).unwrap()).collect();
            back.sort_by_key(|entry| entry.sequence);
            prop_assert_eq!(back, batch);
        }

        #[test]
        fn damaged_bytes_are_an_error_not_a_panic(bytes in prop::collection::vec(any::<u8>(), 0..100)) {
            let _ = decode(Epoch(1), Bytes::from(bytes));
        }
    }

    #[test]
    fn partials_stand_apart() {
        assert_eq!(ChunkClass::of(EntryKind::Partial), ChunkClass::Partial);
        assert_eq!(ChunkClass::of(EntryKind::User), ChunkClass::Complete);
    }
}
