//! What the link to the host and the session share: the log, what waits to be sent, and the requests in progress.
//!
//! Everything runs on one thread, so plain cells are enough; no borrow lives across an await.

use std::{
    cell::{Cell, RefCell},
    collections::{BTreeMap, VecDeque},
    path::PathBuf,
    rc::Rc,
};

use ash_protocol::{
    EntryFlags, EntryKind, Sequence,
    bound::BridgeBound,
    frame::{DATA_HOLE, Frame, FrameKind, INITIAL_CREDIT, MAX_DATA_BYTES},
    message::{BridgeEvent, Progress, Refusal, RefusalCategory, Reply, Status},
};
use bytes::Bytes;
use serde::Serialize;
use tokio::{
    sync::{Notify, mpsc},
    task::AbortHandle,
    time::Instant,
};

use crate::{log::Log, memory, report::report};

/// Requests in progress; one more is refused.
pub(crate) const MAX_REQUESTS: usize = 16;

/// Data frames of one request that wait for whoever writes them away; the connection is not read beyond.
pub(crate) const MAX_WAITING_DATA: usize = 4;

/// Data that came for a request.
#[derive(Debug)]
pub(crate) struct Input {
    pub(crate) bytes: Bytes,
    pub(crate) last: bool,
}

/// How much more data a request may send.
#[derive(Debug, Default)]
struct Credit {
    bytes: Cell<u64>,
    changed: Notify,
}

/// A request in progress.
struct Active {
    credit: Rc<Credit>,
    input: Option<mpsc::Sender<Input>>,
    task: Option<AbortHandle>,
}

/// The state of the bridge that more than one task touches.
pub(crate) struct Shared {
    pub(crate) log: RefCell<Option<Log>>,
    progress: RefCell<Progress>,
    outgoing: RefCell<VecDeque<Frame>>,
    /// What is sent when nothing else is.
    behind: RefCell<VecDeque<Frame>>,
    requests: RefCell<BTreeMap<u64, Active>>,
    /// Counts connections, so that what belongs to an earlier one is dropped.
    connection: Cell<u64>,
    /// Claude Code's configuration folder, for transcripts that are put back.
    pub(crate) configuration: RefCell<PathBuf>,
    claude_starts: Cell<u32>,
    stalled: Cell<bool>,
    /// Bounds that were met since the host was last told.
    bounds: RefCell<BTreeMap<BridgeBound, u32>>,
    /// Whether the host is to be told of them as soon as it can be.
    bounds_due: Cell<bool>,
    stop_at: Cell<Option<Instant>>,
    /// There is something to send.
    pub(crate) writable: Notify,
    /// The log has room again.
    pub(crate) room: Notify,
    /// The bridge has to end.
    pub(crate) stop: Notify,
    /// The turn in progress changed.
    pub(crate) turn_changed: Notify,
}

impl Shared {
    pub(crate) fn new(configuration: PathBuf) -> Self {
        Self {
            log: RefCell::default(),
            progress: RefCell::new(Progress::New),
            outgoing: RefCell::default(),
            behind: RefCell::default(),
            requests: RefCell::default(),
            connection: Cell::new(0),
            configuration: RefCell::new(configuration),
            claude_starts: Cell::new(0),
            stalled: Cell::new(false),
            bounds: RefCell::default(),
            bounds_due: Cell::new(false),
            stop_at: Cell::new(None),
            writable: Notify::new(),
            room: Notify::new(),
            stop: Notify::new(),
            turn_changed: Notify::new(),
        }
    }

    /// How far the bridge got, with the last entry that it wrote.
    pub(crate) fn progress(&self) -> Progress {
        let mut progress = self.progress.borrow().clone();
        if let (Progress::Bound { last, .. } | Progress::Resting { last, .. }, Some(log)) =
            (&mut progress, &*self.log.borrow())
        {
            *last = log.last();
        }
        progress
    }

    pub(crate) fn set_progress(&self, progress: Progress) {
        *self.progress.borrow_mut() = progress;
        self.turn_changed.notify_waiters();
    }

