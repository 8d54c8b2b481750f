//! The event log.

use ash_core::{
    EntryKind, Epoch, Sequence,
    id::{SessionId, TurnId},
    opening::Opening,
    ports::{Append, OpenEpoch, StoreError, TurnRecord},
    session::SessionState,
};
use uuid::Uuid;

use super::{
    Database,
    fixtures::{
        append, append_one, entry, log_after, noise, now, opening_of, placed, result, session, transcript_part, user,
    },
};

pub async fn an_epoch_opens_once<D: Database>() {
    let database = D::fresh().await;
    let store = database.store();
    let made = session(&*store).await;
    let open = opening_of(&made);
    let opened = store.open_epoch(open.clone()).await.unwrap();
    assert_eq!((opened.epoch, opened.last), (Epoch(1), Epoch(1).opening()));
    assert_eq!((opened.state, opened.sandbox), (SessionState::Active, open.sandbox));
    assert_eq!(now(&*store, &made).await, opened);
    let entries = log_after(&*store, made.id, Sequence::START, 1 << 20).await;
    assert_eq!(entries.len(), 1);
    assert_eq!(Opening::read(&entries[0].body).unwrap(), open.opening);
    let expected = StoreError::Overtaken { session: made.id, epoch: opened.epoch, last: opened.last };
    assert_eq!(store.open_epoch(open).await, Err(expected.clone()));
    let mut wrong_last = opening_of(&opened);
    wrong_last.opening.last_committed = Sequence::START;
    assert_eq!(store.open_epoch(wrong_last).await, Err(expected));
    let nobody = OpenEpoch { session: SessionId::new(), ..opening_of(&opened) };
    assert!(matches!(store.open_epoch(nobody).await, Err(StoreError::NotFound(_))));
    assert_eq!(now(&*store, &made).await, opened);
}

pub async fn of_many_openers_one_wins<D: Database>() {
    let database = D::fresh().await;
    let mut current = session(&*database.store()).await;
    for round in 1..=5 {
        let tasks: Vec<_> = (0..8)
            .map(|_| {
                let (store, open) = (database.store(), opening_of(&current));
                tokio::spawn(async move { store.open_epoch(open).await })
            })
            .collect();
        let mut winners = Vec::new();
        for task in tasks {
            match task.await.unwrap() {
                Ok(session) => winners.push(session),
                Err(error) => assert!(matches!(error, StoreError::Overtaken { .. }), "{error}"),
            }
        }
        assert_eq!(winners.len(), 1);
        current = winners.remove(0);
        assert_eq!(current.epoch, Epoch(round));
        assert_eq!(now(&*database.store(), &current).await, current);
    }
}

pub async fn an_opening_ends_the_interrupted_turn<D: Database>() {
    let database = D::fresh().await;
    let store = database.store();
    let (mut session, turn) = (placed(&*store).await, Uuid::now_v7());
    append_one(&*store, &session, vec![user(session.epoch, 2, turn)]).await.unwrap();
    assert_eq!(store.unfinished_turn(session.id).await.unwrap(), Some(TurnId(turn)));
    session = now(&*store, &session).await;
    let mut open = opening_of(&session);
    open.opening.interrupted = Some(turn);
    let opened = store.open_epoch(open).await.unwrap();
    let record = TurnRecord { first: Epoch(1).sequence(2), last: Some(opened.last) };
    assert_eq!(store.turn(session.id, TurnId(turn)).await.unwrap(), Some(record));
    assert_eq!(store.unfinished_turn(session.id).await.unwrap(), None);
}

pub async fn epochs_follow_each_other<D: Database>() {
    let database = D::fresh().await;
    let store = database.store();
    let mut current = session(&*store).await;
    for n in 1..=40u32 {
        current = store.open_epoch(opening_of(&current)).await.unwrap();
        append_one(&*store, &current, vec![entry(current.epoch, 2, EntryKind::Claude, format!("{{\"n\":{n}}}"))])
            .await
            .unwrap();
        current = now(&*store, &current).await;
    }
    let entries = log_after(&*store, current.id, Sequence::START, 100).await;
    let expected: Vec<_> = (1..=40).flat_map(|epoch| [Epoch(epoch).sequence(1), Epoch(epoch).sequence(2)]).collect();
    assert_eq!(entries.iter().map(|entry| entry.sequence).collect::<Vec<_>>(), expected);
}

