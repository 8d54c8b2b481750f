#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use ash_core::{
    Entry, EntryFlags, EntryKind, Epoch, Sequence,
    id::{AgentId, SandboxId, SessionId, TenantId, TurnId},
    intake::Refused,
    meter::{LogBounds, LogFull},
    opening::{Opening, OpeningReason},
    session::{Session, SessionState},
};
use ash_protocol::{
    entry::MAX_LINE_BYTES,
    message::{BridgeEvent, Resolution},
    options::SessionOptions,
};
use bytes::Bytes;
use jiff::Timestamp;
use proptest::prelude::*;
use serde_json::value::RawValue;

use super::{Hub, NotTaken, PermissionGate, Place, Reserve, Tail};
use crate::{
    budget::{Budget, Share},
    limits::{COMMIT_TURN_CHANGES, LOG_BOUNDS, MAX_PERMISSION_ID_BYTES, MAX_PERMISSIONS},
    metering::Metering,
};

/// A session as it is made.
pub(crate) fn session() -> Session {
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
        model_refused: false,
        credential: None,
        epoch: Epoch::NONE,
        last: Sequence::START,
        created_at: Timestamp::UNIX_EPOCH,
        last_active_at: Timestamp::UNIX_EPOCH,
    }
}

/// Of more than any test needs.
fn share() -> Share {
    Budget::new(u64::MAX, Arc::default()).share()
}

/// A hub that nobody knows.
pub(crate) fn hub() -> Hub {
    Hub::new(session(), Arc::new(Metering::new(LOG_BOUNDS)), share(), Arc::default())
}

/// An entry with a body of two bytes.
pub(crate) fn entry(sequence: Sequence, kind: EntryKind, flags: EntryFlags) -> Entry {
    Entry { sequence, kind, flags, body: Bytes::from_static(b"{}") }
}

