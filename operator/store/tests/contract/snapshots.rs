//! Snapshots of workspaces.

use ash_core::{
    Epoch,
    id::{SessionId, TenantId, TurnId},
    ports::{KEPT_SNAPSHOTS, SnapshotRow, Store, StoreError},
};
use jiff::Timestamp;
use uuid::Uuid;

use super::{
    Database,
    fixtures::{agent, new_session, opening_of, session, tenant},
};

fn snapshot(session: SessionId, n: u8) -> SnapshotRow {
    SnapshotRow {
        session,
        digest: format!("{n:02x}").repeat(32),
        sequence: Epoch(1).sequence(n.into()),
        turn: (n > 1).then(|| TurnId(Uuid::from_u128(n.into()))),
        size: u64::from(n) << 33,
        taken_at: Timestamp::from_millisecond(1_700_000_000_000 + i64::from(n)).unwrap(),
    }
}

async fn opened(store: &dyn Store) -> SessionId {
    let session = session(store).await;
    store.open_epoch(opening_of(&session)).await.unwrap().id
}

pub async fn the_newest_snapshots_are_kept<D: Database>() {
    let mut database = D::fresh().await;
    let store = database.store();
    let (one, other) = (opened(&*store).await, opened(&*store).await);
    assert_eq!(store.snapshots(one).await.unwrap(), []);
    let all: Vec<SnapshotRow> = (1..=6).map(|n| snapshot(one, n)).collect();
    for row in &all {
        store.add_snapshot(Epoch(1), row.clone()).await.unwrap();
    }
    store.add_snapshot(Epoch(1), snapshot(other, 1)).await.unwrap();
    drop(store);
    database.reopen().await;
    let store = database.store();
    let kept: Vec<SnapshotRow> = all.iter().rev().take(KEPT_SNAPSHOTS as usize).cloned().collect();
    assert_eq!(store.snapshots(one).await.unwrap(), kept);
    assert_eq!(store.snapshots(other).await.unwrap(), [snapshot(other, 1)]);
    // The workspace is what it was some turns ago: that snapshot is of now.
    let again =
        SnapshotRow { sequence: Epoch(1).sequence(9), turn: Some(TurnId(Uuid::from_u128(9))), ..kept[2].clone() };
    store.add_snapshot(Epoch(1), again.clone()).await.unwrap();
    let now = store.snapshots(one).await.unwrap();
    assert_eq!((now.len(), &now[0]), (kept.len(), &again));
}

pub async fn damaged_snapshots_are_not_pushed_out<D: Database>() {
    let database = D::fresh().await;
    let store = database.store();
    let session = opened(&*store).await;
    let row = |n| snapshot(session, n);
    for n in 1..=2 {
        store.add_snapshot(Epoch(1), row(n)).await.unwrap();
        store.snapshot_damaged(session, &row(n).digest).await.unwrap();
    }
    for n in 3..=8 {
        store.add_snapshot(Epoch(1), row(n)).await.unwrap();
    }
    assert_eq!(store.snapshots(session).await.unwrap(), [8, 7, 6, 5, 2, 1].map(row));
    // Taken again, it is whole.
    store.add_snapshot(Epoch(1), row(2)).await.unwrap();
    assert_eq!(store.snapshots(session).await.unwrap(), [8, 7, 6, 5, 1].map(row));
    for n in 3..=8 {
        store.snapshot_damaged(session, &row(n).digest).await.unwrap();
    }
    store.add_snapshot(Epoch(1), row(9)).await.unwrap();
    assert_eq!(store.snapshots(session).await.unwrap(), [9, 8, 7, 6, 5].map(row), "no more than so many");
    store.snapshot_damaged(SessionId::new(), "unknown").await.unwrap();
}

pub async fn a_store_is_one_installations<D: Database>() {
    let mut database = D::fresh().await;
    let store = database.store();
    let (one, other) = tokio::join!(store.installation(), store.installation());
    assert_eq!(one.as_ref().unwrap(), other.as_ref().unwrap());
    drop(store);
    database.reopen().await;
    assert_eq!(database.store().installation().await.unwrap(), one.unwrap());
}

pub async fn a_snapshot_of_another_epoch_is_refused<D: Database>() {
    let database = D::fresh().await;
    let store = database.store();
    let session = opened(&*store).await;
    for epoch in [Epoch(0), Epoch(2)] {
        let refused = store.add_snapshot(epoch, snapshot(session, 1)).await.unwrap_err();
        assert!(matches!(refused, StoreError::Overtaken { epoch: Epoch(1), .. }), "{refused:?}");
    }
    assert_eq!(store.snapshots(session).await.unwrap(), []);
    let unknown = store.add_snapshot(Epoch(1), snapshot(SessionId::new(), 1)).await.unwrap_err();
    assert!(matches!(unknown, StoreError::NotFound(_)), "{unknown:?}");
}

pub async fn snapshots_are_named_by_tenant<D: Database>() {
    let database = D::fresh().await;
    let store = database.store();
    let mut expected = Vec::new();
    for name in ["a", "b"] {
        let agent = agent(&*store, &tenant(name)).await;
        let session = store.create_session(new_session(&agent)).await.unwrap().0;
        store.open_epoch(opening_of(&session)).await.unwrap();
        for n in [1, 2] {
            store.add_snapshot(Epoch(1), snapshot(session.id, n)).await.unwrap();
        }
        expected.push((tenant(name), session.id));
    }
    // One of which nothing is named, and may be kept.
    let agent = agent(&*store, &tenant("c")).await;
    store.create_session(new_session(&agent)).await.unwrap();
    assert_eq!(store.tenants_with_sessions().await.unwrap(), [tenant("a"), tenant("b"), tenant("c")]);
    for (tenant, session) in expected {
        let named = [1, 2].map(|n| (session, snapshot(session, n).digest));
        assert_eq!(store.snapshots_of(&tenant).await.unwrap(), named);
    }
    assert_eq!(store.snapshots_of(&TenantId("c".to_owned())).await.unwrap(), []);
}
