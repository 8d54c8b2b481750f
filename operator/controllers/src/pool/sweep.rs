//! What belongs to nothing is cleared up: rows of sandboxes whose session is gone, or not on them, and sessions whose resource
//! was deleted while nobody looked. Whatever is young is left alone: its other half may be on its way.

use std::{collections::HashSet, sync::Arc, time::Duration};

use ash_core::{
    id::{SandboxId, SessionId},
    ports::{PodSandbox, PodState, SessionFilter},
    session::{Closing, SessionState},
};
use ash_crd::Session;
use jiff::{SignedDuration, Timestamp};
use kube::api::ListParams;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::{
    error::StepError,
    limits::{ORPHAN_AGE, SESSION_SWEEPS, START_BOUND, SWEEP, SWEEP_PAGE},
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
    let known: HashSet<SessionId> = namespace
        .sessions
        .state()
        .iter()
        .filter_map(|found| match &found.0 {
            Ok(found) => session::id(found),
            Err(malformed) => malformed.metadata.uid.as_deref()?.parse().ok(),
        })
        .collect();
    let is_old = |since: Timestamp| is_older(since, ORPHAN_AGE);
    let mut orphans: HashSet<SessionId> =
        sessions.iter().filter(|one| is_old(one.made) && !known.contains(&one.id)).map(|one| one.id).collect();
    if with_sessions {
        left(namespace, &rows, &sessions).await?;
    }
    // A warm one was made long before a session had it: what counts is when it was claimed.
    let is_orphan = |row: &PodSandbox| {
        let is_unknown = row.session.is_some_and(|owner| !known.contains(&owner));
        is_unknown && row.state != PodState::Deleting && is_old(row.changed_at)
    };
    let rows: Vec<PodSandbox> = rows.into_iter().filter(is_orphan).collect();
    if rows.is_empty() && orphans.is_empty() {
        return Ok(());
    }
    // The watch may be behind, or blind for minutes: what ends a session for good asks the API server itself.
    let there = sessions_there(namespace).await?;
    orphans.retain(|id| !there.contains(id));
    for row in rows {
        let Some(owner) = row.session.filter(|owner| !there.contains(owner)) else { continue };
        namespace.ports.pods.delete_pod(row.id).await?;
        namespace.metrics.orphans.inc();
        namespace.pool_wake.soon();
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

/// Ends the sandboxes that sessions have claimed and are not on: whoever took them off could not say so, or was killed before it
/// did. A session that has just claimed one gets as long for it as a pod has to start.
async fn left(namespace: &Namespace, rows: &[PodSandbox], live: &[Live]) -> Result<(), StepError> {
    let served: HashSet<SandboxId> = live.iter().filter_map(|session| session.sandbox).collect();
    for row in rows {
        let Some(owner) = row.session.filter(|_| row.state == PodState::Claimed) else { continue };
        if served.contains(&row.id) || !is_older(row.changed_at, START_BOUND) {
            continue;
        }
        // One that changed its state while all were read may be missing among them.
        let session = namespace.ports.store.session(&namespace.tenant(), owner).await?;
        if session.is_some_and(|session| session.sandbox != Some(row.id)) {
            tracing::info!(namespace = %namespace.name, pod = %row.pod, session = %owner, "a sandbox is over that its session is not on");
            namespace.ports.pods.delete_pod(row.id).await?;
            namespace.metrics.orphans.inc();
            namespace.pool_wake.soon();
        }
    }
    Ok(())
}

/// The ids of all Session resources that there are, as the API server says now.
async fn sessions_there(namespace: &Namespace) -> Result<HashSet<SessionId>, StepError> {
    let mut there = HashSet::new();
    let mut page = ListParams::default().limit(SWEEP_PAGE);
    loop {
        let found = namespace.api::<Session>().list_metadata(&page).await?;
        there.extend(found.items.iter().filter_map(|found| found.metadata.uid.as_deref()?.parse::<SessionId>().ok()));
        match found.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => page = page.continue_token(&token),
            None => return Ok(there),
        }
    }
}

fn is_older(since: Timestamp, than: Duration) -> bool {
    Timestamp::now().duration_since(since) >= SignedDuration::try_from(than).unwrap_or(SignedDuration::MAX)
}

/// A session that has not ended.
struct Live {
    id: SessionId,
    made: Timestamp,
    sandbox: Option<SandboxId>,
}

/// Every session of the namespace that has not ended.
async fn live_sessions(namespace: &Namespace) -> Result<Vec<Live>, StepError> {
    let mut live = Vec::new();
    for state in ["starting", "active", "paused", "stopped", "error"] {
        let mut offset = 0;
        loop {
            let filter =
                SessionFilter { state: Some(state.to_owned()), limit: SWEEP_PAGE, offset, ..SessionFilter::default() };
            let page = namespace.ports.store.sessions(&namespace.tenant(), &filter).await?;
            let count = u32::try_from(page.sessions.len()).unwrap_or(SWEEP_PAGE);
            live.extend(page.sessions.into_iter().map(|row| Live {
                id: row.id,
                made: row.created_at,
                sandbox: row.sandbox,
            }));
            offset += count;
            if count < SWEEP_PAGE {
                break;
            }
        }
    }
    Ok(live)
}
