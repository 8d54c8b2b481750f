//! A segment as it is stored: compressed where that saves something, and never larger to unpack than it says.

use bytes::{BufMut as _, Bytes, BytesMut};

use crate::{digest::Digest, manifest::Segment};

/// How hard a segment is compressed: fast enough that reading the workspace stays what takes time.
const COMPRESSION: i32 = 1;
/// The first byte of one whose bytes follow as they are.
const RAW: u8 = 0;
/// The first byte of one that zstd compressed.
const ZSTD: u8 = 1;
/// What newer releases begin one with is less than this; anything else is garbage.
const FIRST_UNUSED: u8 = 16;
/// Compression has to save this much, or the bytes are stored as they are: an eighth.
const WORTH_IT: usize = 8;

/// Why a stored segment is of no use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("segment {digest} is damaged: {reason}")]
pub struct Damaged {
    /// The segment.
    pub digest: Digest,
    /// What is wrong.
    pub reason: String,
}

/// Why a stored segment is not unpacked.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotUnpacked {
    /// It is of no use.
    #[error(transparent)]
    Damaged(#[from] Damaged),
    /// It is of use to a newer release.
    #[error("segment {0} was packed by a newer release: use one that knows it")]
    Newer(Digest),
}

/// Packs bytes; the segment that they are.
pub fn pack(bytes: &[u8]) -> (Segment, Bytes) {
    let compressed = zstd::bulk::compress(bytes, COMPRESSION).ok();
    let compressed = compressed.filter(|packed| packed.len() < bytes.len() - bytes.len() / WORTH_IT);
    let (kind, body) = compressed.as_deref().map_or((RAW, bytes), |packed| (ZSTD, packed));
    let mut packed = BytesMut::with_capacity(body.len() + 1);
    packed.put_u8(kind);
    packed.put_slice(body);
    let segment = Segment { digest: Digest::of(bytes), size: bytes.len() as u64, packed: packed.len() as u64 };
    (segment, packed.freeze())
}

/// The bytes of a segment, which have its digest.
///
/// # Errors
/// Where they are damaged: nothing is given that is not exactly what was packed. Or a newer release packed them.
pub fn unpack(segment: &Segment, packed: &Bytes) -> Result<Bytes, NotUnpacked> {
    let damaged = |reason: &str| Damaged { digest: segment.digest, reason: reason.to_owned() };
    let size = usize::try_from(segment.size).map_err(|_| damaged("its size is beyond this machine"))?;
    let bytes = match packed.first() {
        Some(&RAW) => packed.slice(1..),
        Some(&ZSTD) => {
            zstd::bulk::decompress(&packed[1..], size).map(Bytes::from).map_err(|error| damaged(&error.to_string()))?
        }
        Some(&(..FIRST_UNUSED)) => return Err(NotUnpacked::Newer(segment.digest)),
        Some(_) => return Err(damaged("it begins as none does").into()),
        None => return Err(damaged("it is empty").into()),
    };
    if bytes.len() != size || Digest::of(&bytes) != segment.digest {
        return Err(damaged("its bytes are others").into());
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use bytes::Bytes;
    use proptest::prelude::*;

    use super::{pack, unpack};

    proptest! {
        #[test]
        fn what_was_packed_is_unpacked(bytes in prop_oneof![
            prop::collection::vec(any::<u8>(), 0..5_000),
            (any::<u8>(), 0usize..100_000).prop_map(|(byte, length)| vec![byte; length]),
        ]) {
            let (segment, packed) = pack(&bytes);
            prop_assert!(packed.len() <= bytes.len() + 1);
            prop_assert_eq!(&unpack(&segment, &packed).unwrap()[..], &bytes[..]);
        }

        #[test]
        fn damage_is_noticed(bytes in prop::collection::vec(0u8..3, 1..3_000), at: prop::sample::Index, flip in 1u8.., cut: prop::sample::Index) {
            let (segment, packed) = pack(&bytes);
            let mut wrong = packed.to_vec();
            wrong[at.index(packed.len())] ^= flip;
            if let Ok(found) = unpack(&segment, &Bytes::from(wrong)) {
                prop_assert_eq!(&found[..], &bytes[..], "zstd has bits that mean nothing");
            }
            let cut = packed.slice(..cut.index(packed.len()));
            prop_assert!(unpack(&segment, &cut).is_err());
        }
    }
}
