//! Options of sessions that change.

use ash_core::{
    ports::{ConfigureSession, SessionFilter, Store},
    session::Session,
};

use super::Database;
use crate::contract::fixtures::{append_one, now, placed, user};

fn change(seen: &Session, model: &str, metadata: &[(&str, &str)]) -> ConfigureSession {
    let mut options = seen.options.clone();
    options.model = Some(model.to_owned());
    options.environment.insert("SECRET".to_owned(), "canary".to_owned());
    let metadata = metadata.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    ConfigureSession { seen: seen.clone(), options, metadata }
}

pub async fn options_change_and_every_server_sees_it<D: Database>() {
    let database = D::fresh().await;
    let (store, beside) = (database.store_with(&[1]).await, database.store_with(&[1]).await);
    let session = placed(&*store as &dyn Store).await;
    // Both have it in memory.
    assert_eq!(now(&*beside, &session).await.options, session.options);
    let first = store.configure_session(change(&session, "one", &[("a", "1"), ("b", "2")])).await.unwrap().unwrap();
    assert!(first.last_active_at > session.last_active_at);
    assert_eq!((first.epoch, first.last, first.state), (session.epoch, session.last, session.state));
    let second = store.configure_session(change(&first, "two", &[("b", "3")])).await.unwrap().unwrap();
    for server in [&store, &beside] {
        let seen = now(&**server, &session).await;
        assert_eq!(seen, second);
        assert_eq!(seen.options.model.as_deref(), Some("two"));
        assert_eq!(seen.options.environment["SECRET"], "canary");
        let found = |name: &str, value: &str| {
            let metadata = [(name.to_owned(), value.to_owned())].into();
            SessionFilter { metadata, limit: 10, ..SessionFilter::default() }
        };
        for (filter, total) in [(found("a", "1"), 0), (found("b", "2"), 0), (found("b", "3"), 1)] {
            assert_eq!(server.sessions(&session.tenant, &filter).await.unwrap().total, total);
        }
    }
    assert!(!database.bytes().await.windows(6).any(|bytes| bytes == b"canary"), "a variable is stored in the clear");
}

pub async fn a_change_of_what_has_changed_is_refused<D: Database>() {
    let database = D::fresh().await;
    let store = database.store().await;
    let session = placed(&*store as &dyn Store).await;
    append_one(&*store, &session, vec![user(session.epoch, 2, uuid::Uuid::new_v4())]).await.unwrap();
    let seen = now(&*store, &session).await;
    store.configure_session(change(&seen, "one", &[])).await.unwrap().unwrap();
    assert_eq!(store.configure_session(change(&seen, "two", &[])).await.unwrap(), None);
    assert_eq!(now(&*store, &session).await.options.model.as_deref(), Some("one"));
}
