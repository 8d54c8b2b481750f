//! A conversation that is too long is refused before it takes the memory; one that fits is read back whole.

#![allow(clippy::unwrap_used, dead_code)]

mod contract;

use ash_core::{
    EntryKind,
    ports::{EventLog as _, Store},
    session::Session,
};
use ash_store::{Database as _, SqliteStore, limits::MAX_TRANSCRIPT_BYTES};
use contract::fixtures::{append_one, entry, placed, transcript_part};
use uuid::Uuid;

/// Bytes of one entry of the transcript.
const PART_BYTES: usize = 8 << 20;

/// Appends a part of the conversation as the entry of this number.
async fn append_part(store: &dyn Store, session: &Session, n: u32, offset: usize) {
    let part = transcript_part(Uuid::from_u128(1), offset as u64, &vec![b'x'; PART_BYTES]);
    append_one(store, session, vec![entry(session.epoch, n, EntryKind::Transcript, part)]).await.unwrap();
}

#[tokio::test]
async fn a_conversation_is_read_back_up_to_its_bound() {
    let directory = tempfile::tempdir().unwrap();
    let store = SqliteStore::open(&directory.path().join("ash.db")).await.unwrap();
    let session = placed(&store).await;
    // The parts' heads count too, so one part less than the bound holds fits.
    let fitting = MAX_TRANSCRIPT_BYTES / PART_BYTES - 1;
    for part in 0..fitting {
        append_part(&store, &session, u32::try_from(part).unwrap() + 2, part * PART_BYTES).await;
    }
    assert_eq!(store.transcript(session.id).await.unwrap().unwrap().bytes.len(), fitting * PART_BYTES);

    append_part(&store, &session, u32::try_from(fitting).unwrap() + 2, fitting * PART_BYTES).await;
    let error = store.transcript(session.id).await.unwrap_err().to_string();
    assert!(error.contains(&format!("is longer than {MAX_TRANSCRIPT_BYTES} bytes")), "{error}");

    // A conversation that begins anew, as Claude Code's does when it compacts its context, can be read again.
    append_part(&store, &session, u32::try_from(fitting).unwrap() + 3, 0).await;
    assert_eq!(store.transcript(session.id).await.unwrap().unwrap().bytes.len(), PART_BYTES);
    store.close().await;
}
