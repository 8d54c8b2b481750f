//! Which runner has which session: columns of the sessions' rows.
//!
//! `runner` with a `sandbox` is where it is served; with `reserved_until` in the future it has a place there; else its files may
//! be there.

use std::fmt::Display;

use ash_core::{
    Epoch,
    fleet::{RunnerId, RunnerName},
    id::{SandboxId, SessionId},
    placement::{RESERVED_FOR, Stage},
    ports::{Reserved, RouteRow, StoreError},
    session::Session,
};

use crate::{
    fault::Fault,
    limits::{MAX_ABANDONED, MAX_IDS_PER_STATEMENT},
    one::{One, ReadRow},
    rows::{self, session_columns},
    sql::{Columns, Sql, Statement},
    store::{Engine, SqlStore, Write},
};

/// Whether another runner than this one has a session, or a place for it.
pub(crate) async fn is_anothers(
    sql: &mut impl Sql,
    now: &str,
    session: SessionId,
    runner: &RunnerName,
) -> Result<bool, Fault> {
    let statement = Statement::at(
        now,
        "SELECT id FROM sessions WHERE id = $1 AND runner IS NOT NULL AND runner <> $2 \
         AND (sandbox IS NOT NULL OR COALESCE(reserved_until, 0) > {now})",
    );
    Ok(sql.row(statement.text(session).text(runner)).await?.is_some())
}

/// Sessions on a runner's sandboxes.
pub(crate) async fn on(sql: &mut impl Sql, runner: &RunnerName) -> Result<Vec<Session>, Fault> {
    let statement = Statement::new(concat!(
        "SELECT ",
        session_columns!(),
        " FROM sessions WHERE sessions.runner = $1 AND sessions.sandbox IS NOT NULL ORDER BY id"
    ));
    sql.rows(statement.text(runner)).await?.iter().map(rows::session).collect()
}

/// Sessions on sandboxes of runners that are none.
pub(crate) async fn abandoned(sql: &mut impl Sql) -> Result<Vec<Session>, Fault> {
    let statement = Statement::new(concat!(
        "SELECT ",
        session_columns!(),
        " FROM sessions WHERE sessions.sandbox IS NOT NULL AND (sessions.runner IS NULL \
         OR NOT EXISTS (SELECT 1 FROM runners WHERE runners.name = sessions.runner)) ORDER BY id LIMIT $1"
    ));
    sql.rows(statement.integer(MAX_ABANDONED)).await?.iter().map(rows::session).collect()
}

/// `$n, $n+1, ...` for a list of ids.
fn parameters(first: usize, count: usize) -> String {
    let names: Vec<String> = (first..first + count).map(|number| format!("${number}")).collect();
    names.join(", ")
}

fn with_ids(statement: Statement, ids: &[impl Display]) -> Statement {
    ids.iter().fold(statement, Statement::text)
}

struct Route;

impl ReadRow for Route {
    type Output = RouteRow;

    fn read(row: &impl Columns) -> Result<RouteRow, Fault> {
        let sandbox: Option<SandboxId> = rows::parsed_option(row, "sandbox")?;
        let is_reserved = rows::number::<i64>(row, "is_reserved")? != 0;
        let stage = match sandbox {
            Some(_) => Stage::Live,
            None if is_reserved => Stage::Reserved,
            None => Stage::Home,
        };
        let runner: Option<RunnerName> = rows::parsed_option(row, "runner")?;
        Ok(RouteRow {
            session: rows::parsed(row, "id")?,
            epoch: Epoch(rows::number(row, "epoch")?),
            last: rows::sequence(row, "last_sequence")?,
            sandbox,
            at: runner.map(|runner| (runner, stage)),
        })
    }
}

struct Id;

impl ReadRow for Id {
    type Output = Option<SessionId>;

    fn read(row: &impl Columns) -> Result<Option<SessionId>, Fault> {
        rows::parsed_option(row, "id")
    }
}

/// Takes places on a runner: the runner's row, then the sessions'.
struct Reserve {
    runner: RunnerId,
    version: u64,
    sessions: Vec<SessionId>,
    now: &'static str,
}

impl Reserve {
    const RUNNER: &'static str = "UPDATE runners SET version = version + 1 \
        WHERE name = $1 AND incarnation = $2 AND version = $3 AND cordoned = 0 RETURNING name";