    /// Whether a turn runs.
    pub(crate) fn turn_runs(&self) -> bool {
        matches!(&*self.progress.borrow(), Progress::Bound { turn: Some(_), .. })
    }

    /// Writes an entry; nothing before a session has claimed the sandbox.
    pub(crate) fn append(&self, kind: EntryKind, flags: EntryFlags, body: Bytes) -> Option<Sequence> {
        let appended = self.log.borrow_mut().as_mut()?.append(kind, flags, body);
        self.writable.notify_one();
        match appended {
            Ok(sequence) => Some(sequence),
            Err(full) => {
                report("epoch_full", &full.to_string());
                self.met(BridgeBound::Epoch);
                self.stop_by(Instant::now());
                None
            }
        }
    }

    /// Writes an event of the bridge's own.
    pub(crate) fn append_event(&self, event: &BridgeEvent, flags: EntryFlags) -> Option<Sequence> {
        // Our own types with string keys become JSON.
        let body = serde_json::to_vec(event).unwrap_or_default();
        self.append(EntryKind::Bridge, flags, body.into())
    }

    /// The number that the next entry gets.
    pub(crate) fn next_sequence(&self) -> Sequence {
        let last = self.log.borrow().as_ref().map_or(Sequence::START, Log::last);
        last.next().unwrap_or(last)
    }

    /// The host has committed entries.
    pub(crate) fn acknowledge(&self, up_to: Sequence) {
        let mut is_empty = false;
        if let Some(log) = self.log.borrow_mut().as_mut() {
            let held = log.unacknowledged_bytes();
            log.acknowledge(up_to);
            is_empty = held > 0 && log.unacknowledged_bytes() == 0;
        }
        // A turn is over and nothing of it is kept any more.
        if is_empty && !self.turn_runs() {
            memory::give_back();
        }
        if self.stalled.get() {
            self.room.notify_one();
        }
    }

    /// Whether Claude Code may not be read from; tells the host when that changes.
    pub(crate) fn is_stalled(&self) -> bool {
        let stalled = self.log.borrow().as_ref().is_some_and(Log::is_full);
        if self.stalled.replace(stalled) != stalled {
            self.send_status();
        }
        stalled
    }

    /// Claude Code was started once more.
    pub(crate) fn claude_started(&self) {
        self.claude_starts.set(self.claude_starts.get().saturating_add(1));
        self.send_status();
    }

    /// A bound was met: the host is told with the next write.
    pub(crate) fn met(&self, bound: BridgeBound) {
        self.met_often(bound, 1);
        self.tell_bounds();
    }

    /// A bound was met so often; the host is told when there is something else to tell, or at the turn's end.
    pub(crate) fn met_often(&self, bound: BridgeBound, times: u32) {
        if times > 0 {
            let mut bounds = self.bounds.borrow_mut();
            let count = bounds.entry(bound).or_default();
            *count = count.saturating_add(times);
        }
    }

    /// Has the host told of the bounds that were met.
    pub(crate) fn tell_bounds(&self) {
        if !self.bounds.borrow().is_empty() {
            self.bounds_due.set(true);
            self.writable.notify_one();
        }
    }

    pub(crate) fn send_status(&self) {
        let status = self.status();
        self.send(status, self.connection.get());
    }

    fn status(&self) -> Frame {
        self.bounds_due.set(false);
        let kept = self.log.borrow().as_ref().map_or(0, Log::unacknowledged_bytes);
        let status = Status {
            claude_starts: self.claude_starts.get(),
            unacknowledged_bytes: kept as u64,
            stalled: self.stalled.get(),
            bounds: self.bounds.take(),
        };
        Frame::json(FrameKind::Status, 0, &status)
    }

    /// The bridge ends at this time, or earlier when no turn runs. The earliest time that was asked for holds.
    pub(crate) fn stop_by(&self, at: Instant) {
        let at = self.stop_at.get().map_or(at, |earlier| earlier.min(at));
        self.stop_at.set(Some(at));
        self.stop.notify_one();
    }

    pub(crate) fn stop_at(&self) -> Option<Instant> {
        self.stop_at.get()
    }

