#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;

use ash_core::{
    Entry, EntryFlags, EntryKind, Epoch, Sequence,
    id::{AgentId, SandboxId, SessionId, TenantId, TurnId},
    opening::{Opening, OpeningReason},
    session::{Session, SessionState},
};
use ash_protocol::options::SessionOptions;
use bytes::Bytes;
use jiff::Timestamp;
use proptest::prelude::*;

use super::{Hub, PermissionGate, Place, Reserve, Tail};

fn session() -> Session {
    Session {
        id: SessionId::new(),
        tenant: TenantId::default_tenant(),
        agent: AgentId::new(),
        agent_name: "a".parse().unwrap(),
        agent_version: 1,
        state: SessionState::Active,
        error: None,
        sandbox: None,
        options: SessionOptions::default(),
        metadata: BTreeMap::new(),
        epoch: Epoch::NONE,
        last: Sequence::START,
        created_at: Timestamp::UNIX_EPOCH,
        last_active_at: Timestamp::UNIX_EPOCH,
    }
}

fn entry(sequence: Sequence, kind: EntryKind, flags: EntryFlags) -> Entry {
    Entry { sequence, kind, flags, body: Bytes::from_static(b"{}") }
}

/// Opens the next epoch as the store would.
fn open(hub: &Hub, interrupted: Option<TurnId>) -> Entry {
    let before = hub.session();
    let opening = Opening {
        reason: OpeningReason::Claimed,
        last_committed: before.last,
        interrupted: interrupted.map(|turn| turn.0),
        message: None,
    };
    let epoch = before.epoch.next().unwrap();
    let row = Session { epoch, last: epoch.opening(), sandbox: Some(SandboxId::new()), ..before };
    hub.open_epoch(row, &opening, Place::Starting);
    opening.entry(epoch)
}

#[derive(Debug, Clone)]
enum Step {
    /// The bridge sends so many entries, every so-many-th of them internal.
    Send(u32, u32),
    /// The committer writes what there is, up to so many entries.
    Commit(usize),
    /// The reader reads once.
    Read,
    /// The session leaves its sandbox; what was not committed is withdrawn.
    Lose,
    /// A turn begins, so that a committed tail is kept for readers.
    Begin,
    /// It ends.
    End,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        4 => (1u32..20, 2u32..6).prop_map(|(count, internal)| Step::Send(count, internal)),
        3 => (1usize..30).prop_map(Step::Commit),
        4 => Just(Step::Read),
        1 => Just(Step::Lose),
        1 => Just(Step::Begin),
        1 => Just(Step::End),
    ];
    prop::collection::vec(step, 1..80)
}

/// One reading: what a reader of a hub and the log does.
fn read(hub: &Hub, log: &[Entry], position: &mut Sequence, seen: &mut Vec<Sequence>) -> bool {
    match hub.after(*position) {
        Tail::Entries { batch, through } => {
            seen.extend(batch.iter().map(|logged| logged.entry.sequence));
            assert!(through > *position);
            *position = through;
            true
        }
        Tail::InLog => {
            let page: Vec<&Entry> = log.iter().filter(|entry| entry.sequence > *position).collect();
            assert!(!page.is_empty(), "the hub sends its reader to the log for what is not there");
            seen.extend(page.iter().filter(|entry| entry.kind != EntryKind::Transcript).map(|entry| entry.sequence));
            *position = page.last().unwrap().sequence;
            true
        }
        Tail::Nothing => false,
        Tail::Broken(message) => panic!("{message}"),
    }
}

