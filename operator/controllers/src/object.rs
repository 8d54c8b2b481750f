//! What both kinds have in common: finalizers, status, references.

use std::fmt::Debug;

use ash_crd::names;
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{
    Api, Resource, ResourceExt as _,
    api::{PartialObjectMeta, Patch, PatchParams},
    core::DeserializeGuard,
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Value, json};

use crate::{error::unless_gone, limits::FINALIZER_BOUND};

/// An object that may be malformed.
pub(crate) type Guard<K> = DeserializeGuard<K>;

/// Since when an object is being deleted.
pub(crate) fn deleting_since(object: &impl Resource) -> Option<Timestamp> {
    object.meta().deletion_timestamp.as_ref().map(|time| time.0)
}

/// Whether a deletion that began then has waited for our finalizer for as long as it may.
pub(crate) fn is_late(deleting_since: Timestamp, now: Timestamp) -> bool {
    let bound = SignedDuration::try_from(FINALIZER_BOUND).unwrap_or(SignedDuration::MAX);
    now.duration_since(deleting_since) >= bound
}

/// Whether an object waits to be deleted for our finalizer, and has for too long.
pub(crate) fn is_held_up(object: &impl Resource) -> bool {
    has_finalizer(object) && deleting_since(object).is_some_and(|since| is_late(since, Timestamp::now()))
}

/// When an object was made.
pub(crate) fn created_at(object: &impl Resource) -> Timestamp {
    object.meta().creation_timestamp.as_ref().map_or_else(Timestamp::now, |time| time.0)
}

pub(crate) fn has_finalizer(object: &impl Resource) -> bool {
    object.finalizers().iter().any(|finalizer| finalizer == names::FINALIZER)
}

/// Adds or removes our finalizer, with labels; refused with a conflict where the object is not the one that was looked at: others
/// have finalizers, too.
pub(crate) async fn set_finalizer<K>(api: &Api<K>, object: &K, on: bool, labels: Value) -> Result<(), kube::Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    patch_finalizer(api, object, on, labels).await
}

/// Removes our finalizer from an object of which only the metadata is known.
pub(crate) async fn take_off<K>(api: &Api<K>, object: &PartialObjectMeta<K>) -> Result<(), kube::Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    patch_finalizer(api, object, false, Value::Null).await
}

async fn patch_finalizer<K>(api: &Api<K>, object: &impl Resource, on: bool, labels: Value) -> Result<(), kube::Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let mut finalizers: Vec<String> = object.finalizers().to_vec();
    finalizers.retain(|finalizer| finalizer != names::FINALIZER);
    if on {
        finalizers.push(names::FINALIZER.to_owned());
    }
    let mut metadata = json!({
        "resourceVersion": object.resource_version(),
        "uid": object.uid(),
        "finalizers": finalizers,
    });
    if !labels.is_null() {
        metadata["labels"] = labels;
    }
    let parameters =
        PatchParams { field_manager: Some(names::FIELD_MANAGER_OPERATOR.into()), ..PatchParams::default() };
    let patch = Patch::Merge(json!({ "metadata": metadata }));
    unless_gone(api.patch_metadata(&object.name_any(), &parameters, &patch).await)?;
    Ok(())
}

/// Writes a whole status, by server-side apply: fields that it has no more are removed.
pub(crate) async fn write_status<K>(api: &Api<K>, object: &K, status: &impl Serialize) -> Result<(), kube::Error>
where
    K: Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug,
{
    let parameters = PatchParams::apply(names::FIELD_MANAGER_STATUS).force();
    let patch = json!({
        "apiVersion": K::api_version(&()),
        "kind": K::kind(&()),
        // Never the status of another object of the same name.
        "metadata": { "name": object.name_any(), "uid": object.uid() },
        "status": status,
    });
    let result = api.patch_status(&object.name_any(), &parameters, &Patch::Apply(patch)).await;
    match result {
        Ok(_) => Ok(()),
        Err(error) if crate::error::is_gone(&error) || crate::error::is_conflict(&error) => Ok(()),
        Err(error) => Err(error),
    }
}

/// The reference to whom a pod goes with. It does not hold up its owner's deletion.
pub(crate) fn owner<K: Resource<DynamicType = ()>>(object: &K) -> Option<OwnerReference> {
    let mut owner = object.controller_owner_ref(&())?;
    owner.block_owner_deletion = None;
    Some(owner)
}
