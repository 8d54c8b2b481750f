//! Runners that are lost: their sessions go on elsewhere, in a new epoch that says why.

use std::{collections::HashSet, sync::Arc};

use ash_core::{
    id::SessionId,
    opening::{Opening, OpeningReason},
    ports::{OpenEpoch, Store, StoreError},
    session::{Impossible, PausedReason, Session, SessionEvent},
};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::{
    limits::{LOOK, LOST_RETRY, LOST_TRIES},
    registry::Registry,
};

/// Looks at the heartbeats until `stop`.
pub async fn watch(registry: Arc<Registry>, store: Arc<dyn Store>, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = sleep(LOOK) => {}
        }
        let (lost, nobodys) = registry.change(ash_core::placement::Fleet::overdue);
        let mut sessions = nobodys;
        if !sessions.is_empty() {
            tracing::warn!(sessions = sessions.len(), "no runner came back for these sessions: they are lost");
        }
        for runner in lost {
            let had = registry.change(|fleet, _| fleet.remove(&runner));
            registry.remove_peer(&runner.name);
            registry.metrics.runners_lost.inc();
            tracing::warn!(runner = %runner.name, sessions = had.len(), "a runner is lost: it missed 3 heartbeats");
            sessions.extend(had);
        }
        if !sessions.is_empty() {
            tokio::spawn(lose(Arc::clone(&registry), Arc::clone(&store), sessions));
        }
    }
}

/// Takes sessions off the sandboxes of a runner that is lost.
pub(crate) async fn lose(registry: Arc<Registry>, store: Arc<dyn Store>, sessions: Vec<SessionId>) {
    let mut rest: HashSet<SessionId> = sessions.into_iter().collect();
    for _ in 0..LOST_TRIES {
        match store.placed_sessions().await {
            Ok(rows) => {
                // One that has no sandbox in the store has nothing to lose.
                let rows: Vec<Session> = rows.into_iter().filter(|row| rest.contains(&row.id)).collect();
                rest = rows.iter().map(|row| row.id).collect();
                for row in rows {
                    // Somebody has it again meanwhile: its runner came back, and the store has it there still.
                    let is_elsewhere = registry.look(|fleet| {
                        fleet.route(row.id).is_some_and(|route| route.stage == ash_core::placement::Stage::Live)
                    });
                    if is_elsewhere {
                        rest.remove(&row.id);
                        continue;
                    }
                    match open_lost(&*store, &row).await {
                        Ok(()) => {
                            registry.metrics.sessions_lost.inc();
                            rest.remove(&row.id);
                            registry.notify();
                        }
                        // Its row has changed: look again.
                        Err(StoreError::Overtaken { .. }) => {}
                        Err(error) => tracing::warn!(session = %row.id, %error, "a lost session could not be written"),
                    }
                }
                if rest.is_empty() {
                    return;
                }
            }
            Err(error) => tracing::warn!(%error, "lost sessions could not be looked up"),
        }
        sleep(LOST_RETRY).await;
    }
    tracing::error!(sessions = rest.len(), "lost sessions could not be written: their next message does it");
}

async fn open_lost(store: &dyn Store, row: &Session) -> Result<(), StoreError> {
    let interrupted = store.unfinished_turn(row.id).await?.map(|turn| turn.0);
    let message = "The session's runner was lost in the middle of the turn; send the message again.";
    let opening = Opening {
        reason: OpeningReason::Lost,
        last_committed: row.last,
        interrupted,
        message: interrupted.map(|_| message.to_owned()),
    };
    let state = row.state.after(SessionEvent::Pause(PausedReason::Lost)).unwrap_or(row.state);
    let open = OpenEpoch { session: row.id, expected: row.epoch, state, error: None, sandbox: None, opening };
    store.open_epoch(open).await.map(|_| ())
}

/// Changes the state of a session that is on no runner, because a person wants it. One whose state is that already stays as it is;
/// the outer error says what the store does not do, the inner one what its state does not allow.
pub(crate) async fn change(
    store: &dyn Store,
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
        };
        let open = OpenEpoch { session: row.id, expected: row.epoch, state, error: None, sandbox: None, opening };
        match store.open_epoch(open).await {
            Err(StoreError::Overtaken { .. }) if tries > 0 => tries -= 1,
            answer => return answer.map(Ok),
        }
    }
}
