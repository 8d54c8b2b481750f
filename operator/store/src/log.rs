//! The event log: reads it, and hands what is written to the database.

use std::time::Duration;

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

use crate::{
    codec,
    fault::Fault,
    limits::{APPEND_SPACING, MAX_BATCHES_PER_PAGE, MAX_TRANSCRIPT_BYTES, TRANSCRIPT_CHUNKS},
    rows,
    sessions::no_session,
    sql::{Columns, Sql, Statement},
    store::{Engine, SqlStore},
    variables,
};

#[async_trait]
impl<E: Engine> EventLog for SqlStore<E> {
    async fn open_epoch(&self, open: OpenEpoch) -> Result<Session, StoreError> {
        let opened = self.engine.open_epoch(open, None).await?;
        self.tell(opened.id);
        Ok(variables::show_anyway(&self.keyring, opened))
    }

    async fn append(&self, appends: Vec<Append>) -> Vec<Result<(), StoreError>> {
        if appends.is_empty() {
            return Vec::new();
        }
        let ends_turn = |append: &Append| append.entries.iter().any(Entry::ends_turn).then_some(append.session);
        let ended: Vec<Option<SessionId>> = match self.listener.get() {
            Some(_) => appends.iter().map(ends_turn).collect(),
            None => Vec::new(),
        };
        let outcomes = self.engine.append(appends).await;
        for (session, outcome) in ended.into_iter().zip(&outcomes) {
            if let (Some(session), Ok(())) = (session, outcome) {
                self.tell(session);
            }
        }
        outcomes
    }

    fn append_spacing(&self) -> Duration {
        if E::IS_SHARED { APPEND_SPACING } else { Duration::ZERO }
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

impl<E: Engine> SqlStore<E> {
    pub(crate) async fn page(&self, session: SessionId, after: Sequence, max_bytes: usize) -> Result<Page, Fault> {
        let mut reader = self.engine.reader();
        // The end of the log comes first, and nothing beyond it is read: what is committed up to there is whole, so that what "there
        // is nothing more" says belongs to the entries, without a transaction.
        let statement = Statement::new("SELECT last_sequence FROM sessions WHERE id = $1").text(session);
        let row = reader.row(statement).await?.ok_or_else(|| no_session(session))?;
        let last = rows::sequence(&row, "last_sequence")?;
        if last <= after {
            return Ok(Page { entries: Vec::new(), through: after, end: true });
        }
        let extent = extent(&mut reader, session, after, last, max_bytes).await?;
        let through = extent.through.unwrap_or(last);
        let mut entries = Vec::new();
        if extent.batches > 0 {
            entries = self::entries(&mut reader, session, after, through).await?;
        }
        Ok(Page { entries, through, end: extent.through.is_none() })
    }

    /// Reads from the end back to the part that began the current conversation anew: what came before it does not count.
    async fn read_transcript(&self, session: SessionId) -> Result<Option<Transcript>, Fault> {
        let mut reader = self.engine.reader();
        let (mut entries, mut bytes, mut begun, mut before) = (Vec::new(), 0, false, i64::MAX);
        while !begun {
            let statement = Statement::new(
                "SELECT batch_last, last_sequence, codec, size, data FROM log_chunks \
                 WHERE session = $1 AND class = $2 AND batch_last < $3 ORDER BY batch_last DESC LIMIT $4",
            )
            .text(session)
            .integer(ChunkClass::Transcript as i64)
            .integer(before)
            .integer(TRANSCRIPT_CHUNKS);
            let found = reader.rows(statement).await?;
            let Some(earliest) = found.last() else { break };
            before = rows::number(earliest, "batch_last")?;
            for row in &found {
                let mut chunk = decode(row)?;
                begun = keep_current(&mut chunk);
                bytes += chunk.iter().map(|entry| entry.body.len()).sum::<usize>();
                if bytes > MAX_TRANSCRIPT_BYTES {
                    let what =
                        format!("the conversation of session {session} is longer than {MAX_TRANSCRIPT_BYTES} bytes");
                    return Err(Fault::damaged(what));
                }
                entries.extend(chunk.into_iter().rev());
                if begun {
                    break;
                }
            }
        }
        Ok(Transcript::assemble(entries.iter().rev().map(|entry| entry.body.as_ref())))
    }

    async fn read_turn(&self, session: SessionId, turn: TurnId) -> Result<Option<TurnRecord>, Fault> {
        let statement =
            Statement::new("SELECT first_sequence, last_sequence FROM turns WHERE session = $1 AND turn = $2")
                .text(session)
                .text(turn);
        let Some(row) = self.engine.reader().row(statement).await? else { return Ok(None) };
        Ok(Some(TurnRecord {
            first: rows::sequence(&row, "first_sequence")?,
            last: rows::optional_number(&row, "last_sequence")?.map(Sequence),
        }))
    }

    async fn read_unfinished_turn(&self, session: SessionId) -> Result<Option<TurnId>, Fault> {
        let statement = Statement::new(
            "SELECT turn FROM turns WHERE session = $1 AND last_sequence IS NULL ORDER BY first_sequence DESC LIMIT 1",
        );
        let row = self.engine.reader().row(statement.text(session)).await?;
        row.map(|row| rows::parsed(&row, "turn")).transpose()
    }
}

/// Leaves out what came before the current conversation began anew; whether it began in here.
fn keep_current(entries: &mut Vec<Entry>) -> bool {
    let begins = |entry: &Entry| TranscriptPart::split(&entry.body).is_some_and(|(head, _)| head.offset == 0);
    let Some(beginning) = entries.iter().rposition(begins) else { return false };
    entries.drain(..beginning);
    true
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
    sql: &mut impl Sql,
    session: SessionId,
    after: Sequence,
    last: Sequence,
    max_bytes: usize,
) -> Result<Extent, Fault> {
    let statement = Statement::new(
        "SELECT batch_last, CAST(SUM(size) AS BIGINT) AS size FROM log_chunks \
         WHERE session = $1 AND batch_last > $2 AND batch_last <= $3 AND class <> $4 \
         GROUP BY batch_last ORDER BY batch_last LIMIT $5",
    )
    .text(session)
    .integer(rows::column(after))
    .integer(rows::column(last))
    .integer(ChunkClass::Transcript as i64)
    .integer(i64::from(MAX_BATCHES_PER_PAGE) + 1);
    let found = sql.rows(statement).await?;
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
    sql: &mut impl Sql,
    session: SessionId,
    after: Sequence,
    through: Sequence,
) -> Result<Vec<Entry>, Fault> {
    let statement = Statement::new(
        "SELECT last_sequence, codec, size, data FROM log_chunks \
         WHERE session = $1 AND batch_last > $2 AND batch_last <= $3 AND class <> $4 ORDER BY batch_last, class",
    )
    .text(session)
    .integer(rows::column(after))
    .integer(rows::column(through))
    .integer(ChunkClass::Transcript as i64);
    let mut entries = Vec::new();
    for row in &sql.rows(statement).await? {
        entries.extend(decode(row)?.into_iter().filter(|entry| entry.sequence > after));
    }
    // Batches are in order; within one, partials stand apart. The sort is stable and fast on what is in order already.
    entries.sort_by_key(|entry| entry.sequence);
    Ok(entries)
}

pub(crate) fn decode(row: &impl Columns) -> Result<Vec<Entry>, Fault> {
    let epoch: Epoch = rows::sequence(row, "last_sequence")?.epoch();
    let body = codec::unpack(rows::number(row, "codec")?, rows::number(row, "size")?, row.bytes("data")?)?;
    Ok(chunk::decode(epoch, body)?)
}
