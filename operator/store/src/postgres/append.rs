//! Appends: those of many sessions are one statement.
//!
//! The statement takes the end of each log by compare-and-set on its session's row, and writes chunks and turns of those that it
//! took. Each table is changed once in it, because CockroachDB allows no more.

use std::collections::{HashMap, HashSet};

use ash_core::{
    Sequence,
    id::{SessionId, TurnId},
    ports::{Append, StoreError},
    spent::Spending,
};
use jiff::Timestamp;
use sqlx::postgres::PgRow;

use super::{Postgres, pool::Lease, retry::Call};
use crate::{
    batch::{Appended, Batch, TurnChange, prepare},
    fault::Fault,
    limits::{MAX_BYTES_PER_TRANSACTION, MAX_WRITES_PER_TRANSACTION},
    rows,
    sessions::no_session,
};

macro_rules! take_and_store {
    ($values:literal, $names:literal, $changes:literal) => {
        concat!(
            "WITH given AS ( \
            SELECT * FROM UNNEST($1::TEXT[], $2::BIGINT[], $3::BIGINT[], $4::BIGINT[], $5::BIGINT[]",
            $values,
            ") AS given (session, epoch, follows, last, active_at",
            $names,
            ") ), taken AS ( \
            UPDATE sessions SET last_sequence = given.last, \
                last_active_at = COALESCE(given.active_at, sessions.last_active_at)",
            $changes,
            " FROM given WHERE sessions.id = given.session AND sessions.epoch = given.epoch \
                AND sessions.last_sequence = given.follows \
            RETURNING sessions.id, sessions.tenant, sessions.last_sequence \
        ), stored AS ( \
            INSERT INTO log_chunks (session, batch_last, class, tenant, first_sequence, last_sequence, codec, size, data) \
            SELECT taken.id, taken.last_sequence, chunk.class, taken.tenant, chunk.first_sequence, chunk.last_sequence, \
                chunk.codec, chunk.size, chunk.data \
            FROM UNNEST($6::TEXT[], $7::BIGINT[], $8::BIGINT[], $9::BIGINT[], $10::BIGINT[], $11::BIGINT[], $12::BYTEA[]) \
                AS chunk (session, class, first_sequence, last_sequence, codec, size, data) \
            JOIN taken ON taken.id = chunk.session \
        )"
        )
    };
}

/// Most appends change no turn, and nothing is spent in them.
const APPEND: &str = concat!(take_and_store!("", "", ""), " SELECT id FROM taken");

/// Ends the turns that were open before, and adds those that begin. A bridge is not trusted: a turn that it begins twice stays as
/// it was first.
const APPEND_WITH_TURNS: &str = concat!(
    take_and_store!(
        ", $19::BIGINT[], $20::BIGINT[], $21::BIGINT[], $22::BIGINT[], $23::BIGINT[], $24::BIGINT[]",
        ", input, output, cache_read, cache_creation, cost, refused",
        ", spent_input = spent_input + given.input, spent_output = spent_output + given.output, \
         spent_cache_read = spent_cache_read + given.cache_read, \
         spent_cache_creation = spent_cache_creation + given.cache_creation, cost_micros = cost_micros + given.cost, \
         model_refused = COALESCE(given.refused, model_refused)"
    ),
    ", changed AS ( \
        INSERT INTO turns (session, turn, tenant, first_sequence, last_sequence, compactable_since) \
        SELECT unfinished.session, unfinished.turn, unfinished.tenant, unfinished.first_sequence, ending.last, $25::BIGINT \
        FROM UNNEST($13::TEXT[], $14::BIGINT[]) AS ending (session, last) \
        JOIN taken ON taken.id = ending.session \
        JOIN turns AS unfinished ON unfinished.session = ending.session AND unfinished.last_sequence IS NULL \
        UNION ALL \
        SELECT taken.id, begun.turn, taken.tenant, begun.first, begun.last, \
            CASE WHEN begun.last IS NULL THEN NULL ELSE $25::BIGINT END \
        FROM UNNEST($15::TEXT[], $16::TEXT[], $17::BIGINT[], $18::BIGINT[]) AS begun (session, turn, first, last) \
        JOIN taken ON taken.id = begun.session \
        WHERE NOT EXISTS (SELECT 1 FROM turns AS known WHERE known.session = begun.session AND known.turn = begun.turn) \
        ON CONFLICT (session, turn) DO UPDATE SET last_sequence = excluded.last_sequence, \
            compactable_since = excluded.compactable_since \
    ) SELECT id FROM taken"
);

