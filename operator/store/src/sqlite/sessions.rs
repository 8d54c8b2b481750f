//! Sessions.

use std::sync::Arc;

use ash_core::{
    Epoch, Sequence,
    id::{SessionId, TenantId},
    ports::{NewSession, SessionFilter, SessionPage, SessionStore, StoreError},
    session::{Session, SessionState},
};
use async_trait::async_trait;
use sqlx::{QueryBuilder, Sqlite, SqliteConnection};

use super::{
    SqliteStore,
    rows::{self, session_columns},
    writer::Write,
};
use crate::{cache::Caches, fault::Fault, limits::MAX_SESSIONS_PER_PAGE};

/// A session takes messages as soon as it is durable: its sandbox may start behind the answer.
const FIRST_STATE: SessionState = SessionState::Active;

#[async_trait]
impl SessionStore for SqliteStore {
    async fn create_session(&self, new: NewSession) -> Result<(Session, bool), StoreError> {
        self.writer.write(Create(new)).await
    }

    async fn session(&self, tenant: &TenantId, id: SessionId) -> Result<Option<Session>, StoreError> {
        Ok(self
            .find_session(id)
            .await?
            .filter(|session| session.tenant == *tenant)
            .map(|session| Session::clone(&session)))
    }

    async fn session_exists(&self, id: SessionId) -> Result<bool, StoreError> {
        Ok(self.find_session(id).await?.is_some())
    }

    async fn sessions(&self, tenant: &TenantId, filter: &SessionFilter) -> Result<SessionPage, StoreError> {
        Ok(self.list(tenant, filter).await?)
    }

    async fn placed_sessions(&self) -> Result<Vec<Session>, StoreError> {
        let found =
            sqlx::query(concat!("SELECT ", session_columns!(), " FROM sessions WHERE sandbox IS NOT NULL ORDER BY id"))
                .fetch_all(&self.readers)
                .await
                .map_err(Fault::from)?;
        Ok(found.iter().map(rows::session).collect::<Result<_, _>>()?)
    }

    async fn count_active_sessions(&self) -> Result<u64, StoreError> {
        let row = sqlx::query("SELECT COUNT(*) AS total FROM sessions WHERE state = $1")
            .bind(SessionState::Active.name())
            .fetch_one(&self.readers)
            .await
            .map_err(Fault::from)?;
        Ok(rows::number(&row, "total")?)
    }
}

impl SqliteStore {
    async fn find_session(&self, id: SessionId) -> Result<Option<Arc<Session>>, Fault> {
        let ticket = match self.caches.sessions.get(&id) {
            Ok(session) => return Ok(Some(session)),
            Err(ticket) => ticket,
        };
        let read = self.read_session(id).await?.map(Arc::new);
        if let Some(session) = &read {
            self.caches.sessions.fill(ticket, id, Arc::clone(session));
        }
        Ok(read)
    }

    async fn read_session(&self, id: SessionId) -> Result<Option<Session>, Fault> {
        let row = sqlx::query(concat!("SELECT ", session_columns!(), " FROM sessions WHERE id = $1"))
            .bind(id.to_string())
            .fetch_optional(&self.readers)
            .await?;
        row.as_ref().map(rows::session).transpose()
    }

    async fn list(&self, tenant: &TenantId, filter: &SessionFilter) -> Result<SessionPage, Fault> {
        // One transaction, so that total and page belong together.
        let mut transaction = self.readers.begin().await?;
        let mut count = QueryBuilder::new("SELECT COUNT(*) AS total FROM sessions WHERE ");
        conditions(&mut count, tenant, filter);
        let total = rows::number(&count.build().fetch_one(&mut *transaction).await?, "total")?;

        let mut page = QueryBuilder::new(concat!("SELECT ", session_columns!(), " FROM sessions WHERE "));
        conditions(&mut page, tenant, filter);
        page.push(" ORDER BY sessions.created_at DESC, sessions.id DESC LIMIT ");
        page.push_bind(i64::from(filter.limit.clamp(1, MAX_SESSIONS_PER_PAGE)));
        page.push(" OFFSET ").push_bind(i64::from(filter.offset));
        let found = page.build().fetch_all(&mut *transaction).await?;
        transaction.rollback().await?;
        Ok(SessionPage { sessions: found.iter().map(rows::session).collect::<Result<_, _>>()?, total })
    }
}

fn conditions(query: &mut QueryBuilder<Sqlite>, tenant: &TenantId, filter: &SessionFilter) {
    query.push("sessions.tenant = ").push_bind(tenant.0.clone());
    if let Some(agent) = &filter.agent {
        query.push(" AND sessions.agent_name = ").push_bind(agent.clone());
    }
    if let Some(state) = &filter.state {
        query.push(" AND sessions.state = ").push_bind(state.clone());
    }
    for (name, value) in &filter.metadata {
        query.push(
            " AND EXISTS (SELECT 1 FROM session_metadata WHERE session_metadata.tenant = sessions.tenant \
             AND session_metadata.session = sessions.id AND session_metadata.name = ",
        );
        query.push_bind(name.clone()).push(" AND session_metadata.value = ").push_bind(value.clone()).push(")");
    }
}

/// A session's row, as the writer sees it.
pub(super) async fn load(connection: &mut SqliteConnection, id: SessionId) -> Result<Session, Fault> {
    let row = sqlx::query(concat!("SELECT ", session_columns!(), " FROM sessions WHERE id = $1"))
        .bind(id.to_string())
        .fetch_optional(connection)
        .await?;
    match row {
        Some(row) => rows::session(&row),
        None => Err(no_session(id).into()),
    }
}

pub(super) fn no_session(id: SessionId) -> StoreError {
    StoreError::NotFound(format!("there is no session {id}"))
}

struct Create(NewSession);

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
            return Err(StoreError::NotFound(format!("there is no agent {:?}", new.agent_name.as_str())).into());
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

fn first(new: &NewSession) -> Session {
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
        epoch: Epoch::NONE,
        last: Sequence::START,
        created_at: now,
        last_active_at: now,
    }
}

async fn made_before(
    connection: &mut SqliteConnection,
    tenant: &TenantId,
    key: &str,
) -> Result<Option<Session>, Fault> {
    let row = sqlx::query(concat!(
        "SELECT ",
        session_columns!(),
        " FROM sessions WHERE tenant = $1 AND idempotency_key = $2"
    ))
    .bind(&tenant.0)
    .bind(key)
    .fetch_optional(connection)
    .await?;
    row.as_ref().map(rows::session).transpose()
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
        return Err(StoreError::Conflict(format!("session {} is there already", session.id)).into());
    }
    Ok(())
}