/// Opens the next epoch as the store would.
pub(crate) fn open(hub: &Hub, interrupted: Option<TurnId>) -> Entry {
    let before = hub.session();
    let opening = Opening {
        reason: OpeningReason::Claimed,
        last_committed: before.last,
        interrupted: interrupted.map(|turn| turn.0),
        message: None,
        recovered: None,
        sandbox: None,
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
        let hub = hub();
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
    let hub = hub();
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
    let hub = hub();
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
    let hub = hub();
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
    let hub = hub();
    open(&hub, None);
    assert!(hub.wait_committed().await);
    hub.take(vec![entry(hub.epoch().sequence(2), EntryKind::Claude, EntryFlags::default())]).unwrap();
    hub.fail("full".to_owned());
    assert!(!hub.wait_committed().await);
    assert!(matches!(hub.after(hub.last()), Tail::Broken(_)));
    open(&hub, None);
    assert!(matches!(hub.after(hub.last()), Tail::Nothing));
}

/// An entry of the current epoch with this number and body.
fn numbered(hub: &Hub, n: u32, kind: EntryKind, body: &Bytes) -> Entry {
    Entry { sequence: hub.epoch().sequence(n), kind, flags: EntryFlags::default(), body: body.clone() }
}

#[test]
fn a_bridge_that_does_not_wait_for_acknowledgements_is_refused_at_the_bound() {
    let generous = LogBounds { quota_bytes: u64::MAX, ..LOG_BOUNDS };
    let hub = Hub::new(session(), Arc::new(Metering::new(generous)), share(), Arc::default());
    open(&hub, None);
    let line = Bytes::from(vec![0; MAX_LINE_BYTES]);
    let (mut n, mut last) = (2, hub.last());
    let refused = loop {
        match hub.take(vec![numbered(&hub, n, EntryKind::Claude, &line)]) {
            Ok(_) => (n, last) = (n + 1, hub.last()),
            Err(refused) => break refused,
        }
        assert!(n < 10, "there is no bound");
    };
    assert_eq!(refused, NotTaken::Refused(Refused::Overrun));
    assert_eq!((n, hub.last()), (4, last), "two of the longest lines fit, and nothing of the third is kept");
    // What is committed makes room again.
    hub.committed(last);
    assert!(hub.take(vec![numbered(&hub, n, EntryKind::Claude, &line)]).is_ok());
}

#[test]
fn empty_entries_are_bounded_too() {
    let generous = LogBounds { quota_bytes: u64::MAX, ..LOG_BOUNDS };
    let hub = Hub::new(session(), Arc::new(Metering::new(generous)), share(), Arc::default());
    open(&hub, None);
    let mut numbers = 2u32..4_000_000;
    let refused = loop {
        let some = numbers.by_ref().take(10_000).map(|n| numbered(&hub, n, EntryKind::Partial, &Bytes::new()));
        if let Err(refused) = hub.take(some.collect()) {
            break refused;
        }
        assert!(!numbers.is_empty(), "there is no bound");
    };
    assert_eq!(refused, NotTaken::Refused(Refused::Overrun));
}

#[test]
fn a_log_takes_up_to_its_quota_and_then_no_turn() {
    let bounds = LogBounds { burst_bytes: 1 << 20, bytes_per_second: 1 << 20, quota_bytes: 1000 };
    let metering = Arc::new(Metering::new(bounds));
    let hub = Hub::new(session(), Arc::clone(&metering), share(), Arc::default());
    open(&hub, None);
    let before = hub.last();
    assert_eq!(hub.reserve_turn(TurnId::new()), Reserve::Reserved);
    let body = Bytes::from(vec![0; 400]);
    let entries = (2..6).map(|n| numbered(&hub, n, EntryKind::Claude, &body)).collect();
    let full = LogFull { quota_bytes: 1000 };
    assert_eq!(hub.take(entries).unwrap_err(), NotTaken::Full(full));
    assert_eq!(hub.last(), hub.epoch().sequence(3), "what fits is kept, and can be committed");
    assert_eq!(hub.uncommitted().1.len(), 2);
    let turn = hub.turn().unwrap().id;
    open(&hub, Some(turn));
    assert_eq!(hub.reserve_turn(TurnId::new()), Reserve::Full(full));
    assert_eq!(hub.reserve_turn(turn), Reserve::Joined(before), "a repeat still finds its turn");
    // Whoever has the session next meets the same meter.
    assert_eq!(Hub::new(session(), metering, share(), Arc::default()).reserve_turn(TurnId::new()), Reserve::Full(full));
}

#[test]
fn a_burst_is_read_at_once_and_a_flood_is_not() {
    let hub = hub();
    open(&hub, None);
    let delta = Bytes::from(vec![0; 300]);
    let burst = (2..2002).map(|n| numbered(&hub, n, EntryKind::Partial, &delta)).collect();
    assert_eq!(hub.take(burst).unwrap().pause, Duration::ZERO);
    let line = Bytes::from(vec![0; MAX_LINE_BYTES]);
    assert_eq!(hub.take(vec![numbered(&hub, 2002, EntryKind::Claude, &line)]).unwrap().pause, Duration::ZERO);
    hub.committed(hub.last());
    let flood = hub.take(vec![numbered(&hub, 2003, EntryKind::Claude, &line)]).unwrap();
    assert!(flood.pause > Duration::ZERO);
}

#[test]
fn what_comes_again_or_is_no_entry_is_slowed_down_too() {
    let hub = hub();
    open(&hub, None);
    let body = Bytes::from(vec![b'x'; 64 << 10]);
    let entry = numbered(&hub, 2, EntryKind::Partial, &body);
    assert_eq!(hub.take(vec![entry.clone()]).unwrap().pause, Duration::ZERO);
    let repeats = usize::try_from(LOG_BOUNDS.burst_bytes).unwrap() / body.len() + 1;
    let pause = (0..repeats).map(|_| hub.take(vec![entry.clone()]).unwrap().pause).max().unwrap();
    assert!(pause > Duration::ZERO);
    assert!(hub.pace(1, 0) > Duration::ZERO);
}

#[test]
fn a_flood_of_ends_of_turns_is_appended_in_pieces() {
    let hub = hub();
    open(&hub, None);
    let count = u32::try_from(COMMIT_TURN_CHANGES).unwrap() * 2 + 5;
    let ends = (2..count + 2).map(|n| Entry {
        flags: EntryFlags::ENDS_TURN,
        ..numbered(&hub, n, EntryKind::Bridge, &Bytes::from_static(b"{}"))
    });
    hub.take(ends.collect()).unwrap();
    let mut pieces = Vec::new();
    loop {
        let (_, entries) = hub.uncommitted();
        let Some(last) = entries.last() else { break };
        pieces.push(entries.len());
        hub.committed(last.sequence);
    }
    assert_eq!(pieces, [COMMIT_TURN_CHANGES, COMMIT_TURN_CHANGES, 5]);
}

fn bridge_event(event: &BridgeEvent) -> Bytes {
    Bytes::from(serde_json::to_vec(event).unwrap())
}

fn permission_request(id: &str) -> Bytes {
    bridge_event(&BridgeEvent::PermissionRequest {
        id: id.to_owned(),
        turn: TurnId::new().0,
        tool_name: "Bash".to_owned(),
        input: RawValue::from_string("{}".to_owned()).unwrap(),
        expires_at_ms: 0,
    })
}

fn permission_resolved(id: &str) -> Bytes {
    bridge_event(&BridgeEvent::PermissionResolved { id: id.to_owned(), resolution: Resolution::Expired })
}

#[test]
fn a_flood_of_permission_requests_is_remembered_up_to_the_bound() {
    let hub = hub();
    open(&hub, None);
    let most = u32::try_from(MAX_PERMISSIONS).unwrap();
    let ids = |from: u32| (from..).map(|n| (n, format!("p{n}")));
    let asked =
        ids(2).take(MAX_PERMISSIONS + 10).map(|(n, id)| numbered(&hub, n, EntryKind::Bridge, &permission_request(&id)));
    hub.take(asked.collect()).unwrap();
    assert_eq!(hub.close_permission("p2"), PermissionGate::First);
    assert_eq!(hub.close_permission(&format!("p{}", most + 1)), PermissionGate::First);
    assert_eq!(hub.close_permission(&format!("p{}", most + 2)), PermissionGate::Unknown);
    // Requests that are said to be over take no room either.
    let over = ids(most + 12)
        .take(MAX_PERMISSIONS)
        .map(|(n, id)| numbered(&hub, n, EntryKind::Bridge, &permission_resolved(&id)));
    hub.take(over.collect()).unwrap();
    assert_eq!(hub.close_permission(&format!("p{}", most + 12)), PermissionGate::Unknown);
    // One that is known is closed also at the bound.
    let known = numbered(&hub, 2 * most + 12, EntryKind::Bridge, &permission_resolved("p3"));
    hub.take(vec![known]).unwrap();
    assert_eq!(hub.close_permission("p3"), PermissionGate::Closed);
}

#[test]
fn a_permission_request_with_an_endless_id_is_not_remembered() {
    let hub = hub();
    open(&hub, None);
    let (longest, longer) = ("x".repeat(MAX_PERMISSION_ID_BYTES), "x".repeat(MAX_PERMISSION_ID_BYTES + 1));
    for (n, id) in [(2, &longest), (3, &longer)] {
        hub.take(vec![numbered(&hub, n, EntryKind::Bridge, &permission_request(id))]).unwrap();
    }
    assert_eq!(hub.close_permission(&longest), PermissionGate::First);
    assert_eq!(hub.close_permission(&longer), PermissionGate::Unknown);
}

#[test]
fn a_repeated_end_of_a_turn_ends_no_other_one() {
    let hub = hub();
    open(&hub, None);
    let (first, second) = (TurnId::new(), TurnId::new());
    let before = hub.last();
    assert_eq!(hub.reserve_turn(first), Reserve::Reserved);
    let end = entry(hub.epoch().sequence(2), EntryKind::Claude, EntryFlags::ENDS_TURN);
    assert!(hub.take(vec![end.clone()]).unwrap().turn_ended);
    assert_eq!(hub.reserve_turn(second), Reserve::Reserved);
    // The connection broke before the end was acknowledged: the bridge sends it again.
    assert!(!hub.take(vec![end]).unwrap().turn_ended);
    assert!(hub.turn().is_some_and(|turn| turn.id == second));
    assert_eq!(hub.reserve_turn(first), Reserve::Joined(before), "its repeat joins it");
    // A second end without a turn in progress changes nothing either.
    for n in [3, 4] {
        hub.take(vec![entry(hub.epoch().sequence(n), EntryKind::Claude, EntryFlags::ENDS_TURN)]).unwrap();
        assert!(hub.turn().is_none());
    }
    assert_eq!(hub.reserve_turn(TurnId::new()), Reserve::Reserved);
}

#[test]
fn the_end_of_an_earlier_turn_that_comes_again_after_a_restart_leaves_the_running_one() {
    let hub = hub();
    open(&hub, None);
    let end = entry(hub.epoch().sequence(2), EntryKind::Claude, EntryFlags::ENDS_TURN);
    let running = TurnId::new();
    hub.restore_turn(Some(super::Turn { id: running, after: end.sequence }), Vec::new());
    hub.take(vec![end]).unwrap();
    assert!(hub.turn().is_some_and(|turn| turn.id == running));
}

#[test]
fn a_hub_of_an_old_row_takes_over_a_newer_one_and_never_an_older() {
    let old = hub();
    let reserved = TurnId::new();
    assert_eq!(old.reserve_turn(reserved), Reserve::Reserved);
    assert!(old.begin_starting());
    let newer = Session { epoch: Epoch(3), last: Epoch(3).sequence(7), ..old.session() };
    assert!(old.refresh(newer.clone()));
    assert_eq!((old.epoch(), old.last()), (newer.epoch, newer.last));
    assert!(old.turn().is_some_and(|turn| turn.id == reserved && turn.after == newer.last));
    assert!(!old.refresh(newer.clone()), "the same one is no news");
    assert!(!old.refresh(Session { last: Epoch(2).opening(), epoch: Epoch(2), ..newer }));
    // The next epoch follows the newer row.
    open(&old, None);
    assert_eq!(old.epoch(), Epoch(4));
    assert!(matches!(old.after(Epoch(3).sequence(6)), Tail::InLog));
}