impl Postgres {
    pub(super) async fn append_all(&self, appends: Vec<Append>) -> Vec<Result<(), StoreError>> {
        let batches = prepare(appends).await;
        let mut outcomes: Vec<Result<(), StoreError>> =
            batches.iter().map(|batch| batch.as_ref().map(|_| ()).map_err(Clone::clone)).collect();
        let prepared: Vec<(usize, &Batch)> =
            batches.iter().enumerate().filter_map(|(position, batch)| Some((position, batch.as_ref().ok()?))).collect();
        for together in statements(prepared) {
            let call = Batches::new(together.iter().map(|(_, batch)| *batch).collect());
            match self.written(&call, together.len()).await {
                Ok(appended) => {
                    for ((position, _), appended) in together.iter().zip(appended) {
                        outcomes[*position] = appended.map(|appended| appended.tell(&self.caches));
                    }
                }
                Err(error) => {
                    for (position, _) in together {
                        outcomes[position] = Err(error.clone());
                    }
                }
            }
        }
        outcomes
    }
}

/// Which appends share a statement: as many as its bounds allow, and of each session one, because the next follows it.
fn statements(batches: Vec<(usize, &Batch)>) -> Vec<Vec<(usize, &Batch)>> {
    let mut statements: Vec<Vec<(usize, &Batch)>> = Vec::new();
    let (mut bytes, mut sessions) = (0, HashSet::new());
    for (position, batch) in batches {
        let size: usize = batch.chunks.iter().map(|chunk| chunk.data.len()).sum();
        match statements.last_mut() {
            Some(current)
                if bytes + size <= MAX_BYTES_PER_TRANSACTION
                    && current.len() < MAX_WRITES_PER_TRANSACTION
                    && !sessions.contains(&batch.session) =>
            {
                current.push((position, batch));
            }
            _ => {
                statements.push(vec![(position, batch)]);
                (bytes, sessions) = (0, HashSet::new());
            }
        }
        bytes += size;
        sessions.insert(batch.session);
    }
    statements
}

/// Appends of one statement.
struct Batches<'b> {
    batches: Vec<&'b Batch>,
    now: Timestamp,
}

impl<'b> Batches<'b> {
    fn new(batches: Vec<&'b Batch>) -> Self {
        Self { batches, now: rows::now() }
    }

