//! Which sessions have changed.

use ash_core::{
    id::{SessionId, TenantId},
    ports::{ChangeStore, ChangedSession, StoreError},
    spent::{Spent, Tokens},
};
use async_trait::async_trait;
use jiff::Timestamp;

use crate::{
    fault::Fault,
    rows,
    sql::{Columns, Sql, Statement},
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
        Ok(changed.collect::<Result<_, Fault>>()?)
    }

    async fn spent(&self, session: SessionId) -> Result<Option<Spent>, StoreError> {
        let statement = Statement::new(
            "SELECT (SELECT COUNT(*) FROM turns WHERE turns.session = sessions.id AND turns.last_sequence IS NOT NULL) \
             AS turns, spent_input, spent_output, spent_cache_read, spent_cache_creation, cost_micros \
             FROM sessions WHERE id = $1",
        );
        let row = self.engine.reader().row(statement.text(session)).await?;
        Ok(row.as_ref().map(spent).transpose()?)
    }
}

fn spent(row: &impl Columns) -> Result<Spent, Fault> {
    Ok(Spent {
        turns: rows::number(row, "turns")?,
        tokens: Tokens {
            input: rows::number(row, "spent_input")?,
            output: rows::number(row, "spent_output")?,
            cache_read: rows::number(row, "spent_cache_read")?,
            cache_creation: rows::number(row, "spent_cache_creation")?,
        },
        cost_micros: rows::number(row, "cost_micros")?,
    })
}
