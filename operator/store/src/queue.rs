//! Messages that wait for their turn.
//!
//! What may happen to an entry is decided by `ash-core::queue`; here its row is changed by compare-and-set on its version.

use std::time::Duration;

use ash_core::{
    Epoch, Sequence,
    id::{SessionId, TenantId, TurnId},
    ports::{Enqueued, EntryChange, NewEntry, QueueHead, QueueStore, SessionListener, StoreError},
    queue::{EntryState, MAX_QUEUED, MAX_QUEUED_BYTES, MAX_SETTLED, QueueEntry, QueuedMessage},
};
use async_trait::async_trait;
use bytes::Bytes;

use crate::{
    fault::Fault,
    limits::ENQUEUE_TRIES,
    one::{One, ReadRow},
    rows,
    sql::{Columns, Sql, Statement},
    store::{Engine, SqlStore, Write},
};

/// The columns of [`Entry`], for a `SELECT` or `RETURNING`.
macro_rules! entry_columns {
    () => {
        "session_queue.tenant, session_queue.session, session_queue.id, session_queue.position, session_queue.state, \
         session_queue.attempt, session_queue.retries, session_queue.fence, session_queue.version, session_queue.preview, \
         session_queue.error, session_queue.created_at"
    };
}

/// Adds an entry behind the others where there is room. The place of another that is added at the same moment is taken, and
/// then nothing is added.
const ENQUEUE: &str = concat!(
    "INSERT INTO session_queue (tenant, session, id, position, state, attempt, retries, turn, fence, version, due_at, \
        created_at, preview, size, message) \
     SELECT $1, $2, $3, \
        (SELECT COALESCE(MAX(placed.position), 0) FROM session_queue AS placed WHERE placed.session = $2) + 1, \
        'pending', 0, $4, $3, 0, 1, {now}, {now}, $5, $6, $7 \
     WHERE (SELECT COUNT(*) FROM session_queue AS waiting \
            WHERE waiting.session = $2 AND waiting.settled_at IS NULL) < $8 \
        AND (SELECT CAST(COALESCE(SUM(waiting.size), 0) AS BIGINT) FROM session_queue AS waiting \
            WHERE waiting.session = $2 AND waiting.settled_at IS NULL) + $6 <= $9 \
     ON CONFLICT DO NOTHING RETURNING ",
    entry_columns!()
);

const HEAD: &str = concat!(
    "SELECT ",
    entry_columns!(),
    ", sessions.state AS session_state, sessions.paused_reason AS paused_reason, sessions.epoch AS session_epoch, \
        sessions.sandbox AS sandbox, own.first_sequence AS first_sequence, own.last_sequence AS last_sequence, \
        CASE WHEN EXISTS (SELECT 1 FROM turns AS begun WHERE begun.session = session_queue.session \
            AND begun.last_sequence IS NULL) THEN 1 ELSE 0 END AS turn_runs, \
        CASE WHEN session_queue.due_at <= {now} THEN 1 ELSE 0 END AS is_due \
     FROM session_queue JOIN sessions ON sessions.id = session_queue.session \
     LEFT JOIN turns AS own ON own.session = session_queue.session AND own.turn = session_queue.turn \
     WHERE session_queue.session = $1 AND session_queue.settled_at IS NULL ORDER BY session_queue.position LIMIT 1"
);

/// What `ash_core::queue::step` waits for is left out as far as SQL can tell: sessions that a person put aside, turns that run.
const DUE: &str = "SELECT head.session FROM session_queue AS head JOIN sessions ON sessions.id = head.session \
     WHERE head.settled_at IS NULL AND NOT EXISTS (SELECT 1 FROM session_queue AS earlier \
            WHERE earlier.session = head.session AND earlier.settled_at IS NULL AND earlier.position < head.position) \
        AND ((head.state = 'pending' AND head.due_at <= {now} AND sessions.state <> 'stopped' \
                AND COALESCE(sessions.paused_reason, '') <> 'person' AND (sessions.sandbox IS NULL OR NOT EXISTS \
                (SELECT 1 FROM turns WHERE turns.session = head.session AND turns.last_sequence IS NULL))) \
            OR (head.state = 'processing' AND ((head.due_at <= {now} AND NOT EXISTS (SELECT 1 FROM turns \
                    WHERE turns.session = head.session AND turns.turn = head.turn)) \
                OR sessions.state = 'ended' OR EXISTS (SELECT 1 FROM turns WHERE turns.session = head.session \
                    AND turns.turn = head.turn AND turns.last_sequence IS NOT NULL)))) \
     ORDER BY head.due_at, head.session LIMIT $1";

