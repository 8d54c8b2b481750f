//! The runner's life in its fleet as time goes: what it hears becomes orders (`ash_core::freezing`), which are carried out here.

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use ash_core::freezing::{Freezing, News, Order};
use tokio::{sync::Notify, time::sleep_until};

use crate::LocalRunner;

/// What the runner knows of its life, by its monotonic clock.
#[derive(Debug)]
pub(super) struct Life {
    began: Instant,
    freezing: Mutex<Freezing>,
    changed: Notify,
}

impl Life {
    /// One that has yet to be registered: nothing is to be served before that.
    pub(super) fn new() -> Self {
        let freezing = Mutex::new(Freezing::registered(Duration::ZERO));
        Self { began: Instant::now(), freezing, changed: Notify::new() }
    }

    /// What time it is.
    pub(super) fn now(&self) -> Duration {
        self.began.elapsed()
    }

    /// The runner is registered, and does not serve yet.
    pub(super) fn registered(&self, begun: Duration) {
        *self.lock() = Freezing::registered(begun);
    }

    /// Whether it has to register before it may go on.
    pub(super) fn has_to_register(&self) -> bool {
        self.lock().has_to_register()
    }

    /// Until when it may serve, as far as is known.
    pub(super) fn serves_until(&self) -> Instant {
        self.lock().until().map_or(self.began, |until| self.began + until)
    }

    /// Takes in what happened and carries out what follows: orders are carried out in the order in which they were given.
    pub(super) fn learn(&self, runner: &LocalRunner, news: News) {
        let mut freezing = self.lock();
        let order = freezing.learn(news, self.now());
        let until = freezing.until().map(|until| self.began + until);
        match (order, until) {
            (Some(Order::Freeze), _) => {
                tracing::error!(
                    "nobody has answered for 2 heartbeats: the runner freezes. Its sandboxes stand still and nobody is served, until a \
                     coordinator has written that it lives"
                );
                runner.freeze();
            }
            (Some(Order::End), _) => runner.freeze(),
            (Some(Order::Thaw), Some(until)) => {
                tracing::info!("a coordinator has written that the runner lives: it goes on");
                runner.thaw(until);
            }
            (None, Some(until)) => runner.serve_until(until),
            (Some(Order::Thaw) | None, None) => {}
        }
        drop(freezing);
        self.changed.notify_one();
    }

    /// Freezes the runner when its time is up. Never ends.
    pub(super) async fn watch(&self, runner: &LocalRunner) {
        loop {
            let until = self.lock().until();
            let Some(until) = until else {
                self.changed.notified().await;
                continue;
            };
            tokio::select! {
                () = sleep_until((self.began + until).into()) => self.learn(runner, News::Time),
                () = self.changed.notified() => {}
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Freezing> {
        self.freezing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
