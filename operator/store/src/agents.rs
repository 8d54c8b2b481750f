//! Agents and their versions.

use ash_core::{
    agent::{Agent, AgentVersion},
    id::{AgentId, TenantId},
    name::AgentName,
    ports::{AgentStore, DeployAgent, StoreError},
};
use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;

use crate::{
    bundles::{self, Upload},
    cache::Caches,
    fault::Fault,
    rows::{self, agent_columns},
    sql::{Sql, Statement},
    store::{Engine, SqlStore, Write},
};

#[async_trait]
impl<E: Engine> AgentStore for SqlStore<E> {
    async fn deploy_agent(&self, mut deploy: DeployAgent) -> Result<Agent, StoreError> {
        let bundle = std::mem::take(&mut deploy.bundle);
        let upload = self.upload(&deploy.tenant, &deploy.digest, &bundle).await?;
        let deployed = self.engine.write(Deploy { deploy, upload: upload.clone() }).await;
        if let (Err(_), Some(upload)) = (&deployed, upload) {
            self.discard_unnamed(upload).await;
        }
        deployed
    }

    async fn describe_agent(
        &self,
        tenant: &TenantId,
        name: &AgentName,
        slug: Option<String>,
        description: Option<String>,
    ) -> Result<Agent, StoreError> {
        self.engine.write(Describe { tenant: tenant.clone(), name: name.clone(), slug, description }).await
    }

    async fn agent(&self, tenant: &TenantId, name_or_slug: &str) -> Result<Option<Agent>, StoreError> {
        let key = (tenant.clone(), name_or_slug.to_owned());
        let ticket = match self.caches.agents.get(&key) {
            Ok(agent) if self.is_current(&agent, name_or_slug).await? => return Ok(Some(Agent::clone(&agent))),
            Ok(_) => self.caches.agents.forget(&key),
            Err(ticket) => ticket,
        };
        let Some(agent) = find(&mut self.engine.reader(), tenant, name_or_slug).await? else { return Ok(None) };
        self.caches.agents.fill(ticket, key, agent.clone().into());
        Ok(Some(agent))
    }

    async fn agents(&self, tenant: &TenantId) -> Result<Vec<Agent>, StoreError> {
        let statement = Statement::new(concat!(
            "SELECT ",
            agent_columns!(),
            " FROM agents JOIN agent_versions ON agent_versions.tenant = agents.tenant \
             AND agent_versions.agent = agents.id AND agent_versions.number = agents.current_version \
             WHERE agents.tenant = $1 AND agents.deleted_at IS NULL"
        ))
        .text(&tenant.0);
        let found = self.engine.reader().rows(statement).await?;
        let mut agents = found.iter().map(rows::agent).collect::<Result<Vec<_>, _>>()?;
        // Not in the database: each has an order of its own for text.
        agents.sort_by(|one, other| one.name.as_str().cmp(other.name.as_str()));
        Ok(agents)
    }

    async fn agent_version(
        &self,
        tenant: &TenantId,
        agent: AgentId,
        number: u32,
    ) -> Result<Option<AgentVersion>, StoreError> {
        let key = (tenant.clone(), agent, number);
        // A version never changes, so that what is cached is right for any number of writers.
        let ticket = match self.caches.agent_versions.get(&key) {
            Ok(version) => return Ok(Some(AgentVersion::clone(&version))),
            Err(ticket) => ticket,
        };
        let statement = Statement::new(
            "SELECT tenant, agent, number, digest, settings FROM agent_versions \
             WHERE tenant = $1 AND agent = $2 AND number = $3",
        )
        .text(&tenant.0)
        .text(agent)
        .integer(number.into());
        let Some(row) = self.engine.reader().row(statement).await? else { return Ok(None) };
        let version = rows::agent_version(&row)?;
        self.caches.agent_versions.fill(ticket, key, version.clone().into());
        Ok(Some(version))
    }

    async fn delete_agent(&self, tenant: &TenantId, name_or_slug: &str) -> Result<bool, StoreError> {
        self.engine.write(Delete { tenant: tenant.clone(), name_or_slug: name_or_slug.to_owned() }).await
    }

    async fn bundle(&self, tenant: &TenantId, digest: &str) -> Result<Option<Bytes>, StoreError> {
        Ok(self.read_bundle(tenant, digest).await?)
    }
}

