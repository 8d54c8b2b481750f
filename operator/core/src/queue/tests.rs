#![allow(clippy::unwrap_used)]

use ash_protocol::{EntryFlags, Sequence, options::TurnOptions};
use bytes::Bytes;
use jiff::Timestamp;
use serde_json::value::RawValue;
use uuid::Uuid;

use super::{
    Ending, EntryEvent, EntryState, Facts, LOST, Logged, MAX_PREVIEW_CHARS, NotInQueue, QueueEntry, QueuedMessage,
    SESSION_ENDED, Step, step,
};
use crate::{
    Entry, EntryKind, Epoch,
    id::{SessionId, TenantId, TurnId},
    opening::{Opening, OpeningReason},
    session::{PausedReason, SessionState},
};

#[test]
fn every_pair_is_decided_as_the_table_says() {
    let source = include_str!("../queue.rs");
    let lines = source.lines().map(str::trim).filter_map(|line| line.strip_prefix("/// | ")?.strip_suffix(" |"));
    let table: Vec<Vec<&str>> = lines.map(|line| line.split(" | ").collect()).collect();
    let names = EntryState::ALL.map(EntryState::name);
    assert_eq!(table[0][1..], names);
    let events = [
        ("claim", EntryEvent::Claim),
        ("release", EntryEvent::Release),
        ("complete", EntryEvent::Complete),
        ("retry", EntryEvent::Retry),
        ("fail", EntryEvent::Fail),
        ("take back", EntryEvent::TakeBack),
        ("session ends", EntryEvent::SessionEnds),
    ];
    assert_eq!(table.len(), events.len() + 1);
    for (row, (name, event)) in table[1..].iter().zip(events) {
        assert_eq!(row[0], name);
        for (cell, state) in row[1..].iter().zip(EntryState::ALL) {
            let expected = EntryState::from_name(cell).ok_or(NotInQueue(state));
            assert_eq!(state.after(event), expected, "{name} of {state:?}");
        }
    }
}

fn entry(state: EntryState) -> QueueEntry {
    QueueEntry {
        id: TurnId(Uuid::from_u128(1)),
        session: SessionId(Uuid::nil()),
        tenant: TenantId::default_tenant(),
        position: 1,
        state,
        attempt: 1,
        retries: 0,
        fence: Epoch(4),
        version: 2,
        preview: String::new(),
        error: None,
        created_at: Timestamp::UNIX_EPOCH,
    }
}

fn facts(state: SessionState, epoch: u32) -> Facts {
    let has_sandbox = state == SessionState::Active;
    Facts { state, epoch: Epoch(epoch), has_sandbox, turn_runs: false, attempt: Logged::Nothing, is_due: true }
}

#[test]
fn what_waits_begins_when_its_session_can_take_it() {
    let pending = QueueEntry { attempt: 0, ..entry(EntryState::Pending) };
    let asleep = SessionState::Paused(PausedReason::Idle);
    assert_eq!(step(&pending, &facts(SessionState::Active, 4)), Step::Claim(Epoch(4)));
    assert_eq!(step(&pending, &facts(asleep, 4)), Step::Claim(Epoch(5)), "the bridge that it wakes on");
    let running = Facts { turn_runs: true, ..facts(SessionState::Active, 4) };
    assert_eq!(step(&pending, &running), Step::Wait);
    let left_open = Facts { turn_runs: true, ..facts(asleep, 4) };
    assert_eq!(step(&pending, &left_open), Step::Claim(Epoch(5)), "nothing runs without a sandbox");
    for chosen in [SessionState::Paused(PausedReason::Person), SessionState::Stopped] {
        assert_eq!(step(&pending, &facts(chosen, 4)), Step::Wait);
    }
    assert_eq!(step(&pending, &Facts { is_due: false, ..facts(SessionState::Active, 4) }), Step::Wait);
    let cancelled = Step::Settle(EntryEvent::SessionEnds, Some(SESSION_ENDED.to_owned()));
    assert_eq!(step(&pending, &facts(SessionState::Ended, 4)), cancelled);
}

