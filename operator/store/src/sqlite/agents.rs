//! Agents and their versions.

use ash_core::{
    agent::{Agent, AgentVersion},
    id::{AgentId, TenantId},
    ports::{AgentStore, DeployAgent, StoreError},
};
use async_trait::async_trait;
use bytes::Bytes;
use sqlx::{Row, SqliteConnection, SqliteExecutor};

use super::{
    SqliteStore,
    bundles::{self, Upload},
    rows::{self, agent_columns},
    writer::Write,
};
use crate::{cache::Caches, fault::Fault};

#[async_trait]
impl AgentStore for SqliteStore {
    async fn deploy_agent(&self, mut deploy: DeployAgent) -> Result<Agent, StoreError> {
        let bundle = std::mem::take(&mut deploy.bundle);
        let upload = self.upload(&deploy.tenant, &deploy.digest, &bundle).await?;
        let deployed = self.writer.write(Deploy { deploy, upload: upload.clone() }).await;
        if let (Err(_), Some(upload)) = (&deployed, upload) {
            self.discard_unnamed(upload).await;
        }
        deployed
    }

    async fn agent(&self, tenant: &TenantId, name_or_slug: &str) -> Result<Option<Agent>, StoreError> {
        let key = (tenant.clone(), name_or_slug.to_owned());
        let ticket = match self.caches.agents.get(&key) {
            Ok(agent) => return Ok(Some(Agent::clone(&agent))),
            Err(ticket) => ticket,
        };
        let Some(agent) = find(&self.readers, tenant, name_or_slug).await? else { return Ok(None) };
        self.caches.agents.fill(ticket, key, agent.clone().into());
        Ok(Some(agent))
    }

    async fn agents(&self, tenant: &TenantId) -> Result<Vec<Agent>, StoreError> {
        let found = sqlx::query(concat!(
            "SELECT ",
            agent_columns!(),
            " FROM agents JOIN agent_versions ON agent_versions.tenant = agents.tenant \
             AND agent_versions.agent = agents.id AND agent_versions.number = agents.current_version \
             WHERE agents.tenant = $1 AND agents.deleted_at IS NULL ORDER BY agents.name"
        ))
        .bind(&tenant.0)
        .fetch_all(&self.readers)
        .await
        .map_err(Fault::from)?;
        Ok(found.iter().map(rows::agent).collect::<Result<_, _>>()?)
    }

    async fn agent_version(
        &self,
        tenant: &TenantId,
        agent: AgentId,
        number: u32,
    ) -> Result<Option<AgentVersion>, StoreError> {
        let key = (tenant.clone(), agent, number);
        let ticket = match self.caches.agent_versions.get(&key) {
            Ok(version) => return Ok(Some(AgentVersion::clone(&version))),
            Err(ticket) => ticket,
        };
        let row = sqlx::query(
            "SELECT tenant, agent, number, digest, settings FROM agent_versions \
             WHERE tenant = $1 AND agent = $2 AND number = $3",
        )
        .bind(&tenant.0)
        .bind(agent.to_string())
        .bind(i64::from(number))
        .fetch_optional(&self.readers)
        .await
        .map_err(Fault::from)?;
        let Some(row) = row else { return Ok(None) };
        let version = rows::agent_version(&row)?;
        self.caches.agent_versions.fill(ticket, key, version.clone().into());
        Ok(Some(version))
    }

    async fn delete_agent(&self, tenant: &TenantId, name_or_slug: &str) -> Result<bool, StoreError> {
        self.writer.write(Delete { tenant: tenant.clone(), name_or_slug: name_or_slug.to_owned() }).await
    }

    async fn bundle(&self, tenant: &TenantId, digest: &str) -> Result<Option<Bytes>, StoreError> {
        Ok(self.read_bundle(tenant, digest).await?)
    }
}

