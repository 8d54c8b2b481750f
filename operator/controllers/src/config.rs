//! What an operator is told, and what it works with.

use std::{fmt, sync::Arc};

use ash_core::ports::{ChangeStore, CredentialStore, MembershipStore, PodStore, Runner, RunnerRow, Store, StoreError};
use ash_pods::manifest::Installation;
use async_trait::async_trait;

/// What an operator is told.
#[derive(Debug, Clone)]
pub struct OperatorConfig {
    /// The namespaces that it serves. It touches nothing in any other.
    pub namespaces: Vec<String>,
    /// The one of the default tenant; every other tenant is called like its namespace.
    pub default_namespace: String,
    /// The namespace of the runners' Services and of the lease.
    pub system_namespace: String,
    /// Who it is among its like: its pod's name.
    pub identity: String,
    /// Where people reach the API; sessions have their address from it.
    pub public_url: Option<String>,
    /// What is the same for every sandbox.
    pub installation: Installation,
}

/// The runners that there are: all that an operator has to know of membership.
#[async_trait]
pub trait Fleet: Send + Sync {
    /// As [`MembershipStore::runners`].
    async fn runners(&self) -> Result<Vec<RunnerRow>, StoreError>;
}

/// The runners of a store.
pub struct Members(pub Arc<dyn MembershipStore>);

#[async_trait]
impl Fleet for Members {
    async fn runners(&self) -> Result<Vec<RunnerRow>, StoreError> {
        self.0.runners().await
    }
}

impl fmt::Debug for Members {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Members").finish_non_exhaustive()
    }
}

/// What an operator works with, beside the API server.
#[derive(Clone)]
pub struct Ports {
    /// Agents, sessions and logs.
    pub store: Arc<dyn Store>,
    /// What has changed there.
    pub changes: Arc<dyn ChangeStore>,
    /// The rows of sandboxes.
    pub pods: Arc<dyn PodStore>,
    /// The runners.
    pub fleet: Arc<dyn Fleet>,
    /// Copies of Secrets.
    pub credentials: Arc<dyn CredentialStore>,
    /// What places sessions and sends messages.
    pub runner: Arc<dyn Runner>,
}

impl fmt::Debug for Ports {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Ports").finish_non_exhaustive()
    }
}
