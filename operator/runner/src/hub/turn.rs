//! A session's turn: one at a time, reserved before it begins, remembered for a while after it ended.

use std::{collections::VecDeque, sync::Arc};

use ash_core::{
    Sequence,
    id::{SessionId, TurnId},
    session::{SessionEvent, SessionState},
};
use tracing::Span;

use super::{Hub, Inner};
use crate::limits::ENDED_TURNS;

/// A turn in progress, or about to begin.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Turn {
    pub(crate) id: TurnId,
    /// The entry before its first one.
    pub(crate) after: Sequence,
}

/// Why a turn cannot be reserved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Reserve {
    /// It is now.
    Reserved,
    /// It runs already, or ran, from after this entry.
    Joined(Sequence),
    /// Another one runs.
    Busy,
    /// The session's state does not allow one.
    Impossible(SessionState),
    /// The session's log takes no more.
    Full(ash_core::meter::LogFull),
}

/// The turns of a session that its host knows.
#[derive(Debug, Default)]
pub(super) struct Turns {
    current: Option<Turn>,
    /// Turns that ended here, latest last, with the entry before each: a repeat of one joins it though the log may not have it yet.
    ended: VecDeque<Turn>,
    /// The span of the turn: from its reservation to its end.
    span: Option<Span>,
    /// The turn that was in progress when the session began to leave its sandbox; one that is reserved later waits for the
    /// next sandbox.
    leaving: Option<TurnId>,
}

impl Turns {
    pub(super) fn current(&self) -> Option<Turn> {
        self.current
    }

    pub(super) fn begin(&mut self, session: SessionId, turn: Turn) {
        if self.current.is_none_or(|current| current.id != turn.id) {
            let span = tracing::info_span!("turn", %session, turn = %turn.id);
            span.in_scope(|| tracing::debug!("begins"));
            self.span = Some(span);
        }
        self.current = Some(turn);
    }

    /// Ends the turn, where one is in progress. One of which there is an entry up to `last` is remembered: true where an older
    /// one is forgotten for it.
    pub(super) fn end(&mut self, last: Sequence, how: &'static str) -> bool {
        let mut forgot = false;
        if let Some(turn) = self.current.take()
            && last > turn.after
        {
            self.ended.push_back(turn);
            if self.ended.len() > ENDED_TURNS {
                forgot = self.ended.pop_front().is_some();
            }
        }
        if let Some(span) = self.span.take() {
            span.in_scope(|| tracing::debug!(how, "over"));
        }
        forgot
    }

    /// The turn in progress is to begin after this entry.
    pub(super) fn move_to(&mut self, after: Sequence) {
        if let Some(turn) = &mut self.current {
            turn.after = after;
        }
    }

    /// The turn ended while the session was leaving its sandbox: nothing was interrupted that the log does not know.
    pub(super) fn ended_in_time(&mut self) {
        self.leaving = None;
    }

    pub(super) fn begin_leaving(&mut self) {
        self.leaving = self.current.map(|turn| turn.id);
    }
}

/// A turn's reservation, which is given back unless it is kept.
pub(crate) struct Reservation {
    hub: Arc<Hub>,
    turn: TurnId,
    kept: bool,
}

impl Reservation {
    /// Of a turn that was reserved just now.
    pub(crate) fn new(hub: Arc<Hub>, turn: TurnId) -> Self {
        Self { hub, turn, kept: false }
    }

    pub(crate) fn hub(&self) -> &Arc<Hub> {
        &self.hub
    }

    /// The turn begins.
    pub(crate) fn keep(mut self) -> Arc<Hub> {
        self.kept = true;
        Arc::clone(&self.hub)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        if !self.kept {
            self.hub.release_turn(self.turn);
        }
    }
}

impl Hub {
    /// Reserves the turn, so that a second message meets a running one.
    pub(crate) fn reserve_turn(&self, id: TurnId) -> Reserve {
        let mut inner = self.lock();
        if let Some(turn) = inner.turns.ended.iter().find(|turn| turn.id == id) {
            return Reserve::Joined(turn.after);
        }
        if let Err(impossible) = inner.row.state.after(SessionEvent::Message) {
            return Reserve::Impossible(impossible.0);
        }
        match inner.turns.current {
            Some(turn) if turn.id == id => return Reserve::Joined(turn.after),
            Some(_) => return Reserve::Busy,
            None => {}
        }
        if let Err(full) = inner.metering.check() {
            return Reserve::Full(full);
        }
        let after = inner.last();
        inner.turns.begin(self.session, Turn { id, after });
        inner.permissions.clear();
        // The new turn tries to write again; why the one before it failed is no news to its readers.
        inner.broken = None;
        Reserve::Reserved
    }

    /// Gives a reservation back that led to nothing.
    pub(crate) fn release_turn(&self, id: TurnId) {
        let mut inner = self.lock();
        if inner.turns.current.is_some_and(|turn| turn.id == id) {
            inner.end_turn("given up before it began");
        }
        drop(inner);
        self.changed.notify_waiters();
    }

    /// Takes over what the store, and later the bridge, knows of the turn after the host was restarted.
    pub(crate) fn restore_turn(&self, turn: Option<Turn>, permissions: Vec<String>) {
        let mut inner = self.lock();
        if let Some(turn) = turn {
            inner.turns.begin(self.session, turn);
        }
        let Inner { permissions: known, metrics, .. } = &mut *inner;
        known.restore(permissions, metrics);
    }

    /// The turn that was in progress when the session began to leave its sandbox.
    pub(crate) fn leaving_turn(&self) -> Option<TurnId> {
        self.lock().turns.leaving
    }

    /// The last turn that ended while this hub was there.
    pub(crate) fn last_ended_turn(&self) -> Option<TurnId> {
        self.lock().turns.ended.back().map(|turn| turn.id)
    }

    pub(crate) fn turn(&self) -> Option<Turn> {
        self.lock().turns.current
    }

    /// Waits until no turn runs or is about to.
    pub(crate) async fn wait_idle(&self) {
        self.wait_until(|inner| inner.turns.current.is_none().then_some(())).await;
    }

    /// Waits until a turn has begun, or is over: true where it has begun and runs.
    pub(crate) async fn wait_begun(&self, id: TurnId) -> bool {
        self.wait_until(|inner| match inner.turns.current.filter(|turn| turn.id == id) {
            None => Some(false),
            Some(turn) => (inner.intake.last() > turn.after).then_some(true),
        })
        .await
    }
}
