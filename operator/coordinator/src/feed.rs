//! One stream of a session from its runner, for everybody who reads that session at this coordinator.
//!
//! A reader that is alone has the stream to itself. With the second one it is shared: each entry comes over the link once, and its
//! frames are made once. Nobody waits for a reader that is slow: it falls out of the [`tail`].

mod tail;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use ash_core::{Sequence, id::SessionId};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::tail::{Place, Tail};
use crate::{
    registry::{Registry, Target},
    stream::{Arrived, Came, Stream},
};

/// A stream that is shared. It ends with its last reader.
pub(crate) struct Feed {
    session: SessionId,
    target: Target,
    registry: Arc<Registry>,
    state: Mutex<State>,
    changed: watch::Sender<()>,
    abandoned: CancellationToken,
}

struct State {
    tail: Tail,
    end: Option<End>,
}

/// Why nothing more comes.
#[derive(Debug, Clone)]
enum End {
    Broken(String),
    Unwritten(String),
}

/// What a reader gets.
pub(crate) enum Next {
    /// As from a stream of its own. Entries that it has may be among them.
    Came(Came),
    /// What it lacks is not here any more.
    Behind,
}

/// One reader's part in a feed.
pub(crate) struct Subscription {
    feed: Arc<Feed>,
    place: Place,
    changed: watch::Receiver<()>,
}

impl Registry {
    /// Takes part in the stream of a session from a runner, for a reader that has everything up to an entry. `None` where nobody
    /// shares one, or it is further on already.
    pub(crate) fn subscribe(&self, session: SessionId, target: &Target, position: Sequence) -> Option<Subscription> {
        // Dropped outside of the lock: a feed's end takes it.
        let feed = self.with(|inner| inner.feeds.get(&session).and_then(Weak::upgrade))?;
        if feed.target.id == target.id { feed.join(position) } else { None }
    }

    /// Whether a session's stream from a runner is shared.
    pub(crate) fn has_feed(&self, session: SessionId, target: &Target) -> bool {
        let feed = self.with(|inner| inner.feeds.get(&session).and_then(Weak::upgrade));
        feed.is_some_and(|feed| feed.target.id == target.id && feed.lock().end.is_none())
    }

    /// Shares a stream with everybody else who reads the session, where there is anybody and they share none yet; else gives it
    /// back. Everything up to `position` came on it, and with it whether a turn is in progress, where anything came.
    pub(crate) fn share(
        self: &Arc<Self>,
        session: SessionId,
        position: Sequence,
        in_progress: Option<bool>,
        stream: Box<Stream>,
    ) -> Result<Subscription, Box<Stream>> {
        if self.readers(session) < 2 || self.has_feed(session, &stream.target) {
            return Err(stream);
        }
        let abandoned = CancellationToken::new();
        let feed = Arc::new(Feed {
            session,
            target: stream.target.clone(),
            registry: Arc::clone(self),
            state: Mutex::new(State { tail: Tail::behind(position, in_progress), end: None }),
            changed: watch::Sender::new(()),
            abandoned: abandoned.clone(),
        });
        self.metrics.feeds.inc();
        let Some(subscription) = feed.join(position) else { return Err(stream) };
        self.with(|inner| inner.feeds.insert(session, Arc::downgrade(&feed)));
        tokio::spawn(pump(Arc::downgrade(&feed), abandoned, stream));
        Ok(subscription)
    }
}

/// Fills a feed, until it or its stream ends.
async fn pump(feed: Weak<Feed>, abandoned: CancellationToken, mut stream: Box<Stream>) {
    loop {
        let came = tokio::select! {
            () = abandoned.cancelled() => return,
            came = stream.next() => came,
        };
        let Some(feed) = feed.upgrade() else { return };
        if feed.take(came) {
            return;
        }
    }
}

impl Feed {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn join(self: &Arc<Self>, position: Sequence) -> Option<Subscription> {
        let changed = self.changed.subscribe();
        let mut state = self.lock();
        if state.end.is_some() {
            return None;
        }
        let place = state.tail.join(position)?;
        drop(state);
        Some(Subscription { feed: Arc::clone(self), place, changed })
    }

    /// Takes what came; whether it was the last.
    fn take(&self, came: Came) -> bool {
        let mut state = self.lock();
        let is_news = match came {
            Came::Nothing => false,
            Came::Arrived(Arrived { batch, through, in_progress, over }) => {
                state.end = over.map(End::Broken);
                state.tail.push(batch, through, in_progress)
            }
            Came::Broken(reason) => {
                state.end = Some(End::Broken(reason));
                false
            }
            Came::Unwritten(reason) => {
                state.end = Some(End::Unwritten(reason));
                false
            }
        };
        let is_over = state.end.is_some();
        drop(state);
        if is_news || is_over {
            self.changed.send_replace(());
        }
        is_over
    }
}

impl Drop for Feed {
    fn drop(&mut self) {
        self.abandoned.cancel();
        self.registry.metrics.feeds.dec();
        self.registry.with(|inner| {
            // Another one may have taken its place.
            if inner.feeds.get(&self.session).is_some_and(|feed| feed.strong_count() == 0) {
                inner.feeds.remove(&self.session);
            }
        });
    }
}

impl Subscription {
    /// The runner that it comes from.
    pub(crate) fn target(&self) -> &Target {
        &self.feed.target
    }

    /// Whether there is more for a reader that has everything up to an entry, or a turn is in progress; `None` while that is not
    /// known.
    pub(crate) fn progress(&self, position: Sequence) -> Option<bool> {
        self.feed.lock().tail.progress(&self.place, position)
    }

    /// Whether something came that this reader has not taken.
    pub(crate) fn has_more(&self) -> bool {
        self.feed.lock().tail.has_more(&self.place)
    }

    /// Whether a turn is in progress, as soon as it is known, or the stream has ended.
    pub(crate) async fn known(&mut self, position: Sequence) -> Option<bool> {
        loop {
            let (progress, is_over) = {
                let state = self.feed.lock();
                (state.tail.progress(&self.place, position), state.end.is_some())
            };
            if progress.is_some() || is_over || self.changed.changed().await.is_err() {
                return progress;
            }
        }
    }

    /// What comes next. Safe to cancel.
    pub(crate) async fn next(&mut self) -> Next {
        loop {
            if let Some(next) = self.now() {
                return next;
            }
            if self.changed.changed().await.is_err() {
                return Next::Came(Came::Broken("its feed is gone".to_owned()));
            }
        }
    }

    fn now(&mut self) -> Option<Next> {
        let mut state = self.feed.lock();
        match state.tail.take(&mut self.place) {
            Err(tail::Behind) => {
                self.feed.registry.metrics.readers_behind.inc();
                Some(Next::Behind)
            }
            Ok(Some(taken)) => {
                let tail::Taken { batch, through, in_progress } = taken;
                Some(Next::Came(Came::Arrived(Arrived { batch, through, in_progress, over: None })))
            }
            Ok(None) => Some(Next::Came(match state.end.clone()? {
                End::Broken(reason) => Came::Broken(reason),
                End::Unwritten(reason) => Came::Unwritten(reason),
            })),
        }
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.feed.lock().tail.leave(&self.place);
    }
}
