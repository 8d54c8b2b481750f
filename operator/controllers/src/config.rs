//! What an operator is told, and what it works with.

use std::{fmt, path::PathBuf, sync::Arc};

use ash_core::ports::{
    ChangeStore, ConfigureStore, CredentialStore, MembershipStore, PodStore, Runner, RunnerRow, Store, StoreError,
};
use ash_pods::{git::Way, manifest::Installation};
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
    /// How pods that clone repositories reach them.
    pub clones: Clones,
}

/// How pods that clone repositories reach them.
#[derive(Debug, Clone, Default)]
pub struct Clones {
    /// The proxy for `https://`, without a password: tenants see it.
    pub https_proxy: Option<String>,
    /// What is reached without it.
    pub no_proxy: Option<String>,
    /// A file with authorities to trust, as PEM. Read for each clone: it changes while an operator runs.
    pub authorities: Option<PathBuf>,
}

impl Clones {
    /// The same with what is in the file just now. One that cannot be read is said, and left away: Git says what it misses.
    pub(crate) async fn way(&self) -> Way {
        let authorities = match &self.authorities {
            Some(path) => tokio::fs::read_to_string(path).await.map_err(|error| (path, error)).map(Some),
            None => Ok(None),
        };
        let authorities = authorities.unwrap_or_else(|(path, error)| {
            tracing::warn!(path = %path.display(), %error, "clones go without the installation's authorities");
            None
        });
        Way { https_proxy: self.https_proxy.clone(), no_proxy: self.no_proxy.clone(), authorities }
    }
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
    /// Options of sessions that change.
    pub configure: Arc<dyn ConfigureStore>,
    /// What places sessions and sends messages.
    pub runner: Arc<dyn Runner>,
}

impl fmt::Debug for Ports {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.debug_struct("Ports").finish_non_exhaustive()
    }
}
