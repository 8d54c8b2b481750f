//! A reader of a session, wherever the session is: history from the store, what comes from its runner.
//!
//! It holds a position. Where the runner is gone it goes on with the log, and with the next runner from there: what was seen
//! beyond the log is withdrawn by the opening of the epoch that follows, as the rules of the log say.

use std::sync::Arc;

use ash_core::{
    EntryKind, Sequence,
    fleet::Read,
    id::TurnId,
    ports::{Batch, EntryReader, FleetStore, LoggedEntry, ReadError},
    session::Session,
};
use ash_link::{Answer, FrameReader};
use ash_protocol::{
    fleet::{StreamStatus, runner as path},
    frame::FrameKind,
};
use async_trait::async_trait;
use tokio::time::{sleep, timeout};

use crate::{
    calls,
    limits::{BATCH_BYTES, PLACE_RETRY, RETRY, STREAM_BEGIN, STREAM_SILENCE},
    registry::{Registry, Target},
    routes::{RouteWatch, Whereabouts},
};

pub(crate) struct FleetReader {
    registry: Arc<Registry>,
    store: Arc<dyn FleetStore>,
    watch: RouteWatch,
    session: Session,
    position: Sequence,
    /// The turn that this reader was opened for.
    turn: Option<TurnId>,
    in_progress: bool,
    /// A stream broke: what was not written by then may be gone.
    broken: bool,
    live: Option<Live>,
}

/// A stream from a runner.
struct Live {
    target: Target,
    frames: FrameReader<Answer>,
    pending: Batch,
    registry: Arc<Registry>,
}

impl Live {
    fn new(registry: &Arc<Registry>, target: Target, frames: FrameReader<Answer>) -> Self {
        registry.metrics.streams.inc();
        Self { target, frames, pending: Batch::new(), registry: Arc::clone(registry) }
    }
}

impl Drop for Live {
    fn drop(&mut self) {
        self.registry.metrics.streams.dec();
    }
}

/// What one frame led to.
enum Step {
    Nothing,
    Given(Batch),
    Broken(String),
    Failed(ReadError),
}

impl FleetReader {
    /// A reader behind a position.
    pub(crate) fn new(registry: &Arc<Registry>, session: Session, position: Sequence) -> Self {
        Self {
            registry: Arc::clone(registry),
            store: Arc::clone(&registry.store),
            watch: registry.watch(session.id),
            // Until it is known otherwise there may be more.
            in_progress: true,
            session,
            position,
            turn: None,
            broken: false,
            live: None,
        }
    }

    /// A reader of a turn that joined one in the log.
    pub(crate) fn of_turn(mut self, turn: TurnId) -> Self {
        self.turn = Some(turn);
        self
    }

    /// A reader of a turn whose stream has begun.
    pub(crate) fn with_stream(mut self, target: Target, frames: FrameReader<Answer>) -> Self {
        self.live = Some(Live::new(&self.registry, target, frames));
        self
    }

    /// Looks once, so that it is known whether a turn is in progress.
    pub(crate) async fn begin(&mut self) {
        if self.live.is_none() && self.session.last <= self.position {
            match self.registry.locate(self.session.id, self.session.sandbox.map(|_| self.session.epoch)).await {
                Ok(Whereabouts::On(target) | Whereabouts::Home(target)) => self.connect(target).await,
                // What is wrong with the store is said when it is read.
                Ok(Whereabouts::Awaited) | Err(_) => {}
                Ok(Whereabouts::Nowhere) => self.in_progress = false,
            }
        }
        if self.live.is_some() {
            // The first frame says how things are.
            if let Ok(Step::Broken(reason)) = timeout(STREAM_BEGIN, self.step()).await {
                self.break_off(&reason);
            }
        }
    }

    async fn connect(&mut self, target: Target) {
        let read = Read { session: self.session.clone(), after: self.position };
        match calls::stream::<()>(&target, path::READ, STREAM_BEGIN, &read).await {
            Ok(((), frames)) => self.live = Some(Live::new(&self.registry, target, frames)),
            Err(error) => {
                tracing::debug!(session = %self.session.id, runner = %target.id.name, ?error, "a stream could not begin");
                self.registry.metrics.unanswered.inc();
            }
        }
    }

    fn break_off(&mut self, reason: &str) {
        if self.live.take().is_some() {
            self.registry.metrics.streams_broken.inc();
            tracing::debug!(session = %self.session.id, reason, "a stream broke");
            self.broken = true;
            self.in_progress = true;
        }
    }

