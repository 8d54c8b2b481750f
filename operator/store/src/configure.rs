//! Options of sessions, as they change in a session's life.

use ash_core::{
    ports::{ConfigureSession, ConfigureStore, StoreError},
    session::Session,
};
use async_trait::async_trait;
use jiff::Timestamp;

use crate::{
    cache::Caches,
    fault::Fault,
    rows,
    sql::{Sql, Statement},
    store::{Engine, SqlStore, Write},
    variables,
};

#[async_trait]
impl<E: Engine> ConfigureStore for SqlStore<E> {
    async fn configure_session(&self, change: ConfigureSession) -> Result<Option<Session>, StoreError> {
        let seen_at = change.seen.last_active_at;
        let mut session = Session { options: change.options, metadata: change.metadata, ..change.seen };
        variables::hide_of(&self.keyring, session.id, &session.tenant, &mut session.options.environment)?;
        // Later than before, whatever the clock says: that is what tells other processes that theirs is old.
        let later = Timestamp::from_millisecond(seen_at.as_millisecond().saturating_add(1)).unwrap_or(seen_at);
        let at = rows::now().max(later);
        match self.engine.write(Configure { session, seen_at, at }).await? {
            Some(session) => Ok(Some(variables::show_anyway(&self.keyring, session))),
            None => Ok(None),
        }
    }
}

struct Configure {
    session: Session,
    seen_at: Timestamp,
    at: Timestamp,
}

impl Write for Configure {
    type Output = Option<Session>;

    fn bytes(&self) -> usize {
        self.session.metadata.iter().map(|(name, value)| name.len() + value.len()).sum()
    }

    async fn run<S: Sql>(&self, sql: &mut S) -> Result<Option<Session>, Fault> {
        let Self { session, seen_at, at } = self;
        let statement = Statement::new(
            "UPDATE sessions SET options = $3, metadata = $4, last_active_at = $5 \
             WHERE tenant = $1 AND id = $2 AND last_active_at = $6",
        )
        .text(&session.tenant.0)
        .text(session.id)
        .text(rows::to_json(&session.options)?)
        .text(rows::to_json(&session.metadata)?)
        .integer(at.as_millisecond())
        .integer(seen_at.as_millisecond());
        if sql.execute(statement).await? == 0 {
            return Ok(None);
        }
        let own = |text| Statement::new(text).text(&session.tenant.0).text(session.id);
        sql.execute(own("DELETE FROM session_metadata WHERE tenant = $1 AND session = $2")).await?;
        for (name, value) in &session.metadata {
            let statement = own("INSERT INTO session_metadata (tenant, session, name, value) VALUES ($1, $2, $3, $4)");
            sql.execute(statement.text(name).text(value)).await?;
        }
        crate::sessions::read(sql, session.id).await
    }

    fn committed(&self, session: &Option<Session>, caches: &Caches) {
        if let Some(session) = session {
            caches.session_written(session);
        }
    }
}
