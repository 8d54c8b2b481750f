//! How a chunk's bytes are stored: compressed where that pays.

use std::cell::RefCell;

use ash_core::{
    Entry,
    chunk::{self, Chunk},
    ports::StoreError,
};
use bytes::Bytes;
use zstd::bulk::Compressor;

use crate::{
    fault::Fault,
    limits::{MAX_CHUNK_BYTES, MAX_INLINE_ENCODED_BYTES, MIN_COMPRESSED_BYTES},
};

/// The level that a busy stream can afford: about 500 MB/s.
const ZSTD_LEVEL: i32 = 1;
const PLAIN: i16 = 0;
const ZSTD: i16 = 1;

/// A chunk as it is stored.
#[derive(Debug)]
pub(crate) struct StoredChunk {
    pub(crate) chunk: Chunk,
    pub(crate) codec: i16,
    /// Bytes before compression.
    pub(crate) size: usize,
    pub(crate) data: Bytes,
}

/// Encodes a batch as the chunks that are stored for it; a large one away from the async threads.
pub(crate) async fn encode(entries: Vec<Entry>) -> Result<(Vec<Entry>, Vec<StoredChunk>), Fault> {
    let bytes: usize = entries.iter().map(|entry| entry.body.len()).sum();
    if bytes <= MAX_INLINE_ENCODED_BYTES {
        let chunks = encode_now(&entries);
        return Ok((entries, chunks));
    }
    tokio::task::spawn_blocking(move || {
        let chunks = encode_now(&entries);
        (entries, chunks)
    })
    .await
    .map_err(|error| StoreError::Unavailable(format!("encoding was cut off: {error}")).into())
}

/// Encodes a batch as the chunks that are stored for it.
pub(crate) fn encode_now(entries: &[Entry]) -> Vec<StoredChunk> {
    chunk::encode(entries).into_iter().map(pack).collect()
}

/// A chunk as it is stored.
pub(crate) fn pack(mut chunk: Chunk) -> StoredChunk {
    // The stored form replaces the body, so that a large batch is not held twice.
    let body = std::mem::take(&mut chunk.body);
    let size = body.len();
    let compressed = (size >= MIN_COMPRESSED_BYTES)
        .then(|| compress(&body))
        .flatten()
        // It pays where it saves an eighth; otherwise every reader would decompress for nothing.
        .filter(|compressed| compressed.len() <= size - size / 8);
    match compressed {
        Some(compressed) => StoredChunk { chunk, codec: ZSTD, size, data: compressed.into() },
        None => StoredChunk { chunk, codec: PLAIN, size, data: body },
    }
}

fn compress(body: &[u8]) -> Option<Vec<u8>> {
    thread_local! {
        // Making its tables costs more than compressing what a turn commits at a time.
        static COMPRESSOR: RefCell<Option<Compressor<'static>>> = const { RefCell::new(None) };
    }
    COMPRESSOR.with_borrow_mut(|kept| {
        let compressor = match kept {
            Some(compressor) => compressor,
            none => none.insert(Compressor::new(ZSTD_LEVEL).ok()?),
        };
        compressor.compress(body).ok()
    })
}

/// The bytes of a chunk as they were before they were stored. Nothing that is read here is trusted.
pub(crate) fn unpack(codec: i16, size: usize, data: Vec<u8>) -> Result<Bytes, Fault> {
    if size > MAX_CHUNK_BYTES {
        return Err(Fault::damaged(format!("a chunk of the log claims {size} bytes")));
    }
    let body = match codec {
        PLAIN => data,
        ZSTD => zstd::bulk::decompress(&data, size)
            .map_err(|error| Fault::damaged(format!("a chunk of the log cannot be decompressed: {error}")))?,
        other => return Err(Fault::damaged(format!("a chunk of the log has the unknown codec {other}"))),
    };
    if body.len() != size {
        return Err(Fault::damaged(format!("a chunk of the log has {} bytes instead of {size}", body.len())));
    }
    Ok(body.into())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use ash_core::Sequence;
    use ash_core::chunk::{Chunk, ChunkClass};
    use proptest::prelude::*;

    use super::{PLAIN, ZSTD, pack, unpack};

    fn chunk(body: Vec<u8>) -> Chunk {
        Chunk { class: ChunkClass::Complete, first: Sequence(1), last: Sequence(2), body: body.into() }
    }

    proptest! {
        #[test]
        fn bytes_come_back(body in prop::collection::vec(prop_oneof![Just(b'a'), any::<u8>()], 0..3000)) {
            let stored = pack(chunk(body.clone()));
            prop_assert_eq!(&unpack(stored.codec, stored.size, stored.data.to_vec()).unwrap()[..], &body[..]);
        }

        #[test]
        fn damage_is_an_error_not_a_panic(
            codec in -1i16..4, size in 0usize..2000, data in prop::collection::vec(any::<u8>(), 0..200)
        ) {
            let _ = unpack(codec, size, data);
        }
    }

    #[test]
    fn it_is_compressed_where_that_pays() {
        assert_eq!(pack(chunk(vec![b'a'; 10_000])).codec, ZSTD);
        assert_eq!(pack(chunk(vec![b'a'; 100])).codec, PLAIN);
    }

    #[test]
    fn a_claimed_size_is_not_allocated() {
        assert!(unpack(ZSTD, usize::MAX, Vec::new()).is_err());
    }
}