    /// A host has connected: it gets nothing of what an earlier connection asked for.
    pub(crate) fn connected(&self) -> u64 {
        self.disconnected();
        self.connection.get()
    }

    /// The host is gone: what it asked for and what only it could read is dropped. Claude Code and the turn go on.
    pub(crate) fn disconnected(&self) {
        self.connection.set(self.connection.get() + 1);
        self.outgoing.borrow_mut().clear();
        self.behind.borrow_mut().clear();
        for active in std::mem::take(&mut *self.requests.borrow_mut()).into_values() {
            if let Some(task) = active.task {
                task.abort();
            }
        }
    }

    fn send(&self, frame: Frame, connection: u64) {
        if connection == self.connection.get() {
            self.outgoing.borrow_mut().push_back(frame);
            self.writable.notify_one();
        }
    }

    /// Sends a frame when nothing else is to be sent.
    fn send_behind(&self, frame: Frame, connection: u64) {
        if connection == self.connection.get() {
            self.behind.borrow_mut().push_back(frame);
            self.writable.notify_one();
        }
    }

    /// The next frame to send when nothing else is to be sent.
    pub(crate) fn next_behind(&self) -> Option<Frame> {
        self.behind.borrow_mut().pop_front()
    }

    /// The next frame to send that is no entry of the log.
    pub(crate) fn next_outgoing(&self) -> Option<Frame> {
        let next = self.outgoing.borrow_mut().pop_front();
        next.or_else(|| self.bounds_due.get().then(|| self.status()))
    }

    /// Whether everything was given to the connection.
    pub(crate) fn is_flushed(&self) -> bool {
        let nothing_waits = self.outgoing.borrow().is_empty() && self.behind.borrow().is_empty();
        let nothing_to_tell = nothing_waits && !self.bounds_due.get();
        nothing_to_tell && self.log.borrow().as_ref().is_none_or(|log| !log.has_unsent())
    }

    /// Takes a request in. `None` after refusing it: too many are in progress, or the number is in use.
    pub(crate) fn accept(self: &Rc<Self>, number: u64, input: Option<mpsc::Sender<Input>>) -> Option<Caller> {
        let credit = Rc::new(Credit { bytes: Cell::new(INITIAL_CREDIT), changed: Notify::new() });
        let caller = Caller {
            shared: self.clone(),
            connection: self.connection.get(),
            number,
            credit: credit.clone(),
            is_behind: false,
        };
        let mut requests = self.requests.borrow_mut();
        if requests.contains_key(&number) {
            drop(requests);
            self.refuse_untaken(number, "a request of this number is in progress");
            return None;
        }
        if requests.len() >= MAX_REQUESTS {
            drop(requests);
            self.met(BridgeBound::Requests);
            self.refuse_untaken(number, "too many requests are in progress; try again when one has ended");
            return None;
        }
        requests.insert(number, Active { credit, input, task: None });
        Some(caller)
    }

    fn refuse_untaken(&self, number: u64, message: &str) {
        let refusal = Refusal { category: RefusalCategory::NotReady, message: message.to_owned() };
        self.send(Frame::json(FrameKind::Reply, number, &Reply::Error(refusal)), self.connection.get());
    }

    /// The task that carries a request out; it is aborted with the connection.
    pub(crate) fn set_task(&self, number: u64, task: AbortHandle) {
        if let Some(active) = self.requests.borrow_mut().get_mut(&number) {
            active.task = Some(task);
        }
    }

    /// Gives up a request in progress, where there is one of this number, with a refusal as its answer.
    pub(crate) fn cancel(&self, number: u64) {
        let given_up = self.requests.borrow_mut().remove(&number);
        if let Some(active) = given_up {
            if let Some(task) = active.task {
                task.abort();
            }
            self.behind.borrow_mut().retain(|frame| frame.number != number);
            self.refuse_untaken(number, "the request was given up");
        }
    }

    /// Where data for a request goes.
    pub(crate) fn input_of(&self, number: u64) -> Option<mpsc::Sender<Input>> {
        self.requests.borrow().get(&number)?.input.clone()
    }

