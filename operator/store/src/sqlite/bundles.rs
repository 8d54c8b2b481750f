//! The bytes of bundles, in chunks, so that storing a large one holds nobody else up for long.

use ash_core::{id::TenantId, ports::StoreError};
use bytes::{Bytes, BytesMut};
use sqlx::{Row, SqliteConnection};
use uuid::Uuid;

use super::{SqliteStore, rows, writer::Write};
use crate::{fault::Fault, limits::BUNDLE_CHUNK_BYTES};

/// Bytes in the store that no bundle names yet.
#[derive(Debug, Clone)]
pub(super) struct Upload {
    pub(super) tenant: TenantId,
    pub(super) id: Uuid,
    pub(super) size: usize,
}

impl SqliteStore {
    /// Stores a bundle's bytes, unless the tenant has a bundle of this digest. One write per chunk.
    pub(super) async fn upload(
        &self,
        tenant: &TenantId,
        digest: &str,
        bundle: &Bytes,
    ) -> Result<Option<Upload>, StoreError> {
        if self.has_bundle(tenant, digest).await? {
            return Ok(None);
        }
        let upload = Upload { tenant: tenant.clone(), id: Uuid::now_v7(), size: bundle.len() };
        let mut rest = bundle.clone();
        for n in 0i64.. {
            let data = rest.split_to(rest.len().min(BUNDLE_CHUNK_BYTES));
            if data.is_empty() {
                break;
            }
            if let Err(error) = self.writer.write(PutChunk { upload: upload.clone(), n, data }).await {
                self.discard(upload).await;
                return Err(error);
            }
        }
        Ok(Some(upload))
    }

    /// Removes the bytes of an upload that became no bundle. What cannot be removed now is removed at the next start.
    pub(super) async fn discard(&self, upload: Upload) {
        if let Err(error) = self.writer.write(RemoveChunks(upload)).await {
            tracing::warn!(%error, "the bytes of an unfinished deployment stay until the next start");
        }
    }

    async fn has_bundle(&self, tenant: &TenantId, digest: &str) -> Result<bool, Fault> {
        let row = sqlx::query("SELECT size FROM bundles WHERE tenant = $1 AND digest = $2")
            .bind(&tenant.0)
            .bind(digest)
            .fetch_optional(&self.readers)
            .await?;
        Ok(row.is_some())
    }

    pub(super) async fn read_bundle(&self, tenant: &TenantId, digest: &str) -> Result<Option<Bytes>, Fault> {
        let row = sqlx::query("SELECT upload, size FROM bundles WHERE tenant = $1 AND digest = $2")
            .bind(&tenant.0)
            .bind(digest)
            .fetch_optional(&self.readers)
            .await?;
        let Some(row) = row else { return Ok(None) };
        let upload: String = row.try_get("upload")?;
        let size: usize = rows::number(&row, "size")?;
        let mut bundle = BytesMut::new();
        for n in 0i64.. {
            let row = sqlx::query("SELECT data FROM bundle_chunks WHERE tenant = $1 AND upload = $2 AND n = $3")
                .bind(&tenant.0)
                .bind(&upload)
                .bind(n)
                .fetch_optional(&self.readers)
                .await?;
            let Some(row) = row else { break };
            bundle.extend_from_slice(row.try_get::<&[u8], _>("data")?);
        }
        if bundle.len() != size {
            return Err(Fault::damaged(format!("bundle {digest} has {} of {size} bytes", bundle.len())));
        }
        Ok(Some(bundle.freeze()))
    }
}

/// Names a bundle by its digest, within the transaction of its version. False where the tenant has it already.
pub(super) async fn name(connection: &mut SqliteConnection, upload: &Upload, digest: &str) -> Result<bool, Fault> {
    let named = sqlx::query(
        "INSERT INTO bundles (tenant, digest, upload, size, created_at) VALUES ($1, $2, $3, $4, $5) \
         ON CONFLICT (tenant, digest) DO NOTHING",
    )
    .bind(&upload.tenant.0)
    .bind(digest)
    .bind(upload.id.to_string())
    .bind(rows::length(upload.size))
    .bind(rows::now().as_millisecond())
    .execute(&mut *connection)
    .await?;
    if named.rows_affected() == 0 {
        remove(connection, upload).await?;
    }
    Ok(named.rows_affected() > 0)
}

/// Removes what uploads left behind that a stop cut off.
pub(super) async fn remove_unfinished(connection: &mut SqliteConnection) -> Result<(), sqlx::Error> {
    sqlx::query(
        "DELETE FROM bundle_chunks WHERE NOT EXISTS (SELECT 1 FROM bundles \
         WHERE bundles.tenant = bundle_chunks.tenant AND bundles.upload = bundle_chunks.upload)",
    )
    .execute(connection)
    .await?;
    Ok(())
}

async fn remove(connection: &mut SqliteConnection, upload: &Upload) -> Result<(), sqlx::Error> {
    sqlx::query("DELETE FROM bundle_chunks WHERE tenant = $1 AND upload = $2")
        .bind(&upload.tenant.0)
        .bind(upload.id.to_string())
        .execute(connection)
        .await?;
    Ok(())
}

struct PutChunk {
    upload: Upload,
    n: i64,
    data: Bytes,
}

impl Write for PutChunk {
    type Output = ();

    fn bytes(&self) -> usize {
        self.data.len()
    }

    async fn run(&self, connection: &mut SqliteConnection) -> Result<(), Fault> {
        sqlx::query("INSERT INTO bundle_chunks (tenant, upload, n, data) VALUES ($1, $2, $3, $4)")
            .bind(&self.upload.tenant.0)
            .bind(self.upload.id.to_string())
            .bind(self.n)
            .bind(self.data.as_ref())
            .execute(connection)
            .await?;
        Ok(())
    }
}

struct RemoveChunks(Upload);

impl Write for RemoveChunks {
    type Output = ();

    async fn run(&self, connection: &mut SqliteConnection) -> Result<(), Fault> {
        Ok(remove(connection, &self.0).await?)
    }
}