impl<E: Engine> SqlStore<E> {
    /// Whether a cached agent is what the database has under this name. What is no version is dated.
    async fn is_current(&self, agent: &Agent, name: &str) -> Result<bool, Fault> {
        if !E::IS_SHARED {
            return Ok(true);
        }
        let statement = Statement::new(
            "SELECT agents.id, agents.current_version, agents.updated_at FROM agent_names \
             JOIN agents ON agents.tenant = agent_names.tenant AND agents.id = agent_names.agent WHERE agent_names.tenant = $1 AND agent_names.name = $2",
        )
        .text(&agent.tenant.0)
        .text(name);
        let Some(row) = self.engine.reader().row(statement).await? else { return Ok(false) };
        let found: (AgentId, u32) = (rows::parsed(&row, "id")?, rows::number(&row, "current_version")?);
        let updated_at = rows::time(&row, "updated_at")?;
        Ok(found == (agent.id, agent.version.number) && updated_at == agent.updated_at)
    }
}

struct Deploy {
    /// Without the bundle's bytes.
    deploy: DeployAgent,
    /// They, where the tenant did not have the bundle.
    upload: Option<Upload>,
}

impl Write for Deploy {
    type Output = Agent;

    async fn run<S: Sql>(&self, sql: &mut S) -> Result<Agent, Fault> {
        let deploy = &self.deploy;
        if let Some(upload) = &self.upload {
            bundles::name(sql, upload, &deploy.digest).await?;
        }
        let known = find(sql, &deploy.tenant, deploy.name.as_str()).await?;
        let agent = match known {
            Some(known) if known.name == deploy.name => self.next_version(known),
            Some(other) => return Err(taken(deploy.name.as_str(), &other).into()),
            None => self.first_version(),
        };
        save(sql, &agent).await?;
        take_names(sql, &agent).await?;
        let statement = Statement::new(
            "INSERT INTO agent_versions (tenant, agent, number, digest, settings, created_at) \
             VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .text(&agent.tenant.0)
        .text(agent.id)
        .integer(agent.version.number.into())
        .text(&agent.version.digest)
        .text(rows::to_json(&agent.version.settings)?)
        .integer(agent.updated_at.as_millisecond());
        sql.execute(statement).await?;
        Ok(agent)
    }

    fn committed(&self, _agent: &Agent, caches: &Caches) {
        caches.agents_written();
    }
}

struct Describe {
    tenant: TenantId,
    name: AgentName,
    slug: Option<String>,
    description: Option<String>,
}

impl Write for Describe {
    type Output = Agent;

    // The same slug and description again are the same.
    const MAY_REPEAT: bool = true;

    async fn run<S: Sql>(&self, sql: &mut S) -> Result<Agent, Fault> {
        let known = find(sql, &self.tenant, self.name.as_str()).await?.filter(|known| known.name == self.name);
        let known = known.ok_or_else(|| StoreError::NotFound(format!("there is no agent {:?}", self.name.as_str())))?;
        let agent = Agent {
            slug: self.slug.clone().or(known.slug),
            description: self.description.clone().or(known.description),
            // Caches are compared by it.
            updated_at: later(known.updated_at),
            ..known
        };
        save(sql, &agent).await?;
        take_names(sql, &agent).await?;
        Ok(agent)
    }

    fn committed(&self, _agent: &Agent, caches: &Caches) {
        caches.agents_written();
    }
}

impl Deploy {
    fn first_version(&self) -> Agent {
        let (deploy, now, id) = (&self.deploy, rows::now(), AgentId::new());
        Agent {
            id,
            tenant: deploy.tenant.clone(),
            name: deploy.name.clone(),
            slug: deploy.slug.clone(),
            description: deploy.description.clone(),
            version: self.version(id, 1),
            created_at: now,
            updated_at: now,
        }
    }

    fn next_version(&self, known: Agent) -> Agent {
        Agent {
            slug: self.deploy.slug.clone().or(known.slug),
            description: self.deploy.description.clone().or(known.description),
            version: self.version(known.id, known.version.number.saturating_add(1)),
            updated_at: rows::now(),
            ..known
        }
    }