/// Only where it is as it was seen.
const CHANGE: &str = concat!(
    "UPDATE session_queue SET state = $4, attempt = $5, turn = $6, fence = $7, version = $8, error = $9, \
        due_at = {now} + $10, settled_at = CASE WHEN $11 = 1 THEN {now} ELSE NULL END, \
        message = CASE WHEN $11 = 1 THEN $12 ELSE message END \
     WHERE session = $1 AND id = $2 AND version = $3 RETURNING ",
    entry_columns!()
);

/// The oldest of those that are over.
const FORGET: &str = "DELETE FROM session_queue WHERE session = $1 AND settled_at IS NOT NULL AND position NOT IN \
     (SELECT kept.position FROM session_queue AS kept WHERE kept.session = $1 AND kept.settled_at IS NOT NULL \
      ORDER BY kept.position DESC LIMIT $2)";

fn entry(row: &impl Columns) -> Result<QueueEntry, Fault> {
    let state = rows::text(row, "state")?;
    Ok(QueueEntry {
        id: rows::parsed(row, "id")?,
        session: rows::parsed(row, "session")?,
        tenant: TenantId(rows::text(row, "tenant")?),
        position: rows::number(row, "position")?,
        state: EntryState::from_name(&state)
            .ok_or_else(|| Fault::damaged(format!("a queued message has the unknown state {state:?}")))?,
        attempt: rows::number(row, "attempt")?,
        retries: rows::number(row, "retries")?,
        fence: Epoch(rows::number(row, "fence")?),
        version: rows::number(row, "version")?,
        preview: rows::text(row, "preview")?,
        error: row.text("error")?,
        created_at: rows::time(row, "created_at")?,
    })
}

fn head(row: &impl Columns) -> Result<QueueHead, Fault> {
    Ok(QueueHead {
        entry: entry(row)?,
        state: rows::session_state(row, "session_state", "paused_reason")?,
        epoch: Epoch(rows::number(row, "session_epoch")?),
        has_sandbox: row.text("sandbox")?.is_some(),
        turn_runs: rows::number::<i64>(row, "turn_runs")? != 0,
        begun: rows::optional_number(row, "first_sequence")?.map(Sequence),
        ended: rows::optional_number(row, "last_sequence")?.map(Sequence),
        is_due: rows::number::<i64>(row, "is_due")? != 0,
    })
}

struct Entry;

impl ReadRow for Entry {
    type Output = QueueEntry;

    fn read(row: &impl Columns) -> Result<QueueEntry, Fault> {
        entry(row)
    }
}

