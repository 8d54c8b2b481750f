//! What precedes an uninstall: nothing of Ash runs in the served namespaces any more, and nothing there waits for an operator
//! that will not come. Agents and Sessions stay, as people's own.
//!
//! Runners and API still run then: they write down how far each session is as its pod goes. No operator may act meanwhile, or it
//! would put everything back, so the lease is taken from them all.

use std::fmt::Debug;

use ash_crd::{Agent, Session, names};
use k8s_openapi::{
    NamespaceResourceScope,
    api::{
        coordination::v1::Lease,
        core::v1::{Pod, ServiceAccount},
    },
    apimachinery::pkg::apis::meta::v1::OwnerReference,
};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::{DeleteParams, ListParams, PartialObjectMeta, PostParams},
};
use serde::de::DeserializeOwned;
use tokio::time::{Instant, sleep};

use crate::{
    error::{is_conflict, is_gone, unless_gone},
    leader::{LEASE_NAME, UNINSTALLER, spec},
    limits::{LEASE, UNINSTALL_BOUND, UNINSTALL_LOOK},
    object,
};

/// The operators' service account, whose end is the lease's.
const ACCOUNT: &str = "ash-operator";
/// Objects of one page of a listing.
const PAGE: u32 = 500;

/// What was let go of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Released {
    /// Pods that were removed: sandboxes, and those that clone.
    pub pods: usize,
    /// Agents and Sessions that no operator has to look at before they go.
    pub resources: usize,
}

/// Why not everything could be let go of. Doing it again goes on where it ended.
#[derive(Debug, thiserror::Error)]
pub enum UninstallError {
    /// The API server refused, or does not answer.
    #[error("{what}: {error}; run it again")]
    Refused {
        /// What was tried.
        what: String,
        /// What was said.
        error: Box<kube::Error>,
    },
    /// Pods stay.
    #[error("in the namespace {namespace} pods of Ash do not go within {} s: {pods}; look at them, then run it again", UNINSTALL_BOUND.as_secs())]
    Pods {
        /// The namespace.
        namespace: String,
        /// Their names.
        pods: String,
    },
}

fn refused(what: impl Into<String>) -> impl FnOnce(kube::Error) -> UninstallError {
    let what = what.into();
    |error| UninstallError::Refused { what, error: Box::new(error) }
}

/// Lets go of everything in the served namespaces, with the operators of `system` still running. Takes some 15 s at the least.
///
/// A served namespace that is gone, or in which nothing may be done any more, is passed over.
///
/// # Errors
/// The first thing that could not be done.
pub async fn uninstall(client: &Client, namespaces: &[String], system: &str) -> Result<Released, UninstallError> {
    take_lease(client, system).await?;
    // Whoever had it finds out when it renews it, and has stopped by then.
    sleep(LEASE).await;
    let mut released = Released::default();
    for namespace in namespaces {
        let pods: Api<Pod> = Api::namespaced(client.clone(), namespace);
        let ours = ListParams::default().labels(&format!("{}={}", names::MANAGED_BY, names::MANAGER)).limit(PAGE);
        match remove(&pods, &ours, namespace).await? {
            Some(removed) => released.pods += removed,
            None => {
                tracing::warn!(%namespace, "nothing may be done in this namespace: it is passed over");
                continue;
            }
        }
        released.resources += let_go::<Session>(client, namespace).await?;
        released.resources += let_go::<Agent>(client, namespace).await?;
    }
    Ok(released)
}

