//! The coordinator's clockwork: its own row, what it knows, and runners that are lost. What is decided is decided by
//! `ash_core::loss`; sessions of a runner that is gone go on elsewhere, in a new epoch that says why.

use std::sync::Arc;

use ash_core::{
    loss::{self, LOST_AFTER, OWN_ROW},
    opening::{Opening, OpeningReason},
    ports::{FleetStore, OpenEpoch, StoreError},
    session::{Impossible, PausedReason, Session, SessionEvent},
};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;

use crate::{
    limits::{LOST_TRIES, OWN_WRITE, REFRESH, SWEEP},
    registry::Registry,
    warm,
};

/// Keeps what the coordinator knows, and says who is lost, until `stop`.
pub async fn watch(registry: Arc<Registry>, stop: CancellationToken) {
    let own = async {
        loop {
            write_own_row(&registry).await;
            sleep(OWN_ROW).await;
        }
    };
    let refreshing = async {
        loop {
            sleep(REFRESH).await;
            if let Err(error) = refresh(&registry).await {
                tracing::debug!(%error, "what is known of the fleet stays as it is");
            }
        }
    };
    let sweeping = async {
        loop {
            sleep(SWEEP).await;
            sweep(&registry).await;
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = own => {}
        () = refreshing => {}
        () = sweeping => {}
    }
}

/// Keeps what is known of the fleet, until `stop`: for a process that places sessions and is asked by no runner. It has no row
/// among the coordinators, so its silence keeps nobody from being called lost.
pub async fn follow(registry: Arc<Registry>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(REFRESH) => {}
        }
        if let Err(error) = refresh(&registry).await {
            tracing::debug!(%error, "what is known of the fleet stays as it is");
        }
    }
}

async fn refresh(registry: &Arc<Registry>) -> Result<(), StoreError> {
    registry.refresh(REFRESH / 2).await?;
    registry.refresh_watched().await?;
    warm::refresh(registry).await
}

/// Writes whom it heard while it could not write, then its own row: once that is fresh, others call runners lost again. What time
/// it is comes first of all: the row says of nobody who is heard from then on that it was written.
async fn write_own_row(registry: &Registry) {
    let begun = registry.now();
    let write = async {
        let time = registry.store.store_time().await?;
        registry.write_heard().await?;
        registry.store.coordinator_lived(registry.id, time).await
    };
    match timeout(OWN_WRITE, write).await {
        Ok(Ok(rows)) => registry.with(|inner| {
            inner.writes.wrote(begun);
            inner.coordinators = rows;
        }),
        outcome => {
            let reason = match outcome {
                Ok(Err(error)) => error.to_string(),
                _ => "it did not answer in time".to_owned(),
            };
            registry.metrics.unwritten.inc();
            tracing::warn!(reason, "the coordinator cannot write: it calls nobody lost");
            registry.with(|inner| inner.writes.failed());
        }
    }
}

/// Takes out the runners that are lost, and their sessions off their sandboxes. Every coordinator does it; who is first wins.
async fn sweep(registry: &Arc<Registry>) {
    let now = registry.now();
    if !registry.with(|inner| inner.writes.may_judge(now)) {
        return;
    }
    let overdue = registry.with(|inner| inner.runners.values().any(loss::is_overdue));
    // What is known of a runner is as old as its row: look again before anything is said.
    if overdue && registry.refresh(std::time::Duration::ZERO).await.is_ok() {
        let lost = registry.with(|inner| {
            let runners: Vec<_> = inner.runners.values().cloned().collect();
            loss::lost(registry.id, &inner.writes, now, &runners, &inner.coordinators)
        });
        for runner in lost {
            match registry.store.remove_runner(&runner, Some(LOST_AFTER)).await {
                Ok(true) => {
                    registry.forget_runner(&runner);
                    registry.metrics.runners_lost.inc();
                    tracing::warn!(runner = %runner.name, "a runner is lost: it missed 3 heartbeats");
                }
                Ok(false) => {}
                Err(error) => tracing::warn!(runner = %runner.name, %error, "a lost runner could not be taken out"),
            }
        }
    }
    match registry.store.abandoned_sessions().await {
        Ok(rows) => lose(registry, rows).await,
        Err(error) => tracing::warn!(%error, "lost sessions could not be looked up"),
    }
}

/// Takes sessions off the sandboxes of a runner that is gone. What cannot be written now is found by the next sweep.
pub(crate) async fn lose(registry: &Arc<Registry>, rows: Vec<Session>) {
    for row in rows {
        match open_lost(&*registry.store, &row).await {
            Ok(now) => {
                registry.metrics.sessions_lost.inc();
                tracing::info!(session = %row.id, "a session lost its sandbox");
                registry.opened(&now, None);
                if registry.config.pods.is_some()
                    && let Some(sandbox) = row.sandbox
                    && let Err(error) = registry.store.delete_pod(sandbox).await
                {
                    tracing::warn!(session = %row.id, %sandbox, %error, "a lost sandbox could not be given up");
                }
            }
            // Its row has changed: another coordinator did it, or its runner is back.
            Err(StoreError::Overtaken { .. }) => {}
            Err(error) => tracing::warn!(session = %row.id, %error, "a lost session could not be written"),
        }
    }
}

async fn open_lost(store: &dyn FleetStore, row: &Session) -> Result<Session, StoreError> {
    let interrupted = store.unfinished_turn(row.id).await?.map(|turn| turn.0);
    let message = "The session's runner was lost in the middle of the turn; send the message again.";
    let opening = Opening {
        reason: OpeningReason::Lost,
        last_committed: row.last,
        interrupted,
        message: interrupted.map(|_| message.to_owned()),
        recovered: None,
        sandbox: None,
    };
    let state = row.state.after(SessionEvent::Pause(PausedReason::Lost)).unwrap_or(row.state);
    let open = OpenEpoch { session: row.id, expected: row.epoch, state, error: None, sandbox: None, opening };
    store.open_epoch(open).await
}

/// Changes the state of a session that is on no runner, because a person wants it. One whose state is that already stays as it is;
/// the outer error says what the store does not do, the inner one what its state does not allow.
pub(crate) async fn change(
    store: &dyn FleetStore,
    session: &Session,
    event: SessionEvent,
    reason: OpeningReason,
) -> Result<Result<Session, Impossible>, StoreError> {
    let mut tries = LOST_TRIES;
    loop {
        let row = store.session(&session.tenant, session.id).await?;
        let row = row.ok_or_else(|| StoreError::NotFound("the session is gone".to_owned()))?;
        let state = match row.state.after(event) {
            Ok(state) if row.state == state => return Ok(Ok(row)),
            Ok(state) => state,
            Err(impossible) => return Ok(Err(impossible)),
        };
        let opening = Opening {
            reason,
            last_committed: row.last,
            interrupted: store.unfinished_turn(row.id).await?.map(|turn| turn.0),
            message: None,
            recovered: None,
            sandbox: None,
        };
        let open = OpenEpoch { session: row.id, expected: row.epoch, state, error: None, sandbox: None, opening };
        match store.open_epoch(open).await {
            Err(StoreError::Overtaken { .. }) if tries > 0 => tries -= 1,
            answer => return answer.map(Ok),
        }
    }
}
