//! The versions that runners keep sandboxes warm of: every agent's current one, as the store has them.

use std::sync::Arc;

use ash_core::{
    agent::AgentVersion,
    fleet::WarmList,
    ports::{RunnerError, StoreError},
};
use ash_protocol::fleet::runner;

use crate::{calls, limits::STREAM_BEGIN, registry::Registry};

/// Looks whether agents have changed, and tells the runners. Where sandboxes are pods the operator keeps them warm.
pub(crate) async fn refresh(registry: &Arc<Registry>) -> Result<(), StoreError> {
    if registry.config.pods.is_some() {
        return Ok(());
    }
    let stamp = registry.store.agents_stamp().await?;
    if registry.with(|inner| inner.stamp) == Some(stamp) {
        return Ok(());
    }
    let mut versions = Vec::new();
    for version in registry.store.current_versions().await? {
        let (agent, number) = (version.agent, version.number);
        match registry.keys.complete(version).await {
            Ok(version) => versions.push(version),
            Err(RunnerError::Store(error)) => return Err(error),
            Err(error) => tracing::warn!(%agent, version = number, %error, "a version is not kept warm"),
        }
    }
    let list = WarmList { revision: revision(&versions), versions };
    let has_changed = registry.with(|inner| {
        inner.stamp = Some(stamp);
        let has_changed = inner.warm.revision != list.revision;
        inner.warm = list;
        has_changed
    });
    if has_changed {
        push(registry);
    }
    Ok(())
}

/// Looks at once, behind the caller's back.
pub(crate) fn refresh_soon(registry: &Arc<Registry>) {
    let registry = Arc::clone(registry);
    tokio::spawn(async move {
        if let Err(error) = refresh(&registry).await {
            tracing::warn!(%error, "the list of warm versions is read a second later");
        }
    });
}

/// Gives every runner the list.
pub(crate) fn push(registry: &Arc<Registry>) {
    let list = registry.with(|inner| inner.warm.clone());
    for target in registry.targets() {
        let list = list.clone();
        tokio::spawn(async move {
            // One that does not get it says with its next heartbeat that it has another.
            if let Err(error) = calls::tell(&target, runner::WARM, STREAM_BEGIN, &list).await {
                tracing::debug!(runner = %target.id.name, %error, "a runner did not take the list of warm versions");
            }
        });
    }
}

/// The same for the same versions, on every coordinator (FNV-1a, 64 bits). Zero is the empty list's of a runner that has none.
fn revision(versions: &[AgentVersion]) -> u64 {
    let mut hash = 0xcbf2_9ce4_8422_2325_u64;
    for version in versions {
        for byte in version.agent.0.as_bytes().iter().copied().chain(version.number.to_le_bytes()) {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
        }
    }
    // A JSON number that every reader keeps exactly.
    (hash >> 11).max(1)
}