pub async fn appends_follow_each_other<D: Database>() {
    let database = D::fresh().await;
    let store = database.store();
    let session = placed(&*store).await;
    let entries: Vec<_> = (2..=30)
        .map(|n| {
            let kind = if n % 3 == 0 { EntryKind::Claude } else { EntryKind::Partial };
            entry(session.epoch, n, kind, format!("{{\"n\":{n}}}"))
        })
        .collect();
    for batch in entries.chunks(7) {
        append_one(&*store, &session, batch.to_vec()).await.unwrap();
        assert_eq!(now(&*store, &session).await.last, batch.last().unwrap().sequence);
    }
    assert_eq!(log_after(&*store, session.id, session.last, 1 << 20).await, entries);
    for after in 1..=30 {
        let read = log_after(&*store, session.id, session.epoch.sequence(after), 40).await;
        assert_eq!(read, entries[after as usize - 1..], "from the middle of a batch too");
    }
}

pub async fn an_append_that_is_there_succeeds<D: Database>() {
    let database = D::fresh().await;
    let store = database.store();
    let session = placed(&*store).await;
    let first = vec![user(session.epoch, 2, Uuid::now_v7()), result(session.epoch, 3)];
    append_one(&*store, &session, first.clone()).await.unwrap();
    let second = vec![entry(session.epoch, 4, EntryKind::Claude, "{}")];
    append_one(&*store, &session, second.clone()).await.unwrap();
    let before = now(&*store, &session).await;
    append_one(&*store, &session, first.clone()).await.unwrap();
    append_one(&*store, &session, second.clone()).await.unwrap();
    assert_eq!(now(&*store, &session).await, before);
    assert_eq!(log_after(&*store, session.id, session.last, 1 << 20).await, [first, second].concat());
}

pub async fn an_overtaken_append_writes_nothing_and_hurts_no_other<D: Database>() {
    let database = D::fresh().await;
    let store = database.store();
    let (old, good) = (placed(&*store).await, placed(&*store).await);
    let new = store.open_epoch(opening_of(&old)).await.unwrap();
    let late = append(&old, vec![entry(old.epoch, 2, EntryKind::Claude, "{}")]);
    let gap = append(&new, vec![entry(new.epoch, 5, EntryKind::Claude, "{}")]);
    let fine = append(&good, vec![entry(good.epoch, 2, EntryKind::Claude, "{}")]);
    let nobody = Append { session: SessionId::new(), ..fine.clone() };
    let invalid = Append { entries: Vec::new(), ..fine.clone() };
    let outcomes = store.append(vec![late, gap, fine, nobody, invalid]).await;
    let overtaken = Err(StoreError::Overtaken { session: new.id, epoch: new.epoch, last: new.last });
    assert_eq!(outcomes[..2], [overtaken.clone(), overtaken]);
    assert_eq!(outcomes[2], Ok(()));
    assert!(matches!(outcomes[3], Err(StoreError::NotFound(_))));
    assert!(matches!(outcomes[4], Err(StoreError::Conflict(_))));
    assert_eq!(now(&*store, &new).await, new);
    assert_eq!(log_after(&*store, new.id, old.last, 1 << 20).await.len(), 1);
    assert_eq!(now(&*store, &good).await.last, good.epoch.sequence(2));
    assert_eq!(store.append(Vec::new()).await, []);
}

pub async fn what_is_no_append_is_refused<D: Database>() {
    let database = D::fresh().await;
    let store = database.store();
    let session = placed(&*store).await;
    let line = |n| entry(session.epoch, n, EntryKind::Claude, "{}");
    let opening = entry(session.epoch, 2, EntryKind::Opening, "{}");
    let next_epoch = entry(Epoch(2), 3, EntryKind::Claude, "{}");
    for entries in [vec![line(2), line(4)], vec![line(2), line(2)], vec![line(2), next_epoch], vec![opening]] {
        assert!(matches!(append_one(&*store, &session, entries).await, Err(StoreError::Conflict(_))));
    }
    assert_eq!(now(&*store, &session).await, session);
}

