//! What an operator asks about sessions.

use ash_core::ports::Store;
use uuid::Uuid;

use super::Database;
use crate::contract::fixtures::{append_one, entry, now, placed, result, user};

pub async fn changes_and_ended_turns_are_found<D: Database>() {
    let database = D::fresh().await;
    let store = database.store().await;
    let session = placed(&*store as &dyn Store).await;
    let ended = async || store.ended_turns(session.id).await.unwrap();
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
