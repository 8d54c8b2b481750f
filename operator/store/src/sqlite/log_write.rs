//! Writes the event log: opens epochs and appends, both by compare-and-set on the session's row.

use std::{collections::HashSet, fmt::Write as _, ops::Range, sync::Arc};

use ash_core::{
    fence::Fence,
    fleet::RunnerName,
    ports::{Append, OpenEpoch, StoreError},
    session::Session,
    spent::{Spending, Tokens},
};
use jiff::Timestamp;
use sqlx::{SqliteConnection, sqlite::SqliteRow};

use super::{
    Sqlite,
    script::{Parameter, Script},
    writer::{Aborted, Write},
};
use crate::{
    batch::{Appended, Batch, TurnChange, next_epoch, overtaken, prepare},
    cache::Caches,
    codec::{self, StoredChunk},
    fault::Fault,
    limits::MAX_STATEMENTS_PER_SCRIPT,
    places::is_anothers,
    rows,
    sessions::{load, no_session},
    store::Engine as _,
};

/// Opens the next epoch.
pub(super) struct Open {
    pub(super) open: OpenEpoch,
    /// The runner that opens it.
    pub(super) runner: Option<RunnerName>,
}

impl Write for Open {
    type Output = Session;

    async fn run(&self, connection: &mut SqliteConnection) -> Result<Session, Fault> {
        let Self { open, runner } = self;
        let mut session = load(connection, open.session).await?;
        if let Some(runner) = runner
            && is_anothers(connection, Sqlite::NOW, open.session, runner).await?
        {
            return Err(overtaken(session.id, session.epoch, session.last).into());
        }
        let fence = Fence { epoch: session.epoch, last: session.last };
        if !fence.opens(open.expected, open.opening.last_committed) {
            return Err(overtaken(session.id, session.epoch, session.last).into());
        }
        let epoch = next_epoch(session.id, session.epoch)?;
        let opening = open.opening.entry(epoch);
        session.epoch = epoch;
        session.last = opening.sequence;
        session.state = open.state;
        session.error.clone_from(&open.error);
        session.sandbox = open.sandbox;
        session.last_active_at = rows::now();
        save(connection, &session, runner.as_ref()).await?;
        let mut script = Script::default();
        let id = script.bind(session.id.to_string());
        let last = script.bind(rows::column(opening.sequence));
        for chunk in codec::encode_now(std::slice::from_ref(&opening)) {
            insert_chunk(&mut script, last, &chunk, &format!("FROM sessions WHERE id = {id}"));
        }
        if let Some(turn) = open.opening.interrupted {
            let (turn, now) = (script.bind(turn.to_string()), script.bind(session.last_active_at.as_millisecond()));
            script.push(format_args!(
                "UPDATE turns SET last_sequence = {last}, compactable_since = {now} \
                 WHERE session = {id} AND turn = {turn} AND last_sequence IS NULL"
            ));
        }
        script.run(connection).await?;
        Ok(session)
    }

    fn committed(&self, session: &Session, caches: &Caches) {
        caches.session_written(session);
    }
}

async fn save(connection: &mut SqliteConnection, session: &Session, runner: Option<&RunnerName>) -> Result<(), Fault> {
    sqlx::query(
        "UPDATE sessions SET epoch = $2, last_sequence = $3, state = $4, paused_reason = $5, error = $6, sandbox = $7, \
         last_active_at = $8, reserved_until = NULL, \
         runner = CASE WHEN $4 = 'ended' THEN NULL ELSE COALESCE($9, runner) END WHERE id = $1",
    )
    .bind(session.id.to_string())
    .bind(i64::from(session.epoch.0))
    .bind(rows::column(session.last))
    .bind(session.state.name())
    .bind(session.state.paused_reason().map(rows::paused_reason_name))
    .bind(session.error.as_deref())
    .bind(session.sandbox.map(|id| id.to_string()))
    .bind(session.last_active_at.as_millisecond())
    .bind(runner.filter(|_| session.sandbox.is_some()).map(ToString::to_string))
    .execute(connection)
    .await?;
    Ok(())
}