fn milliseconds(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

/// A change of one entry; of what is over, the oldest go with it.
struct Change {
    statement: Statement,
    session: SessionId,
    settles: bool,
}

impl Write for Change {
    type Output = Option<QueueEntry>;

    async fn run<S: Sql>(&self, sql: &mut S) -> Result<Self::Output, Fault> {
        let changed = sql.row(self.statement.clone()).await?.as_ref().map(entry).transpose()?;
        if self.settles && changed.is_some() {
            let kept = Statement::new(FORGET).text(self.session).integer(rows::length(MAX_SETTLED));
            sql.execute(kept).await?;
        }
        Ok(changed)
    }
}

impl<E: Engine> SqlStore<E> {
    async fn entries(&self, statement: Statement) -> Result<Vec<QueueEntry>, StoreError> {
        let found = self.engine.reader().rows(statement).await?;
        Ok(found.iter().map(entry).collect::<Result<_, Fault>>()?)
    }

    async fn sessions_of(&self, statement: Statement) -> Result<Vec<SessionId>, StoreError> {
        let found = self.engine.reader().rows(statement).await?;
        Ok(found.iter().map(|row| rows::parsed(row, "session")).collect::<Result<_, Fault>>()?)
    }

    /// How many entries are open in a session, and the bytes of their messages.
    async fn waiting(&self, session: SessionId) -> Result<(usize, usize), Fault> {
        let statement = Statement::new(
            "SELECT COUNT(*) AS total, CAST(COALESCE(SUM(size), 0) AS BIGINT) AS bytes FROM session_queue \
             WHERE session = $1 AND settled_at IS NULL",
        );
        let row = self.engine.reader().row(statement.text(session)).await?;
        let row = row.ok_or_else(|| Fault::damaged("nothing was counted"))?;
        Ok((rows::number(&row, "total")?, rows::number(&row, "bytes")?))
    }

    async fn renewed(&self, seen: &QueueEntry, more: i64, lease: Duration) -> Result<Option<QueueEntry>, StoreError> {
        let statement = Self::at(concat!(
            "UPDATE session_queue SET due_at = {now} + $4, version = version + $5 \
             WHERE session = $1 AND id = $2 AND version = $3 AND state = 'processing' RETURNING ",
            entry_columns!()
        ))
        .text(seen.session)
        .text(seen.id)
        .integer(i64::try_from(seen.version).unwrap_or(i64::MAX))
        .integer(milliseconds(lease))
        .integer(more);
        Ok(self.engine.write(One::<Entry>::new(statement)).await?.pop())
    }
}

#[async_trait]
impl<E: Engine> QueueStore for SqlStore<E> {
    async fn enqueue(&self, new: NewEntry) -> Result<Enqueued, StoreError> {
        let message = serde_json::to_vec(&new.message).map_err(|error| StoreError::Conflict(error.to_string()))?;
        let (message, preview) = (Bytes::from(message), new.message.preview());
        for _ in 0..ENQUEUE_TRIES {
            let statement = Self::at(ENQUEUE)
                .text(&new.tenant.0)
                .text(new.session)
                .text(new.id)
                .integer(new.retries.into())
                .text(&preview)
                .integer(rows::length(message.len()))
                .bytes(message.clone())
                .integer(rows::length(MAX_QUEUED))
                .integer(rows::length(MAX_QUEUED_BYTES));
            if let Some(added) = self.engine.write(One::<Entry>::new(statement)).await?.pop() {
                return Ok(Enqueued::Added(added));
            }
            if let Some(known) = self.queue_entry(new.session, new.id).await? {
                return Ok(Enqueued::Known(known));
            }
            let (entries, bytes) = self.waiting(new.session).await?;
            if entries >= MAX_QUEUED || bytes + message.len() > MAX_QUEUED_BYTES {
                return Ok(Enqueued::Full);
            }
        }
        Err(StoreError::Unavailable("too many messages are queued for the session at once".to_owned()))
    }

    async fn queue(&self, session: SessionId) -> Result<Vec<QueueEntry>, StoreError> {
        let statement = Statement::new(concat!(
            "SELECT ",
            entry_columns!(),
            " FROM session_queue WHERE session = $1 ORDER BY position"
        ));
        self.entries(statement.text(session)).await
    }

    async fn queue_entry(&self, session: SessionId, id: TurnId) -> Result<Option<QueueEntry>, StoreError> {
        let statement =
            Statement::new(concat!("SELECT ", entry_columns!(), " FROM session_queue WHERE session = $1 AND id = $2"));
        Ok(self.entries(statement.text(session).text(id)).await?.pop())
    }

    async fn queued_message(&self, session: SessionId, id: TurnId) -> Result<Option<QueuedMessage>, StoreError> {
        let statement =
            Statement::new("SELECT message FROM session_queue WHERE session = $1 AND id = $2 AND settled_at IS NULL");
        let Some(row) = self.engine.reader().row(statement.text(session).text(id)).await? else { return Ok(None) };
        let message = serde_json::from_slice(&row.bytes("message")?);
        Ok(Some(message.map_err(|error| StoreError::Damaged(format!("a queued message: {error}")))?))
    }

    async fn queue_head(&self, session: SessionId) -> Result<Option<QueueHead>, StoreError> {
        let found = self.engine.reader().row(Self::at(HEAD).text(session)).await?;
        Ok(found.as_ref().map(head).transpose()?)
    }

    async fn queued_sessions(&self, limit: u32) -> Result<Vec<SessionId>, StoreError> {
        let statement = Statement::new(
            "SELECT DISTINCT session FROM session_queue WHERE settled_at IS NULL ORDER BY session LIMIT $1",
        );
        self.sessions_of(statement.integer(limit.into())).await
    }

    async fn due_sessions(&self, limit: u32) -> Result<Vec<SessionId>, StoreError> {
        self.sessions_of(Self::at(DUE).integer(limit.into())).await
    }

    async fn change_entry(&self, seen: &QueueEntry, change: EntryChange) -> Result<Option<QueueEntry>, StoreError> {
        let next = seen.after(change.event, change.fence, change.error);
        let next = next.map_err(|refused| StoreError::Conflict(refused.to_string()))?;
        let settles = !next.state.is_open();
        let number = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        let statement = Self::at(CHANGE)
            .text(seen.session)
            .text(seen.id)
            .integer(number(seen.version))
            .text(next.state.name())
            .integer(next.attempt.into())
            .text(next.turn())
            .integer(next.fence.0.into())
            .integer(number(next.version))
            .optional_text(next.error.as_deref())
            .integer(milliseconds(change.pause))
            .integer(i64::from(settles))
            .bytes(Bytes::new());
        self.engine.write(Change { statement, session: seen.session, settles }).await
    }

    async fn renew_entry(&self, seen: &QueueEntry, lease: Duration) -> Result<bool, StoreError> {
        Ok(self.renewed(seen, 0, lease).await?.is_some())
    }

    async fn take_over_entry(&self, seen: &QueueEntry, lease: Duration) -> Result<Option<QueueEntry>, StoreError> {
        self.renewed(seen, 1, lease).await
    }

    fn listen(&self, listener: SessionListener) {
        let _ = self.listener.set(listener);
    }
}