#[test]
fn an_attempt_whose_owner_is_gone_is_sent_again_only_where_one_bridge_can_have_it() {
    let claimed = entry(EntryState::Processing);
    assert_eq!(step(&claimed, &facts(SessionState::Active, 4)), Step::Resend);
    assert_eq!(step(&claimed, &Facts { is_due: false, ..facts(SessionState::Active, 4) }), Step::Wait, "its lease");
    let lost = Step::Settle(EntryEvent::Fail, Some(LOST.to_owned()));
    assert_eq!(step(&claimed, &facts(SessionState::Active, 5)), lost);
    let again = QueueEntry { retries: 1, ..claimed.clone() };
    let retried = Step::Settle(EntryEvent::Retry, Some(LOST.to_owned()));
    assert_eq!(step(&again, &facts(SessionState::Active, 5)), retried);
    assert_eq!(step(&QueueEntry { attempt: 2, ..again }, &facts(SessionState::Active, 5)), lost);
    for state in
        [SessionState::Stopped, SessionState::Paused(PausedReason::Person), SessionState::Paused(PausedReason::Idle)]
    {
        for epoch in [4, 5] {
            let released = Step::Settle(EntryEvent::Release, None);
            assert_eq!(step(&claimed, &facts(state, epoch)), released, "its bridge had written everything");
        }
        assert_eq!(step(&claimed, &facts(state, 6)), lost, "another one was there in between");
    }
    assert_eq!(step(&claimed, &facts(SessionState::Paused(PausedReason::Lost), 5)), lost);
    assert!(matches!(step(&claimed, &facts(SessionState::Error, 4)), Step::Settle(EntryEvent::Fail, Some(_))));
    assert_eq!(step(&claimed, &facts(SessionState::Error, 3)), Step::Resend, "that start was another's");
}

#[test]
fn a_turn_that_is_in_the_log_decides() {
    let claimed = QueueEntry { retries: 1, ..entry(EntryState::Processing) };
    let with = |attempt| Facts { attempt, is_due: true, ..facts(SessionState::Active, 9) };
    assert_eq!(step(&claimed, &with(Logged::Begun)), Step::Wait);
    assert_eq!(step(&claimed, &with(Logged::Ended(Ending::Result))), Step::Settle(EntryEvent::Complete, None));
    let cut = |may_retry| with(Logged::Ended(Ending::Cut("why".to_owned(), may_retry)));
    assert_eq!(step(&claimed, &cut(true)), Step::Settle(EntryEvent::Retry, Some("why".to_owned())));
    assert_eq!(step(&claimed, &cut(false)), Step::Settle(EntryEvent::Fail, Some("why".to_owned())));
    for state in [EntryState::Completed, EntryState::Failed, EntryState::Cancelled] {
        assert_eq!(step(&entry(state), &facts(SessionState::Active, 4)), Step::Wait);
    }
}

#[test]
fn only_what_was_cut_off_may_be_tried_again() {
    let entry = |kind, body: &str| Entry {
        sequence: Sequence(1),
        kind,
        flags: EntryFlags::ENDS_TURN,
        body: Bytes::copy_from_slice(body.as_bytes()),
    };
    let opening = |reason| {
        let opening = Opening {
            reason,
            last_committed: Sequence(0),
            interrupted: None,
            message: Some("why".to_owned()),
            recovered: None,
            sandbox: None,
        };
        Ending::of(&opening.entry(Epoch(1)))
    };
    for (reason, may_retry) in [
        (OpeningReason::Lost, true),
        (OpeningReason::Asleep, true),
        (OpeningReason::Failed, true),
        (OpeningReason::Suspended, false),
        (OpeningReason::Ended, false),
    ] {
        assert_eq!(opening(reason), Ending::Cut("why".to_owned(), may_retry), "{reason:?}");
    }
    let failed = |category| {
        let turn = Uuid::nil();
        let body = format!(r#"{{"turn_failed":{{"turn":"{turn}","category":"{category}","message":"why"}}}}"#);
        Ending::of(&entry(EntryKind::Bridge, &body))
    };
    assert_eq!(failed("claude_died"), Ending::Cut("why".to_owned(), true));
    assert_eq!(failed("option_refused"), Ending::Cut("why".to_owned(), false));
    let refused = r#"{"type":"result","subtype":"success","is_error":true}"#;
    assert_eq!(Ending::of(&entry(EntryKind::Claude, refused)), Ending::Result, "the model's refusal is an answer");
}

#[test]
fn a_listing_shows_the_beginning_of_a_text() {
    let preview = |json: &str| {
        let content = RawValue::from_string(json.to_owned()).unwrap();
        QueuedMessage { content, options: TurnOptions::default() }.preview()
    };
    assert_eq!(preview(r#""one\ntwo""#), "one two");
    assert_eq!(preview(r#"[{"type":"image"},{"type":"text","text":"three"}]"#), "three");
    assert_eq!(preview(r#"[{"type":"image"}]"#), "");
    assert_eq!(preview(&format!("{:?}", "ä".repeat(500))).chars().count(), MAX_PREVIEW_CHARS);
}

#[test]
fn attempts_have_turns_of_their_own() {
    let first = TurnId::from_idempotency_key(SessionId(Uuid::nil()), "k");
    assert_eq!((first.of_attempt(0), first.of_attempt(1)), (first, first));
    assert_eq!(first.of_attempt(2), first.of_attempt(2));
    assert_ne!(first.of_attempt(2), first.of_attempt(3));
    assert_eq!(first.of_attempt(2).0.get_version_num(), 5);
}
