//! Kubernetes tokens beside API keys: who reviews them, and for which namespaces.

use std::{collections::BTreeSet, sync::Arc};

use anyhow::bail;
use ash_api::AccessConfig;
use ash_core::id::TenantId;
use ash_pods::access::KubernetesAccess;

use super::arguments::FleetArguments;

/// How the API takes Kubernetes tokens; `None` where it takes none. A server that keeps what people want in a cluster takes its
/// tokens too.
pub(super) async fn config(fleet: &FleetArguments) -> anyhow::Result<Option<AccessConfig>> {
    if !(fleet.kubernetes || fleet.kubernetes_auth) {
        return Ok(None);
    }
    let namespaces = namespaces(fleet)?;
    let reviews = Arc::new(KubernetesAccess::connect().await?);
    Ok(Some(AccessConfig { reviews, namespaces, default_namespace: fleet.default_namespace.clone() }))
}

/// The namespaces that are served: one at the least, and each with a tenant of its own.
pub(super) fn namespaces(fleet: &FleetArguments) -> anyhow::Result<BTreeSet<String>> {
    let names = fleet.namespaces.iter().map(|name| name.trim().to_owned());
    let namespaces: BTreeSet<_> = names.filter(|name| !name.is_empty()).collect();
    if namespaces.is_empty() {
        bail!(
            "a server of a cluster needs the namespaces that are served: name them with --namespaces or ASH_NAMESPACES"
        );
    }
    let tenant = TenantId::default_tenant();
    if namespaces.contains(&tenant.0) && fleet.default_namespace != tenant.0 {
        bail!(
            "the namespace {tenant} can only be served as the default tenant's: name it with --default-namespace, or do not \
             serve it"
        );
    }
    Ok(namespaces)
}
