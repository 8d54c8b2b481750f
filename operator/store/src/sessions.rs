//! Sessions.

use std::{fmt::Write as _, sync::Arc};

use ash_core::{
    Epoch, Sequence,
    id::{SessionId, TenantId},
    ports::{NewSession, SessionFilter, SessionPage, SessionStore, StoreError},
    session::{Session, SessionState},
};
use async_trait::async_trait;

use crate::{
    fault::Fault,
    limits::MAX_SESSIONS_PER_PAGE,
    rows::{self, session_columns},
    sql::{Columns, Sql, Statement},
    store::{Engine, SqlStore},
    variables,
};

/// A session takes messages as soon as it is durable: its sandbox may start behind the answer.
const FIRST_STATE: SessionState = SessionState::Active;

#[async_trait]
impl<E: Engine> SessionStore for SqlStore<E> {
    async fn create_session(&self, mut new: NewSession) -> Result<(Session, bool), StoreError> {
        variables::hide(&self.keyring, &mut new)?;
        let (session, is_new) = self.engine.create_session(new).await?;
        Ok((variables::show(&self.keyring, session)?, is_new))
    }

    async fn session_of_key(&self, tenant: &TenantId, key: &str) -> Result<Option<Session>, StoreError> {
        let found = made_before(&mut self.engine.reader(), tenant, key).await?;
        found.map(|session| variables::show(&self.keyring, session)).transpose()
    }

    async fn session(&self, tenant: &TenantId, id: SessionId) -> Result<Option<Session>, StoreError> {
        let found = self.find_session(id).await?.filter(|session| session.tenant == *tenant);
        found.map(|session| variables::show(&self.keyring, Session::clone(&session))).transpose()
    }

    async fn session_exists(&self, id: SessionId) -> Result<bool, StoreError> {
        Ok(self.find_session(id).await?.is_some())
    }

    async fn sessions(&self, tenant: &TenantId, filter: &SessionFilter) -> Result<SessionPage, StoreError> {
        let mut page = self.list(tenant, filter).await?;
        variables::leave_out(&mut page.sessions);
        Ok(page)
    }

    async fn placed_sessions(&self) -> Result<Vec<Session>, StoreError> {
        let statement = Statement::new(concat!(
            "SELECT ",
            session_columns!(),
            " FROM sessions WHERE sandbox IS NOT NULL ORDER BY id"
        ));
        let found = self.engine.reader().rows(statement).await?;
        let placed = found.iter().map(rows::session).collect::<Result<_, _>>()?;
        Ok(variables::show_all(&self.keyring, placed))
    }

    async fn count_active_sessions(&self) -> Result<u64, StoreError> {
        let statement =
            Statement::new("SELECT COUNT(*) AS total FROM sessions WHERE state = $1").text(SessionState::Active.name());
        Ok(total(self.engine.reader().row(statement).await?)?)
    }
}

impl<E: Engine> SqlStore<E> {
    async fn find_session(&self, id: SessionId) -> Result<Option<Arc<Session>>, Fault> {
        let ticket = match self.caches.sessions.get(&id) {
            Ok(session) if self.has_version(&session).await? => return Ok(Some(session)),
            Ok(_) => self.caches.sessions.forget(&id),
            Err(ticket) => ticket,
        };
        let read = read(&mut self.engine.reader(), id).await?.map(Arc::new);
        if let Some(session) = &read {
            self.caches.sessions.fill(ticket, id, Arc::clone(session));
        }
        Ok(read)
    }

    /// Whether a cached session is what the database has. Its options, which may be long, are not read for that: whatever
    /// changes a session opens an epoch or appends to its log.
    async fn has_version(&self, session: &Session) -> Result<bool, Fault> {
        if !E::IS_SHARED {
            return Ok(true);
        }
        let statement =
            Statement::new("SELECT epoch, last_sequence, last_active_at FROM sessions WHERE id = $1").text(session.id);
        let Some(row) = self.engine.reader().row(statement).await? else { return Ok(false) };
        let epoch = Epoch(rows::number(&row, "epoch")?);
        let (last, active_at) = (rows::sequence(&row, "last_sequence")?, rows::time(&row, "last_active_at")?);
        Ok((epoch, last, active_at) == (session.epoch, session.last, session.last_active_at))
    }

    /// One statement, so that total and page belong together.
    async fn list(&self, tenant: &TenantId, filter: &SessionFilter) -> Result<SessionPage, Fault> {
        let mut reader = self.engine.reader();
        let (condition, values) = conditions(tenant, filter);
        let count = format!("SELECT COUNT(*) AS total FROM sessions WHERE {condition}");
        let next = values.len() + 1;
        let page = format!(
            "SELECT ({count}) AS total, {} FROM sessions WHERE {condition} \
             ORDER BY sessions.created_at DESC, sessions.id DESC LIMIT ${next} OFFSET ${}",
            session_columns!(),
            next + 1
        );
        let with_values = |text: String| values.iter().fold(Statement::new(text), Statement::text);
        let limit = filter.limit.clamp(1, MAX_SESSIONS_PER_PAGE);
        let statement = with_values(page).integer(limit.into()).integer(filter.offset.into());
        let found = reader.rows(statement).await?;
        let sessions: Vec<Session> = found.iter().map(rows::session).collect::<Result<_, _>>()?;
        // A page behind the end has no row that could say how many there are.
        let total = match found.into_iter().next() {
            Some(row) => total(Some(row))?,
            None if filter.offset == 0 => 0,
            None => total(reader.row(with_values(count)).await?)?,
        };
        Ok(SessionPage { sessions, total })
    }
}

