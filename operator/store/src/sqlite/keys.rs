//! API keys.

use std::sync::atomic::Ordering;

use ash_core::{
    id::{KeyId, TenantId},
    ports::{Key, KeyStore, NewKey, StoreError},
};
use async_trait::async_trait;
use sqlx::{Row, SqliteConnection};

use super::{SqliteStore, rows, writer::Write};
use crate::{cache::Caches, fault::Fault};

#[async_trait]
impl KeyStore for SqliteStore {
    async fn key(&self, hash: &[u8; 32]) -> Result<Option<Key>, StoreError> {
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
        let any =
            sqlx::query("SELECT id FROM api_keys LIMIT 1").fetch_optional(&self.readers).await.map_err(Fault::from)?;
        if any.is_some() {
            self.has_keys.store(true, Ordering::Relaxed);
        }
        Ok(any.is_some())
    }

    async fn add_key(&self, key: NewKey) -> Result<Key, StoreError> {
        self.writer.write(AddKey(key)).await
    }
}

impl SqliteStore {
    async fn read_key(&self, hash: &[u8; 32]) -> Result<Option<Key>, Fault> {
        let row = sqlx::query("SELECT id, tenant, name, created_at FROM api_keys WHERE hash = $1")
            .bind(hash.as_slice())
            .fetch_optional(&self.readers)
            .await?;
        row.map(|row| {
            Ok(Key {
                id: rows::parsed(&row, "id")?,
                tenant: TenantId(row.try_get("tenant")?),
                name: row.try_get("name")?,
                created_at: rows::time(&row, "created_at")?,
            })
        })
        .transpose()
    }
}

struct AddKey(NewKey);

impl Write for AddKey {
    type Output = Key;

    async fn run(&self, connection: &mut SqliteConnection) -> Result<Key, Fault> {
        let Self(new) = self;
        let key = Key { id: KeyId::new(), tenant: new.tenant.clone(), name: new.name.clone(), created_at: rows::now() };
        let added = sqlx::query(
            "INSERT INTO api_keys (id, tenant, name, hash, created_at) VALUES ($1, $2, $3, $4, $5) \
             ON CONFLICT (hash) DO NOTHING",
        )
        .bind(key.id.to_string())
        .bind(&key.tenant.0)
        .bind(&key.name)
        .bind(new.hash.as_slice())
        .bind(key.created_at.as_millisecond())
        .execute(connection)
        .await?;
        if added.rows_affected() == 0 {
            return Err(StoreError::Conflict("this key was added before; make another one".to_owned()).into());
        }
        Ok(key)
    }

    fn committed(&self, key: &Key, caches: &Caches) {
        caches.key_written(self.0.hash, key);
    }
}
