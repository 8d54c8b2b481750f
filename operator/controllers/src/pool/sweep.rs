//! What belongs to nothing is cleared up: rows of sandboxes whose session is gone, and sessions whose resource was deleted while
//! nobody looked. Whatever is young is left alone: its other half may be on its way.

use std::{collections::HashSet, sync::Arc};

use ash_core::{
    id::SessionId,
    ports::{PodState, SessionFilter},
    session::{Closing, SessionState},
};
use jiff::{SignedDuration, Timestamp};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::{
    error::StepError,
    limits::{ORPHAN_AGE, SESSION_SWEEPS, SWEEP, SWEEP_PAGE},
    namespace::Namespace,
    session,
};

/// Sweeps until told to stop.
pub(crate) async fn keep(namespace: Arc<Namespace>, stop: CancellationToken) {
    let mut count = 0_u32;
    loop {
        let with_sessions = count.is_multiple_of(SESSION_SWEEPS);
        count = count.wrapping_add(1);
        if let Err(error) = sweep(&namespace, with_sessions).await {
            tracing::warn!(namespace = %namespace.name, %error, "a sweep failed; the next one does it");
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(SWEEP) => {}
        }
    }
}

pub(crate) async fn sweep(namespace: &Namespace, with_sessions: bool) -> Result<(), StepError> {
    // First the store, then the resources: a resource is there before its row is.
    let rows = namespace.ports.pods.pods(Some(&namespace.tenant())).await?;
    let sessions = if with_sessions { live_sessions(namespace).await? } else { Vec::new() };
    let resources: HashSet<SessionId> = namespace
        .sessions
        .state()
        .iter()
        .filter_map(|found| match &found.0 {
            Ok(found) => session::id(found),
            Err(malformed) => malformed.metadata.uid.as_deref()?.parse().ok(),
        })
        .collect();
    let is_old = |since: Timestamp| {
        Timestamp::now().duration_since(since) >= SignedDuration::try_from(ORPHAN_AGE).unwrap_or(SignedDuration::MAX)
    };
    let mut orphans: HashSet<SessionId> =
        sessions.into_iter().filter(|(id, made)| is_old(*made) && !resources.contains(id)).map(|(id, _)| id).collect();
    for row in rows {
        let Some(owner) = row.session.filter(|owner| !resources.contains(owner)) else { continue };
        if row.state == PodState::Deleting || !is_old(row.created_at) {
            continue;
        }
        namespace.ports.pods.delete_pod(row.id).await?;
        namespace.metrics.orphans.inc();
        namespace.pool_wake.notify_one();
        orphans.insert(owner);
    }
    for id in orphans {
        let Some(row) = namespace.ports.store.session(&namespace.tenant(), id).await? else { continue };
        if row.state != SessionState::Ended {
            tracing::info!(namespace = %namespace.name, session = %id, "a session whose resource is gone has ended");
            namespace.ports.runner.close(row, Closing::End).await?;
            namespace.metrics.orphans.inc();
        }
    }
    Ok(())
}

/// Every session of the namespace that has not ended, with when it was made.
async fn live_sessions(namespace: &Namespace) -> Result<Vec<(SessionId, Timestamp)>, StepError> {
    let mut live = Vec::new();
    for state in ["starting", "active", "paused", "stopped", "error"] {
        let mut offset = 0;
        loop {
            let filter =
                SessionFilter { state: Some(state.to_owned()), limit: SWEEP_PAGE, offset, ..SessionFilter::default() };
            let page = namespace.ports.store.sessions(&namespace.tenant(), &filter).await?;
            let count = u32::try_from(page.sessions.len()).unwrap_or(SWEEP_PAGE);
            live.extend(page.sessions.into_iter().map(|session| (session.id, session.created_at)));
            offset += count;
            if count < SWEEP_PAGE {
                break;
            }
        }
    }
    Ok(live)
}