impl SqliteStore {
    /// Removes the bytes of a deployment that failed, unless it is in doubt and they have their name after all.
    async fn discard_unnamed(&self, upload: Upload) {
        let named = sqlx::query("SELECT size FROM bundles WHERE tenant = $1 AND upload = $2")
            .bind(&upload.tenant.0)
            .bind(upload.id.to_string())
            .fetch_optional(&self.readers)
            .await;
        if matches!(named, Ok(None)) {
            self.discard(upload).await;
        }
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

    async fn run(&self, connection: &mut SqliteConnection) -> Result<Agent, Fault> {
        let deploy = &self.deploy;
        if let Some(upload) = &self.upload {
            bundles::name(connection, upload, &deploy.digest).await?;
        }
        let known = find(&mut *connection, &deploy.tenant, deploy.name.as_str()).await?;
        let agent = match known {
            Some(known) if known.name == deploy.name => self.next_version(known),
            Some(other) => return Err(taken(deploy.name.as_str(), &other).into()),
            None => self.first_version(),
        };
        save(connection, &agent).await?;
        for name in std::iter::once(agent.name.as_str()).chain(agent.slug.as_deref()) {
            take_name(connection, &agent, name).await?;
        }
        sqlx::query(
            "INSERT INTO agent_versions (tenant, agent, number, digest, settings, created_at) \
             VALUES ($1, $2, $3, $4, $5, $6)",
        )
        .bind(&agent.tenant.0)
        .bind(agent.id.to_string())
        .bind(i64::from(agent.version.number))
        .bind(&agent.version.digest)
        .bind(rows::to_json(&agent.version.settings)?)
        .bind(agent.updated_at.as_millisecond())
        .execute(connection)
        .await?;
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

async fn find(database: impl SqliteExecutor<'_>, tenant: &TenantId, name: &str) -> Result<Option<Agent>, Fault> {
    let row = sqlx::query(concat!(
        "SELECT ",
        agent_columns!(),
        " FROM agent_names JOIN agents ON agents.tenant = agent_names.tenant AND agents.id = agent_names.agent \
         JOIN agent_versions ON agent_versions.tenant = agents.tenant AND agent_versions.agent = agents.id \
         AND agent_versions.number = agents.current_version \
         WHERE agent_names.tenant = $1 AND agent_names.name = $2"
    ))
    .bind(&tenant.0)
    .bind(name)
    .fetch_optional(database)
    .await?;
    row.as_ref().map(rows::agent).transpose()
}

/// Writes the agent's row and frees the names that it no longer has.
async fn save(connection: &mut SqliteConnection, agent: &Agent) -> Result<(), Fault> {
    sqlx::query(
        "INSERT INTO agents (tenant, id, name, slug, description, current_version, created_at, updated_at) \
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8) \
         ON CONFLICT (tenant, id) DO UPDATE SET slug = excluded.slug, description = excluded.description, \
         current_version = excluded.current_version, updated_at = excluded.updated_at",
    )
    .bind(&agent.tenant.0)
    .bind(agent.id.to_string())
    .bind(agent.name.as_str())
    .bind(agent.slug.as_deref())
    .bind(agent.description.as_deref())
    .bind(i64::from(agent.version.number))
    .bind(agent.created_at.as_millisecond())
    .bind(agent.updated_at.as_millisecond())
    .execute(&mut *connection)
    .await?;
    sqlx::query("DELETE FROM agent_names WHERE tenant = $1 AND agent = $2")
        .bind(&agent.tenant.0)
        .bind(agent.id.to_string())
        .execute(connection)
        .await?;
    Ok(())
}

async fn take_name(connection: &mut SqliteConnection, agent: &Agent, name: &str) -> Result<(), Fault> {
    sqlx::query(
        "INSERT INTO agent_names (tenant, name, agent) VALUES ($1, $2, $3) ON CONFLICT (tenant, name) DO NOTHING",
    )
    .bind(&agent.tenant.0)
    .bind(name)
    .bind(agent.id.to_string())
    .execute(&mut *connection)
    .await?;
    let row = sqlx::query("SELECT agent FROM agent_names WHERE tenant = $1 AND name = $2")
        .bind(&agent.tenant.0)
        .bind(name)
        .fetch_one(&mut *connection)
        .await?;
    if row.try_get::<String, _>("agent")? == agent.id.to_string() {
        return Ok(());
    }
    match find(&mut *connection, &agent.tenant, name).await? {
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

    async fn run(&self, connection: &mut SqliteConnection) -> Result<bool, Fault> {
        let Some(agent) = find(&mut *connection, &self.tenant, &self.name_or_slug).await? else { return Ok(false) };
        let now = rows::now().as_millisecond();
        sqlx::query("UPDATE agents SET deleted_at = $3, updated_at = $3 WHERE tenant = $1 AND id = $2")
            .bind(&self.tenant.0)
            .bind(agent.id.to_string())
            .bind(now)
            .execute(&mut *connection)
            .await?;
        sqlx::query("DELETE FROM agent_names WHERE tenant = $1 AND agent = $2")
            .bind(&self.tenant.0)
            .bind(agent.id.to_string())
            .execute(connection)
            .await?;
        Ok(true)
    }

    fn committed(&self, _deleted: &bool, caches: &Caches) {
        caches.agents_written();
    }
}
