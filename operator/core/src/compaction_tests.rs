#![allow(clippy::unwrap_used)]

use ash_protocol::{Entry, EntryFlags, EntryKind, Epoch, message::BridgeEvent};
use bytes::Bytes;
use proptest::prelude::*;

use super::{Compaction, Dropped, rewrite};
use crate::opening::{Opening, OpeningReason};

const START: &str = r#"{"type":"stream_event","event":{"type":"content_block_start","index":0}}"#;
const DELTA: &str =
    r#"{"type":"stream_event","event":{"type":"content_block_delta","delta":{"type":"text_delta","text":"a"}}}"#;
const STOP: &str = r#"{"type":"stream_event","event":{"type":"message_stop"}}"#;
const ASSISTANT: &str = r#"{"type":"assistant","message":{}}"#;
const RESULT: &str = r#"{"type":"result"}"#;

fn entries(kinds: &[(EntryKind, &str)]) -> Vec<Entry> {
    let entry = |(n, (kind, body)): (u32, &(EntryKind, &str))| Entry {
        sequence: Epoch(2).sequence(n),
        kind: *kind,
        flags: EntryFlags::default(),
        body: Bytes::copy_from_slice(body.as_bytes()),
    };
    (1..).zip(kinds).map(entry).collect()
}

fn ranges(entries: &[Entry]) -> Vec<Dropped> {
    let mut compaction = Compaction::default();
    for entry in entries {
        compaction.take(entry);
    }
    compaction.finish()
}

fn dropped(entries: &[Entry]) -> Vec<(u32, u32)> {
    ranges(entries).iter().map(|range| (range.from.n(), range.to.n())).collect()
}

#[test]
fn a_complete_message_stands_for_its_partials() {
    use EntryKind::{Claude, Partial, User};
    let turn =
        [(User, "{}"), (Partial, START), (Partial, DELTA), (Claude, ASSISTANT), (Partial, STOP), (Claude, RESULT)];
    assert_eq!(dropped(&entries(&turn)), [(2, 3), (5, 5)]);
}