/// Takes the lease from whoever has it, and has it go with the operators' account.
async fn take_lease(client: &Client, system: &str) -> Result<(), UninstallError> {
    let leases: Api<Lease> = Api::namespaced(client.clone(), system);
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), system);
    let account = accounts.get_opt(ACCOUNT).await.map_err(refused("the operators' account cannot be read"))?;
    let owner = account.and_then(|account| {
        Some(vec![OwnerReference {
            api_version: "v1".to_owned(),
            kind: "ServiceAccount".to_owned(),
            name: ACCOUNT.to_owned(),
            uid: account.metadata.uid?,
            ..OwnerReference::default()
        }])
    });
    let begun = Instant::now();
    loop {
        let taken = match leases.get_opt(LEASE_NAME).await.map_err(refused("the lease cannot be read"))? {
            Some(mut lease) => {
                let before = lease.spec.as_ref().and_then(|spec| spec.lease_transitions).unwrap_or_default();
                lease.spec = Some(spec(UNINSTALLER, before.saturating_add(1)));
                lease.metadata.owner_references.clone_from(&owner);
                leases.replace(LEASE_NAME, &PostParams::default(), &lease).await
            }
            // No operator ever acted.
            None => return Ok(()),
        };
        match taken {
            Ok(_) => return Ok(()),
            // It was renewed just then.
            Err(error) if is_conflict(&error) && begun.elapsed() < UNINSTALL_BOUND => {}
            Err(error) => return Err(refused("the lease cannot be taken")(error)),
        }
    }
}

/// Deletes pods, and waits until they are gone; how many there were. `None` where that is not allowed.
async fn remove(pods: &Api<Pod>, ours: &ListParams, namespace: &str) -> Result<Option<usize>, UninstallError> {
    let begun = Instant::now();
    let mut removed = 0;
    loop {
        let there = match pods.list(ours).await {
            Ok(there) => there.items,
            Err(error) if is_forbidden(&error) => return Ok(None),
            Err(error) => return Err(refused(format!("the pods of {namespace} cannot be listed"))(error)),
        };
        if there.is_empty() {
            return Ok(Some(removed));
        }
        if begun.elapsed() > UNINSTALL_BOUND {
            let pods: Vec<String> = there.iter().map(kube::ResourceExt::name_any).collect();
            return Err(UninstallError::Pods { namespace: namespace.to_owned(), pods: pods.join(", ") });
        }
        for pod in there.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()) {
            let deleted = pods.delete(&pod.name_any(), &DeleteParams::default()).await;
            unless_gone(deleted).map_err(refused(format!("a pod of {namespace} cannot be deleted")))?;
            removed += 1;
        }
        sleep(UNINSTALL_LOOK).await;
    }
}

/// Takes our finalizer off all objects of a kind; from how many.
async fn let_go<K>(client: &Client, namespace: &str) -> Result<usize, UninstallError>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope> + Clone + DeserializeOwned + Debug,
{
    let api: Api<K> = Api::namespaced(client.clone(), namespace);
    let kind = K::plural(&());
    let mut released = 0;
    let mut page = ListParams::default().limit(PAGE);
    loop {
        // Metadata only: one that this release cannot read is let go of, too.
        let listed = match api.list_metadata(&page).await {
            Ok(listed) => listed,
            // The definitions are gone, or the rights.
            Err(error) if is_gone(&error) || is_forbidden(&error) => return Ok(released),
            Err(error) => return Err(refused(format!("the {kind} of {namespace} cannot be listed"))(error)),
        };
        for object in &listed.items {
            released += usize::from(release(&api, object, namespace).await?);
        }
        page.continue_token = listed.metadata.continue_.filter(|token| !token.is_empty());
        if page.continue_token.is_none() {
            return Ok(released);
        }
    }
}

/// Takes our finalizer off an object, however often somebody else changes it meanwhile; whether it had one.
async fn release<K>(api: &Api<K>, object: &PartialObjectMeta<K>, namespace: &str) -> Result<bool, UninstallError>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let name = object.name_any();
    let failed = || refused(format!("{name} in {namespace} cannot be let go of"));
    let begun = Instant::now();
    let mut object = object.clone();
    while object::has_finalizer(&object) {
        match object::take_off(api, &object).await {
            Ok(()) => return Ok(true),
            Err(error) if is_conflict(&error) && begun.elapsed() < UNINSTALL_BOUND => {
                match api.get_metadata_opt(&name).await.map_err(failed())? {
                    Some(now) => object = now,
                    None => return Ok(true),
                }
            }
            Err(error) => return Err(failed()(error)),
        }
    }
    Ok(false)
}

/// The namespace is gone with the role that was in it, or is not served.
fn is_forbidden(error: &kube::Error) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == 403)
}
