//! Compaction of the log: rows of partial messages are rewritten as what stands in their place, or removed.

use std::time::Duration;

use ash_core::{
    Entry, Sequence,
    chunk::{self, ChunkClass},
    compaction::{Compaction, Dropped, rewrite},
    id::SessionId,
    ports::{CompactableTurn, CompactionStore, StoreError},
};
use async_trait::async_trait;

use crate::{
    codec::{self, StoredChunk},
    fault::Fault,
    limits::COMPACTED_CHUNKS,
    log,
    one::{Counted, One, ReadRow},
    rows,
    sql::{Columns, Sql, Statement},
    store::{Engine, SqlStore, Write},
};

/// Behind every entry.
const END: Sequence = Sequence(i64::MAX.unsigned_abs());

struct Compactable;

impl ReadRow for Compactable {
    type Output = CompactableTurn;

    fn read(row: &impl Columns) -> Result<CompactableTurn, Fault> {
        Ok(CompactableTurn {
            session: rows::parsed(row, "session")?,
            turn: rows::parsed(row, "turn")?,
            first: rows::sequence(row, "first_sequence")?,
            last: rows::sequence(row, "last_sequence")?,
        })
    }
}

#[async_trait]
impl<E: Engine> CompactionStore for SqlStore<E> {
    async fn take_compactable(
        &self,
        age: Duration,
        lease: Duration,
        limit: u32,
    ) -> Result<Vec<CompactableTurn>, StoreError> {
        let milliseconds = |time: Duration| i64::try_from(time.as_millis()).unwrap_or(i64::MAX);
        let now = rows::now().as_millisecond();
        let before = now.saturating_sub(milliseconds(age));
        // A lease is an end that is younger: the turn is old enough again when the lease is over.
        let statement = Statement::kept(format!(
            "UPDATE turns SET compactable_since = $2 WHERE compactable_since <= $1 AND (session, turn) IN ( \
             SELECT free.session, free.turn FROM turns AS free WHERE free.compactable_since <= $1 \
             ORDER BY free.compactable_since LIMIT $3 {} ) RETURNING session, turn, first_sequence, last_sequence",
            E::SKIP_LOCKED
        ))
        .integer(before)
        .integer(before.saturating_add(milliseconds(lease)))
        .integer(limit.into());
        self.engine.write(One::<Compactable>::new(statement)).await
    }

    async fn compact(&self, turns: &[CompactableTurn]) -> Result<u64, StoreError> {
        Ok(self.compact_turns(turns).await?)
    }
}

impl<E: Engine> SqlStore<E> {
    /// The turns are read forwards, to see what may go, and then backwards, to drop it: what is cut off in the middle leaves no gap
    /// that no entry stands for. Holds one batch, and then at most [`COMPACTED_CHUNKS`] chunks of partials at a time.
    async fn compact_turns(&self, turns: &[CompactableTurn]) -> Result<u64, Fault> {
        let mut dropped = Vec::new();
        for turn in turns {
            dropped.extend(self.droppable(turn).await?);
        }
        dropped.sort_by_key(|range| range.from);
        let (Some(first), Some(last)) = (dropped.first(), dropped.last()) else {
            self.set_done(turns).await?;
            return Ok(0);
        };
        let Some(session) = turns.first().map(|turn| turn.session) else { return Ok(0) };
        let place = Place { session, first: first.from, last: last.to };
        // The batch of a turn's end may go on behind it.
        let (mut saved, mut before) = (0, END);
        loop {
            let chunks = self.partials(place, before).await?;
            let Some(first) = chunks.last() else { break };
            before = first.batch_last;
            let changes: Vec<Change> = chunks.into_iter().filter_map(|chunk| chunk.change(&dropped)).collect();
            if !changes.is_empty() {
                saved += self.engine.write(Rewrite { session, changes }).await?;
            }
        }
        self.set_done(turns).await?;
        Ok(saved)
    }

    async fn set_done(&self, turns: &[CompactableTurn]) -> Result<(), Fault> {
        for turn in turns {
            let done = Statement::new("UPDATE turns SET compactable_since = NULL WHERE session = $1 AND turn = $2");
            self.engine.write(One::<Counted>::new(done.text(turn.session).text(turn.turn))).await?;
        }
        Ok(())
    }