    fn sessions(&self, first: usize, runner: &str, from: &str) -> String {
        let ids = parameters(first, self.sessions.len());
        let (now, until) = (self.now, RESERVED_FOR.as_millis());
        format!(
            "UPDATE sessions SET runner = {runner}, reserved_until = {now} + {until} {from} \
             WHERE sessions.id IN ({ids}) AND sessions.sandbox IS NULL AND COALESCE(sessions.reserved_until, 0) <= {now} \
             AND sessions.state <> 'ended' RETURNING sessions.id"
        )
    }

    fn with_runner(&self, statement: Statement) -> Statement {
        let version = i64::try_from(self.version).unwrap_or(i64::MAX);
        statement.text(&self.runner.name).text(self.runner.incarnation).integer(version)
    }

    /// As one statement, for a database that can write twice in one.
    fn together(&self) -> Statement {
        let (runner, sessions) = (Self::RUNNER, self.sessions(4, "taken.name", "FROM taken"));
        let text = format!(
            "WITH taken AS ({runner}), placed AS ({sessions}) SELECT placed.id FROM taken LEFT JOIN placed ON TRUE"
        );
        with_ids(self.with_runner(Statement::new(text)), &self.sessions)
    }
}

/// What was taken: nothing where the runner is another by now.
fn outcome(rows: Vec<Option<SessionId>>) -> Reserved {
    if rows.is_empty() { Reserved::Stale } else { Reserved::Taken(rows.into_iter().flatten().collect()) }
}

impl Write for Reserve {
    type Output = Vec<Option<SessionId>>;

    async fn run<S: Sql>(&self, sql: &mut S) -> Result<Self::Output, Fault> {
        if sql.row(self.with_runner(Statement::new(Self::RUNNER))).await?.is_none() {
            return Ok(Vec::new());
        }
        let statement = Statement::new(self.sessions(2, "$1", "")).text(&self.runner.name);
        let placed = sql.rows(with_ids(statement, &self.sessions)).await?;
        // One row says that the runner's was taken.
        std::iter::once(Ok(None)).chain(placed.iter().map(Id::read)).collect()
    }
}

impl<E: Engine> SqlStore<E> {
    pub(crate) async fn reserve_places(
        &self,
        sessions: &[SessionId],
        runner: &RunnerId,
        version: u64,
    ) -> Result<Reserved, StoreError> {
        if sessions.len() > MAX_IDS_PER_STATEMENT {
            return Err(StoreError::Conflict(format!(
                "more than {MAX_IDS_PER_STATEMENT} places were asked for at once"
            )));
        }
        let reserve = Reserve { runner: runner.clone(), version, sessions: sessions.to_vec(), now: E::NOW };
        let rows = if E::IS_SHARED {
            self.engine.write(One::<Id>::new(reserve.together())).await?
        } else {
            self.engine.write(reserve).await?
        };
        Ok(outcome(rows))
    }

    pub(crate) async fn read_routes(&self, sessions: &[SessionId]) -> Result<Vec<RouteRow>, StoreError> {
        let mut found = Vec::with_capacity(sessions.len());
        let now = E::NOW;
        for ids in sessions.chunks(MAX_IDS_PER_STATEMENT) {
            let columns = format!(
                "SELECT id, epoch, last_sequence, sandbox, runner, \
                 CASE WHEN COALESCE(reserved_until, 0) > {now} THEN 1 ELSE 0 END AS is_reserved FROM sessions"
            );
            let statement = match ids {
                [_] => Self::at(
                    "SELECT id, epoch, last_sequence, sandbox, runner, \
                     CASE WHEN COALESCE(reserved_until, 0) > {now} THEN 1 ELSE 0 END AS is_reserved FROM sessions WHERE id = $1",
                ),
                many => Statement::new(format!("{columns} WHERE id IN ({})", parameters(1, many.len()))),
            };
            for row in &self.engine.reader().rows(with_ids(statement, ids)).await? {
                found.push(Route::read(row)?);
            }
        }
        Ok(found)
    }

    pub(crate) async fn adopt_sessions(
        &self,
        runner: &RunnerName,
        sandboxes: &[SandboxId],
    ) -> Result<Vec<Session>, StoreError> {
        for ids in sandboxes.chunks(MAX_IDS_PER_STATEMENT) {
            let ids_text = parameters(2, ids.len());
            let statement = Statement::new(format!(
                "UPDATE sessions SET runner = $1 WHERE sandbox IN ({ids_text}) AND (runner IS NULL \
                 OR NOT EXISTS (SELECT 1 FROM runners WHERE runners.name = sessions.runner)) RETURNING id"
            ));
            self.count(with_ids(statement.text(runner), ids)).await?;
        }
        Ok(on(&mut self.engine.reader(), runner).await?)
    }
}
