//! Creates sessions: one statement.

use ash_core::{ports::NewSession, session::Session};

use super::{pool::Lease, retry::Call};
use crate::{
    fault::{Fault, Trouble},
    sessions::{first, first_values, has_agent, is_there, made_before, no_agent, read},
    sql::{Sql, Statement},
};

/// Makes the session where its agent is there, with what listings filter by. Gives its id, or nothing where one of the rows that
/// it needs is missing or taken.
const CREATE: &str = "WITH made AS ( \
    INSERT INTO sessions (id, tenant, agent, agent_name, agent_version, state, epoch, last_sequence, created_at, \
        last_active_at, idempotency_key, options, metadata, credential) \
    SELECT $1, agents.tenant, agents.id, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14 FROM agents \
    WHERE agents.tenant = $2 AND agents.id = $3 AND agents.deleted_at IS NULL \
    ON CONFLICT DO NOTHING RETURNING id, tenant \
), noted AS ( \
    INSERT INTO session_metadata (tenant, session, name, value) \
    SELECT made.tenant, made.id, pair.name, pair.value \
    FROM made, JSONB_EACH_TEXT($13::JSONB) AS pair (name, value) \
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
}

impl Call for Create {
    type Output = (Session, bool);

    // A repeat finds the session under its id, which is nobody else's.
    const MAY_REPEAT: bool = true;

    async fn run(&self, lease: &mut Lease<'_>, in_doubt: bool) -> Result<(Session, bool), Fault> {
        let Self { new, session } = self;
        let statement = first_values(Statement::new(CREATE), session, new.idempotency_key.as_deref())?;
        if lease.row(statement).await?.is_some() {
            return Ok((session.clone(), true));
        }
        if let Some(key) = &new.idempotency_key
            && let Some(made) = made_before(lease, &new.tenant, key).await?
        {
            let is_ours = in_doubt && made.id == new.id;
            return Ok((made, is_ours));
        }
        if !has_agent(lease, new).await? {
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
