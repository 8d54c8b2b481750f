//! Credentials: encrypted in their rows, with the row's id, tenant and kind authenticated.

use ash_core::{
    id::TenantId,
    ports::{Clear, Credential, CredentialKind, CredentialStore, StoreError},
};
use async_trait::async_trait;
use bytes::Bytes;
use secrecy::ExposeSecret as _;
use uuid::Uuid;

use crate::{
    fault::Fault,
    limits::{MAX_CREDENTIALS, MAX_SECRET_BYTES},
    one::{One, ReadRow},
    rows,
    seal::Broken,
    sql::{Columns, Sql, Statement},
    store::{Engine, SqlStore},
};

const COLUMNS: &str = "SELECT id, tenant, name, kind, created_at, sealed FROM credentials";

fn kind_name(kind: CredentialKind) -> &'static str {
    match kind {
        CredentialKind::AnthropicKey => "anthropic-key",
        CredentialKind::AnthropicToken => "anthropic-token",
        CredentialKind::Custom => "custom",
    }
}

fn kind(name: &str) -> Result<CredentialKind, Fault> {
    let all = [CredentialKind::AnthropicKey, CredentialKind::AnthropicToken, CredentialKind::Custom];
    let found = all.into_iter().find(|kind| kind_name(*kind) == name);
    found.ok_or_else(|| Fault::damaged(format!("a credential has the unknown kind {name:?}")))
}

/// What is authenticated: it names the row, and no two rows are alike in it.
fn identity(id: Uuid, tenant: &TenantId, kind: CredentialKind) -> Vec<u8> {
    format!("{id}\0{}\0{}", kind_name(kind), tenant.0).into_bytes()
}

fn explain(broken: Broken) -> StoreError {
    match broken {
        Broken::NoKey => StoreError::Conflict(
            "this server keeps no credentials: start it with a key for them (--credential-key-file)".to_owned(),
        ),
        Broken::OtherKey => StoreError::Conflict(
            "a credential was encrypted under a key that this server does not have: add that key behind the first one in \
             --credential-key-file, or store the credential anew"
                .to_owned(),
        ),
        Broken::Changed => StoreError::Damaged("a credential is not what was stored".to_owned()),
        Broken::NoRandom => StoreError::Unavailable("the system has no random numbers".to_owned()),
    }
}

fn credential(row: &impl Columns) -> Result<Credential, Fault> {
    Ok(Credential {
        id: rows::parsed(row, "id")?,
        tenant: TenantId(rows::text(row, "tenant")?),
        name: rows::text(row, "name")?,
        kind: kind(&rows::text(row, "kind")?)?,
        created_at: rows::time(row, "created_at")?,
    })
}

struct Plain;

impl ReadRow for Plain {
    type Output = Credential;

    fn read(row: &impl Columns) -> Result<Credential, Fault> {
        credential(row)
    }
}

impl<E: Engine> SqlStore<E> {
    async fn reveal(&self, statement: Statement) -> Result<Option<(Credential, Clear)>, StoreError> {
        let Some(row) = self.engine.reader().row(statement).await? else { return Ok(None) };
        let found = credential(&row)?;
        let identity = identity(found.id, &found.tenant, found.kind);
        let clear = self.keyring.open(&identity, &row.bytes("sealed")?).map_err(explain)?;
        Ok(Some((found, clear)))
    }

    async fn id_of(&self, tenant: &TenantId, name: &str) -> Result<Option<Uuid>, Fault> {
        let statement = Statement::new("SELECT id FROM credentials WHERE tenant = $1 AND name = $2");
        let row = self.engine.reader().row(statement.text(&tenant.0).text(name)).await?;
        row.map(|row| rows::parsed(&row, "id")).transpose()
    }

    async fn is_full(&self, tenant: &TenantId) -> Result<bool, Fault> {
        let statement = Statement::new("SELECT COUNT(*) AS total FROM credentials WHERE tenant = $1");
        let row = self.engine.reader().row(statement.text(&tenant.0)).await?;
        Ok(row.map(|row| rows::number::<i64>(&row, "total")).transpose()?.is_some_and(|total| total >= MAX_CREDENTIALS))
    }
}

#[async_trait]
impl<E: Engine> CredentialStore for SqlStore<E> {
    async fn put_credential(
        &self,
        tenant: &TenantId,
        name: &str,
        kind: CredentialKind,
        secret: &Clear,
    ) -> Result<Credential, StoreError> {
        if secret.expose_secret().len() > MAX_SECRET_BYTES {
            return Err(StoreError::Conflict(format!("a credential has at most {} KiB", MAX_SECRET_BYTES >> 10)));
        }
        loop {
            let before = self.id_of(tenant, name).await?;
            if before.is_none() && self.is_full(tenant).await? {
                return Err(StoreError::Conflict(format!("there are {MAX_CREDENTIALS} credentials: delete one first")));
            }
            let id = before.unwrap_or_else(Uuid::now_v7);
            let sealed = self.keyring.seal(&identity(id, tenant, kind), secret.expose_secret()).map_err(explain)?;
            // The id is authenticated: it is not changed where somebody else was faster, and then this is done again.
            let statement = Self::at(
                "INSERT INTO credentials (id, tenant, name, kind, created_at, sealed) VALUES ($1, $2, $3, $4, {now}, $5) \
                 ON CONFLICT (tenant, name) DO UPDATE SET kind = excluded.kind, sealed = excluded.sealed \
                 WHERE credentials.id = excluded.id RETURNING id, tenant, name, kind, created_at",
            )
            .text(id)
            .text(&tenant.0)
            .text(name)
            .text(kind_name(kind))
            .bytes(Bytes::from(sealed));
            if let Some(written) = self.engine.write(One::<Plain>::new(statement)).await?.into_iter().next() {
                return Ok(written);
            }
        }
    }

    async fn credentials(&self, tenant: &TenantId) -> Result<Vec<Credential>, StoreError> {
        let statement = Statement::new(
            "SELECT id, tenant, name, kind, created_at FROM credentials WHERE tenant = $1 \
             ORDER BY created_at DESC, id DESC",
        );
        let found = self.engine.reader().rows(statement.text(&tenant.0)).await?;
        Ok(found.iter().map(credential).collect::<Result<_, _>>()?)
    }

    async fn reveal_credential(&self, tenant: &TenantId, id: Uuid) -> Result<Option<(Credential, Clear)>, StoreError> {
        self.reveal(Statement::kept(format!("{COLUMNS} WHERE tenant = $1 AND id = $2")).text(&tenant.0).text(id)).await
    }

    async fn reveal_credential_named(
        &self,
        tenant: &TenantId,
        name: &str,
    ) -> Result<Option<(Credential, Clear)>, StoreError> {
        self.reveal(Statement::kept(format!("{COLUMNS} WHERE tenant = $1 AND name = $2")).text(&tenant.0).text(name))
            .await
    }

    async fn delete_credential_named(&self, tenant: &TenantId, name: &str) -> Result<bool, StoreError> {
        let statement = Statement::new("DELETE FROM credentials WHERE tenant = $1 AND name = $2 RETURNING id");
        Ok(self.count(statement.text(&tenant.0).text(name)).await? > 0)
    }

    async fn delete_credential(&self, tenant: &TenantId, id: Uuid) -> Result<bool, StoreError> {
        let statement = Statement::new("DELETE FROM credentials WHERE tenant = $1 AND id = $2 RETURNING id");
        Ok(self.count(statement.text(&tenant.0).text(id)).await? > 0)
    }
}
