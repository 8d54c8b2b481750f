//! API keys.

use ash_core::ports::{NewKey, StoreError};

use super::{Database, fixtures::tenant};

pub async fn keys_are_found_by_their_hash<D: Database>() {
    let mut database = D::fresh().await;
    let store = database.store();
    assert!(!store.has_keys().await.unwrap());
    assert_eq!(store.key(&[1; 32]).await.unwrap(), None);
    let new = NewKey { tenant: tenant("a"), name: "first".to_owned(), hash: [1; 32] };
    let key = store.add_key(new.clone()).await.unwrap();
    assert!(store.has_keys().await.unwrap());
    assert_eq!(store.key(&[1; 32]).await.unwrap(), Some(key.clone()));
    assert_eq!(store.key(&[2; 32]).await.unwrap(), None);
    assert!(matches!(store.add_key(new).await, Err(StoreError::Conflict(_))));
    drop(store);
    database.reopen().await;
    assert_eq!(database.store().key(&[1; 32]).await.unwrap(), Some(key));
    assert!(database.store().has_keys().await.unwrap());
}