    /// Takes one frame of the stream. Safe to cancel.
    async fn step(&mut self) -> Step {
        let Some(live) = &mut self.live else { return Step::Nothing };
        let frame = match timeout(STREAM_SILENCE, live.frames.next()).await {
            Ok(Ok(Some(frame))) => frame,
            Ok(Ok(None)) => return Step::Broken("the runner ended it".to_owned()),
            Ok(Err(reason)) => return Step::Broken(reason),
            Err(_) => return Step::Broken(format!("the runner said nothing for {} s", STREAM_SILENCE.as_secs())),
        };
        if frame.kind == FrameKind::Event {
            return match frame.into_entry() {
                Ok(entry) => {
                    live.pending.push(Arc::new(LoggedEntry::new(entry)));
                    Step::Nothing
                }
                Err(error) => Step::Broken(error.to_string()),
            };
        }
        let status = match serde_json::from_slice::<StreamStatus>(&frame.body) {
            Ok(status) if frame.kind == FrameKind::Status => status,
            _ => return Step::Broken("a frame that a stream cannot have".to_owned()),
        };
        self.position = self.position.max(status.through);
        let pending = std::mem::take(&mut live.pending);
        let runner = live.target.id.clone();
        let fell = std::mem::replace(&mut self.in_progress, status.turn_in_progress) && !status.turn_in_progress;
        if let Some(reason) = status.unwritten {
            self.live = None;
            return Step::Failed(ReadError::Unwritten(reason));
        }
        let moved = self.watch.live_on().is_some_and(|target| target.id != runner);
        let over = status.over.then(|| "the runner stops".to_owned()).or(status.unread);
        if let Some(reason) = over.or_else(|| moved.then(|| "the session is on another runner".to_owned())) {
            self.break_off(&reason);
        }
        if pending.is_empty() && !fell { Step::Nothing } else { Step::Given(pending) }
    }

    /// Whether the turn that this reader is for was taken by a runner that lost it before it was written: it is over without an
    /// end, in no log.
    async fn is_over_unwritten(&self) -> Result<bool, ReadError> {
        match self.turn.filter(|_| self.broken && !self.in_progress) {
            Some(turn) => Ok(self.store.turn(self.session.id, turn).await?.is_none()),
            None => Ok(false),
        }
    }

    /// Reads the log, or finds the runner that has what comes.
    async fn search(&mut self) -> Result<Option<Batch>, ReadError> {
        loop {
            self.watch.seen();
            let page = self.store.read(self.session.id, self.position, BATCH_BYTES).await?;
            self.position = self.position.max(page.through);
            let visible = page.entries.into_iter().filter(|entry| entry.kind != EntryKind::Transcript);
            let batch: Batch = visible.map(|entry| Arc::new(LoggedEntry::new(entry))).collect();
            if !batch.is_empty() {
                return Ok(Some(batch));
            }
            if !page.end {
                continue;
            }
            match self.registry.locate(self.session.id, None).await? {
                Whereabouts::On(target) | Whereabouts::Home(target) => {
                    self.connect(target).await;
                    if self.live.is_some() {
                        return Ok(None);
                    }
                    self.in_progress = true;
                    tokio::select! {
                        () = self.watch.changed() => {}
                        () = sleep(RETRY) => {}
                    }
                }
                Whereabouts::Awaited => {
                    self.in_progress = true;
                    // Its runner comes back without a change of the session.
                    tokio::select! {
                        () = self.watch.changed() => {}
                        () = sleep(PLACE_RETRY) => {}
                    }
                }
                Whereabouts::Nowhere => {
                    let fell = std::mem::replace(&mut self.in_progress, false);
                    if self.is_over_unwritten().await? {
                        return Err(never_written());
                    }
                    if fell {
                        return Ok(Some(Batch::new()));
                    }
                    // Whatever writes its log, and whatever finds it a runner, is seen within a second.
                    self.watch.changed().await;
                }
            }
        }
    }
}

fn never_written() -> ReadError {
    ReadError::Unwritten("the session's runner was lost before the turn was written; send the message again".to_owned())
}

#[async_trait]
impl EntryReader for FleetReader {
    async fn next(&mut self) -> Result<Option<Batch>, ReadError> {
        loop {
            // What was given was not the turn's end, else nobody would read on: the opening of an epoch that knows nothing of it.
            if self.live.is_some() && self.is_over_unwritten().await? {
                return Err(never_written());
            }
            if self.live.is_none()
                && let Some(batch) = self.search().await?
            {
                return Ok(Some(batch));
            }
            match self.step().await {
                Step::Nothing => {}
                Step::Given(batch) => {
                    if batch.is_empty() && self.is_over_unwritten().await? {
                        return Err(never_written());
                    }
                    return Ok(Some(batch));
                }
                Step::Broken(reason) => self.break_off(&reason),
                Step::Failed(error) => return Err(error),
            }
        }
    }

    fn position(&self) -> Sequence {
        self.position
    }

    fn turn_in_progress(&self) -> bool {
        self.in_progress
    }
}