/// Appends to many logs, written as one.
#[derive(Clone)]
pub(super) struct Batches {
    prepared: Arc<[Result<Batch, StoreError>]>,
    /// Those of them that are meant.
    these: Range<usize>,
}

impl Batches {
    /// Prepares appends, and puts together what is not more than [`MAX_STATEMENTS_PER_SCRIPT`].
    pub(super) async fn prepare(appends: Vec<Append>) -> Vec<Self> {
        let prepared: Arc<[_]> = prepare(appends).await.into();
        let mut groups: Vec<Self> = Vec::new();
        let mut statements = 0;
        for (position, batch) in prepared.iter().enumerate() {
            let more = batch.as_ref().map_or(0, Batch::statements);
            statements += more;
            match groups.last_mut() {
                Some(group) if statements <= MAX_STATEMENTS_PER_SCRIPT => group.these.end += 1,
                _ => {
                    statements = more;
                    groups.push(Self { prepared: Arc::clone(&prepared), these: position..position + 1 });
                }
            }
        }
        groups
    }

    pub(super) fn len(&self) -> usize {
        self.these.len()
    }

    /// Each by itself.
    pub(super) fn each(&self) -> impl Iterator<Item = Self> {
        self.these.clone().map(|one| Self { prepared: Arc::clone(&self.prepared), these: one..one + 1 })
    }

    fn batches(&self) -> &[Result<Batch, StoreError>] {
        self.prepared.get(self.these.clone()).unwrap_or_default()
    }
}

impl Write for Batches {
    type Output = Vec<Result<Appended, StoreError>>;

    fn bytes(&self) -> usize {
        self.batches().iter().flatten().flat_map(|batch| &batch.chunks).map(|chunk| chunk.data.len()).sum()
    }

    async fn run(&self, connection: &mut SqliteConnection) -> Result<Self::Output, Fault> {
        let (script, active_at) = self.script();
        let taken = script.run(connection).await?;
        self.outcomes(connection, &taken, active_at).await
    }

    async fn run_alone(&self, connection: &mut SqliteConnection) -> Result<Self::Output, Aborted> {
        let (script, active_at) = self.script();
        let taken = script.run_as_transaction(connection).await?;
        self.outcomes(connection, &taken, active_at).await.map_err(Aborted::before_commit)
    }

    fn committed(&self, outcomes: &Self::Output, caches: &Caches) {
        outcomes.iter().flatten().for_each(|appended| appended.tell(caches));
    }
}

impl Batches {
    fn script(&self) -> (Script, Timestamp) {
        let now = rows::now();
        let mut script = Script::default();
        for (position, batch) in self.batches().iter().enumerate() {
            if let Ok(batch) = batch {
                batch.append(&mut script, position, now);
            }
        }
        (script, now)
    }

    /// What became of each append, from the rows that say which were taken.
    async fn outcomes(
        &self,
        connection: &mut SqliteConnection,
        taken: &[SqliteRow],
        now: Timestamp,
    ) -> Result<Vec<Result<Appended, StoreError>>, Fault> {
        let taken = taken.iter().map(|row| rows::number(row, "position")).collect::<Result<HashSet<usize>, _>>()?;
        let mut outcomes = Vec::with_capacity(self.len());
        for (position, batch) in self.batches().iter().enumerate() {
            outcomes.push(match batch {
                Ok(batch) if taken.contains(&position) => Ok(batch.appended(now)),
                Ok(batch) => was_there(batch, connection).await.map_err(StoreError::from),
                Err(error) => Err(error.clone()),
            });
        }
        Ok(outcomes)
    }
}

