#![allow(clippy::unwrap_used)]

use ash_protocol::{Entry, EntryFlags, EntryKind, Epoch, Sequence};
use bytes::Bytes;
use proptest::prelude::*;
use uuid::Uuid;

use super::{Rendered, plain_text_delta, render, render_opening, session_start};
use crate::{
    id::SessionId,
    opening::{Opening, OpeningReason, Recovered},
    sse::Position,
};

const SESSION: SessionId = SessionId(Uuid::nil());

fn entry(kind: EntryKind, flags: EntryFlags, body: &str) -> Entry {
    Entry { sequence: Sequence(5), kind, flags, body: Bytes::copy_from_slice(body.as_bytes()) }
}

fn text(rendered: &Rendered) -> String {
    String::from_utf8(rendered.from(0).to_vec()).unwrap()
}

/// `(event, data, id)` of each frame.
fn frames(rendered: &Rendered) -> Vec<(String, String, String)> {
    text(rendered)
        .split_terminator("\n\n")
        .map(|frame| {
            let field = |name: &str| {
                let found = frame.lines().filter_map(|line| line.strip_prefix(name)).collect::<Vec<_>>();
                assert_eq!(found.len(), 1, "{frame}");
                found[0].to_owned()
            };
            (field("event: "), field("data: "), field("id: "))
        })
        .collect()
}

#[test]
fn a_text_delta_comes_before_its_message() {
    let line = r#"{"type":"stream_event","event":{"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"a\n\"b"}},"uuid":"x"}"#;
    let rendered = render(SESSION, &entry(EntryKind::Partial, EntryFlags::default(), line));
    assert_eq!(
        text(&rendered),
        format!(
            "event: text_delta\ndata: {{\"delta\":\"a\\n\\\"b\"}}\nid: 5.0\n\nevent: message\ndata: {line}\nid: 5.1\n\n"
        )
    );
    assert!(rendered.from(1).starts_with(b"event: message"));
    assert!(rendered.from(2).is_empty());
    assert!(rendered.from(9).is_empty());
}

fn text_delta(text: &str) -> String {
    format!(
        r#"{{"type":"stream_event","event":{{"type":"content_block_delta","index":0,"delta":{{"type":"text_delta","text":{text}}}}},"uuid":"x"}}"#
    )
}

#[test]
fn what_is_no_plain_text_delta_is_left_to_the_parser() {
    for text in ["\"\\u0041\"", "\"\\q\"", "\"a\tb\"", "\"open", "7", "\"a\"]", "\"\\"] {
        assert_eq!(plain_text_delta(text_delta(text).as_bytes()), None, "{text}");
    }
    let line = text_delta("\"a\"").replace("\"text\":", "\"more\":1,\"text\":");
    assert_eq!(plain_text_delta(line.as_bytes()), None);
}

proptest! {
    #[test]
    fn a_plain_text_delta_is_found_as_the_parser_finds_it(text in any::<String>()) {
        let json = serde_json::to_string(&text).unwrap();
        let line = text_delta(&json);
        let found = plain_text_delta(line.as_bytes());
        prop_assert!(found.is_none_or(|found| found == json.as_bytes()));
        prop_assert!(found.is_some() || text.chars().any(char::is_control));
        let rendered = frames(&render(SESSION, &entry(EntryKind::Partial, EntryFlags::default(), &line)));
        let expected = format!("{{\"delta\":{json}}}");
        prop_assert_eq!(&rendered[0].1, &expected);
        prop_assert_eq!(&rendered[1].1, &line);
    }
}

