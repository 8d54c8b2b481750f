//! What an operator asks about sessions.

use ash_core::{
    Entry, EntryFlags, EntryKind, Epoch,
    ports::Store,
    spent::{Spent, Tokens},
};
use serde_json::json;
use uuid::Uuid;

use super::Database;
use crate::contract::fixtures::{append, append_one, entry, now, opening_of, placed, result, user};

pub async fn changes_and_ended_turns_are_found<D: Database>() {
    let database = D::fresh().await;
    let store = database.store().await;
    let session = placed(&*store as &dyn Store).await;
    let ended = async || store.spent(session.id).await.unwrap().unwrap().turns;
    let since = now(&*store, &session).await.last_active_at;
    let changed = store.changed_sessions(since, 10).await.unwrap();
    assert_eq!(changed.iter().map(|changed| changed.id).collect::<Vec<_>>(), [session.id]);
    assert_eq!(ended().await, 0);
    let mut number = session.last.n();
    for turns in 0..3 {
        let begun = user(session.epoch, number + 1, Uuid::new_v4());
        append_one(&*store, &session, vec![begun]).await.unwrap();
        assert_eq!(ended().await, turns, "one that runs does not count");
        let text = entry(session.epoch, number + 2, ash_core::EntryKind::Claude, r#"{"type":"assistant"}"#);
        append_one(&*store, &session, vec![text, result(session.epoch, number + 3)]).await.unwrap();
        assert_eq!(ended().await, turns + 1);
        number += 3;
    }
}

/// A turn's result, with what it cost.
fn costing(epoch: Epoch, n: u32, dollars: f64, refused: bool) -> Entry {
    let usage = json!({ "inputTokens": 100, "outputTokens": 10, "cacheReadInputTokens": 3,
        "cacheCreationInputTokens": 2, "costUSD": dollars });
    let line = json!({ "type": "result", "is_error": refused, "api_error_status": refused.then_some(401),
        "model_usage_since_last_result": { "a-model": usage } });
    Entry { flags: EntryFlags::ENDS_TURN, ..entry(epoch, n, EntryKind::Claude, line.to_string()) }
}

/// What a session has spent after so many turns.
fn spent(turns: u64, cost_micros: i64) -> Spent {
    let n = i64::try_from(turns).unwrap();
    let tokens = Tokens { input: 100 * n, output: 10 * n, cache_read: 3 * n, cache_creation: 2 * n };
    Spent { turns, tokens, cost_micros }
}

pub async fn what_is_spent_is_added_up<D: Database>() {
    let database = D::fresh().await;
    let store = database.store().await;
    let session = placed(&*store as &dyn Store).await;
    let (epoch, n) = (session.epoch, session.last.n());
    assert_eq!(store.spent(session.id).await.unwrap(), Some(spent(0, 0)));
    let turn = |n, end| vec![user(epoch, n, Uuid::new_v4()), end];
    append_one(&*store, &session, turn(n + 1, costing(epoch, n + 2, 0.04, false))).await.unwrap();
    assert_eq!(store.spent(session.id).await.unwrap(), Some(spent(1, 40_000)));
    // Of two sessions at once, one of which spends nothing.
    let other = placed(&*store as &dyn Store).await;
    let quiet = append(&other, vec![entry(other.epoch, other.last.n() + 1, EntryKind::Claude, "{}")]);
    let second = append(&session, turn(n + 3, costing(epoch, n + 4, 0.1, true)));
    let both = store.append(vec![second.clone(), quiet]).await;
    assert!(both.iter().all(Result::is_ok), "{both:?}");
    assert_eq!(store.spent(session.id).await.unwrap(), Some(spent(2, 140_000)));
    assert_eq!(store.spent(other.id).await.unwrap(), Some(spent(0, 0)));
    assert!(now(&*store, &session).await.model_refused);
    assert!(!now(&*store, &other).await.model_refused);
    // What is there already is not added again.
    assert_eq!(store.append(vec![second]).await, [Ok(())]);
    assert_eq!(store.spent(session.id).await.unwrap(), Some(spent(2, 140_000)));
    // It goes on in another epoch, and a turn that goes well is noticed.
    let next = store.open_epoch(opening_of(&now(&*store, &session).await)).await.unwrap();
    assert!(next.model_refused);
    let n = next.last.n();
    let third = vec![user(next.epoch, n + 1, Uuid::new_v4()), costing(next.epoch, n + 2, 0.5, false)];
    append_one(&*store, &next, third).await.unwrap();
    assert_eq!(store.spent(session.id).await.unwrap(), Some(spent(3, 640_000)));
    assert!(!now(&*store, &session).await.model_refused);
    assert_eq!(store.spent(ash_core::id::SessionId::new()).await.unwrap(), None);
}
