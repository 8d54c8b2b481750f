//! Runners and coordinators.

use std::time::Duration;

use ash_core::{
    agent::AgentVersion,
    fleet::{RunnerId, RunnerName},
    id::{SandboxId, SessionId},
    loss::{GONE_AFTER, SILENT_AFTER},
    ports::{
        AgentsStamp, CoordinatorRow, Load, MembershipStore, NewRunner, OpenEpoch, Reserved, RouteRow, RunnerRow,
        StoreError, StoreTime,
    },
    session::Session,
};
use async_trait::async_trait;
use uuid::Uuid;

use crate::{
    fault::Fault,
    limits::{FORGOTTEN_COORDINATOR, MAX_CURRENT_VERSIONS, MAX_RUNNERS},
    one::{Counted, One, ReadRow},
    places, rows,
    sql::{Columns, Sql, Statement},
    store::{Engine, SqlStore},
    variables,
};

fn milliseconds(time: Duration) -> i64 {
    i64::try_from(time.as_millis()).unwrap_or(i64::MAX)
}

/// A column of milliseconds that a time later than now makes negative: none are left then.
fn duration(row: &impl Columns, column: &str) -> Result<Option<Duration>, Fault> {
    Ok(row.integer(column)?.map(|left| Duration::from_millis(u64::try_from(left).unwrap_or(0))))
}

fn runner_row(row: &impl Columns) -> Result<RunnerRow, Fault> {
    let load = rows::text(row, "load")?;
    Ok(RunnerRow {
        id: RunnerId { name: rows::parsed(row, "name")?, incarnation: rows::parsed(row, "incarnation")? },
        address: rows::text(row, "address")?,
        pool: rows::text(row, "pool")?,
        node: rows::text(row, "node")?,
        release: rows::text(row, "release")?,
        capacity: rows::number(row, "capacity")?,
        used: rows::number(row, "used")?,
        // A newer release may say more of itself, an older one less.
        load: serde_json::from_str(&load).unwrap_or_default(),
        cordoned: rows::number::<i64>(row, "cordoned")? != 0,
        ready: rows::number::<i64>(row, "ready")? != 0,
        silent: duration(row, "silent")?.unwrap_or_default(),
        restarting: duration(row, "restarting")?,
        version: rows::number(row, "version")?,
    })
}

struct Coordinator;

impl ReadRow for Coordinator {
    type Output = CoordinatorRow;

    fn read(row: &impl Columns) -> Result<CoordinatorRow, Fault> {
        Ok(CoordinatorRow { id: rows::parsed(row, "id")?, silent: duration(row, "silent")?.unwrap_or_default() })
    }
}

impl<E: Engine> SqlStore<E> {
    /// Writes with one statement; gives how many rows it says that it wrote.
    pub(crate) async fn count(&self, statement: Statement) -> Result<usize, StoreError> {
        Ok(self.engine.write(One::<Counted>::new(statement)).await?.len())
    }

    /// A statement with the database's time.
    pub(crate) fn at(text: &'static str) -> Statement {
        Statement::at(E::NOW, text)
    }
}

#[async_trait]
impl<E: Engine> MembershipStore for SqlStore<E> {
    async fn register_runner(&self, runner: NewRunner) -> Result<(), StoreError> {
        let statement = Self::at(
            "INSERT INTO runners (name, incarnation, address, pool, node, release, capacity, load, cordoned, ready, version, \
             heard_at) VALUES ($1, $2, $3, $4, $5, $6, $7, $8, 0, 0, 1, {now}) \
             ON CONFLICT (name) DO UPDATE SET \
             previous = CASE WHEN runners.incarnation = excluded.incarnation THEN runners.previous ELSE runners.incarnation END, \
             ready = CASE WHEN runners.incarnation = excluded.incarnation THEN runners.ready ELSE 0 END, \
             load = CASE WHEN runners.incarnation = excluded.incarnation THEN runners.load ELSE excluded.load END, \
             incarnation = excluded.incarnation, address = excluded.address, pool = excluded.pool, node = excluded.node, \
             release = excluded.release, capacity = excluded.capacity, version = runners.version + 1, heard_at = {now}, \
             restarting_until = NULL \
             WHERE runners.previous IS NULL OR runners.previous <> excluded.incarnation RETURNING name",
        )
        .text(&runner.id.name)
        .text(runner.id.incarnation)
        .text(&runner.address)
        .text(&runner.pool)
        .text(&runner.node)
        .text(&runner.release)
        .integer(runner.capacity.into())
        .text(rows::to_json(&Load::default())?);
        if self.count(statement).await? == 0 {
            return Err(StoreError::Conflict(format!(
                "a newer process of the runner {:?} runs: two at a time must not share a name",
                runner.id.name.as_str()
            )));
        }
        Ok(())
    }

