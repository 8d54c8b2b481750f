//! The bytes of bundles, in chunks, so that storing a large one holds nobody else up for long.

use ash_core::{id::TenantId, ports::StoreError};
use bytes::{Bytes, BytesMut};
use uuid::Uuid;

use crate::{
    fault::Fault,
    limits::BUNDLE_CHUNK_BYTES,
    rows,
    sql::{Columns, Sql, Statement},
    store::{Engine, SqlStore, Write},
};

/// Bytes in the store that no bundle names yet. The id says when it began.
#[derive(Debug, Clone)]
pub(crate) struct Upload {
    tenant: TenantId,
    id: Uuid,
    size: usize,
}

impl<E: Engine> SqlStore<E> {
    /// Stores a bundle's bytes, unless the tenant has a bundle of this digest. One write per chunk.
    pub(crate) async fn upload(
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
            if let Err(error) = self.engine.write(PutChunk { upload: upload.clone(), n, data }).await {
                self.discard(upload).await;
                return Err(error);
            }
        }
        Ok(Some(upload))
    }

    /// Removes the bytes of an upload that became no bundle. What cannot be removed now is removed at a later start.
    async fn discard(&self, upload: Upload) {
        if let Err(error) = self.engine.write(RemoveChunks(upload)).await {
            tracing::warn!(%error, "the bytes of an unfinished deployment stay until a later start");
        }
    }

    /// Removes the bytes of a deployment that failed, unless it is in doubt and they have their name after all.
    pub(crate) async fn discard_unnamed(&self, upload: Upload) {
        let statement = Statement::new("SELECT size FROM bundles WHERE tenant = $1 AND upload = $2")
            .text(&upload.tenant.0)
            .text(upload.id);
        if matches!(self.engine.reader().row(statement).await, Ok(None)) {
            self.discard(upload).await;
        }
    }

    async fn has_bundle(&self, tenant: &TenantId, digest: &str) -> Result<bool, Fault> {
        let statement =
            Statement::new("SELECT size FROM bundles WHERE tenant = $1 AND digest = $2").text(&tenant.0).text(digest);
        Ok(self.engine.reader().row(statement).await?.is_some())
    }

    pub(crate) async fn read_bundle(&self, tenant: &TenantId, digest: &str) -> Result<Option<Bytes>, Fault> {
        let mut reader = self.engine.reader();
        let statement = Statement::new("SELECT upload, size FROM bundles WHERE tenant = $1 AND digest = $2")
            .text(&tenant.0)
            .text(digest);
        let Some(row) = reader.row(statement).await? else { return Ok(None) };
        let upload = rows::text(&row, "upload")?;
        let size: usize = rows::number(&row, "size")?;
        let mut bundle = BytesMut::new();
        for n in 0i64.. {
            let statement =
                Statement::new("SELECT data FROM bundle_chunks WHERE tenant = $1 AND upload = $2 AND n = $3")
                    .text(&tenant.0)
                    .text(&upload)
                    .integer(n);
            let Some(row) = reader.row(statement).await? else { break };
            bundle.extend_from_slice(&row.bytes("data")?);
        }
        if bundle.len() != size {
            return Err(Fault::damaged(format!("bundle {digest} has {} of {size} bytes", bundle.len())));
        }
        Ok(Some(bundle.freeze()))
    }
}

/// Names a bundle by its digest, within the transaction of its version. Where the tenant has it already, the bytes that were
/// there first stay.
pub(crate) async fn name(sql: &mut impl Sql, upload: &Upload, digest: &str) -> Result<(), Fault> {
    let statement = Statement::new(
        "INSERT INTO bundles (tenant, digest, upload, size, created_at) VALUES ($1, $2, $3, $4, $5) \
         ON CONFLICT (tenant, digest) DO NOTHING",
    )
    .text(&upload.tenant.0)
    .text(digest)
    .text(upload.id)
    .integer(rows::length(upload.size))
    .integer(rows::now().as_millisecond());
    if sql.execute(statement).await? == 0 {
        remove(sql, upload).await?;
    }
    Ok(())
}

/// Removes what uploads left behind that a stop cut off, of those that began before this one.
pub(crate) async fn remove_unfinished(sql: &mut impl Sql, before: Uuid) -> Result<(), Fault> {
    let statement = Statement::new(
        "DELETE FROM bundle_chunks WHERE upload < $1 AND NOT EXISTS (SELECT 1 FROM bundles \
         WHERE bundles.tenant = bundle_chunks.tenant AND bundles.upload = bundle_chunks.upload)",
    );
    sql.execute(statement.text(before)).await?;
    Ok(())
}

async fn remove(sql: &mut impl Sql, upload: &Upload) -> Result<(), Fault> {
    let statement = Statement::new("DELETE FROM bundle_chunks WHERE tenant = $1 AND upload = $2");
    sql.execute(statement.text(&upload.tenant.0).text(upload.id)).await?;
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

    async fn run<S: Sql>(&self, sql: &mut S) -> Result<(), Fault> {
        let statement = Statement::new("INSERT INTO bundle_chunks (tenant, upload, n, data) VALUES ($1, $2, $3, $4)")
            .text(&self.upload.tenant.0)
            .text(self.upload.id)
            .integer(self.n)
            .bytes(self.data.clone());
        sql.execute(statement).await?;
        Ok(())
    }
}

struct RemoveChunks(Upload);

impl Write for RemoveChunks {
    type Output = ();

    async fn run<S: Sql>(&self, sql: &mut S) -> Result<(), Fault> {
        remove(sql, &self.0).await
    }
}
