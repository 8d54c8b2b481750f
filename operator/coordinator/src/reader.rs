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
use ash_protocol::fleet::runner as path;
use async_trait::async_trait;
use tokio::time::{sleep, timeout};

use crate::{
    calls,
    feed::{Next, Subscription},
    limits::{BATCH_BYTES, OPENING_WAIT, PLACE_RETRY, RETRY, STREAM_BEGIN},
    registry::{Registry, Target},
    routes::{RouteWatch, Whereabouts},
    stream::{Arrived, Came, Stream},
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

/// What comes from a runner.
enum Live {
    /// On a stream of its own: nobody else reads the session here, or this reader is not as far as they are.
    Own(Box<Stream>),
    /// On one that is shared.
    Shared(Subscription),
}

impl Live {
    fn target(&self) -> &Target {
        match self {
            Self::Own(stream) => &stream.target,
            Self::Shared(subscription) => subscription.target(),
        }
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
        self.live = Some(Live::Own(Box::new(Stream::new(&self.registry, target, frames))));
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
        match &mut self.live {
            None => {}
            // The first frame says how things are.
            Some(Live::Own(_)) => {
                if let Ok(Step::Broken(reason)) = timeout(STREAM_BEGIN, self.step()).await {
                    self.break_off(&reason);
                }
            }
            // Nothing is taken from it: whoever reads on gets it.
            Some(Live::Shared(subscription)) => {
                if let Ok(Some(progress)) = timeout(STREAM_BEGIN, subscription.known(self.position)).await {
                    self.in_progress = progress;
                }
            }
        }
    }

    async fn connect(&mut self, target: Target) {
        if self.join(&target) {
            return;
        }
        // Of many that come at once one begins the stream, and the others take part in it.
        let opening = self.watch.opening();
        let one_at_a_time = timeout(OPENING_WAIT, opening.lock()).await;
        if self.join(&target) {
            return;
        }
        // There is one, and this reader is not as far: nobody waits for what it needs for itself.
        let one_at_a_time = one_at_a_time.ok().filter(|_| !self.registry.has_feed(self.session.id, &target));
        let read = Read { session: self.session.clone(), after: self.position };
        match calls::stream::<()>(&target, path::READ, STREAM_BEGIN, &read).await {
            Ok(((), frames)) => {
                let stream = Box::new(Stream::new(&self.registry, target, frames));
                let shared = self.registry.share(self.session.id, self.position, None, stream);
                self.live = Some(shared.map_or_else(Live::Own, Live::Shared));
            }
            Err(error) => {
                tracing::debug!(session = %self.session.id, runner = %target.id.name, ?error, "a stream could not begin");
                self.registry.metrics.unanswered.inc();
            }
        }
        drop(one_at_a_time);
    }

    /// Takes part in a stream that others share, where they are not further on. That no turn is in progress is not taken from them:
    /// one may have begun since the runner said so, and nothing have come of it yet.
    fn join(&mut self, target: &Target) -> bool {
        let Some(subscription) = self.registry.subscribe(self.session.id, target, self.position) else { return false };
        match subscription.progress(self.position) {
            Some(false) => return false,
            Some(true) => self.in_progress = true,
            None => {}
        }
        self.live = Some(Live::Shared(subscription));
        true
    }

    /// Gives up the stream of its own where others read the session, too: takes part in theirs, once both say the same, or shares it
    /// with them.
    fn merge(&mut self) {
        let target = match &self.live {
            Some(Live::Own(stream)) if self.registry.readers(self.session.id) > 1 => stream.target.clone(),
            _ => return,
        };
        if let Some(subscription) = self.registry.subscribe(self.session.id, &target, self.position) {
            let has_more = subscription.has_more();
            if has_more || subscription.progress(self.position) == Some(self.in_progress) {
                self.in_progress |= has_more;
                self.live = Some(Live::Shared(subscription));
            }
            return;
        }
        if let Some(Live::Own(stream)) = self.live.take() {
            let shared = self.registry.share(self.session.id, self.position, Some(self.in_progress), stream);
            self.live = Some(shared.map_or_else(Live::Own, Live::Shared));
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

    /// Takes what comes next. Safe to cancel.
    async fn step(&mut self) -> Step {
        let came = match &mut self.live {
            None => return Step::Nothing,
            Some(Live::Own(stream)) => stream.next().await,
            Some(Live::Shared(subscription)) => {
                let next = tokio::select! {
                    biased;
                    next = subscription.next() => next,
                    // One that is not told anything has to look by itself whether the session went elsewhere.
                    () = self.watch.changed() => Next::Came(Came::Nothing),
                };
                match next {
                    Next::Came(came) => came,
                    Next::Behind => {
                        // The log has what it lacks, or else a stream of its own.
                        self.live = None;
                        return Step::Nothing;
                    }
                }
            }
        };
        match came {
            Came::Nothing => {
                if let (Some(Live::Shared(_)), Some(reason)) = (&self.live, self.moved()) {
                    self.break_off(reason);
                }
                Step::Nothing
            }
            Came::Arrived(arrived) => self.arrived(arrived),
            Came::Broken(reason) => Step::Broken(reason),
            Came::Unwritten(reason) => {
                self.live = None;
                Step::Failed(ReadError::Unwritten(reason))
            }
        }
    }

    fn arrived(&mut self, arrived: Arrived) -> Step {
        let Arrived { mut batch, through, in_progress, over } = arrived;
        // What was said when this reader had seen more than that says nothing of how things are now.
        let in_progress = in_progress || through < self.position;
        batch.retain(|logged| logged.entry.sequence > self.position);
        self.position = self.position.max(through);
        let was_in_progress = std::mem::replace(&mut self.in_progress, in_progress);
        if over.is_none() {
            self.merge();
        }
        let fell = was_in_progress && !self.in_progress;
        // Where the stream is given up there may be more.
        if let Some(reason) = over {
            self.break_off(&reason);
        } else if let Some(reason) = self.moved() {
            self.break_off(reason);
        }
        if batch.is_empty() && !fell { Step::Nothing } else { Step::Given(batch) }
    }

    /// Says so where the session is on another runner than the one that is listened to.
    fn moved(&self) -> Option<&'static str> {
        let from = &self.live.as_ref()?.target().id;
        self.watch.live_on().filter(|target| target.id != *from).map(|_| "the session is on another runner")
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