    async fn runner_lives(&self, runner: &RunnerId, load: Load) -> Result<bool, StoreError> {
        let statement = Self::at(
            "UPDATE runners SET heard_at = {now}, load = $3, \
             ready = CASE WHEN COALESCE(restarting_until, 0) > {now} THEN ready ELSE 1 END \
             WHERE name = $1 AND incarnation = $2 RETURNING name",
        )
        .text(&runner.name)
        .text(runner.incarnation)
        .text(rows::to_json(&load)?);
        Ok(self.count(statement).await? > 0)
    }

    async fn runner_restarts(&self, runner: &RunnerId, within: Duration) -> Result<bool, StoreError> {
        let statement = Self::at(
            "UPDATE runners SET restarting_until = {now} + $3, ready = 0, version = version + 1 \
             WHERE name = $1 AND incarnation = $2 RETURNING name",
        )
        .text(&runner.name)
        .text(runner.incarnation)
        .integer(milliseconds(within));
        Ok(self.count(statement).await? > 0)
    }

    async fn remove_runner(&self, runner: &RunnerId, silent: Option<Duration>) -> Result<bool, StoreError> {
        let statement = match silent {
            None => Statement::new("DELETE FROM runners WHERE name = $1 AND incarnation = $2 RETURNING name")
                .text(&runner.name)
                .text(runner.incarnation),
            Some(silent) => Self::at(
                "DELETE FROM runners WHERE name = $1 AND incarnation = $2 AND heard_at <= {now} - $3 \
                 AND COALESCE(restarting_until, 0) <= {now} \
                 AND NOT EXISTS (SELECT 1 FROM coordinators WHERE seen_at < {now} - $4 AND seen_at > {now} - $5) \
                 RETURNING name",
            )
            .text(&runner.name)
            .text(runner.incarnation)
            .integer(milliseconds(silent))
            .integer(milliseconds(SILENT_AFTER))
            .integer(milliseconds(GONE_AFTER)),
        };
        Ok(self.count(statement).await? > 0)
    }

    async fn cordon_runner(&self, name: &RunnerName, cordoned: bool) -> Result<bool, StoreError> {
        let statement =
            Statement::new("UPDATE runners SET cordoned = $2, version = version + 1 WHERE name = $1 RETURNING name");
        Ok(self.count(statement.text(name).integer(cordoned.into())).await? > 0)
    }

    async fn runners(&self) -> Result<Vec<RunnerRow>, StoreError> {
        let statement = Self::at(
            "SELECT name, incarnation, address, pool, node, release, capacity, load, cordoned, ready, version, \
             {now} - heard_at AS silent, restarting_until - {now} AS restarting, \
             (SELECT COUNT(*) FROM sessions WHERE sessions.runner = runners.name AND sessions.sandbox IS NOT NULL) + \
             (SELECT COUNT(*) FROM sessions WHERE sessions.runner = runners.name AND sessions.sandbox IS NULL \
              AND sessions.reserved_until > {now}) + \
             (SELECT COUNT(*) FROM sandboxes WHERE sandboxes.runner = runners.name \
              AND sandboxes.state IN ('starting', 'warm')) + \
             (SELECT COUNT(*) FROM sandboxes WHERE sandboxes.runner = runners.name AND sandboxes.state = 'claimed' \
              AND NOT EXISTS (SELECT 1 FROM sessions WHERE sessions.id = sandboxes.session \
              AND sessions.sandbox = sandboxes.id)) AS used FROM runners ORDER BY name LIMIT $1",
        )
        .integer(MAX_RUNNERS);
        let found = self.engine.reader().rows(statement).await?;
        Ok(found.iter().map(runner_row).collect::<Result<_, _>>()?)
    }

    async fn reserve(&self, sessions: &[SessionId], runner: &RunnerId, version: u64) -> Result<Reserved, StoreError> {
        self.reserve_places(sessions, runner, version).await
    }

