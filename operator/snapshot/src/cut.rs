//! Cuts a large file into pieces where its content says so: what is inserted or removed changes the pieces around it only.

use bytes::{Bytes, BytesMut};
use fastcdc::v2020::FastCDC;

use crate::limits::{MAX_PIECE_BYTES, MIN_PIECE_BYTES, PIECE_BYTES};

/// As much as a cut needs to see.
const WINDOW: usize = MAX_PIECE_BYTES as usize;

/// Cuts what it is given piece by piece (`FastCDC`, 2020). It holds less than two of the largest pieces.
#[derive(Debug, Default)]
pub struct Cutter {
    rest: BytesMut,
}

impl Cutter {
    /// Takes bytes, and passes every piece on that is complete.
    pub fn push(&mut self, mut bytes: &[u8], mut piece: impl FnMut(Bytes)) {
        while !bytes.is_empty() {
            let room = WINDOW - self.rest.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.rest.extend_from_slice(now);
            bytes = later;
            if self.rest.len() == WINDOW {
                piece(self.first());
            }
        }
    }

    /// Passes on what is left: the file is over.
    pub fn finish(mut self, mut piece: impl FnMut(Bytes)) {
        while !self.rest.is_empty() {
            piece(self.first());
        }
    }

    fn first(&mut self) -> Bytes {
        let cut = FastCDC::new(&self.rest, MIN_PIECE_BYTES, PIECE_BYTES, MAX_PIECE_BYTES).next();
        let length = cut.map_or(self.rest.len(), |cut| cut.length);
        self.rest.split_to(length).freeze()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::{Cutter, WINDOW};
    use crate::Digest;

    fn noise(seed: u64, length: usize) -> Vec<u8> {
        let mut state = seed | 1;
        let mut next = || {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        };
        let mut bytes = Vec::with_capacity(length + 8);
        while bytes.len() < length {
            bytes.extend_from_slice(&next());
        }
        bytes.truncate(length);
        bytes
    }

    fn pieces(bytes: &[u8], step: usize) -> Vec<bytes::Bytes> {
        let mut found = Vec::new();
        let mut cutter = Cutter::default();
        for part in bytes.chunks(step) {
            cutter.push(part, |piece| found.push(piece));
        }
        cutter.finish(|piece| found.push(piece));
        found
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn pieces_are_the_file_however_it_comes(seed: u64, length in 0usize..12_000_000, step in 1000usize..6_000_000) {
            let bytes = noise(seed, length);
            let found = pieces(&bytes, step);
            prop_assert_eq!(found.concat(), bytes.clone());
            prop_assert!(found.iter().all(|piece| !piece.is_empty() && piece.len() <= WINDOW));
            prop_assert_eq!(found, pieces(&bytes, usize::MAX));
        }

        #[test]
        fn an_insertion_changes_the_pieces_around_it(seed: u64, at in 0usize..24_000_000, inserted in 1usize..5_000) {
            let mut bytes = noise(seed, 24_000_000);
            let before: HashSet<Digest> = pieces(&bytes, usize::MAX).iter().map(|piece| Digest::of(piece)).collect();
            bytes.splice(at..at, noise(seed ^ 0x55, inserted));
            let after = pieces(&bytes, usize::MAX);
            let new = after.iter().filter(|piece| !before.contains(&Digest::of(piece))).count();
            prop_assert!(new <= 4, "{new} of {} pieces are new", after.len());
        }
    }

    #[test]
    fn zeros_are_cut_too() {
        let found = pieces(&vec![0; 3 * WINDOW + 5], 4096);
        assert_eq!(found.iter().map(bytes::Bytes::len).sum::<usize>(), 3 * WINDOW + 5);
        assert_eq!(found.iter().map(|piece| Digest::of(piece)).collect::<HashSet<_>>().len(), 2);
    }
}
