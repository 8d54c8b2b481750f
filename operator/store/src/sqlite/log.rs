//! Reads the event log.

use ash_core::{
    Entry, Epoch, Sequence,
    chunk::{self, ChunkClass},
    id::{SessionId, TurnId},
    ports::{Append, EventLog, OpenEpoch, Page, StoreError, TurnRecord},
    session::Session,
    transcript::Transcript,
};
use ash_protocol::message::TranscriptPart;
use async_trait::async_trait;
use futures::TryStreamExt;
use sqlx::{Row, SqliteConnection, sqlite::SqliteRow};

use super::{SqliteStore, log_write, rows, sessions::no_session};
use crate::{
    codec,
    fault::Fault,
    limits::{MAX_BATCHES_PER_PAGE, MAX_TRANSCRIPT_BYTES},
};

#[async_trait]
impl EventLog for SqliteStore {
    async fn open_epoch(&self, open: OpenEpoch) -> Result<Session, StoreError> {
        self.writer.write(log_write::Open(open)).await
    }

    async fn append(&self, appends: Vec<Append>) -> Vec<Result<(), StoreError>> {
        let count = appends.len();
        if count == 0 {
            return Vec::new();
        }
        match self.writer.write(log_write::Batches::prepare(appends).await).await {
            Ok(outcomes) => outcomes.into_iter().map(|outcome| outcome.map(|_| ())).collect(),
            Err(error) => vec![Err(error); count],
        }
    }

    async fn read(&self, session: SessionId, after: Sequence, max_bytes: usize) -> Result<Page, StoreError> {
        Ok(self.page(session, after, max_bytes).await?)
    }

    async fn transcript(&self, session: SessionId) -> Result<Option<Transcript>, StoreError> {
        Ok(self.read_transcript(session).await?)
    }

    async fn turn(&self, session: SessionId, turn: TurnId) -> Result<Option<TurnRecord>, StoreError> {
        Ok(self.read_turn(session, turn).await?)
    }

    async fn unfinished_turn(&self, session: SessionId) -> Result<Option<TurnId>, StoreError> {
        Ok(self.read_unfinished_turn(session).await?)
    }
}

impl SqliteStore {
    async fn page(&self, session: SessionId, after: Sequence, max_bytes: usize) -> Result<Page, Fault> {
        // One transaction: what "there is nothing more" says must belong to the entries that were read.
        let mut transaction = self.readers.begin().await?;
        let row = sqlx::query("SELECT last_sequence FROM sessions WHERE id = $1")
            .bind(session.to_string())
            .fetch_optional(&mut *transaction)
            .await?
            .ok_or_else(|| no_session(session))?;
        let last = rows::sequence(&row, "last_sequence")?;
        let extent = extent(&mut transaction, session, after, max_bytes).await?;
        let through = extent.through.unwrap_or(last).max(after);
        let mut entries = Vec::new();
        if extent.batches > 0 {
            entries = self::entries(&mut transaction, session, after, through).await?;
        }
        transaction.rollback().await?;
        Ok(Page { entries, through, end: extent.through.is_none() })
    }

    /// Reads from the end back to the part that began the current conversation anew: what came before it does not count.
    async fn read_transcript(&self, session: SessionId) -> Result<Option<Transcript>, Fault> {
        let mut rows = sqlx::query(
            "SELECT last_sequence, codec, size, data FROM log_chunks WHERE session = $1 AND class = $2 ORDER BY batch_last DESC",
        )
        .bind(session.to_string())
        .bind(ChunkClass::Transcript as i64)
        .fetch(&self.readers);
        let (mut entries, mut bytes, mut begun) = (Vec::new(), 0, false);
        while !begun && let Some(row) = rows.try_next().await? {
            for entry in decode(&row)?.into_iter().rev() {
                bytes += entry.body.len();
                if bytes > MAX_TRANSCRIPT_BYTES {
                    let what =
                        format!("the conversation of session {session} is longer than {MAX_TRANSCRIPT_BYTES} bytes");
                    return Err(Fault::damaged(what));
                }
                begun = TranscriptPart::split(&entry.body).is_some_and(|(head, _)| head.offset == 0);
                entries.push(entry);
                if begun {
                    break;
                }
            }
        }
        Ok(Transcript::assemble(entries.iter().rev().map(|entry| entry.body.as_ref())))
    }