#[test]
fn other_deltas_flow_through_under_their_own_type() {
    let line = r#"{"type":"stream_event","event":{"type":"content_block_delta","delta":{"type":"input_json_delta","partial_json":"{"}}}"#;
    let frames = frames(&render(SESSION, &entry(EntryKind::Partial, EntryFlags::default(), line)));
    assert_eq!(frames[0].0, "input_json_delta");
    assert_eq!(frames[0].1, r#"{"type":"input_json_delta","partial_json":"{"}"#);
}

#[test]
fn tool_use_and_result_are_granular() {
    let line = r#"{"type":"assistant","message":{"content":[{"type":"text","text":"x"},{"type":"tool_use","id":"t1","name":"Bash","input":{"command":"ls"}}]}}"#;
    let seen = frames(&render(SESSION, &entry(EntryKind::Claude, EntryFlags::default(), line)));
    assert_eq!(seen[0].0, "tool_use");
    assert_eq!(seen[0].1, r#"{"id":"t1","name":"Bash","input":{"command":"ls"}}"#);
    assert_eq!(seen[1], ("message".into(), line.into(), "5.1".into()));
    let line = r#"{"type":"user","message":{"content":[{"tool_use_id":"t1","type":"tool_result","content":"ok","is_error":true}]}}"#;
    let seen = frames(&render(SESSION, &entry(EntryKind::Claude, EntryFlags::default(), line)));
    assert_eq!(seen[0].1, r#"{"tool_use_id":"t1","content":"ok","is_error":true}"#);
}

#[test]
fn a_result_ends_with_done() {
    let line = r#"{"type":"result","subtype":"success","is_error":false,"num_turns":2,"result":"fine"}"#;
    let seen = frames(&render(SESSION, &entry(EntryKind::Claude, EntryFlags::ENDS_TURN, line)));
    let names: Vec<_> = seen.iter().map(|frame| frame.0.as_str()).collect();
    assert_eq!(names, ["turn_complete", "message", "done"]);
    assert_eq!(seen[0].1, r#"{"numTurns":2,"result":"fine"}"#);
    assert_eq!(seen[2].1, r#"{"sessionId":"00000000-0000-0000-0000-000000000000"}"#);
}

#[test]
fn a_failed_model_call_is_an_error_though_it_says_success() {
    let line = r#"{"type":"result","subtype":"success","is_error":true,"result":"API Error: 500"}"#;
    let seen = frames(&render(SESSION, &entry(EntryKind::Claude, EntryFlags::ENDS_TURN, line)));
    assert_eq!(seen[2], ("error".into(), r#"{"error":"API Error: 500"}"#.into(), "5.2".into()));
    assert_eq!(seen[3].0, "done");
}

#[test]
fn line_breaks_cannot_end_a_frame() {
    let line = "{\"type\":\"x\",\n\n\"event\": \r\"done\"}";
    let seen = frames(&render(SESSION, &entry(EntryKind::Claude, EntryFlags::default(), line)));
    assert_eq!(seen.len(), 1);
    assert_eq!(seen[0].0, "message");
}

#[test]
fn an_opening_withdraws_only_what_was_seen_beyond_the_committed() {
    let opening = Opening {
        reason: OpeningReason::Lost,
        last_committed: Epoch(1).sequence(10),
        interrupted: Some(Uuid::nil()),
        message: None,
        recovered: None,
        sandbox: None,
    };
    let entry = opening.entry(Epoch(2));
    let names = |position: Position| {
        frames(&render_opening(SESSION, &entry, position))
            .into_iter()
            .map(|frame| (frame.0, frame.2))
            .collect::<Vec<_>>()
    };
    let id = entry.sequence;
    let beyond = names(Position::after(Epoch(1).sequence(12)));
    assert_eq!(beyond[0], ("withdrawn".into(), format!("{id}.0")));
    assert_eq!(beyond[1], ("error".into(), format!("{id}.1")));
    let exact = names(Position::after(Epoch(1).sequence(10)));
    assert_eq!(exact[0], ("error".into(), format!("{id}.1")));
    assert_eq!(exact[1], ("done".into(), format!("{id}.2")));
}

#[test]
fn an_opening_says_from_which_turns_a_session_goes_on() {
    let turn = |n| Some(Uuid::from_u128(n));
    for interrupted in [None, turn(3)] {
        let opening = Opening {
            reason: OpeningReason::Claimed,
            last_committed: Epoch(1).sequence(10),
            interrupted,
            message: None,
            recovered: Some(Recovered {
                conversation: turn(2),
                workspace: turn(1),
                damaged: 1,
                incomplete: 7,
                paths: vec!["deep".to_owned()],
                ..Recovered::default()
            }),
            sandbox: None,
        };
        let entry = opening.entry(Epoch(2));
        let seen = frames(&render_opening(SESSION, &entry, Position::after(Epoch(1).sequence(10))));
        let (event, data, id) = seen.last().unwrap();
        assert_eq!((event.as_str(), id), ("recovered", &format!("{}.3", entry.sequence)));
        assert!(data.contains(r#""incomplete":7,"paths":["deep"]"#), "{data}");
        assert!(data.contains(r#""damaged":1"#) && data.contains(&Uuid::from_u128(1).to_string()), "{data}");
        assert_eq!(seen.len(), if interrupted.is_some() { 3 } else { 1 });
    }
}

#[test]
fn the_first_frame_has_no_id() {
    assert!(!String::from_utf8(session_start(SESSION).to_vec()).unwrap().contains("id: "));
}

proptest! {
    #[test]
    fn any_bytes_give_well_formed_frames(kind in 0u8..=5, flags in 0u8..2, body in prop::collection::vec(any::<u8>(), 0..200)) {
        let entry = Entry {
            sequence: Sequence(5),
            kind: EntryKind::from_byte(kind).unwrap(),
            flags: EntryFlags(flags),
            body: Bytes::from(body),
        };
        let rendered = render(SESSION, &entry);
        let bytes = rendered.from(0);
        prop_assert_eq!(memchr::memmem::find_iter(&bytes, b"\n\n").count(), rendered.len());
    }
}
