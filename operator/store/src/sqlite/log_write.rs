//! Writes the event log: opens epochs and appends, both by compare-and-set on the session's row.

use ash_core::{
    Entry, EntryKind, Epoch, Sequence,
    id::{SessionId, TenantId, TurnId},
    ports::{Append, OpenEpoch, StoreError},
    session::Session,
};
use jiff::Timestamp;
use serde::Deserialize;
use sqlx::{Row, SqliteConnection};
use uuid::Uuid;

use super::{
    rows,
    sessions::{load, no_session},
    writer::Write,
};
use crate::{
    cache::Caches,
    codec::{self, StoredChunk},
    fault::Fault,
};

/// Opens the next epoch.
pub(super) struct Open(pub(super) OpenEpoch);

impl Write for Open {
    type Output = Session;

    async fn run(&self, connection: &mut SqliteConnection) -> Result<Session, Fault> {
        let Self(open) = self;
        let mut session = load(connection, open.session).await?;
        if session.epoch != open.expected || session.last != open.opening.last_committed {
            return Err(overtaken(session.id, session.epoch, session.last).into());
        }
        let epoch = session.epoch.next().ok_or_else(|| {
            StoreError::Conflict(format!("session {} has used up its epochs; start another one", session.id))
        })?;
        let opening = open.opening.entry(epoch);
        session.epoch = epoch;
        session.last = opening.sequence;
        session.state = open.state;
        session.error.clone_from(&open.error);
        session.sandbox = open.sandbox;
        session.last_active_at = rows::now();
        save(connection, &session).await?;
        for chunk in codec::encode_now(std::slice::from_ref(&opening)) {
            insert_chunk(connection, session.id, &session.tenant, opening.sequence, &chunk).await?;
        }
        if let Some(turn) = open.opening.interrupted {
            sqlx::query(
                "UPDATE turns SET last_sequence = $3 WHERE session = $1 AND turn = $2 AND last_sequence IS NULL",
            )
            .bind(session.id.to_string())
            .bind(turn.to_string())
            .bind(rows::column(opening.sequence))
            .execute(connection)
            .await?;
        }
        Ok(session)
    }

    fn committed(&self, session: &Session, caches: &Caches) {
        caches.session_written(session);
    }
}

async fn save(connection: &mut SqliteConnection, session: &Session) -> Result<(), Fault> {
    sqlx::query(
        "UPDATE sessions SET epoch = $2, last_sequence = $3, state = $4, paused_reason = $5, error = $6, sandbox = $7, \
         last_active_at = $8 WHERE id = $1",
    )
    .bind(session.id.to_string())
    .bind(i64::from(session.epoch.0))
    .bind(rows::column(session.last))
    .bind(session.state.name())
    .bind(session.state.paused_reason().map(rows::paused_reason_name))
    .bind(session.error.as_deref())
    .bind(session.sandbox.map(|id| id.to_string()))
    .bind(session.last_active_at.as_millisecond())
    .execute(connection)
    .await?;
    Ok(())
}

fn overtaken(session: SessionId, epoch: Epoch, last: Sequence) -> StoreError {
    StoreError::Overtaken { session, epoch, last }
}

/// Appends to many logs.
pub(super) struct Batches(Vec<Result<Batch, StoreError>>);

/// One append, encoded before it is queued, so that the writer only writes.
struct Batch {
    session: SessionId,
    after: Sequence,
    epoch: Epoch,
    last: Sequence,
    chunks: Vec<StoredChunk>,
    turns: Vec<TurnChange>,
}

/// What an entry says about turns.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TurnChange {
    Begins(TurnId, Sequence),
    Ends(Sequence),
}

/// What became of one append.
pub(super) enum Appended {
    /// Its entries are there now, and when the session was active where they say so.
    Now { session: SessionId, last: Sequence, active_at: Option<Timestamp> },
    /// They were there.
    Before,
}

impl Batches {
    pub(super) async fn prepare(appends: Vec<Append>) -> Self {
        let mut batches = Vec::with_capacity(appends.len());
        for append in appends {
            batches.push(Batch::prepare(append).await.map_err(StoreError::from));
        }
        Self(batches)
    }
}

impl Write for Batches {
    type Output = Vec<Result<Appended, StoreError>>;

    fn bytes(&self) -> usize {
        self.0.iter().flatten().flat_map(|batch| &batch.chunks).map(|chunk| chunk.data.len()).sum()
    }

    async fn run(&self, connection: &mut SqliteConnection) -> Result<Self::Output, Fault> {
        let mut outcomes = Vec::with_capacity(self.0.len());
        for batch in &self.0 {
            let outcome = match batch {
                Ok(batch) => batch.append(connection).await,
                Err(error) => Err(error.clone().into()),
            };
            outcomes.push(match outcome {
                Ok(appended) => Ok(appended),
                // Refused before anything was written for it. What fails later takes all appends of this call back.
                Err(Fault(error @ (StoreError::Overtaken { .. } | StoreError::NotFound(_)))) => Err(error),
                Err(Fault(error)) if batch.is_err() => Err(error),
                Err(fault) => return Err(fault),
            });
        }
        Ok(outcomes)
    }

    fn committed(&self, outcomes: &Self::Output, caches: &Caches) {
        for appended in outcomes.iter().flatten() {
            if let Appended::Now { session, last, active_at } = appended {
                caches.session_appended(*session, *last, *active_at);
            }
        }
    }
}

