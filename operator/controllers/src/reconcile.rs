//! One look at an object of either kind, and what becomes of it. It never fails: what did is tried again after a pause.

use std::{fmt::Debug, panic::AssertUnwindSafe, sync::Arc, time::Duration};

use ash_crd::Reason;
use futures::FutureExt as _;
use kube::{Resource, ResourceExt as _, runtime::controller::Action};
use serde::de::DeserializeOwned;

use crate::{error::StepError, namespace::Namespace, object::Guard};

/// A kind of objects that is looked after.
pub(crate) trait Kind:
    Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static
{
    /// What metrics, logs and pauses call it.
    const NAME: &'static str;

    /// Does what is next; gives when to look again although nothing happens.
    fn look(&self, namespace: &Arc<Namespace>) -> impl Future<Output = Result<Option<Duration>, StepError>> + Send;

    /// Writes why a look failed where its owner reads it.
    fn tell(
        &self,
        namespace: &Namespace,
        reason: Reason,
        message: &str,
    ) -> impl Future<Output = Result<(), StepError>> + Send;
}

/// Looks at an object, and does what is next.
pub(crate) async fn reconcile<K: Kind>(found: Arc<Guard<K>>, namespace: Arc<Namespace>) -> Action {
    let kind = K::NAME;
    let object = match &found.0 {
        Ok(object) => object,
        Err(malformed) => {
            namespace.metrics.malformed.inc();
            let name = malformed.metadata.name.as_deref().unwrap_or_default();
            tracing::warn!(namespace = %namespace.name, kind, name, error = %malformed.error, "an object cannot be read");
            let text = format!("this release cannot read the {kind}: {}", malformed.error);
            namespace.events.tell(&found.object_ref(&()), Reason::InternalError, &text).await;
            return Action::await_change();
        }
    };
    let name = object.name_any();
    // A defect that one object brings out stops the work on no other.
    let looked = AssertUnwindSafe(object.look(&namespace)).catch_unwind().await;
    let error = match looked {
        Ok(Ok(again)) => {
            namespace.metrics.look(kind, "ok");
            namespace.succeeded(kind, &name);
            return again.map_or_else(Action::await_change, Action::requeue);
        }
        Ok(Err(error)) => error,
        Err(_) => StepError::Internal("the operator failed on it: its log says more".to_owned()),
    };
    namespace.metrics.look(kind, error.category());
    tracing::warn!(namespace = %namespace.name, kind, name, %error, "an object is looked at again");
    if let Some(reason) = error.reason() {
        // The first error is the one that is reported.
        let _ = object.tell(&namespace, reason, &error.told()).await;
    }
    Action::requeue(namespace.failed(kind, &name))
}
