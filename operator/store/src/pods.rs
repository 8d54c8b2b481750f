//! Sandbox pods.

use std::time::Duration;

use ash_core::{
    fleet::RunnerId,
    id::{AgentId, SandboxId, SessionId, TenantId},
    loss::LOST_AFTER,
    ports::{PodIdentity, PodSandbox, PodState, PodStore, StoreError},
};
use async_trait::async_trait;

use crate::{
    fault::Fault,
    one::{One, ReadRow},
    rows,
    sql::{Columns, Sql, Statement},
    store::{Engine, SqlStore},
};

/// The columns of a pod, for a `SELECT` or a `RETURNING`.
macro_rules! pod_columns {
    () => {
        "sandboxes.id, sandboxes.tenant, sandboxes.pod, sandboxes.pod_uid, sandboxes.agent, sandboxes.agent_version, \
         sandboxes.pool, sandboxes.session, sandboxes.state, sandboxes.runner, sandboxes.runner_incarnation, \
         sandboxes.node, sandboxes.created_at, sandboxes.changed_at"
    };
}

/// What a claim changes.
macro_rules! claim {
    () => {
        "UPDATE sandboxes SET session = $4, state = 'claimed', changed_at = {now} WHERE state = 'warm' AND id = ("
    };
}

/// Claims the oldest warm sandbox of the runner with the fewest claims; of several alike any, so that claims at once spread. It reads
/// one row of the pool. Others may hold all that this runner has.
const CLAIM_OF_ONE_RUNNER: &str = concat!(
    claim!(),
    "SELECT free.id FROM sandboxes AS free \
     WHERE free.tenant = $1 AND free.agent = $2 AND free.agent_version = $3 AND free.state = 'warm' AND free.runner = ( \
     SELECT runners.name FROM runners WHERE runners.cordoned = 0 AND runners.ready = 1 AND runners.heard_at > {now} - $5 \
     AND EXISTS (SELECT 1 FROM sandboxes AS pool WHERE pool.tenant = $1 AND pool.agent = $2 AND pool.agent_version = $3 \
     AND pool.state = 'warm' AND pool.runner = runners.name) \
     ORDER BY (SELECT COUNT(*) FROM sandboxes AS busy WHERE busy.runner = runners.name AND busy.state = 'claimed'), \
     RANDOM() LIMIT 1) \
     ORDER BY free.changed_at LIMIT 1 {skip} ) RETURNING ",
    pod_columns!()
);

/// Claims any warm sandbox that nobody holds: it reads all of the pool.
const CLAIM_OF_ANY: &str = concat!(
    claim!(),
    "SELECT free.id FROM sandboxes AS free JOIN runners ON runners.name = free.runner \
     LEFT JOIN (SELECT runner, COUNT(*) AS claims FROM sandboxes WHERE state = 'claimed' GROUP BY runner) AS busy \
     ON busy.runner = free.runner \
     WHERE free.tenant = $1 AND free.agent = $2 AND free.agent_version = $3 AND free.state = 'warm' \
     AND runners.cordoned = 0 AND runners.ready = 1 AND runners.heard_at > {now} - $5 \
     ORDER BY COALESCE(busy.claims, 0), free.changed_at LIMIT 1 {skip} ) RETURNING ",
    pod_columns!()
);

fn state_name(state: PodState) -> &'static str {
    match state {
        PodState::Starting => "starting",
        PodState::Warm => "warm",
        PodState::Claimed => "claimed",
        PodState::Deleting => "deleting",
    }
}

fn state(name: &str) -> Result<PodState, Fault> {
    let all = [PodState::Starting, PodState::Warm, PodState::Claimed, PodState::Deleting];
    let found = all.into_iter().find(|state| state_name(*state) == name);
    found.ok_or_else(|| Fault::damaged(format!("a sandbox has the unknown state {name:?}")))
}

struct Pod;

impl ReadRow for Pod {
    type Output = PodSandbox;