    fn version(&self, agent: AgentId, number: u32) -> AgentVersion {
        let deploy = &self.deploy;
        AgentVersion {
            agent,
            tenant: deploy.tenant.clone(),
            number,
            digest: deploy.digest.clone(),
            settings: deploy.settings.clone(),
        }
    }
}

/// Now, and never the time that was written last.
fn later(than: Timestamp) -> Timestamp {
    let next = Timestamp::from_millisecond(than.as_millisecond().saturating_add(1));
    rows::now().max(next.unwrap_or(than))
}

async fn find(sql: &mut impl Sql, tenant: &TenantId, name: &str) -> Result<Option<Agent>, Fault> {
    let statement = Statement::new(concat!(
        "SELECT ",
        agent_columns!(),
        " FROM agent_names JOIN agents ON agents.tenant = agent_names.tenant AND agents.id = agent_names.agent \
         JOIN agent_versions ON agent_versions.tenant = agents.tenant AND agent_versions.agent = agents.id \
         AND agent_versions.number = agents.current_version \
         WHERE agent_names.tenant = $1 AND agent_names.name = $2"
    ))
    .text(&tenant.0)
    .text(name);
    sql.row(statement).await?.as_ref().map(rows::agent).transpose()
}

/// Writes the agent's row and frees the names that it no longer has.
async fn save(sql: &mut impl Sql, agent: &Agent) -> Result<(), Fault> {
    let statement = Statement::new(
        "INSERT INTO agents (tenant, id, name, slug, description, current_version, created_at, updated_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8) \
         ON CONFLICT (tenant, id) DO UPDATE SET slug = excluded.slug, description = excluded.description, \
         current_version = excluded.current_version, updated_at = excluded.updated_at",
    )
    .text(&agent.tenant.0)
    .text(agent.id)
    .text(agent.name.as_str())
    .optional_text(agent.slug.as_deref())
    .optional_text(agent.description.as_deref())
    .integer(agent.version.number.into())
    .integer(agent.created_at.as_millisecond())
    .integer(agent.updated_at.as_millisecond());
    sql.execute(statement).await?;
    free_names(sql, agent).await
}

async fn free_names(sql: &mut impl Sql, agent: &Agent) -> Result<(), Fault> {
    let statement = Statement::new("DELETE FROM agent_names WHERE tenant = $1 AND agent = $2");
    sql.execute(statement.text(&agent.tenant.0).text(agent.id)).await?;
    Ok(())
}

async fn take_names(sql: &mut impl Sql, agent: &Agent) -> Result<(), Fault> {
    for name in std::iter::once(agent.name.as_str()).chain(agent.slug.as_deref()) {
        take_name(sql, agent, name).await?;
    }
    Ok(())
}

async fn take_name(sql: &mut impl Sql, agent: &Agent, name: &str) -> Result<(), Fault> {
    let statement = Statement::new(
        "INSERT INTO agent_names (tenant, name, agent) VALUES ($1, $2, $3) ON CONFLICT (tenant, name) DO NOTHING",
    );
    sql.execute(statement.text(&agent.tenant.0).text(name).text(agent.id)).await?;
    let statement = Statement::new("SELECT agent FROM agent_names WHERE tenant = $1 AND name = $2");
    let owner = sql.row(statement.text(&agent.tenant.0).text(name)).await?;
    let owner = owner.map(|row| rows::parsed::<AgentId>(&row, "agent")).transpose()?;
    if owner == Some(agent.id) {
        return Ok(());
    }
    match find(sql, &agent.tenant, name).await? {
        Some(other) => Err(taken(name, &other).into()),
        None => Err(Fault::damaged(format!("the name {name:?} belongs to an agent that is not there"))),
    }
}

fn taken(name: &str, other: &Agent) -> StoreError {
    StoreError::Conflict(format!(
        "agent {:?} is found by {name:?} already; take another name or slug",
        other.name.as_str()
    ))
}

struct Delete {
    tenant: TenantId,
    name_or_slug: String,
}

impl Write for Delete {
    type Output = bool;

    async fn run<S: Sql>(&self, sql: &mut S) -> Result<bool, Fault> {
        let Some(agent) = find(sql, &self.tenant, &self.name_or_slug).await? else { return Ok(false) };
        let statement =
            Statement::new("UPDATE agents SET deleted_at = $3, updated_at = $3 WHERE tenant = $1 AND id = $2")
                .text(&self.tenant.0)
                .text(agent.id)
                .integer(rows::now().as_millisecond());
        sql.execute(statement).await?;
        free_names(sql, &agent).await?;
        Ok(true)
    }

    fn committed(&self, _deleted: &bool, caches: &Caches) {
        caches.agents_written();
    }
}