    /// Writes those whose sessions are as they expect; gives these sessions.
    async fn write(&self, lease: &mut Lease<'_>) -> Result<HashSet<SessionId>, Fault> {
        let batches = &self.batches;
        let texts: Vec<String> = batches.iter().map(|batch| batch.session.to_string()).collect();
        let each = |number: fn(&Batch) -> i64| batches.iter().map(|batch| number(batch)).collect::<Vec<i64>>();
        let active_at = |batch: &&Batch| (!batch.turns.is_empty()).then(|| self.now.as_millisecond());
        let chunks: Vec<_> = batches
            .iter()
            .zip(&texts)
            .flat_map(|(batch, id)| batch.chunks.iter().map(move |chunk| (id, chunk)))
            .collect();
        let turns: Vec<_> = batches.iter().zip(&texts).map(|(batch, id)| (id, Turns::of(&batch.turns))).collect();
        let has_turns = turns.iter().any(|(_, turns)| turns.end.is_some() || !turns.begun.is_empty())
            || batches.iter().any(|batch| batch.spending.is_some());

        let mut query = sqlx::query(if has_turns { APPEND_WITH_TURNS } else { APPEND })
            .bind(&texts)
            .bind(each(|batch| batch.epoch.0.into()))
            .bind(each(|batch| rows::column(batch.after)))
            .bind(each(|batch| rows::column(batch.last)))
            .bind(batches.iter().map(active_at).collect::<Vec<Option<i64>>>())
            .bind(chunks.iter().map(|(id, _)| *id).collect::<Vec<_>>())
            .bind(chunks.iter().map(|(_, stored)| stored.chunk.class as i64).collect::<Vec<_>>())
            .bind(chunks.iter().map(|(_, stored)| rows::column(stored.chunk.first)).collect::<Vec<_>>())
            .bind(chunks.iter().map(|(_, stored)| rows::column(stored.chunk.last)).collect::<Vec<_>>())
            .bind(chunks.iter().map(|(_, stored)| i64::from(stored.codec)).collect::<Vec<_>>())
            .bind(chunks.iter().map(|(_, stored)| rows::length(stored.size)).collect::<Vec<_>>())
            .bind(chunks.iter().map(|(_, stored)| stored.data.as_ref()).collect::<Vec<_>>());
        if has_turns {
            let ending = || turns.iter().filter_map(|(id, turns)| Some((*id, turns.end?)));
            let begun = || turns.iter().flat_map(|(id, turns)| turns.begun.iter().map(move |turn| (*id, turn)));
            query = query
                .bind(ending().map(|(id, _)| id).collect::<Vec<_>>())
                .bind(ending().map(|(_, last)| rows::column(last)).collect::<Vec<_>>())
                .bind(begun().map(|(id, _)| id).collect::<Vec<_>>())
                .bind(begun().map(|(_, begun)| begun.turn.to_string()).collect::<Vec<_>>())
                .bind(begun().map(|(_, begun)| rows::column(begun.first)).collect::<Vec<_>>())
                .bind(begun().map(|(_, begun)| begun.last.map(rows::column)).collect::<Vec<_>>());
            let spending = || batches.iter().map(|batch| batch.spending.unwrap_or_default());
            let each = |of: fn(Spending) -> i64| spending().map(of).collect::<Vec<i64>>();
            query = query
                .bind(each(|spending| spending.tokens.input))
                .bind(each(|spending| spending.tokens.output))
                .bind(each(|spending| spending.tokens.cache_read))
                .bind(each(|spending| spending.tokens.cache_creation))
                .bind(each(|spending| spending.cost_micros))
                .bind(spending().map(|spending| spending.refused.map(i64::from)).collect::<Vec<Option<i64>>>())
                .bind(self.now.as_millisecond());
        }
        let taken = query.fetch_all(lease.round_trip()).await?;
        taken.iter().map(|row| rows::parsed(row, "id")).collect()
    }
}

impl Call for Batches<'_> {
    type Output = Vec<Result<Appended, StoreError>>;

    // A repeat finds that the log has its entries.
    const MAY_REPEAT: bool = true;

    async fn run(&self, lease: &mut Lease<'_>, _in_doubt: bool) -> Result<Self::Output, Fault> {
        let taken = self.write(lease).await?;
        let others: Vec<String> = self
            .batches
            .iter()
            .filter(|batch| !taken.contains(&batch.session))
            .map(|batch| batch.session.to_string())
            .collect();
        let others = if others.is_empty() { HashMap::new() } else { ends(lease, others).await? };
        let outcome = |batch: &&Batch| match others.get(&batch.session) {
            _ if taken.contains(&batch.session) => Ok(batch.appended(self.now)),
            Some(row) => batch.was_there(row).map_err(StoreError::from),
            None => Err(no_session(batch.session)),
        };
        Ok(self.batches.iter().map(outcome).collect())
    }
}

/// How far the logs of these sessions are.
async fn ends(lease: &mut Lease<'_>, sessions: Vec<String>) -> Result<HashMap<SessionId, PgRow>, Fault> {
    let found = sqlx::query("SELECT id, epoch, last_sequence FROM sessions WHERE id = ANY($1)")
        .bind(sessions)
        .fetch_all(lease.round_trip())
        .await?;
    found.into_iter().map(|row| Ok((rows::parsed(&row, "id")?, row))).collect()
}

/// What an append does to a session's turns, all together.
#[derive(Debug, Default, PartialEq, Eq)]
struct Turns {
    /// Where the turns end that were open before.
    end: Option<Sequence>,
    /// Turns that begin, each where it does so first, and where they end.
    begun: Vec<Begun>,
}

