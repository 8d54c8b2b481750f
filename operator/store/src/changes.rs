//! Which sessions have changed.

use ash_core::{
    id::{SessionId, TenantId},
    ports::{ChangeStore, ChangedSession, StoreError},
};
use async_trait::async_trait;
use jiff::Timestamp;

use crate::{
    rows,
    sessions::total,
    sql::{Sql, Statement},
    store::{Engine, SqlStore},
};

#[async_trait]
impl<E: Engine> ChangeStore for SqlStore<E> {
    async fn changed_sessions(&self, since: Timestamp, limit: u32) -> Result<Vec<ChangedSession>, StoreError> {
        let statement = Statement::new(
            "SELECT id, tenant, last_active_at FROM sessions WHERE last_active_at >= $1 \
             ORDER BY last_active_at, id LIMIT $2",
        )
        .integer(since.as_millisecond())
        .integer(limit.into());
        let found = self.engine.reader().rows(statement).await?;
        let changed = found.iter().map(|row| {
            Ok(ChangedSession {
                id: rows::parsed(row, "id")?,
                tenant: TenantId(rows::text(row, "tenant")?),
                at: rows::time(row, "last_active_at")?,
            })
        });
        Ok(changed.collect::<Result<_, crate::fault::Fault>>()?)
    }

    async fn ended_turns(&self, session: SessionId) -> Result<u64, StoreError> {
        let statement =
            Statement::new("SELECT COUNT(*) AS total FROM turns WHERE session = $1 AND last_sequence IS NOT NULL");
        Ok(total(self.engine.reader().row(statement.text(session)).await?)?)
    }
}
