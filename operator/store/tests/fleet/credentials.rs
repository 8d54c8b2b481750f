//! Credentials.

use std::collections::BTreeMap;

use ash_core::ports::{Clear, CredentialKind, FleetStore, SessionFilter, Store, StoreError};
use secrecy::ExposeSecret as _;

use super::Database;
use crate::contract::fixtures::{self, tenant};

fn clear(secret: &str) -> Clear {
    Clear::new(secret.as_bytes().into())
}

async fn revealed(store: &dyn FleetStore, name: &str) -> Result<Option<String>, StoreError> {
    let found = store.reveal_credential_named(&tenant("a"), name).await?;
    Ok(found.map(|(_, secret)| String::from_utf8(secret.expose_secret().to_vec()).unwrap()))
}

pub async fn a_credential_is_kept_encrypted<D: Database>() {
    let database = D::fresh().await;
    let store = database.store_with(&[1]).await;
    let key = CredentialKind::AnthropicKey;
    let made = store.put_credential(&tenant("a"), "main", key, &clear("sk-sesame")).await.unwrap();
    assert_eq!((&made.tenant, &*made.name, made.kind), (&tenant("a"), "main", key));
    let second = store.put_credential(&tenant("a"), "other", CredentialKind::Custom, &clear("{}")).await.unwrap();
    let listed = store.credentials(&tenant("a")).await.unwrap();
    assert_eq!((listed.len(), listed.contains(&made), listed.contains(&second)), (2, true, true));
    assert!(store.credentials(&tenant("b")).await.unwrap().is_empty());
    let (found, secret) = store.reveal_credential(&tenant("a"), made.id).await.unwrap().unwrap();
    assert_eq!((found, secret.expose_secret()), (made.clone(), &b"sk-sesame"[..]));
    assert!(store.reveal_credential(&tenant("b"), made.id).await.unwrap().is_none());
    assert_eq!(revealed(&*store, "nobody").await, Ok(None));
    assert!(!store.delete_credential(&tenant("b"), made.id).await.unwrap());
    assert!(store.delete_credential(&tenant("a"), made.id).await.unwrap());
    assert!(!store.delete_credential_named(&tenant("b"), "other").await.unwrap());
    assert!(store.delete_credential_named(&tenant("a"), "other").await.unwrap());
    assert!(store.credentials(&tenant("a")).await.unwrap().is_empty());
    assert_eq!(revealed(&*store, "main").await, Ok(None));
    let long = Clear::new(vec![0; 1 << 20].into());
    assert!(matches!(store.put_credential(&tenant("a"), "long", key, &long).await, Err(StoreError::Conflict(_))));
}

pub async fn a_credential_of_a_name_is_replaced<D: Database>() {
    let database = D::fresh().await;
    let store = database.store_with(&[1]).await;
    let first = store.put_credential(&tenant("a"), "main", CredentialKind::AnthropicKey, &clear("one")).await.unwrap();
    let token = CredentialKind::AnthropicToken;
    let second = store.put_credential(&tenant("a"), "main", token, &clear("two")).await.unwrap();
    assert_eq!((second.id, second.kind), (first.id, token), "whoever names it by its id has the new one");
    assert_eq!(revealed(&*store, "main").await, Ok(Some("two".to_owned())));
    let of_b = store.put_credential(&tenant("b"), "main", token, &clear("three")).await.unwrap();
    assert_ne!(of_b.id, first.id);
    assert_eq!(revealed(&*store, "main").await, Ok(Some("two".to_owned())));
}

pub async fn keys_are_exchanged<D: Database>() {
    let database = D::fresh().await;
    let kind = CredentialKind::AnthropicKey;
    let without = database.store().await;
    let refused = without.put_credential(&tenant("a"), "main", kind, &clear("sesame")).await.unwrap_err();
    assert!(refused.to_string().contains("--credential-key-file"), "{refused}");
    let before = database.store_with(&[1]).await;
    before.put_credential(&tenant("a"), "main", kind, &clear("sesame")).await.unwrap();
    let other = database.store_with(&[2]).await;
    let refused = revealed(&*other, "main").await.unwrap_err();
    assert!(refused.to_string().contains("behind the first one"), "{refused}");
    let both = database.store_with(&[2, 1]).await;
    assert_eq!(revealed(&*both, "main").await, Ok(Some("sesame".to_owned())));
    both.put_credential(&tenant("a"), "main", kind, &clear("sesame")).await.unwrap();
    assert_eq!(revealed(&*database.store_with(&[2]).await, "main").await, Ok(Some("sesame".to_owned())));
}