impl Batch {
    async fn prepare(append: Append) -> Result<Self, Fault> {
        let Append { session, after, entries } = append;
        let last = check(after, &entries)?;
        let turns = entries.iter().flat_map(turn_changes).collect();
        let (_, chunks) = codec::encode(entries).await?;
        Ok(Self { session, after, epoch: last.epoch(), last, chunks, turns })
    }

    async fn append(&self, connection: &mut SqliteConnection) -> Result<Appended, Fault> {
        let active_at = (!self.turns.is_empty()).then(rows::now);
        // The compare-and-set comes first: it either takes the log's end for this append or writes nothing.
        let taken = sqlx::query(
            "UPDATE sessions SET last_sequence = $4, last_active_at = COALESCE($5, last_active_at) \
             WHERE id = $1 AND epoch = $2 AND last_sequence = $3 RETURNING tenant",
        )
        .bind(self.session.to_string())
        .bind(i64::from(self.epoch.0))
        .bind(rows::column(self.after))
        .bind(rows::column(self.last))
        .bind(active_at.map(Timestamp::as_millisecond))
        .fetch_optional(&mut *connection)
        .await?;
        let Some(row) = taken else { return self.was_there(connection).await };
        let tenant = TenantId(row.try_get("tenant")?);
        for chunk in &self.chunks {
            insert_chunk(connection, self.session, &tenant, self.last, chunk).await?;
        }
        for change in &self.turns {
            change.write(connection, self.session, &tenant).await?;
        }
        Ok(Appended::Now { session: self.session, last: self.last, active_at })
    }

    /// Numbers of an epoch have no gaps and one writer, so what is not beyond the log's end is in it.
    async fn was_there(&self, connection: &mut SqliteConnection) -> Result<Appended, Fault> {
        let row = sqlx::query("SELECT epoch, last_sequence FROM sessions WHERE id = $1")
            .bind(self.session.to_string())
            .fetch_optional(connection)
            .await?
            .ok_or_else(|| no_session(self.session))?;
        let (epoch, last) = (Epoch(rows::number(&row, "epoch")?), rows::sequence(&row, "last_sequence")?);
        if epoch == self.epoch && self.last <= last {
            return Ok(Appended::Before);
        }
        Err(overtaken(self.session, epoch, last).into())
    }
}

/// Whether the entries are what an append must be; gives the last one's sequence.
fn check(after: Sequence, entries: &[Entry]) -> Result<Sequence, StoreError> {
    let mut previous = after;
    for entry in entries {
        if entry.kind == EntryKind::Opening {
            return Err(StoreError::Conflict("an opening cannot be appended: it opens an epoch".to_owned()));
        }
        if previous.next() != Some(entry.sequence) {
            return Err(StoreError::Conflict(format!("entry {} does not follow {previous}", entry.sequence)));
        }
        previous = entry.sequence;
    }
    if entries.is_empty() {
        return Err(StoreError::Conflict("an append must have entries".to_owned()));
    }
    Ok(previous)
}

fn turn_changes(entry: &Entry) -> impl Iterator<Item = TurnChange> {
    /// What is read of a user message's line.
    #[derive(Deserialize)]
    struct UserLine {
        uuid: Option<Uuid>,
    }
    let begins = (entry.kind == EntryKind::User)
        .then(|| serde_json::from_slice::<UserLine>(&entry.body).ok()?.uuid)
        .flatten()
        .map(|uuid| TurnChange::Begins(TurnId(uuid), entry.sequence));
    let ends = entry.ends_turn().then_some(TurnChange::Ends(entry.sequence));
    begins.into_iter().chain(ends)
}

impl TurnChange {
    async fn write(
        self,
        connection: &mut SqliteConnection,
        session: SessionId,
        tenant: &TenantId,
    ) -> Result<(), sqlx::Error> {
        let query = match self {
            // A bridge is not trusted: a turn that it begins twice stays as it was first.
            Self::Begins(turn, sequence) => sqlx::query(
                "INSERT INTO turns (session, first_sequence, turn, tenant) VALUES ($1, $2, $3, $4) \
                 ON CONFLICT (session, turn) DO NOTHING",
            )
            .bind(session.to_string())
            .bind(rows::column(sequence))
            .bind(turn.to_string())
            .bind(tenant.0.clone()),
            Self::Ends(sequence) => {
                sqlx::query("UPDATE turns SET last_sequence = $2 WHERE session = $1 AND last_sequence IS NULL")
                    .bind(session.to_string())
                    .bind(rows::column(sequence))
            }
        };
        query.execute(connection).await?;
        Ok(())
    }
}

async fn insert_chunk(
    connection: &mut SqliteConnection,
    session: SessionId,
    tenant: &TenantId,
    batch_last: Sequence,
    stored: &StoredChunk,
) -> Result<(), sqlx::Error> {
    sqlx::query(
        "INSERT INTO log_chunks (session, batch_last, class, tenant, first_sequence, last_sequence, codec, size, data) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9)",
    )
    .bind(session.to_string())
    .bind(rows::column(batch_last))
    .bind(stored.chunk.class as i64)
    .bind(&tenant.0)
    .bind(rows::column(stored.chunk.first))
    .bind(rows::column(stored.chunk.last))
    .bind(i64::from(stored.codec))
    .bind(rows::length(stored.size))
    .bind(stored.data.as_ref())
    .execute(connection)
    .await?;
    Ok(())
}