    async fn droppable(&self, turn: &CompactableTurn) -> Result<Vec<Dropped>, Fault> {
        let mut compaction = Compaction::default();
        let mut position = Sequence(turn.first.0.saturating_sub(1));
        while position < turn.last {
            let page = self.page(turn.session, position, 0).await?;
            let of_turn = page.entries.iter().filter(|entry| entry.sequence <= turn.last);
            for entry in of_turn {
                compaction.take(entry);
            }
            if page.end || page.through <= position {
                break;
            }
            position = page.through;
        }
        Ok(compaction.finish())
    }

    /// The last few partial chunks of a part of the log before a batch, the last one first.
    async fn partials(&self, place: Place, before: Sequence) -> Result<Vec<PartialChunk>, Fault> {
        let statement = Statement::new(
            "SELECT batch_last, last_sequence, codec, size, data FROM log_chunks \
             WHERE session = $1 AND class = $2 AND last_sequence >= $3 AND first_sequence <= $4 AND batch_last < $5 \
             ORDER BY batch_last DESC LIMIT $6",
        )
        .text(place.session)
        .integer(ChunkClass::Partial as i64)
        .integer(rows::column(place.first))
        .integer(rows::column(place.last))
        .integer(rows::column(before))
        .integer(COMPACTED_CHUNKS);
        let found = self.engine.reader().rows(statement).await?;
        let chunk = |row: &_| {
            Ok(PartialChunk {
                batch_last: rows::sequence(row, "batch_last")?,
                size: rows::number(row, "size")?,
                entries: log::decode(row)?,
            })
        };
        found.iter().map(chunk).collect()
    }
}

/// A part of a session's log.
#[derive(Debug, Clone, Copy)]
struct Place {
    session: SessionId,
    first: Sequence,
    last: Sequence,
}

/// A stored chunk of partials.
struct PartialChunk {
    batch_last: Sequence,
    /// Bytes before compression.
    size: usize,
    entries: Vec<Entry>,
}

impl PartialChunk {
    fn change(&self, dropped: &[Dropped]) -> Option<Change> {
        let kept = rewrite(&self.entries, dropped)?;
        let chunk = chunk::encode_as(ChunkClass::Partial, kept.iter()).map(codec::pack);
        Some(Change { batch_last: self.batch_last, size: self.size, chunk })
    }
}

/// What becomes of a chunk.
struct Change {
    batch_last: Sequence,
    /// Its size before: another's change in between is not undone.
    size: usize,
    /// What stands there from now on; `None`: nothing.
    chunk: Option<StoredChunk>,
}

/// Changes of chunks of one session.
struct Rewrite {
    session: SessionId,
    changes: Vec<Change>,
}

impl Write for Rewrite {
    type Output = u64;

    const MAY_REPEAT: bool = true;

    fn bytes(&self) -> usize {
        self.changes.iter().filter_map(|change| change.chunk.as_ref()).map(|chunk| chunk.data.len()).sum()
    }

    async fn run<S: Sql>(&self, sql: &mut S) -> Result<u64, Fault> {
        let mut saved = 0;
        for change in &self.changes {
            let key = |statement: Statement| {
                statement
                    .text(self.session)
                    .integer(rows::column(change.batch_last))
                    .integer(ChunkClass::Partial as i64)
                    .integer(rows::length(change.size))
            };
            let statement = match &change.chunk {
                None => key(Statement::new(
                    "DELETE FROM log_chunks WHERE session = $1 AND batch_last = $2 AND class = $3 AND size = $4",
                )),
                Some(stored) => key(Statement::new(
                    "UPDATE log_chunks SET first_sequence = $5, last_sequence = $6, codec = $7, size = $8, data = $9 \
                     WHERE session = $1 AND batch_last = $2 AND class = $3 AND size = $4",
                ))
                .integer(rows::column(stored.chunk.first))
                .integer(rows::column(stored.chunk.last))
                .integer(stored.codec.into())
                .integer(rows::length(stored.size))
                .bytes(stored.data.clone()),
            };
            if sql.execute(statement).await? > 0 {
                let after = change.chunk.as_ref().map_or(0, |stored| stored.size);
                saved += change.size.saturating_sub(after) as u64;
            }
        }
        Ok(saved)
    }
}