#[derive(Debug, PartialEq, Eq)]
struct Begun {
    turn: TurnId,
    first: Sequence,
    last: Option<Sequence>,
}

impl Turns {
    fn of(changes: &[TurnChange]) -> Self {
        let mut turns = Self::default();
        for change in changes {
            match *change {
                TurnChange::Begins(turn, first) => {
                    if turns.begun.iter().all(|begun| begun.turn != turn) {
                        turns.begun.push(Begun { turn, first, last: None });
                    }
                }
                TurnChange::Ends(last) => {
                    turns.end.get_or_insert(last);
                    for begun in &mut turns.begun {
                        begun.last.get_or_insert(last);
                    }
                }
            }
        }
        turns
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use ash_core::{Entry, EntryFlags, EntryKind, Epoch, Sequence, id::SessionId, id::TurnId, ports::Append};
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::{Begun, Turns, statements};
    use crate::{
        batch::{TurnChange, prepare},
        limits::MAX_BYTES_PER_TRANSACTION,
    };

    fn turn(n: u8) -> TurnId {
        TurnId(Uuid::from_u128(n.into()))
    }

    /// One after the other, as SQLite does it: turns with where they begin and end.
    fn in_order(mut known: Vec<Begun>, changes: &[TurnChange]) -> Vec<Begun> {
        for change in changes {
            match *change {
                TurnChange::Begins(turn, first) if known.iter().all(|begun| begun.turn != turn) => {
                    known.push(Begun { turn, first, last: None });
                }
                TurnChange::Begins(..) => {}
                TurnChange::Ends(last) => {
                    for begun in &mut known {
                        begun.last.get_or_insert(last);
                    }
                }
            }
        }
        known
    }

    /// All at once, as the statement does it.
    fn together(mut known: Vec<Begun>, turns: Turns) -> Vec<Begun> {
        let new: Vec<Begun> =
            turns.begun.into_iter().filter(|begun| known.iter().all(|known| known.turn != begun.turn)).collect();
        if let Some(last) = turns.end {
            for begun in &mut known {
                begun.last.get_or_insert(last);
            }
        }
        known.into_iter().chain(new).collect()
    }

    proptest! {
        #[test]
        fn changes_of_turns_are_the_same_together(
            known in prop::collection::btree_map(0u8..4, prop::option::of(Just(5u64)), 0..4),
            changes in prop::collection::vec(prop::option::of(0u8..6), 0..20),
        ) {
            let known = || -> Vec<Begun> {
                let begun = |(n, last): (&u8, &Option<u64>)| Begun {
                    turn: turn(*n), first: Sequence(1), last: last.map(Sequence)
                };
                known.iter().map(begun).collect()
            };
            let changes: Vec<TurnChange> = (10u64..).zip(changes).map(|(n, change)| match change {
                Some(begun) => TurnChange::Begins(turn(begun), Sequence(n)),
                None => TurnChange::Ends(Sequence(n)),
            }).collect();
            prop_assert_eq!(together(known(), Turns::of(&changes)), in_order(known(), &changes));
        }
    }

    #[tokio::test]
    async fn a_statement_has_each_session_once_and_is_bounded() {
        let (one, other) = (SessionId::new(), SessionId::new());
        let append = |session, n: u32, bytes: usize| Append {
            session,
            after: Epoch(1).sequence(n - 1),
            entries: vec![Entry {
                sequence: Epoch(1).sequence(n),
                kind: EntryKind::Claude,
                flags: EntryFlags::default(),
                // Does not compress.
                body: (0..bytes).map(|_| fastrand::u8(..)).collect::<Vec<_>>().into(),
            }],
        };
        let large = MAX_BYTES_PER_TRANSACTION;
        let appends = vec![append(one, 2, 10), append(other, 2, 10), append(one, 3, 10), append(other, 3, large)];
        let batches = prepare(appends).await;
        let all = batches.iter().map(|batch| batch.as_ref().unwrap()).enumerate().collect();
        let sizes: Vec<Vec<usize>> =
            statements(all).iter().map(|together| together.iter().map(|(position, _)| *position).collect()).collect();
        assert_eq!(sizes, [vec![0, 1], vec![2], vec![3]]);
    }
}