proptest! {
    #[test]
    fn a_reader_sees_everything_once_and_in_order(steps in steps()) {
        let hub = Hub::new(session());
        let mut log = vec![open(&hub, None)];
        let mut next = hub.epoch().sequence(2);
        let (mut position, mut seen) = (Sequence::START, Vec::new());
        let mut turn = None;
        for step in steps {
            match step {
                Step::Send(count, internal) => {
                    let entries: Vec<Entry> = (0..count)
                        .map(|index| {
                            let internal = index % internal == 0;
                            let kind = if internal { EntryKind::Transcript } else { EntryKind::Partial };
                            let entry = entry(next, kind, EntryFlags::default());
                            next = next.next().unwrap();
                            entry
                        })
                        .collect();
                    // Everything that was not acknowledged comes again when a bridge reconnects.
                    hub.take(entries.clone()).unwrap();
                    hub.take(entries).unwrap();
                }
                Step::Commit(most) => {
                    let (after, entries) = hub.uncommitted();
                    prop_assert_eq!(after, log.last().unwrap().sequence);
                    let entries = &entries[..entries.len().min(most)];
                    if let Some(last) = entries.last() {
                        log.extend_from_slice(entries);
                        hub.committed(last.sequence);
                    }
                }
                Step::Read => {
                    read(&hub, &log, &mut position, &mut seen);
                }
                Step::Lose => {
                    log.push(open(&hub, turn.take()));
                    next = hub.epoch().sequence(2);
                }
                Step::Begin => {
                    let id = TurnId::new();
                    if hub.reserve_turn(id) == Reserve::Reserved {
                        turn = Some(id);
                    }
                }
                Step::End => {
                    if turn.take().is_some() {
                        hub.take(vec![entry(next, EntryKind::Claude, EntryFlags::ENDS_TURN)]).unwrap();
                        next = next.next().unwrap();
                    }
                }
            }
        }
        while read(&hub, &log, &mut position, &mut seen) {}
        prop_assert!(seen.is_sorted_by(|one, other| one < other));
        // What counts is in the log or still to be committed; whatever else was seen was withdrawn by a later opening.
        let counts: Vec<Sequence> = log
            .iter()
            .chain(&hub.uncommitted().1)
            .filter(|entry| entry.kind != EntryKind::Transcript)
            .map(|entry| entry.sequence)
            .collect();
        for sequence in &counts {
            prop_assert!(seen.binary_search(sequence).is_ok(), "{} is missing", sequence);
        }
        for sequence in &seen {
            let counted = counts.binary_search(sequence).is_ok();
            let withdrawn = log.iter().any(|entry| {
                entry.kind == EntryKind::Opening
                    && entry.sequence > *sequence
                    && Opening::read(&entry.body).unwrap().last_committed < *sequence
            });
            prop_assert!(counted || withdrawn, "{} is too many", sequence);
        }
    }
}

#[test]
fn one_turn_at_a_time() {
    let hub = Hub::new(session());
    open(&hub, None);
    let (first, second) = (TurnId::new(), TurnId::new());
    let after = hub.last();
    assert_eq!(hub.reserve_turn(first), Reserve::Reserved);
    assert_eq!(hub.reserve_turn(first), Reserve::Joined(after));
    assert_eq!(hub.reserve_turn(second), Reserve::Busy);
    hub.release_turn(second);
    assert_eq!(hub.reserve_turn(second), Reserve::Busy);
    hub.take(vec![entry(hub.epoch().sequence(2), EntryKind::Claude, EntryFlags::ENDS_TURN)]).unwrap();
    assert_eq!(hub.reserve_turn(second), Reserve::Reserved);
}

#[test]
fn a_claim_that_reports_an_earlier_turn_leaves_the_reserved_one() {
    let hub = Hub::new(session());
    open(&hub, None);
    let (earlier, reserved) = (TurnId::new(), TurnId::new());
    assert_eq!(hub.reserve_turn(reserved), Reserve::Reserved);
    open(&hub, Some(earlier));
    assert!(hub.turn().is_some_and(|turn| turn.id == reserved));
    open(&hub, Some(reserved));
    assert!(hub.turn().is_none());
}

#[test]
fn the_first_answer_to_a_permission_request_wins() {
    let hub = Hub::new(session());
    open(&hub, None);
    hub.restore_turn(None, vec!["p".to_owned()]);
    assert_eq!(hub.close_permission("p"), PermissionGate::First);
    assert_eq!(hub.close_permission("p"), PermissionGate::Closed);
    hub.reopen_permission("p");
    assert_eq!(hub.close_permission("p"), PermissionGate::First);
    assert_eq!(hub.close_permission("q"), PermissionGate::Unknown);
}

#[tokio::test]
async fn whoever_waits_for_a_commit_is_told_when_there_is_none_to_come() {
    let hub = Hub::new(session());
    open(&hub, None);
    assert!(hub.wait_committed().await);
    hub.take(vec![entry(hub.epoch().sequence(2), EntryKind::Claude, EntryFlags::default())]).unwrap();
    hub.fail("full".to_owned());
    assert!(!hub.wait_committed().await);
    assert!(matches!(hub.after(hub.last()), Tail::Broken(_)));
    open(&hub, None);
    assert!(matches!(hub.after(hub.last()), Tail::Nothing));
}