pub async fn a_row_cannot_be_passed_off_as_another<D: Database>() {
    let database = D::fresh().await;
    let store = database.store_with(&[1]).await;
    for (name, change) in
        [("tenant", "tenant = 'b'"), ("kind", "kind = 'custom'"), ("id", "id = '00000000-0000-0000-0000-000000000001'")]
    {
        store.put_credential(&tenant("a"), name, CredentialKind::AnthropicKey, &clear("sesame")).await.unwrap();
        database.execute(&format!("UPDATE credentials SET {change} WHERE name = '{name}'")).await;
        for owner in ["a", "b"] {
            let found = store.reveal_credential_named(&tenant(owner), name).await;
            assert!(matches!(found, Ok(None) | Err(StoreError::Damaged(_))), "{name}");
        }
    }
}

/// Variables of a session may be secrets: of a credential of kind `custom`, or `extraEnv`.
pub async fn variables_of_a_session_are_kept_encrypted<D: Database>() {
    let database = D::fresh().await;
    let store = database.store_with(&[1]).await;
    let agent = fixtures::agent(&*store as &dyn Store, &tenant("a")).await;
    let variables = BTreeMap::from([("TOKEN".to_owned(), "canary-1234567890".to_owned())]);
    let mut new = fixtures::new_session(&agent);
    new.options.environment.clone_from(&variables);
    new.metadata.insert("seen".to_owned(), "plain-0987654321".to_owned());
    let id = new.id;
    let (made, _) = store.create_session(new).await.unwrap();
    assert_eq!(made.options.environment, variables);
    let opened = store.open_epoch(fixtures::opening_of(&made)).await.unwrap();
    assert_eq!(opened.options.environment, variables);
    let everything = database.bytes().await;
    let has = |word: &[u8]| everything.windows(word.len()).any(|found| found == word);
    assert!(has(b"plain-0987654321"), "the search finds what is there");
    assert!(!has(b"canary-1234567890"), "in the clear");
    let hexadecimal: String = b"canary-1234567890".iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(!has(hexadecimal.as_bytes()) && !has(b"Y2FuYXJ5LTEyMzQ1Njc4OTA"), "in another spelling");

    let read = async |store: &dyn FleetStore| store.session(&tenant("a"), id).await;
    assert_eq!(read(&*store).await.unwrap().unwrap().options.environment, variables);
    assert_eq!(store.placed_sessions().await.unwrap().pop().unwrap().options.environment, variables);
    let page = store.sessions(&tenant("a"), &SessionFilter { limit: 10, ..SessionFilter::default() }).await.unwrap();
    assert!(page.sessions.iter().all(|session| session.options.environment.is_empty()), "listings have none");
    drop(store);
    // Another key first, with the old one behind it.
    let exchanged = database.store_with(&[2, 1]).await;
    assert_eq!(read(&*exchanged).await.unwrap().unwrap().options.environment, variables);
    drop(exchanged);
    let other = database.store_with(&[2]).await;
    let refused = read(&*other).await.unwrap_err().to_string();
    assert!(refused.contains("--credential-key-file"), "{refused}");
    let placed = other.placed_sessions().await.unwrap();
    assert!(placed.len() == 1 && placed[0].options.environment.is_empty(), "it does not stop the others");
    drop(other);
    // A row's variables are no other row's.
    let store = database.store_with(&[1]).await;
    let theirs = store.create_session(fixtures::new_session(&agent)).await.unwrap().0.id;
    drop(store);
    let options = format!("(SELECT options FROM sessions WHERE id = '{id}')");
    database.execute(&format!("UPDATE sessions SET options = {options} WHERE id = '{theirs}'")).await;
    let moved = database.store_with(&[1, 3]).await;
    assert!(matches!(moved.session(&tenant("a"), theirs).await, Err(StoreError::Damaged(_))));
}
