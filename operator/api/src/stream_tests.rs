#![allow(clippy::unwrap_used)]

use std::sync::Arc;

use ash_core::{
    EntryKind, Epoch,
    compaction::Dropped,
    id::{SessionId, TurnId},
    opening::{Opening, OpeningReason},
    ports::LoggedEntry,
    sse::Position,
};
use ash_protocol::{Entry, EntryFlags};
use bytes::Bytes;
use proptest::prelude::*;
use uuid::Uuid;

use super::{CHUNK_BYTES, DIRECT_BYTES, Frames, done};

const SESSION: SessionId = SessionId(Uuid::nil());
const TURN: TurnId = TurnId(Uuid::from_u128(7));

fn entry(n: u32, kind: EntryKind, ends: bool, body: &str) -> Arc<LoggedEntry> {
    Arc::new(LoggedEntry::new(Entry {
        sequence: Epoch(1).sequence(n),
        kind,
        flags: if ends { EntryFlags::ENDS_TURN } else { EntryFlags::default() },
        body: Bytes::copy_from_slice(body.as_bytes()),
    }))
}

fn partial(n: u32, text: &str) -> Arc<LoggedEntry> {
    let body = format!(
        r#"{{"type":"stream_event","event":{{"type":"content_block_delta","delta":{{"type":"text_delta","text":"{text}"}}}}}}"#
    );
    entry(n, EntryKind::Partial, false, &body)
}

