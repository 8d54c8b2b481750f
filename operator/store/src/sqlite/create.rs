//! Creates sessions.

use ash_core::{ports::NewSession, session::Session};
use sqlx::SqliteConnection;

use super::writer::Write;
use crate::{
    cache::Caches,
    fault::Fault,
    rows,
    sessions::{first, is_there, made_before, no_agent},
};

/// A session to be made.
pub(super) struct Create(pub(super) NewSession);

impl Write for Create {
    type Output = (Session, bool);

    fn bytes(&self) -> usize {
        self.0.metadata.iter().map(|(name, value)| name.len() + value.len()).sum()
    }

    async fn run(&self, connection: &mut SqliteConnection) -> Result<(Session, bool), Fault> {
        let Self(new) = self;
        if let Some(key) = &new.idempotency_key
            && let Some(made) = made_before(connection, &new.tenant, key).await?
        {
            return Ok((made, false));
        }
        let agent = sqlx::query("SELECT id FROM agents WHERE tenant = $1 AND id = $2 AND deleted_at IS NULL")
            .bind(&new.tenant.0)
            .bind(new.agent.to_string())
            .fetch_optional(&mut *connection)
            .await?;
        if agent.is_none() {
            return Err(no_agent(new).into());
        }
        let session = first(new);
        insert(connection, &session, new.idempotency_key.as_deref()).await?;
        for (name, value) in &session.metadata {
            sqlx::query("INSERT INTO session_metadata (tenant, session, name, value) VALUES ($1, $2, $3, $4)")
                .bind(&session.tenant.0)
                .bind(session.id.to_string())
                .bind(name)
                .bind(value)
                .execute(&mut *connection)
                .await?;
        }
        Ok((session, true))
    }

    fn committed(&self, (session, new): &(Session, bool), caches: &Caches) {
        if *new {
            caches.session_written(session);
        }
    }
}

async fn insert(
    connection: &mut SqliteConnection,
    session: &Session,
    idempotency_key: Option<&str>,
) -> Result<(), Fault> {
    let inserted = sqlx::query(
        "INSERT INTO sessions (id, tenant, agent, agent_name, agent_version, state, epoch, last_sequence, created_at, \
         last_active_at, idempotency_key, options, metadata) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13) ON CONFLICT (id) DO NOTHING",
    )
    .bind(session.id.to_string())
    .bind(&session.tenant.0)
    .bind(session.agent.to_string())
    .bind(session.agent_name.as_str())
    .bind(i64::from(session.agent_version))
    .bind(session.state.name())
    .bind(i64::from(session.epoch.0))
    .bind(rows::column(session.last))
    .bind(session.created_at.as_millisecond())
    .bind(session.last_active_at.as_millisecond())
    .bind(idempotency_key)
    .bind(rows::to_json(&session.options)?)
    .bind(rows::to_json(&session.metadata)?)
    .execute(connection)
    .await?;
    if inserted.rows_affected() == 0 {
        return Err(is_there(session.id).into());
    }
    Ok(())
}
