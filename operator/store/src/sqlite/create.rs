//! Creates sessions.

use ash_core::{ports::NewSession, session::Session};
use sqlx::SqliteConnection;

use super::writer::Write;
use crate::{
    cache::Caches,
    fault::Fault,
    sessions::{first, first_values, has_agent, is_there, made_before, no_agent},
    sql::{Sql, Statement},
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
        if !has_agent(connection, new).await? {
            return Err(no_agent(new).into());
        }
        let session = first(new);
        insert(connection, &session, new.idempotency_key.as_deref()).await?;
        for (name, value) in &session.metadata {
            let statement =
                Statement::new("INSERT INTO session_metadata (tenant, session, name, value) VALUES ($1, $2, $3, $4)");
            let statement = statement.text(&session.tenant.0).text(session.id).text(name).text(value);
            connection.execute(statement).await?;
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
    let statement = Statement::new(
        "INSERT INTO sessions (id, tenant, agent, agent_name, agent_version, state, epoch, last_sequence, created_at, \
         last_active_at, idempotency_key, options, metadata, credential) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14) ON CONFLICT (id) DO NOTHING",
    );
    if connection.execute(first_values(statement, session, idempotency_key)?).await? == 0 {
        return Err(is_there(session.id).into());
    }
    Ok(())
}
