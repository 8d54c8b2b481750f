//! Where a session's sandbox is, and who may change that.

use std::sync::Arc;

use ash_core::Sequence;

use super::Hub;
use crate::sandbox::Sandbox;

/// Where a session's sandbox is.
#[derive(Debug, Clone)]
pub(crate) enum Place {
    /// It has none.
    None,
    /// One is being started or found for it.
    Starting,
    /// This one.
    Live(Arc<Sandbox>),
    /// This one, whose bridge has not sent its tail again yet: nobody reads live until then.
    Recovering(Arc<Sandbox>),
    /// It rests on this one: a message wakes it there.
    Resting(Arc<Sandbox>),
    /// It is leaving this one, or about to rest on it.
    Leaving(Arc<Sandbox>),
}

impl Place {
    /// The sandbox that the session is on and not leaving.
    pub(super) fn sandbox(&self) -> Option<&Arc<Sandbox>> {
        match self {
            Self::Live(sandbox) | Self::Recovering(sandbox) | Self::Resting(sandbox) => Some(sandbox),
            Self::None | Self::Starting | Self::Leaving(_) => None,
        }
    }
}

impl Hub {
    pub(crate) fn place(&self) -> Place {
        self.lock().place.clone()
    }

    pub(crate) fn set_place(&self, place: Place) {
        self.lock().place = place;
        self.changed.notify_waiters();
    }

    /// Takes the right to find the session a sandbox: true for one caller while it has none.
    pub(crate) fn begin_starting(&self) -> bool {
        let mut inner = self.lock();
        let free = matches!(inner.place, Place::None);
        if free {
            inner.place = Place::Starting;
        }
        free
    }

    /// Takes the right to wake a session that rests: true for one caller.
    pub(crate) fn begin_waking(&self, sandbox: &Arc<Sandbox>) -> bool {
        let mut inner = self.lock();
        let rests = matches!(&inner.place, Place::Resting(here) if Arc::ptr_eq(here, sandbox));
        if rests {
            inner.place = Place::Starting;
        }
        rests
    }

    /// Whether the session rests on its sandbox.
    pub(crate) fn rests(&self) -> bool {
        matches!(self.lock().place, Place::Resting(_))
    }

    /// Waits until everything up to this entry was taken from the bridge.
    pub(crate) async fn wait_taken(&self, last: Sequence) {
        self.wait_until(|inner| (inner.last() >= last).then_some(())).await;
    }

    /// The sandbox, where the session has one and it is synchronised.
    pub(crate) fn live(&self) -> Option<Arc<Sandbox>> {
        match &self.lock().place {
            Place::Live(sandbox) => Some(Arc::clone(sandbox)),
            _ => None,
        }
    }

    /// Takes the session off this sandbox, if it is still on it: true for one caller.
    pub(crate) fn begin_leaving(&self, sandbox: &Arc<Sandbox>) -> bool {
        let mut inner = self.lock();
        let on_it = inner.place.sandbox().is_some_and(|here| Arc::ptr_eq(here, sandbox));
        if on_it {
            inner.leave(sandbox);
        }
        on_it
    }

    /// Takes the session off this sandbox only if no turn runs or is about to: true for one caller.
    pub(crate) fn begin_leaving_idle(&self, sandbox: &Arc<Sandbox>) -> bool {
        let mut inner = self.lock();
        let on_it = matches!(&inner.place, Place::Live(here) | Place::Resting(here) if Arc::ptr_eq(here, sandbox));
        let idle = on_it && inner.turns.current().is_none();
        if idle {
            inner.leave(sandbox);
        }
        idle
    }

    /// Whether the session is leaving this sandbox.
    pub(crate) fn is_leaving(&self, sandbox: &Arc<Sandbox>) -> bool {
        matches!(&self.lock().place, Place::Leaving(left) if Arc::ptr_eq(left, sandbox))
    }

    /// Waits until the session is not on its way between two places, and says where it is.
    pub(crate) async fn wait_settled(&self) -> Place {
        self.wait_place(|place| !matches!(place, Place::Starting | Place::Leaving(_) | Place::Recovering(_))).await
    }

    /// Waits until the session is not on its way off a sandbox, nor finding one again, and says where it is.
    pub(crate) async fn wait_settled_or_starting(&self) -> Place {
        self.wait_place(|place| !matches!(place, Place::Leaving(_) | Place::Recovering(_))).await
    }

    /// Waits until a session whose host was restarted has its bridge back, or has lost it: only then is its turn known.
    pub(crate) async fn wait_recovered(&self) {
        self.wait_place(|place| !matches!(place, Place::Recovering(_))).await;
    }

    /// Waits until the session is on its way off its sandbox, or off it.
    pub(crate) async fn wait_moving(&self) {
        self.wait_place(|place| !matches!(place, Place::Live(_) | Place::Recovering(_))).await;
    }

    async fn wait_place(&self, is_meant: impl Fn(&Place) -> bool) -> Place {
        self.wait_until(|inner| is_meant(&inner.place).then(|| inner.place.clone())).await
    }
}