pub(crate) fn total(row: Option<impl Columns>) -> Result<u64, Fault> {
    let row = row.ok_or_else(|| Fault::damaged("nothing was counted"))?;
    rows::number(&row, "total")
}

/// What a listing filters by, and its parameters in their order.
fn conditions(tenant: &TenantId, filter: &SessionFilter) -> (String, Vec<String>) {
    let mut values = vec![tenant.0.clone()];
    let mut text = "sessions.tenant = $1".to_owned();
    // Writing to a string does not fail.
    for (column, value) in [("agent_name", &filter.agent), ("state", &filter.state)] {
        if let Some(value) = value {
            values.push(value.clone());
            let _ = write!(text, " AND sessions.{column} = ${}", values.len());
        }
    }
    for (name, value) in &filter.metadata {
        values.extend([name.clone(), value.clone()]);
        let _ = write!(
            text,
            " AND EXISTS (SELECT 1 FROM session_metadata WHERE session_metadata.tenant = sessions.tenant \
             AND session_metadata.session = sessions.id AND session_metadata.name = ${} \
             AND session_metadata.value = ${})",
            values.len() - 1,
            values.len()
        );
    }
    (text, values)
}

/// A session's row.
pub(crate) async fn read(sql: &mut impl Sql, id: SessionId) -> Result<Option<Session>, Fault> {
    let statement = Statement::new(concat!("SELECT ", session_columns!(), " FROM sessions WHERE id = $1"));
    sql.row(statement.text(id)).await?.as_ref().map(rows::session).transpose()
}

/// A session's row, which has to be there.
pub(crate) async fn load(sql: &mut impl Sql, id: SessionId) -> Result<Session, Fault> {
    Ok(read(sql, id).await?.ok_or_else(|| no_session(id))?)
}

/// The session that a request of this key made.
pub(crate) async fn made_before(sql: &mut impl Sql, tenant: &TenantId, key: &str) -> Result<Option<Session>, Fault> {
    let statement = Statement::new(concat!(
        "SELECT ",
        session_columns!(),
        " FROM sessions WHERE tenant = $1 AND idempotency_key = $2"
    ));
    sql.row(statement.text(&tenant.0).text(key)).await?.as_ref().map(rows::session).transpose()
}

/// Whether the agent of a new session is there, and not deleted.
pub(crate) async fn has_agent(sql: &mut impl Sql, new: &NewSession) -> Result<bool, Fault> {
    let statement = Statement::new("SELECT id FROM agents WHERE tenant = $1 AND id = $2 AND deleted_at IS NULL");
    Ok(sql.row(statement.text(&new.tenant.0).text(new.agent)).await?.is_some())
}

/// Adds the columns of a session's row as it begins, `$1` to `$14`, but for what is empty then.
pub(crate) fn first_values(
    statement: Statement,
    session: &Session,
    idempotency_key: Option<&str>,
) -> Result<Statement, Fault> {
    Ok(statement
        .text(session.id)
        .text(&session.tenant.0)
        .text(session.agent)
        .text(session.agent_name.as_str())
        .integer(session.agent_version.into())
        .text(session.state.name())
        .integer(session.epoch.0.into())
        .integer(rows::column(session.last))
        .integer(session.created_at.as_millisecond())
        .integer(session.last_active_at.as_millisecond())
        .optional_text(idempotency_key)
        .text(rows::to_json(&session.options)?)
        .text(rows::to_json(&session.metadata)?)
        .optional_text(session.credential))
}

pub(crate) fn no_session(id: SessionId) -> StoreError {
    StoreError::NotFound(format!("there is no session {id}"))
}

pub(crate) fn no_agent(new: &NewSession) -> StoreError {
    StoreError::NotFound(format!("there is no agent {:?}", new.agent_name.as_str()))
}

pub(crate) fn is_there(id: SessionId) -> StoreError {
    StoreError::Conflict(format!("session {id} is there already"))
}

/// A session as it begins.
pub(crate) fn first(new: &NewSession) -> Session {
    let now = rows::now();
    Session {
        id: new.id,
        tenant: new.tenant.clone(),
        agent: new.agent,
        agent_name: new.agent_name.clone(),
        agent_version: new.agent_version,
        state: FIRST_STATE,
        error: None,
        sandbox: None,
        options: new.options.clone(),
        metadata: new.metadata.clone(),
        model_refused: false,
        credential: new.credential,
        epoch: Epoch::NONE,
        last: Sequence::START,
        created_at: now,
        last_active_at: now,
    }
}