    async fn read_turn(&self, session: SessionId, turn: TurnId) -> Result<Option<TurnRecord>, Fault> {
        let row = sqlx::query("SELECT first_sequence, last_sequence FROM turns WHERE session = $1 AND turn = $2")
            .bind(session.to_string())
            .bind(turn.to_string())
            .fetch_optional(&self.readers)
            .await?;
        let Some(row) = row else { return Ok(None) };
        let ended = row.try_get::<Option<i64>, _>("last_sequence")?.is_some();
        Ok(Some(TurnRecord {
            first: rows::sequence(&row, "first_sequence")?,
            last: ended.then(|| rows::sequence(&row, "last_sequence")).transpose()?,
        }))
    }

    async fn read_unfinished_turn(&self, session: SessionId) -> Result<Option<TurnId>, Fault> {
        let row = sqlx::query(
            "SELECT turn FROM turns WHERE session = $1 AND last_sequence IS NULL ORDER BY first_sequence DESC LIMIT 1",
        )
        .bind(session.to_string())
        .fetch_optional(&self.readers)
        .await?;
        row.map(|row| rows::parsed(&row, "turn")).transpose()
    }
}

/// How far a page goes.
struct Extent {
    /// Batches in it, as far as a reader sees them.
    batches: usize,
    /// The last batch in it; `None` where the page goes to the end of the log.
    through: Option<Sequence>,
}

/// Measures a page before its bytes are read, so that memory is bounded by the page and not by the log.
async fn extent(
    connection: &mut SqliteConnection,
    session: SessionId,
    after: Sequence,
    max_bytes: usize,
) -> Result<Extent, Fault> {
    let found = sqlx::query(
        "SELECT batch_last, SUM(size) AS size FROM log_chunks WHERE session = $1 AND batch_last > $2 AND class <> $3 \
         GROUP BY batch_last ORDER BY batch_last LIMIT $4",
    )
    .bind(session.to_string())
    .bind(rows::column(after))
    .bind(ChunkClass::Transcript as i64)
    .bind(i64::from(MAX_BATCHES_PER_PAGE) + 1)
    .fetch_all(connection)
    .await?;
    let mut bytes = 0usize;
    let mut extent = Extent { batches: 0, through: None };
    let mut reached = after;
    for row in &found {
        bytes = bytes.saturating_add(rows::number(row, "size")?);
        let is_full = extent.batches > 0 && (bytes > max_bytes || extent.batches >= MAX_BATCHES_PER_PAGE as usize);
        if is_full {
            extent.through = Some(reached);
            break;
        }
        reached = rows::sequence(row, "batch_last")?;
        extent.batches += 1;
    }
    Ok(extent)
}

/// The entries after one position through another, in order, without the internal ones.
async fn entries(
    connection: &mut SqliteConnection,
    session: SessionId,
    after: Sequence,
    through: Sequence,
) -> Result<Vec<Entry>, Fault> {
    let found = sqlx::query(
        "SELECT last_sequence, codec, size, data FROM log_chunks \
         WHERE session = $1 AND batch_last > $2 AND batch_last <= $3 AND class <> $4 ORDER BY batch_last, class",
    )
    .bind(session.to_string())
    .bind(rows::column(after))
    .bind(rows::column(through))
    .bind(ChunkClass::Transcript as i64)
    .fetch_all(connection)
    .await?;
    let mut entries = Vec::new();
    for row in &found {
        entries.extend(decode(row)?.into_iter().filter(|entry| entry.sequence > after));
    }
    // Batches are in order; within one, partials stand apart. The sort is stable and fast on what is in order already.
    entries.sort_by_key(|entry| entry.sequence);
    Ok(entries)
}

fn decode(row: &SqliteRow) -> Result<Vec<Entry>, Fault> {
    let epoch: Epoch = rows::sequence(row, "last_sequence")?.epoch();
    let body = codec::unpack(rows::number(row, "codec")?, rows::number(row, "size")?, row.try_get("data")?)?;
    Ok(chunk::decode(epoch, body)?)
}
