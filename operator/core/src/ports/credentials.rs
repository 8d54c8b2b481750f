//! Stored credentials: encrypted in the store, in the clear only in memory.

use async_trait::async_trait;
use jiff::Timestamp;
use secrecy::SecretBox;
use uuid::Uuid;

use super::StoreError;
use crate::id::TenantId;

/// What a credential is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CredentialKind {
    /// A key of the Anthropic API, sent as `x-api-key`.
    AnthropicKey,
    /// A token of the Anthropic API, sent as `Authorization: Bearer`.
    AnthropicToken,
    /// Variables for the sandbox, visible to the agent by choice: a JSON object of texts.
    Custom,
}

/// A credential, without its secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    /// Its id.
    pub id: Uuid,
    /// Whose it is.
    pub tenant: TenantId,
    /// What people call it. One that the operator copied from a Secret is named by it: `secret/NAME/KEY`.
    pub name: String,
    /// What it is for.
    pub kind: CredentialKind,
    /// When it was made.
    pub created_at: Timestamp,
}

/// A secret in the clear. Cannot be printed; its memory is cleared.
pub type Clear = SecretBox<[u8]>;

/// Credentials. The store encrypts with AES-256-GCM under the key that it was opened with; the row's id, tenant and kind are
/// authenticated with it, so that a row cannot be passed off as another.
#[async_trait]
pub trait CredentialStore: Send + Sync {
    /// Adds a credential, or replaces the one of this name.
    async fn put_credential(
        &self,
        tenant: &TenantId,
        name: &str,
        kind: CredentialKind,
        secret: &Clear,
    ) -> Result<Credential, StoreError>;

    /// Credentials of a tenant, newest first.
    async fn credentials(&self, tenant: &TenantId) -> Result<Vec<Credential>, StoreError>;

    /// A credential with its secret.
    async fn reveal_credential(&self, tenant: &TenantId, id: Uuid) -> Result<Option<(Credential, Clear)>, StoreError>;

    /// The credential of a name, with its secret.
    async fn reveal_credential_named(
        &self,
        tenant: &TenantId,
        name: &str,
    ) -> Result<Option<(Credential, Clear)>, StoreError>;

    /// Deletes the credential of a name; false when there is none.
    async fn delete_credential_named(&self, tenant: &TenantId, name: &str) -> Result<bool, StoreError>;

    /// Deletes a credential; false when there is none.
    async fn delete_credential(&self, tenant: &TenantId, id: Uuid) -> Result<bool, StoreError>;
}