impl Batch {
    /// The compare-and-set comes first: it takes the log's end for this append, and gives its
    /// position among the appends, or changes nothing.
    /// What follows is for the session whose end is this append's: of one that was not taken that is so where the append is
    /// there already, and then there is nothing to add.
    fn append(&self, script: &mut Script, position: usize, now: Timestamp) {
        let session = script.bind(self.session.to_string());
        let epoch = script.bind(i64::from(self.epoch.0));
        let last = script.bind(rows::column(self.last));
        let after = script.bind(rows::column(self.after));
        let active = if self.turns.is_empty() {
            String::new()
        } else {
            format!(", last_active_at = {}", script.bind(now.as_millisecond()))
        };
        let spending = self.spending.map(|spending| spent(script, &spending)).unwrap_or_default();
        let position = script.bind(rows::length(position));
        script.push(format_args!(
            "UPDATE sessions SET last_sequence = {last}{active}{spending} \
             WHERE id = {session} AND epoch = {epoch} AND last_sequence = {after} RETURNING {position} AS position"
        ));
        let taken = format!("FROM sessions WHERE id = {session} AND epoch = {epoch} AND last_sequence = {last}");
        for chunk in &self.chunks {
            insert_chunk(script, last, chunk, &taken);
        }
        for change in &self.turns {
            change.write(script, session, &taken, now);
        }
    }
}

/// What is added to what a session has spent, as assignments behind others.
fn spent(script: &mut Script, spending: &Spending) -> String {
    let mut text = String::new();
    let Tokens { input, output, cache_read, cache_creation } = spending.tokens;
    let columns = [
        ("spent_input", input),
        ("spent_output", output),
        ("spent_cache_read", cache_read),
        ("spent_cache_creation", cache_creation),
        ("cost_micros", spending.cost_micros),
    ];
    // Writing to a string does not fail.
    for (column, more) in columns.into_iter().filter(|(_, more)| *more != 0) {
        let _ = write!(text, ", {column} = {column} + {}", script.bind(more));
    }
    if let Some(refused) = spending.refused {
        let _ = write!(text, ", model_refused = {}", script.bind(i64::from(refused)));
    }
    text
}

async fn was_there(batch: &Batch, connection: &mut SqliteConnection) -> Result<Appended, Fault> {
    let row = sqlx::query("SELECT epoch, last_sequence FROM sessions WHERE id = $1")
        .bind(batch.session.to_string())
        .fetch_optional(connection)
        .await?
        .ok_or_else(|| no_session(batch.session))?;
    batch.was_there(&row)
}

impl TurnChange {
    fn write(self, script: &mut Script, session: Parameter, taken: &str, now: Timestamp) {
        match self {
            // A bridge is not trusted: a turn that it begins twice stays as it was first.
            Self::Begins(turn, sequence) => {
                let (turn, sequence) = (script.bind(turn.to_string()), script.bind(rows::column(sequence)));
                script.push(format_args!(
                    "INSERT INTO turns (session, first_sequence, turn, tenant) \
                     SELECT id, {sequence}, {turn}, tenant {taken} ON CONFLICT (session, turn) DO NOTHING"
                ));
            }
            Self::Ends(sequence) => {
                let (sequence, now) = (script.bind(rows::column(sequence)), script.bind(now.as_millisecond()));
                script.push(format_args!(
                    "UPDATE turns SET last_sequence = {sequence}, compactable_since = {now} \
                     WHERE session = {session} AND last_sequence IS NULL AND first_sequence < {sequence} AND EXISTS (SELECT 1 {taken})"
                ));
            }
        }
    }
}

/// Adds a chunk to the log of the session that `taken` selects.
fn insert_chunk(script: &mut Script, batch_last: Parameter, stored: &StoredChunk, taken: &str) {
    let class = script.bind(stored.chunk.class as i64);
    let first = script.bind(rows::column(stored.chunk.first));
    let last = script.bind(rows::column(stored.chunk.last));
    let codec = script.bind(i64::from(stored.codec));
    let size = script.bind(rows::length(stored.size));
    let data = script.bind(stored.data.to_vec());
    script.push(format_args!(
        "INSERT INTO log_chunks (session, batch_last, class, tenant, first_sequence, last_sequence, codec, size, data) \
         SELECT id, {batch_last}, {class}, tenant, {first}, {last}, {codec}, {size}, {data} {taken} ON CONFLICT DO NOTHING"
    ));
}