#[test]
fn what_nothing_stands_for_stays() {
    use EntryKind::{Claude, Partial};
    let cut = entries(&[(Partial, DELTA), (Claude, r#"{"type":"system","subtype":"status"}"#), (Claude, RESULT)]);
    assert_eq!(dropped(&cut), []);
    let unreadable = entries(&[(Partial, "?"), (Claude, RESULT)]);
    assert_eq!(dropped(&unreadable), []);
    let opening = Opening {
        reason: OpeningReason::Lost,
        last_committed: Epoch(2).sequence(1),
        interrupted: None,
        message: None,
        recovered: None,
        sandbox: None,
    };
    let mut lost = entries(&[(Partial, DELTA)]);
    lost.push(opening.entry(Epoch(3)));
    lost.push(Entry { sequence: Epoch(3).sequence(2), ..entries(&[(Claude, ASSISTANT)]).remove(0) });
    assert_eq!(dropped(&lost), []);
}

#[test]
fn only_the_message_itself_stands_for_its_partials() {
    use EntryKind::{Claude, Partial};
    let begins = |id: &str, agent: &str| {
        format!(
            r#"{{"type":"stream_event","event":{{"type":"message_start","message":{{"id":"{id}"}}}},"parent_tool_use_id":{agent}}}"#
        )
    };
    let says = |agent: &str| {
        format!(
            r#"{{"type":"stream_event","event":{{"type":"content_block_delta","delta":{{}}}},"parent_tool_use_id":{agent}}}"#
        )
    };
    let whole = |id: &str, agent: &str, model: &str| {
        format!(r#"{{"type":"assistant","message":{{"id":"{id}","model":"{model}"}},"parent_tool_use_id":{agent}}}"#)
    };
    let (main, sub) = ("null", r#""toolu_1""#);
    let turn = |lines: &[(EntryKind, String)]| {
        let lines: Vec<(EntryKind, &str)> = lines.iter().map(|(kind, line)| (*kind, line.as_str())).collect();
        dropped(&entries(&lines))
    };
    let begun = [(Partial, begins("a", main)), (Partial, says(main))];
    let with = |more: &[(EntryKind, String)]| turn(&[&begun[..], more, &[(Claude, RESULT.to_owned())]].concat());
    assert_eq!(with(&[(Claude, whole("a", main, "opus"))]), [(1, 2)]);
    assert_eq!(with(&[(Claude, whole("error", main, "<synthetic>"))]), []);
    assert_eq!(with(&[(Claude, whole("a", main, "<synthetic>"))]), []);
    assert_eq!(with(&[(Claude, whole("b", main, "opus"))]), []);
    assert_eq!(with(&[(Claude, whole("a", sub, "opus"))]), []);
    // Both speak: it goes when both are whole.
    let both = [(Partial, begins("s", sub)), (Partial, says(sub)), (Claude, whole("s", sub, "opus"))];
    assert_eq!(with(&both), []);
    assert_eq!(with(&[&both[..], &[(Claude, whole("a", main, "opus"))]].concat()), [(1, 4)]);
    // The beginning of the message was in the epoch before: any message of its agent.
    assert_eq!(turn(&[(Partial, says(sub)), (Claude, whole("x", main, "opus"))]), []);
    assert_eq!(turn(&[(Partial, says(sub)), (Claude, whole("x", sub, "opus"))]), [(1, 1)]);
}

#[test]
fn what_was_said_again_goes() {
    let event = BridgeEvent::Superseded { from: Epoch(2).sequence(1), to: Epoch(2).sequence(2) };
    let event = serde_json::to_string(&event).unwrap();
    let turn = [(EntryKind::Partial, DELTA), (EntryKind::Partial, DELTA), (EntryKind::Bridge, event.as_str())];
    assert_eq!(dropped(&entries(&turn)), [(1, 2)]);
}

fn turns() -> impl Strategy<Value = Vec<Entry>> {
    let one = prop::sample::select(vec![
        (EntryKind::Partial, START),
        (EntryKind::Partial, DELTA),
        (EntryKind::Partial, DELTA),
        (EntryKind::Partial, STOP),
        (EntryKind::Claude, ASSISTANT),
        (EntryKind::Claude, RESULT),
        (EntryKind::User, "{}"),
        (EntryKind::Bridge, "{}"),
    ]);
    prop::collection::vec(one, 0..40).prop_map(|kinds| entries(&kinds))
}

fn compacted(entries: &[Entry]) -> Vec<Entry> {
    rewrite(entries, &ranges(entries)).unwrap_or_else(|| entries.to_vec())
}

proptest! {
    /// Complete entries stay as they are, what stands for partials names exactly those that are gone, and a second compaction,
    /// also of what a first one did in part from the end, comes to the same.
    #[test]
    fn nothing_but_partials_goes_and_each_is_accounted_for(turn in turns(), cut in 0usize..40) {
        let after = compacted(&turn);
        let complete = |entries: &[Entry]| -> Vec<Entry> {
            let kept = |entry: &&Entry| entry.kind != EntryKind::Partial && Dropped::read(entry).is_none();
            entries.iter().filter(kept).cloned().collect()
        };
        prop_assert_eq!(complete(&after), complete(&turn));
        let mut accounted: Vec<u32> = Vec::new();
        for entry in &after {
            match Dropped::read(entry) {
                Some(range) => {
                    prop_assert_eq!(range.to, entry.sequence);
                    let partials = turn.iter().filter(|entry| entry.kind == EntryKind::Partial);
                    accounted.extend(partials.map(|entry| entry.sequence.n()).filter(|n| (range.from.n()..=range.to.n()).contains(n)));
                }
                None if entry.kind == EntryKind::Partial => accounted.push(entry.sequence.n()),
                None => {}
            }
        }
        let partials: Vec<u32> =
            turn.iter().filter(|entry| entry.kind == EntryKind::Partial).map(|entry| entry.sequence.n()).collect();
        prop_assert_eq!(accounted, partials);
        prop_assert_eq!(compacted(&after), after.clone());

        let ranges = ranges(&turn);
        let cut = cut.min(turn.len());
        let mut half = turn[..cut].to_vec();
        half.extend(rewrite(&turn[cut..], &ranges).unwrap_or_else(|| turn[cut..].to_vec()));
        prop_assert_eq!(compacted(&half), after);
    }
}
