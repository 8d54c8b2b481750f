//! Where snapshots of workspaces are kept, and the collection of what none of them needs any more.

use std::{path::Path, sync::Arc, time::Duration};

use anyhow::Context;
use ash_core::{
    id::{SessionId, TenantId},
    ports::{Store, StoreError},
};
use ash_snapshot::{InvalidDigest, Vault, VaultError};
use jiff::Timestamp;
use prometheus_client::{metrics::counter::Counter, registry::Registry};
use tokio::time::sleep;

use super::arguments::SandboxArguments;

/// How often what no snapshot needs is looked for; the first time this long after the start.
const COLLECT_INTERVAL: Duration = Duration::from_hours(6);

/// The folder of the data directory that has the snapshots of a server by itself.
const FOLDER: &str = "snapshots";

/// What is counted of collections.
#[derive(Debug, Clone, Default)]
pub(crate) struct Collections {
    looks: Counter,
    removed: Counter,
    failed: Counter,
}

impl Collections {
    /// Counts that are shown.
    pub(crate) fn register(registry: &mut Registry) -> Self {
        let counts = Self::default();
        for (name, help, counter) in [
            ("ash_snapshots_collections", "Looks for what no snapshot needs", &counts.looks),
            ("ash_snapshots_collected", "Objects of the snapshot storage that nothing needed", &counts.removed),
            ("ash_snapshots_collections_failed", "Looks that found no end", &counts.failed),
        ] {
            registry.register(name, help, counter.clone());
        }
        counts
    }
}

/// The storage that is named, or else a folder of the data directory where there is one for that.
pub(crate) fn vault(arguments: &SandboxArguments, data: Option<&Path>) -> anyhow::Result<Option<Vault>> {
    let vault = match (&arguments.object_store, data) {
        (Some(address), _) => Vault::open(address),
        (None, Some(data)) => Vault::in_folder(&data.join(FOLDER)),
        (None, None) => return Ok(None),
    };
    Ok(Some(vault.context("snapshots of workspaces cannot be kept: name a folder or a bucket with --object-store")?))
}

/// Why nothing was collected.
#[derive(Debug, thiserror::Error)]
enum NotCollected {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Vault(#[from] VaultError),
    #[error("a snapshot has a name that is none: {0}")]
    Name(#[from] InvalidDigest),
}

/// Removes, again and again, what no snapshot needs. Several processes may do so at the same time, of one installation.
/// Ends with the process.
pub(crate) async fn collect(vault: Vault, store: Arc<dyn Store>, counts: Collections) {
    loop {
        sleep(COLLECT_INTERVAL).await;
        let tenants = match tenants(&vault, &*store).await {
            Ok(tenants) => tenants,
            Err(NotCollected::Vault(error @ VaultError::Foreign(_))) => {
                counts.failed.inc();
                tracing::error!(%error, "nothing is collected: what another installation needs is not known here");
                continue;
            }
            Err(error) => {
                counts.failed.inc();
                tracing::warn!(%error, "snapshots are collected later");
                continue;
            }
        };
        for tenant in tenants {
            counts.looks.inc();
            if let Err(error) = collect_of(&vault, &*store, &tenant, &counts).await {
                counts.failed.inc();
                tracing::warn!(tenant = tenant.0, %error, "snapshots of a tenant are collected later");
            }
        }
    }
}

/// Whose snapshots are collected, where the storage is this installation's.
async fn tenants(vault: &Vault, store: &dyn Store) -> Result<Vec<TenantId>, NotCollected> {
    vault.belongs_to(store.installation().await?).await?;
    vault.remove_unfinished().await?;
    Ok(store.tenants_with_sessions().await?)
}

async fn collect_of(
    vault: &Vault,
    store: &dyn Store,
    tenant: &TenantId,
    counts: &Collections,
) -> Result<(), NotCollected> {
    let named = store.snapshots_of(tenant).await?;
    // One that cannot be read stops it: what it needs is not known.
    let read = |(session, digest): (SessionId, String)| Ok((session.0, digest.parse()?));
    let manifests = named.into_iter().map(read).collect::<Result<Vec<_>, InvalidDigest>>()?;
    let collected = vault.collect(&tenant.0, &manifests, Timestamp::now()).await?;
    counts.removed.inc_by(collected.removed);
    tracing::info!(
        tenant = tenant.0,
        removed = collected.removed,
        bytes = collected.removed_bytes,
        kept = collected.kept,
        "snapshots were collected"
    );
    Ok(())
}