    fn read(row: &impl Columns) -> Result<PodSandbox, Fault> {
        let incarnation = rows::parsed_option(row, "runner_incarnation")?;
        let runner = rows::parsed_option(row, "runner")?.zip(incarnation);
        Ok(PodSandbox {
            id: rows::parsed(row, "id")?,
            tenant: TenantId(rows::text(row, "tenant")?),
            pod: rows::text(row, "pod")?,
            pod_uid: row.text("pod_uid")?,
            agent: rows::parsed(row, "agent")?,
            agent_version: rows::number(row, "agent_version")?,
            pool: rows::text(row, "pool")?,
            session: rows::parsed_option(row, "session")?,
            state: state(&rows::text(row, "state")?)?,
            runner: runner.map(|(name, incarnation)| RunnerId { name, incarnation }),
            node: row.text("node")?,
            created_at: rows::time(row, "created_at")?,
            changed_at: rows::time(row, "changed_at")?,
        })
    }
}

impl<E: Engine> SqlStore<E> {
    async fn has_runner(&self, runner: &RunnerId) -> Result<bool, StoreError> {
        let statement = Statement::new("SELECT name FROM runners WHERE name = $1 AND incarnation = $2");
        let found = self.engine.reader().row(statement.text(&runner.name).text(runner.incarnation)).await?;
        Ok(found.is_some())
    }

    async fn one_pod(&self, statement: Statement) -> Result<Option<PodSandbox>, StoreError> {
        Ok(self.engine.write(One::<Pod>::new(statement)).await?.into_iter().next())
    }
}

#[async_trait]
impl<E: Engine> PodStore for SqlStore<E> {
    async fn add_pod(&self, pod: PodSandbox) -> Result<(), StoreError> {
        let statement = Self::at(
            "INSERT INTO sandboxes (id, tenant, pod, agent, agent_version, pool, session, state, created_at, changed_at) \
             VALUES ($1, $2, $3, $4, $5, $6, $7, 'starting', {now}, {now}) ON CONFLICT DO NOTHING RETURNING id",
        )
        .text(pod.id)
        .text(&pod.tenant.0)
        .text(&pod.pod)
        .text(pod.agent)
        .integer(pod.agent_version.into())
        .text(&pod.pool)
        .optional_text(pod.session);
        if self.count(statement).await? == 0 {
            return Err(StoreError::Conflict("the session has a sandbox already, or the sandbox is there".to_owned()));
        }
        Ok(())
    }

    async fn admit_pod(&self, pod: &PodIdentity, runner: &RunnerId) -> Result<Option<PodSandbox>, StoreError> {
        let statement = Self::at(concat!(
            "UPDATE sandboxes SET pod_uid = $3, node = $4, runner = $5, runner_incarnation = $6, changed_at = {now}, \
             state = CASE WHEN session IS NULL THEN state ELSE 'claimed' END WHERE tenant = $1 AND pod = $2 AND state <> 'deleting' AND (pod_uid IS NULL OR pod_uid = $3) \
             AND (node IS NULL OR node = $4) \
             AND EXISTS (SELECT 1 FROM runners WHERE runners.name = $5 AND runners.incarnation = $6) RETURNING ",
            pod_columns!()
        ))
        .text(&pod.namespace)
        .text(&pod.pod)
        .text(&pod.pod_uid)
        .text(&pod.node)
        .text(&runner.name)
        .text(runner.incarnation);
        match self.one_pod(statement).await? {
            None if !self.has_runner(runner).await? => Err(StoreError::Unavailable(format!(
                "the runner {} is not registered (any more): it registers again",
                runner.name
            ))),
            admitted => Ok(admitted),
        }
    }

    async fn set_idle_timeout(&self, tenant: &TenantId, agent: AgentId, timeout: Duration) -> Result<(), StoreError> {
        if self.idle_timeout(tenant, agent).await? == Some(timeout) {
            return Ok(());
        }
        let statement =
            Statement::new("UPDATE agents SET idle_seconds = $3 WHERE tenant = $1 AND id = $2 RETURNING id");
        let seconds = i64::try_from(timeout.as_secs()).unwrap_or(i64::MAX);
        self.count(statement.text(&tenant.0).text(agent).integer(seconds)).await?;
        Ok(())
    }

