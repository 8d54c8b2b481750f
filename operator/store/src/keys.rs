//! API keys.

use std::sync::atomic::Ordering;

use ash_core::{
    id::{KeyId, TenantId},
    ports::{Key, KeyStore, NewKey, StoreError},
};
use async_trait::async_trait;
use bytes::Bytes;

use crate::{
    cache::Caches,
    fault::Fault,
    rows,
    sql::{Sql, Statement},
    store::{Engine, SqlStore, Write},
};

#[async_trait]
impl<E: Engine> KeyStore for SqlStore<E> {
    async fn key(&self, hash: &[u8; 32]) -> Result<Option<Key>, StoreError> {
        // A key never changes and is never taken away, so that what is cached is right for any number of writers.
        let ticket = match self.caches.keys.get(hash) {
            Ok(key) => return Ok(Some(Key::clone(&key))),
            Err(ticket) => ticket,
        };
        let Some(key) = self.read_key(hash).await? else { return Ok(None) };
        self.caches.keys.fill(ticket, *hash, key.clone().into());
        Ok(Some(key))
    }

    async fn has_keys(&self) -> Result<bool, StoreError> {
        if self.has_keys.load(Ordering::Relaxed) {
            return Ok(true);
        }
        let any = self.engine.reader().row(Statement::new("SELECT id FROM api_keys LIMIT 1")).await?;
        if any.is_some() {
            self.has_keys.store(true, Ordering::Relaxed);
        }
        Ok(any.is_some())
    }

    async fn add_key(&self, key: NewKey) -> Result<Key, StoreError> {
        self.engine.write(AddKey(key)).await
    }
}

impl<E: Engine> SqlStore<E> {
    async fn read_key(&self, hash: &[u8; 32]) -> Result<Option<Key>, Fault> {
        let statement = Statement::new("SELECT id, tenant, name, created_at FROM api_keys WHERE hash = $1")
            .bytes(Bytes::copy_from_slice(hash));
        let Some(row) = self.engine.reader().row(statement).await? else { return Ok(None) };
        Ok(Some(Key {
            id: rows::parsed(&row, "id")?,
            tenant: TenantId(rows::text(&row, "tenant")?),
            name: rows::text(&row, "name")?,
            created_at: rows::time(&row, "created_at")?,
        }))
    }
}

struct AddKey(NewKey);

impl Write for AddKey {
    type Output = Key;

    async fn run<S: Sql>(&self, sql: &mut S) -> Result<Key, Fault> {
        let Self(new) = self;
        let key = Key { id: KeyId::new(), tenant: new.tenant.clone(), name: new.name.clone(), created_at: rows::now() };
        let statement = Statement::new(
            "INSERT INTO api_keys (id, tenant, name, hash, created_at) VALUES ($1, $2, $3, $4, $5) \
             ON CONFLICT (hash) DO NOTHING",
        )
        .text(key.id)
        .text(&key.tenant.0)
        .text(&key.name)
        .bytes(Bytes::copy_from_slice(&new.hash))
        .integer(key.created_at.as_millisecond());
        if sql.execute(statement).await? == 0 {
            return Err(StoreError::Conflict("this key was added before; make another one".to_owned()).into());
        }
        Ok(key)
    }

    fn committed(&self, key: &Key, caches: &Caches) {
        caches.key_written(self.0.hash, key);
    }
}