pub async fn pages_are_whole_batches_within_bounds<D: Database>() {
    let database = D::fresh().await;
    let store = database.store();
    let session = placed(&*store).await;
    for n in 0..20 {
        let batch = (2 + n * 5..7 + n * 5).map(|n| entry(session.epoch, n, EntryKind::Partial, "x".repeat(100)));
        append_one(&*store, &session, batch.collect()).await.unwrap();
    }
    let page = store.read(session.id, session.last, 1_200).await.unwrap();
    assert_eq!((page.entries.len(), page.end), (10, false));
    assert_eq!(page.through, session.epoch.sequence(11));
    let tiny = store.read(session.id, page.through, 0).await.unwrap();
    assert_eq!((tiny.entries.len(), tiny.end), (5, false), "at least one batch");
    let last = now(&*store, &session).await.last;
    let rest = store.read(session.id, tiny.through, 1 << 20).await.unwrap();
    assert_eq!((rest.entries.len(), rest.end, rest.through), (85, true, last));
    let nothing = store.read(session.id, last, 1 << 20).await.unwrap();
    assert_eq!((nothing.entries.len(), nothing.end, nothing.through), (0, true, last));
    let beyond = store.read(session.id, Sequence(last.0 + 9), 1 << 20).await.unwrap();
    assert_eq!((beyond.entries.len(), beyond.end, beyond.through), (0, true, Sequence(last.0 + 9)));
    assert!(matches!(store.read(SessionId::new(), Sequence::START, 10).await, Err(StoreError::NotFound(_))));
}

pub async fn internal_entries_are_not_read<D: Database>() {
    let database = D::fresh().await;
    let store = database.store();
    let session = placed(&*store).await;
    let part = |n, offset| {
        entry(session.epoch, n, EntryKind::Transcript, transcript_part(Uuid::from_u128(1), offset, b"line\n"))
    };
    append_one(&*store, &session, vec![part(2, 0), part(3, 5)]).await.unwrap();
    let page = store.read(session.id, session.last, 1 << 20).await.unwrap();
    assert_eq!((page.entries.len(), page.end, page.through), (0, true, session.epoch.sequence(3)));
    let line = entry(session.epoch, 4, EntryKind::Claude, "{}");
    append_one(&*store, &session, vec![line.clone(), part(5, 10)]).await.unwrap();
    let page = store.read(session.id, session.last, 1 << 20).await.unwrap();
    assert_eq!((page.entries, page.end, page.through), (vec![line], true, session.epoch.sequence(5)));
}

pub async fn a_transcript_is_put_together<D: Database>() {
    let database = D::fresh().await;
    let store = database.store();
    let session = placed(&*store).await;
    assert_eq!(store.transcript(session.id).await.unwrap(), None);
    let mut file = Vec::new();
    let mut n = 2;
    for line in 0..12u8 {
        let bytes = vec![b'a' + line; 1 + usize::from(line) * 200];
        let part = transcript_part(Uuid::from_u128(7), file.len() as u64, &bytes);
        file.extend_from_slice(&bytes);
        let batch = vec![
            entry(session.epoch, n, EntryKind::Claude, "{}"),
            entry(session.epoch, n + 1, EntryKind::Transcript, part),
            entry(session.epoch, n + 2, EntryKind::Partial, "{}"),
        ];
        append_one(&*store, &session, batch).await.unwrap();
        n += 3;
        let transcript = store.transcript(session.id).await.unwrap().unwrap();
        assert_eq!((transcript.conversation, &transcript.bytes), (Uuid::from_u128(7), &file));
    }
}