    async fn idle_timeout(&self, tenant: &TenantId, agent: AgentId) -> Result<Option<Duration>, StoreError> {
        let statement = Statement::new("SELECT idle_seconds FROM agents WHERE tenant = $1 AND id = $2");
        let Some(row) = self.engine.reader().row(statement.text(&tenant.0).text(agent)).await? else { return Ok(None) };
        Ok(rows::optional_number(&row, "idle_seconds")?.map(Duration::from_secs))
    }

    async fn pod_is_warm(&self, id: SandboxId) -> Result<bool, StoreError> {
        let statement = Self::at(
            "UPDATE sandboxes SET state = 'warm', \
             changed_at = CASE WHEN state = 'warm' THEN changed_at ELSE {now} END \
             WHERE id = $1 AND session IS NULL AND state IN ('starting', 'warm') RETURNING id",
        );
        Ok(self.count(statement.text(id)).await? > 0)
    }

    async fn claim_warm(
        &self,
        tenant: &TenantId,
        agent: AgentId,
        version: u32,
        session: SessionId,
    ) -> Result<Option<PodSandbox>, StoreError> {
        let claim = |text: &str| {
            Statement::kept(text.replace("{now}", E::NOW).replace("{skip}", E::SKIP_LOCKED))
                .text(&tenant.0)
                .text(agent)
                .integer(version.into())
                .text(session)
                .integer(i64::try_from(LOST_AFTER.as_millis()).unwrap_or(i64::MAX))
        };
        for text in [CLAIM_OF_ONE_RUNNER, CLAIM_OF_ANY] {
            match self.one_pod(claim(text)).await {
                Ok(None) => {}
                // The session has one already.
                Err(StoreError::Conflict(_)) => break,
                claimed => return claimed,
            }
        }
        // There is none to claim, beside the one that the session may have.
        self.pod_of(session).await
    }

    async fn delete_unclaimed_pod(&self, id: SandboxId) -> Result<bool, StoreError> {
        let statement = Self::at(
            "UPDATE sandboxes SET state = 'deleting', changed_at = {now} \
             WHERE id = $1 AND (state = 'warm' OR (state = 'starting' AND session IS NULL)) RETURNING id",
        );
        Ok(self.count(statement.text(id)).await? > 0)
    }

    async fn delete_pod(&self, id: SandboxId) -> Result<bool, StoreError> {
        let statement = Self::at(
            "UPDATE sandboxes SET state = 'deleting', changed_at = {now} WHERE id = $1 AND state <> 'deleting' RETURNING id",
        );
        Ok(self.count(statement.text(id)).await? > 0)
    }

    async fn remove_pod(&self, id: SandboxId) -> Result<(), StoreError> {
        self.count(Statement::new("DELETE FROM sandboxes WHERE id = $1 RETURNING id").text(id)).await.map(|_| ())
    }

    async fn pod_of(&self, session: SessionId) -> Result<Option<PodSandbox>, StoreError> {
        let statement = Statement::new(concat!(
            "SELECT ",
            pod_columns!(),
            " FROM sandboxes WHERE session = $1 AND state <> 'deleting'"
        ));
        let row = self.engine.reader().row(statement.text(session)).await?;
        Ok(row.as_ref().map(Pod::read).transpose()?)
    }

    async fn pods(&self, tenant: Option<&TenantId>) -> Result<Vec<PodSandbox>, StoreError> {
        let statement = match tenant {
            None => Statement::new(concat!("SELECT ", pod_columns!(), " FROM sandboxes ORDER BY id")),
            Some(tenant) => {
                Statement::new(concat!("SELECT ", pod_columns!(), " FROM sandboxes WHERE tenant = $1 ORDER BY id"))
                    .text(&tenant.0)
            }
        };
        let found = self.engine.reader().rows(statement).await?;
        Ok(found.iter().map(Pod::read).collect::<Result<_, _>>()?)
    }
}

#[cfg(test)]
mod tests {
    use ash_core::ports::PodState;

    use super::{state, state_name};

    #[test]
    fn every_state_comes_back() {
        for one in [PodState::Starting, PodState::Warm, PodState::Claimed, PodState::Deleting] {
            assert!(matches!(state(state_name(one)), Ok(found) if found == one));
        }
        assert!(state("bored").is_err());
    }
}