    /// The host grants a request more data.
    pub(crate) fn grant(&self, number: u64, bytes: u32) {
        if let Some(active) = self.requests.borrow().get(&number) {
            active.credit.bytes.set(active.credit.bytes.get().saturating_add(u64::from(bytes)));
            active.credit.changed.notify_one();
        }
    }
}

/// Who asked: the way back for the data and the one reply of a request.
pub(crate) struct Caller {
    shared: Rc<Shared>,
    connection: u64,
    number: u64,
    credit: Rc<Credit>,
    /// What it is sent waits for everything else.
    is_behind: bool,
}

impl Caller {
    /// The same, for what is to be in nobody's way: it is sent when nothing else is to be sent.
    pub(crate) fn behind(self) -> Self {
        Self { is_behind: true, ..self }
    }

    /// Whether the connection that the request came on has ended.
    pub(crate) fn is_gone(&self) -> bool {
        self.connection != self.shared.connection.get()
    }

    fn send(&self, frame: Frame) {
        if self.is_behind {
            self.shared.send_behind(frame, self.connection);
        } else {
            self.shared.send(frame, self.connection);
        }
    }

    /// Sends data as the host grants it; waits where it does not.
    pub(crate) async fn data(&self, flags: u8, bytes: Bytes) {
        if !bytes.is_empty() {
            self.data_with_end(flags, 0, bytes).await;
        }
    }

    /// The same, with one more flag on the last frame, which is sent also where there are no bytes.
    pub(crate) async fn data_with_end(&self, flags: u8, end: u8, mut bytes: Bytes) {
        loop {
            let credit = self.credit.bytes.get();
            if credit == 0 && !bytes.is_empty() {
                self.shared.met(BridgeBound::Credit);
                self.credit.changed.notified().await;
                continue;
            }
            let take = bytes.len().min(MAX_DATA_BYTES).min(usize::try_from(credit).unwrap_or(usize::MAX));
            self.credit.bytes.set(credit - take as u64);
            let piece = bytes.split_to(take);
            let flags = if bytes.is_empty() { flags | end } else { flags };
            self.send(Frame::data(self.number, flags, piece));
            if bytes.is_empty() {
                return;
            }
        }
    }

    /// Sends a hole of a file as the host grants it, with one more flag.
    pub(crate) async fn hole(&self, size: u64, end: u8) {
        let body = size.to_le_bytes();
        let cost = body.len() as u64;
        while self.credit.bytes.get() < cost {
            self.shared.met(BridgeBound::Credit);
            self.credit.changed.notified().await;
        }
        self.credit.bytes.set(self.credit.bytes.get() - cost);
        self.send(Frame::data(self.number, DATA_HOLE | end, body.to_vec()));
    }

    /// A bound was met over the request.
    pub(crate) fn met(&self, bound: BridgeBound) {
        self.shared.met(bound);
    }

    /// Says that no more data follows.
    pub(crate) fn end_data(&self) {
        self.send(Frame::data(self.number, ash_protocol::frame::DATA_END, Bytes::new()));
    }

    /// Answers that it was done.
    pub(crate) fn done(self, value: &impl Serialize) {
        match serde_json::value::to_raw_value(value) {
            Ok(value) => self.reply(&Reply::Ok(value)),
            Err(error) => self.refuse(RefusalCategory::Io, error.to_string()),
        }
    }

    /// Answers that it was not done.
    pub(crate) fn refuse(self, category: RefusalCategory, message: impl Into<String>) {
        self.reply(&Reply::Error(Refusal { category, message: message.into() }));
    }

    /// Answers by a result.
    pub(crate) fn answer(self, result: Result<impl Serialize, Refusal>) {
        match result {
            Ok(value) => self.done(&value),
            Err(refusal) => self.reply(&Reply::Error(refusal)),
        }
    }

    fn reply(self, reply: &Reply) {
        if !self.is_gone() {
            self.shared.requests.borrow_mut().remove(&self.number);
            self.send(Frame::json(FrameKind::Reply, self.number, reply));
        }
    }
}

/// A refusal with its sentence.
pub(crate) fn refusal(category: RefusalCategory, message: impl Into<String>) -> Refusal {
    Refusal { category, message: message.into() }
}