    async fn release(&self, session: SessionId) -> Result<(), StoreError> {
        // One that never had a sandbox has no files anywhere.
        let statement = Statement::new(
            "UPDATE sessions SET reserved_until = NULL, runner = CASE WHEN epoch = 0 THEN NULL ELSE runner END \
             WHERE id = $1 AND sandbox IS NULL AND reserved_until IS NOT NULL RETURNING id",
        );
        self.count(statement.text(session)).await.map(|_| ())
    }

    async fn routes(&self, sessions: &[SessionId]) -> Result<Vec<RouteRow>, StoreError> {
        self.read_routes(sessions).await
    }

    async fn adopt(&self, runner: &RunnerName, sandboxes: &[SandboxId]) -> Result<Vec<Session>, StoreError> {
        Ok(variables::show_all(&self.keyring, self.adopt_sessions(runner, sandboxes).await?))
    }

    async fn sessions_on(&self, runner: &RunnerName) -> Result<Vec<Session>, StoreError> {
        Ok(variables::show_all(&self.keyring, places::on(&mut self.engine.reader(), runner).await?))
    }

    async fn abandoned_sessions(&self) -> Result<Vec<Session>, StoreError> {
        Ok(variables::show_all(&self.keyring, places::abandoned(&mut self.engine.reader()).await?))
    }

    async fn open_epoch_on(&self, open: OpenEpoch, runner: &RunnerName) -> Result<Session, StoreError> {
        let opened = self.engine.open_epoch(open, Some(runner.clone())).await?;
        self.tell(opened.id);
        Ok(variables::show_anyway(&self.keyring, opened))
    }

    async fn agents_stamp(&self) -> Result<AgentsStamp, StoreError> {
        let statement = Statement::new(
            "SELECT COUNT(*) AS total, COALESCE(MAX(updated_at), 0) AS updated FROM agents WHERE deleted_at IS NULL",
        );
        let row = self.engine.reader().row(statement).await?.ok_or_else(|| Fault::damaged("nothing was counted"))?;
        Ok(AgentsStamp { count: rows::number(&row, "total")?, updated_ms: rows::number(&row, "updated")? })
    }

    async fn current_versions(&self) -> Result<Vec<AgentVersion>, StoreError> {
        let statement = Statement::new(
            "SELECT agent_versions.tenant, agent_versions.agent, agent_versions.number, agent_versions.digest, \
             agent_versions.settings FROM agents JOIN agent_versions ON agent_versions.tenant = agents.tenant \
             AND agent_versions.agent = agents.id AND agent_versions.number = agents.current_version \
             WHERE agents.deleted_at IS NULL ORDER BY agents.id LIMIT $1",
        );
        let found = self.engine.reader().rows(statement.integer(MAX_CURRENT_VERSIONS)).await?;
        Ok(found.iter().map(rows::agent_version).collect::<Result<_, _>>()?)
    }

    async fn store_time(&self) -> Result<StoreTime, StoreError> {
        let row = self.engine.reader().row(Self::at("SELECT {now} AS milliseconds")).await?;
        let row = row.ok_or_else(|| Fault::damaged("there is no time"))?;
        Ok(StoreTime(rows::number(&row, "milliseconds")?))
    }

    async fn coordinator_lived(&self, id: Uuid, begun: StoreTime) -> Result<Vec<CoordinatorRow>, StoreError> {
        let own = Statement::new(
            "INSERT INTO coordinators (id, seen_at) VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET seen_at = \
             CASE WHEN excluded.seen_at > coordinators.seen_at THEN excluded.seen_at ELSE coordinators.seen_at END \
             RETURNING id",
        );
        self.count(own.text(id).integer(i64::try_from(begun.0).unwrap_or(i64::MAX))).await?;
        let all = Self::at("SELECT id, {now} - seen_at AS silent FROM coordinators ORDER BY id");
        let found = self.engine.reader().rows(all).await?;
        let found: Vec<CoordinatorRow> = found.iter().map(Coordinator::read).collect::<Result<_, _>>()?;
        if found.iter().any(|one| one.silent > FORGOTTEN_COORDINATOR) {
            let forget = Self::at("DELETE FROM coordinators WHERE seen_at < {now} - $1 RETURNING id");
            self.count(forget.integer(milliseconds(FORGOTTEN_COORDINATOR))).await?;
        }
        Ok(found)
    }

    async fn remove_coordinator(&self, id: Uuid) -> Result<(), StoreError> {
        self.count(Statement::new("DELETE FROM coordinators WHERE id = $1 RETURNING id").text(id)).await.map(|_| ())
    }
}
