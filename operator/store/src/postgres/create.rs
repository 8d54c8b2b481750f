//! Creates sessions: one statement.

use ash_core::{ports::NewSession, session::Session};
use sqlx::postgres::PgRow;

use super::{pool::Lease, retry::Call};
use crate::{
    fault::{Fault, Trouble},
    rows,
    sessions::{first, is_there, made_before, no_agent, read},
    sql::{Sql, Statement},
};

/// Makes the session where its agent is there, with what listings filter by. Gives its id, or nothing where one of the rows that
/// it needs is missing or taken.
const CREATE: &str = "WITH made AS ( \
    INSERT INTO sessions (id, tenant, agent, agent_name, agent_version, state, epoch, last_sequence, created_at, \
        last_active_at, idempotency_key, options, metadata) \
    SELECT $1, agents.tenant, agents.id, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13 FROM agents \
    WHERE agents.tenant = $2 AND agents.id = $3 AND agents.deleted_at IS NULL \
    ON CONFLICT DO NOTHING RETURNING id, tenant \
), noted AS ( \
    INSERT INTO session_metadata (tenant, session, name, value) \
    SELECT made.tenant, made.id, pair.name, pair.value \
    FROM made, UNNEST($14::TEXT[], $15::TEXT[]) AS pair (name, value) \
) SELECT id FROM made";

/// A session to be made.
pub(super) struct Create {
    new: NewSession,
    session: Session,
}

impl Create {
    pub(super) fn new(new: NewSession) -> Self {
        let session = first(&new);
        Self { new, session }
    }

    async fn insert(&self, lease: &mut Lease<'_>) -> Result<Option<PgRow>, Fault> {
        let Self { new, session } = self;
        let (names, values): (Vec<&String>, Vec<&String>) = session.metadata.iter().unzip();
        let inserted = sqlx::query(CREATE)
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
            .bind(&new.idempotency_key)
            .bind(rows::to_json(&session.options)?)
            .bind(rows::to_json(&session.metadata)?)
            .bind(names)
            .bind(values)
            .fetch_optional(lease.round_trip())
            .await?;
        Ok(inserted)
    }
}

impl Call for Create {
    type Output = (Session, bool);

    // A repeat finds the session under its id, which is nobody else's.
    const MAY_REPEAT: bool = true;

    async fn run(&self, lease: &mut Lease<'_>, in_doubt: bool) -> Result<(Session, bool), Fault> {
        let Self { new, session } = self;
        if self.insert(lease).await?.is_some() {
            return Ok((session.clone(), true));
        }
        if let Some(key) = &new.idempotency_key
            && let Some(made) = made_before(lease, &new.tenant, key).await?
        {
            let is_ours = in_doubt && made.id == new.id;
            return Ok((made, is_ours));
        }
        let statement = Statement::new("SELECT id FROM agents WHERE tenant = $1 AND id = $2 AND deleted_at IS NULL");
        if lease.row(statement.text(&new.tenant.0).text(new.agent)).await?.is_none() {
            return Err(no_agent(new).into());
        }
        match read(lease, new.id).await? {
            Some(made) if in_doubt && made.tenant == new.tenant && made.created_at == session.created_at => {
                Ok((made, true))
            }
            Some(_) => Err(is_there(new.id).into()),
            // Whatever was in the way has gone since.
            None => Err(Fault { error: is_there(new.id), trouble: Trouble::Collision }),
        }
    }
}
