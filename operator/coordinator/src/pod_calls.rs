//! What runners ask about sandbox pods: which sandbox a bridge is, and how far it is.

use ash_core::{
    agent::AgentVersion,
    fleet::{Admitted, OfPod, Placed, RunnerId},
    id::TenantId,
    ports::{PodIdentity, RunnerError, StoreError},
    session::SessionState,
};

use crate::registry::Registry;

/// The tenant of a namespace: they have the same name, but for the default tenant's. A namespace that has its name by chance is
/// not served, and nobody's.
fn tenant(registry: &Registry, namespace: &str) -> Option<TenantId> {
    let is_default = registry.config.pods.as_ref().is_some_and(|pods| pods.default_namespace == namespace);
    let tenant = if is_default { TenantId::default_tenant() } else { TenantId(namespace.to_owned()) };
    (is_default || tenant != TenantId::default_tenant()).then_some(tenant)
}

/// Says which sandbox a pod is, and what its runner needs to begin. `None` where it is none, or is not wanted any more.
pub(crate) async fn admit(
    registry: &Registry,
    runner: &RunnerId,
    pod: &PodIdentity,
) -> Result<Option<Admitted>, StoreError> {
    let found = match tenant(registry, &pod.namespace) {
        Some(TenantId(namespace)) => {
            registry.store.admit_pod(&PodIdentity { namespace, ..pod.clone() }, runner).await?
        }
        None => None,
    };
    let admitted = match found {
        Some(pod) => admitted(registry, pod).await?,
        None => None,
    };
    if admitted.is_some() {
        registry.metrics.pods_admitted.inc();
    } else {
        tracing::info!(namespace = pod.namespace, pod = pod.pod, runner = %runner.name, "a pod's bridge was not admitted");
        registry.metrics.pods_refused.inc();
    }
    Ok(admitted)
}

async fn admitted(registry: &Registry, pod: ash_core::ports::PodSandbox) -> Result<Option<Admitted>, StoreError> {
    let agent = registry.store.agent_version(&pod.tenant, pod.agent, pod.agent_version).await?;
    let agent = agent.ok_or_else(|| StoreError::NotFound("the sandbox's agent is gone".to_owned()))?;
    let agent = with_idle_timeout(registry, agent).await?;
    let Some(id) = pod.session else {
        let agent = complete(registry, agent).await?;
        return Ok(Some(Admitted { pod, agent, placed: None }));
    };
    let session = registry.store.session(&pod.tenant, id).await?;
    let Some(session) = session.filter(|session| session.state != SessionState::Ended) else {
        registry.store.delete_pod(pod.id).await?;
        return Ok(None);
    };
    // Claude Code of one that its session has already has its variables.
    let agent = if session.sandbox == Some(pod.id) {
        registry.keys.complete_if_possible(agent).await
    } else {
        complete(registry, agent).await?
    };
    let model_key = registry.keys.of(&session, &agent.settings).await.unwrap_or_else(|error| {
        tracing::warn!(session = %session.id, %error, "a session has no model key");
        None
    });
    Ok(Some(Admitted { pod, agent, placed: Some(Placed { session, model_key }) }))
}

/// The version with how long its sessions may be without a turn, as the agent has it now.
pub(crate) async fn with_idle_timeout(
    registry: &Registry,
    mut agent: AgentVersion,
) -> Result<AgentVersion, StoreError> {
    if registry.config.pods.is_some() {
        let timeout = registry.store.idle_timeout(&agent.tenant, agent.agent).await?;
        agent.settings.idle_seconds = timeout.map(|timeout| timeout.as_secs());
    }
    Ok(agent)
}

/// The version with its secret variables: Claude Code is not started without them, and the pod's bridge dials again.
async fn complete(registry: &Registry, agent: AgentVersion) -> Result<AgentVersion, StoreError> {
    registry.keys.complete(agent).await.map_err(|error| match error {
        RunnerError::Store(error) => error,
        error => StoreError::NotFound(error.to_string()),
    })
}

/// A pod's Claude is ready: false where nobody can claim it.
pub(crate) async fn is_warm(registry: &Registry, of: &OfPod) -> Result<bool, StoreError> {
    registry.store.pod_is_warm(of.sandbox).await
}

/// A pod's sandbox is over: false where that was known.
pub(crate) async fn is_over(registry: &Registry, runner: &RunnerId, of: &OfPod) -> Result<bool, StoreError> {
    let reason = of.reason.as_deref().unwrap_or_default();
    tracing::info!(sandbox = %of.sandbox, runner = %runner.name, reason, "a pod's sandbox is over");
    registry.store.delete_pod(of.sandbox).await
}