pub async fn turns_begin_and_end<D: Database>() {
    let database = D::fresh().await;
    let store = database.store();
    let session = placed(&*store).await;
    let (one, two) = (Uuid::now_v7(), Uuid::now_v7());
    let at = |n| session.epoch.sequence(n);
    assert_eq!(store.turn(session.id, TurnId(one)).await.unwrap(), None);
    append_one(&*store, &session, vec![user(session.epoch, 2, one)]).await.unwrap();
    let running = TurnRecord { first: at(2), last: None };
    assert_eq!(store.turn(session.id, TurnId(one)).await.unwrap(), Some(running));
    let batch = vec![result(session.epoch, 3), user(session.epoch, 4, two)];
    append_one(&*store, &session, batch).await.unwrap();
    let ended = TurnRecord { first: at(2), last: Some(at(3)) };
    assert_eq!(store.turn(session.id, TurnId(one)).await.unwrap(), Some(ended));
    assert_eq!(store.unfinished_turn(session.id).await.unwrap(), Some(TurnId(two)));
    let no_uuid = entry(session.epoch, 5, EntryKind::User, r#"{"type":"user"}"#);
    let not_json = entry(session.epoch, 6, EntryKind::User, "hello");
    append_one(&*store, &session, vec![no_uuid, not_json, user(session.epoch, 7, one)]).await.unwrap();
    assert_eq!(store.turn(session.id, TurnId(one)).await.unwrap(), Some(ended), "a turn begins once");
    append_one(&*store, &session, vec![result(session.epoch, 8)]).await.unwrap();
    let ended = TurnRecord { first: at(4), last: Some(at(8)) };
    assert_eq!(store.turn(session.id, TurnId(two)).await.unwrap(), Some(ended));
    assert_eq!(store.unfinished_turn(session.id).await.unwrap(), None);
    let other = placed(&*store).await;
    assert_eq!(store.turn(other.id, TurnId(one)).await.unwrap(), None);
}

/// A hostile bridge may send them: whoever shares the database with it must not wait for each.
pub async fn a_flood_of_ends_is_one<D: Database>() {
    let database = D::fresh().await;
    let store = database.store();
    let (hostile, honest) = (placed(&*store).await, placed(&*store).await);
    let turn = Uuid::now_v7();
    let mut entries = vec![user(hostile.epoch, 2, turn)];
    entries.extend((3..20_000).map(|n| result(hostile.epoch, n)));
    let appends = vec![append(&hostile, entries), append(&honest, vec![result(honest.epoch, 2)])];
    assert_eq!(store.append(appends).await, [Ok(()), Ok(())]);
    let record = store.turn(hostile.id, TurnId(turn)).await.unwrap().unwrap();
    assert_eq!(record.last, Some(hostile.epoch.sequence(3)));
    assert_eq!(now(&*store, &honest).await.last, honest.epoch.sequence(2));
}

pub async fn large_entries_come_back<D: Database>() {
    let database = D::fresh().await;
    let store = database.store();
    let session = placed(&*store).await;
    // Noise, which does not compress, and text, which does.
    let entries = vec![
        entry(session.epoch, 2, EntryKind::Claude, noise(1, 9_000_000)),
        entry(session.epoch, 3, EntryKind::Partial, "text ".repeat(400_000)),
    ];
    append_one(&*store, &session, entries.clone()).await.unwrap();
    assert_eq!(log_after(&*store, session.id, session.last, 10).await, entries);
}

pub async fn everything_is_there_after_a_restart<D: Database>() {
    let mut database = D::fresh().await;
    let store = database.store();
    let (session, turn) = (placed(&*store).await, Uuid::now_v7());
    append_one(&*store, &session, vec![user(session.epoch, 2, turn), result(session.epoch, 3)]).await.unwrap();
    let before = now(&*store, &session).await;
    let log = log_after(&*store, session.id, Sequence::START, 1 << 20).await;
    drop(store);
    database.reopen().await;
    let store = database.store();
    assert_eq!(now(&*store, &session).await, before);
    assert_eq!(log_after(&*store, session.id, Sequence::START, 1 << 20).await, log);
    assert_eq!(store.placed_sessions().await.unwrap(), [before]);
    assert!(store.turn(session.id, TurnId(turn)).await.unwrap().unwrap().last.is_some());
}

pub async fn many_sessions_append_at_once<D: Database>() {
    let database = D::fresh().await;
    let mut tasks = Vec::new();
    for _ in 0..20 {
        let session = placed(&*database.store()).await;
        let store = database.store();
        tasks.push(tokio::spawn(async move {
            for n in 2..22 {
                let line = entry(session.epoch, n, EntryKind::Claude, format!("{{\"of\":\"{}\"}}", session.id));
                append_one(&*store, &session, vec![line]).await.unwrap();
            }
            session
        }));
    }
    for task in tasks {
        let session = task.await.unwrap();
        let entries = log_after(&*database.store(), session.id, session.last, 500).await;
        assert_eq!(entries.len(), 20);
        assert!(entries.iter().all(|entry| entry.body == format!("{{\"of\":\"{}\"}}", session.id)));
    }
}
