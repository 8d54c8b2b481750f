//! Where sessions are: asked of the store, and watched for those that somebody reads.

use std::sync::Arc;

use ash_core::{
    Epoch,
    fleet::RunnerName,
    id::SessionId,
    placement::{Stage, Want},
    ports::{RouteRow, StoreError},
    session::{Session, SessionState},
};
use tokio::sync::{Mutex as AsyncMutex, watch};

use crate::{
    limits::MAX_ROUTES,
    placing::Placing,
    registry::{Registry, Target, Watched},
};

/// Where a session is.
#[derive(Debug, Clone)]
pub(crate) enum Whereabouts {
    /// It has a place on this runner.
    On(Target),
    /// Its files are on this runner.
    Home(Target),
    /// It has a sandbox, and its runner is not registered: it comes back, or the session is lost.
    Awaited,
    /// Nowhere.
    Nowhere,
}

impl Registry {
    /// Where a session is. What is known holds while its epoch is this one.
    pub(crate) async fn locate(&self, session: SessionId, epoch: Option<Epoch>) -> Result<Whereabouts, StoreError> {
        let known = self.with(|inner| inner.routes.get(&session).cloned());
        let holds = |known: &RouteRow| known.sandbox.is_some() && epoch == Some(known.epoch);
        let route = match known {
            Some(known) if holds(&known) => Some(known),
            known => match self.store.routes(&[session]).await {
                Ok(found) => {
                    let found = found.into_iter().next();
                    if let Some(route) = &found {
                        self.note(route.clone());
                    }
                    found
                }
                // What runs goes on while the store is away.
                Err(StoreError::Unavailable(_)) if known.is_some() => known,
                Err(error) => return Err(error),
            },
        };
        let Some((runner, stage)) = route.and_then(|route| route.at) else { return Ok(Whereabouts::Nowhere) };
        Ok(match (self.target(&runner).await, stage) {
            (Some(target), Stage::Home) => Whereabouts::Home(target),
            (Some(target), _) => Whereabouts::On(target),
            (None, Stage::Live) => Whereabouts::Awaited,
            (None, _) => Whereabouts::Nowhere,
        })
    }

    /// Keeps where a session is, and tells whoever reads it.
    pub(crate) fn note(&self, route: RouteRow) {
        self.with(|inner| {
            let is_older = |known: &RouteRow| (known.epoch, known.last) > (route.epoch, route.last);
            if inner.routes.get(&route.session).is_some_and(is_older) {
                return;
            }
            if inner.routes.len() >= MAX_ROUTES && !inner.routes.contains_key(&route.session) {
                inner.routes.clear();
            }
            if let Some(watched) = inner.watched.get(&route.session) {
                let sent = Some(route.clone());
                watched.route.send_if_modified(|had| {
                    let is_new = *had != sent;
                    *had = sent;
                    is_new
                });
            }
            inner.routes.insert(route.session, route);
        });
    }

    /// Keeps where a session is after an epoch was opened, by a runner where one is named.
    pub(crate) fn opened(&self, row: &Session, runner: Option<&RunnerName>) {
        let before = self.with(|inner| inner.routes.get(&row.id).and_then(|known| known.at.clone()));
        let runner = runner.cloned().or(before.map(|(runner, _)| runner));
        let stage = if row.sandbox.is_some() { Stage::Live } else { Stage::Home };
        let at = runner.filter(|_| row.state != SessionState::Ended).map(|runner| (runner, stage));
        self.note(RouteRow { session: row.id, epoch: row.epoch, last: row.last, sandbox: row.sandbox, at });
    }

    /// Finds a session the runner that has it, or that has its files, or decides on one with room. `None` while there is none.
    /// What is known of it holds while its epoch is `known`.
    pub(crate) async fn find_place(
        &self,
        session: &Session,
        want: Want,
        known: Option<Epoch>,
    ) -> Result<Option<Target>, StoreError> {
        // One that is new has no place yet; whoever is faster is found by the reservation.
        let mut is_new = session.epoch == Epoch::NONE && want == Want::Free;
        loop {
            let mut home = None;
            if !std::mem::take(&mut is_new) {
                match self.locate(session.id, known).await? {
                    Whereabouts::On(target) => return Ok(Some(target)),
                    Whereabouts::Awaited => return Ok(None),
                    Whereabouts::Home(target) => home = Some(target.id.name),
                    Whereabouts::Nowhere => {}
                }
            }
            match self.choose_place(session.id, want, home).await? {
                Placing::On(runner) => return Ok(self.target(&runner).await),
                Placing::Nowhere => return Ok(None),
                // It ended, or another request was faster.
                Placing::Elsewhere => {
                    let row = self.store.session(&session.tenant, session.id).await?;
                    if row.is_none_or(|row| row.state == SessionState::Ended) {
                        return Ok(None);
                    }
                }
            }
        }
    }

    /// A place that was reserved and came to nothing is free again.
    pub(crate) async fn give_back(&self, session: SessionId) {
        if let Err(error) = self.store.release(session).await {
            tracing::debug!(%session, %error, "a place stays reserved until its time is over");
        }
    }

    /// Watches where a session is, for as long as the answer is kept.
    pub(crate) fn watch(self: &Arc<Self>, session: SessionId) -> RouteWatch {
        let (route, opening) = self.with(|inner| {
            let known = inner.routes.get(&session).cloned();
            let watched = inner.watched.entry(session).or_insert_with(|| Watched {
                readers: 0,
                route: watch::Sender::new(known),
                opening: Arc::default(),
            });
            watched.readers += 1;
            (watched.route.subscribe(), Arc::clone(&watched.opening))
        });
        RouteWatch { registry: Arc::clone(self), session, route, opening }
    }

    /// How many read a session here.
    pub(crate) fn readers(&self, session: SessionId) -> usize {
        self.with(|inner| inner.watched.get(&session).map_or(0, |watched| watched.readers))
    }

    /// Asks where the sessions are that somebody reads.
    pub(crate) async fn refresh_watched(&self) -> Result<(), StoreError> {
        let watched: Vec<SessionId> = self.with(|inner| inner.watched.keys().copied().collect());
        for route in self.store.routes(&watched).await? {
            self.note(route);
        }
        Ok(())
    }
}

/// Where one session is, as it changes.
pub(crate) struct RouteWatch {
    registry: Arc<Registry>,
    session: SessionId,
    route: watch::Receiver<Option<RouteRow>>,
    opening: Arc<AsyncMutex<()>>,
}

impl RouteWatch {
    /// Held by the reader that begins the session's stream.
    pub(crate) fn opening(&self) -> Arc<AsyncMutex<()>> {
        Arc::clone(&self.opening)
    }

    /// Marks what is known as seen.
    pub(crate) fn seen(&mut self) {
        self.route.mark_unchanged();
    }

    /// Waits for what is not known yet.
    pub(crate) async fn changed(&mut self) {
        if self.route.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// The runner that has it now, where that is known.
    pub(crate) fn live_on(&self) -> Option<Target> {
        let (runner, stage) = self.route.borrow().as_ref()?.at.clone()?;
        if stage != Stage::Live {
            return None;
        }
        self.registry.with(|inner| inner.target(&runner))
    }
}

impl Drop for RouteWatch {
    fn drop(&mut self) {
        self.registry.with(|inner| {
            if let Some(watched) = inner.watched.get_mut(&self.session) {
                watched.readers -= 1;
                if watched.readers == 0 {
                    inner.watched.remove(&self.session);
                }
            }
        });
    }
}