fn assistant(n: u32, text: &str) -> Arc<LoggedEntry> {
    let body = format!(r#"{{"type":"assistant","message":{{"content":[{{"type":"thinking","thinking":"{text}"}}]}}}}"#);
    entry(n, EntryKind::Claude, false, &body)
}

fn result(n: u32) -> Arc<LoggedEntry> {
    let body = r#"{"type":"result","subtype":"success","is_error":false,"num_turns":1,"result":"x"}"#;
    entry(n, EntryKind::Claude, true, body)
}

fn drain(frames: &mut Frames) -> Vec<Bytes> {
    std::iter::from_fn(|| frames.chunk()).collect()
}

fn text(chunks: &[Bytes]) -> String {
    String::from_utf8(chunks.concat()).unwrap()
}

fn ids(text: &str) -> Vec<&str> {
    text.lines().filter_map(|line| line.strip_prefix("id: ")).collect()
}

/// What a log of several turns is made of: kinds of entries and how long they are.
fn outline() -> impl Strategy<Value = Vec<(u8, usize)>> {
    prop::collection::vec((0u8..4, 0usize..20_000), 1..30)
}

fn log(outline: Vec<(u8, usize)>) -> Vec<Arc<LoggedEntry>> {
    let entries = (2..).zip(outline).map(|(n, (kind, length))| match kind {
        0 => partial(n, &"p".repeat(length / 100)),
        1 => assistant(n, &"a".repeat(length)),
        2 => entry(n, EntryKind::User, false, "{}"),
        _ => result(n),
    });
    entries.collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn however_entries_are_batched_the_bytes_are_the_same(outline in outline(), cut in 1usize..10, partials: bool) {
        let log = log(outline);
        let mut frames = Frames::after(SESSION, Position::START, partials);
        let mut bytes = Vec::new();
        let mut count = 0;
        for batch in log.chunks(cut) {
            frames.feed(batch.to_vec());
            for chunk in drain(&mut frames) {
                prop_assert!(!chunk.is_empty());
                prop_assert!(chunk.len() <= CHUNK_BYTES);
                bytes.extend_from_slice(&chunk);
            }
        }
        let mut expected = Vec::new();
        for logged in log.iter().filter(|logged| partials || logged.entry.kind != EntryKind::Partial) {
            expected.extend_from_slice(&logged.rendered(SESSION).from(0));
            count += logged.rendered(SESSION).len() as u64;
        }
        prop_assert_eq!(bytes, expected);
        prop_assert_eq!(frames.count(), count);
    }

    #[test]
    fn a_reader_that_comes_back_gets_exactly_the_rest(outline in outline(), at in any::<prop::sample::Index>()) {
        let log = log(outline);
        let mut whole = Frames::after(SESSION, Position::START, true);
        whole.feed(log.clone());
        let whole = text(&drain(&mut whole));
        let ids = ids(&whole);
        prop_assume!(!ids.is_empty());
        let at = at.index(ids.len());
        let position: Position = ids[at].parse().unwrap();
        let mut rest = Frames::after(SESSION, position, true);
        rest.feed(log);
        let rest = text(&drain(&mut rest));
        prop_assert!(whole.ends_with(&rest));
        prop_assert_eq!(self::ids(&rest), &ids[at + 1..]);
    }
}

#[test]
fn what_stands_for_partials_is_for_who_reads_them() {
    let dropped = Dropped { from: Epoch(1).sequence(3), to: Epoch(1).sequence(5) };
    let log = [
        entry(2, EntryKind::User, false, "{}"),
        Arc::new(LoggedEntry::new(dropped.entry())),
        assistant(6, "said"),
        result(7),
    ];
    let read = |position: &str, partials| {
        let mut frames = Frames::after(SESSION, position.parse().unwrap(), partials);
        frames.feed(log.to_vec());
        text(&drain(&mut frames))
    };
    let at = |n: u32| Epoch(1).sequence(n).to_string();
    let replaced = format!("event: replaced\ndata: {{\"from\":\"{}\",\"to\":\"{}\"}}\nid: {}.0", at(3), at(5), at(5));
    let whole = read(&at(1), true);
    assert!(whole.starts_with(&replaced), "{whole}");
    assert!(read(&format!("{}.0", at(4)), true).starts_with(&replaced), "one that had seen some of them");
    let without = read(&at(1), false);
    assert!(!without.contains("replaced"));
    for seen in [format!("{}.0", at(5)), at(5)] {
        assert_eq!(read(&seen, true), without, "one that had seen all of them");
    }
    assert_eq!(ids(&whole)[1..], ids(&without)[..]);
}

#[test]
fn one_entry_is_not_copied() {
    let logged = assistant(2, "x");
    let rendered = logged.rendered(SESSION).from(0);
    let mut frames = Frames::after(SESSION, Position::START, true);
    frames.feed(vec![logged]);
    let chunks = drain(&mut frames);
    assert_eq!(chunks.len(), 1);
    assert_eq!(chunks[0].as_ptr(), rendered.as_ptr());
}

#[test]
fn many_small_entries_are_one_chunk_and_large_ones_their_own() {
    let large = assistant(9, &"x".repeat(DIRECT_BYTES));
    let mut batch: Vec<_> = (2..8).map(|n| partial(n, "x")).collect();
    batch.extend([large.clone(), partial(10, "y")]);
    let mut frames = Frames::after(SESSION, Position::START, true);
    frames.feed(batch);
    let chunks = drain(&mut frames);
    assert_eq!(chunks.len(), 3);
    assert_eq!(chunks[1].as_ptr(), large.rendered(SESSION).from(0).as_ptr());
}

#[test]
fn a_turn_ends_with_its_done_and_nothing_after() {
    let mut frames = Frames::of_turn(SESSION, TURN, true);
    frames.feed(vec![entry(2, EntryKind::User, false, "{}"), partial(3, "a"), result(4), partial(5, "next")]);
    let text = text(&drain(&mut frames));
    assert!(frames.over() && frames.after_done());
    assert!(text.ends_with("}\nid: 4294967300.2\n\n") && !text.contains("next"), "{text}");
    frames.feed(vec![partial(6, "later")]);
    assert_eq!(frames.chunk(), None);
}

#[test]
fn partials_are_left_out_and_ids_stay() {
    let log = [partial(2, "a"), assistant(3, "b"), result(4)];
    let stream = |partials| {
        let mut frames = Frames::after(SESSION, Position::START, partials);
        frames.feed(log.to_vec());
        text(&drain(&mut frames))
    };
    assert!(stream(true).ends_with(&stream(false)));
    assert!(!stream(false).contains("stream_event"));
}

fn opening(interrupted: Option<Uuid>, last_committed: u32) -> Arc<LoggedEntry> {
    let opening = Opening {
        reason: OpeningReason::Lost,
        last_committed: Epoch(1).sequence(last_committed),
        interrupted,
        message: None,
        recovered: None,
        sandbox: None,
    };
    Arc::new(LoggedEntry::new(opening.entry(Epoch(2))))
}

#[test]
fn an_opening_ends_the_turn_that_it_interrupts_and_no_other() {
    let mut frames = Frames::of_turn(SESSION, TURN, true);
    frames.feed(vec![opening(Some(Uuid::nil()), 9)]);
    assert_eq!(frames.chunk(), None);
    assert!(!frames.over());

    let mut frames = Frames::of_turn(SESSION, TURN, true);
    frames.feed(vec![partial(2, "a"), opening(Some(TURN.0), 2)]);
    let text = text(&drain(&mut frames));
    assert!(frames.over() && text.contains("event: error") && !text.contains("withdrawn"), "{text}");
}

#[test]
fn only_what_was_sent_is_withdrawn() {
    let stream = |partials| {
        let mut frames = Frames::after(SESSION, Position::START, partials);
        frames.feed(vec![assistant(2, "a"), partial(3, "b"), opening(None, 2)]);
        text(&drain(&mut frames))
    };
    assert!(stream(true).contains("event: withdrawn\ndata: {\"after\":\"4294967298\"}"), "{}", stream(true));
    assert!(!stream(false).contains("withdrawn"));
}

#[test]
fn a_done_without_an_entry_has_no_id() {
    let text = String::from_utf8(done(SESSION).to_vec()).unwrap();
    assert_eq!(text, "event: done\ndata: {\"sessionId\":\"00000000-0000-0000-0000-000000000000\"}\n\n");
}
