//! The host's end of the connection to one bridge: greeting, requests and replies, entries in, acknowledgements out.

mod errors;
mod greeting;
mod stream;
mod transfer;

use std::{
    collections::HashMap,
    io,
    net::TcpListener,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use ash_core::{Entry, Sequence};
use ash_protocol::{
    frame::{DATA_END, Frame, FrameKind, MAX_DATA_BYTES},
    message::{Hello, Reply, Request, Status, Welcome},
};
use bytes::{Bytes, BytesMut};
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;
use tokio::{
    sync::{
        mpsc::{self, error::TrySendError},
        oneshot, watch,
    },
    time::{Duration, Instant, sleep, timeout, timeout_at},
};

pub(crate) use self::{
    errors::{ConnectionError, RequestError},
    greeting::greet,
    transfer::{Download, Piece, Upload},
};
use self::{
    stream::{ReadHalf, WriteHalf},
    transfer::Sink,
};
use crate::{
    budget::{Budget, Share},
    limits::{BRIDGE_QUEUE, BRIDGE_READ_BYTES, COPIED_BYTES, LATE_LINES, LONG_LINE},
    metrics::Metrics,
};

/// The first size of the read buffer; it grows while reads fill it and is given back when the connection is idle.
const FIRST_READ_BYTES: usize = 16 << 10;

/// What the rest of the runner holds of a bridge. Survives its connections.
#[derive(Debug)]
pub(crate) struct Bridge {
    out: mpsc::Sender<Frame>,
    /// Taken by the connection that is up.
    source: tokio::sync::Mutex<Outgoing>,
    acknowledged: watch::Sender<Sequence>,
    pending: Mutex<Pending>,
    next: AtomicU64,
    /// How often it was begun and ended not to read from it because the sessions have as much in memory as they may together.
    holds: AtomicU64,
    /// Long lines that room was made for and that did not come.
    lates: AtomicU64,
    metrics: Arc<Metrics>,
}

/// Requests that wait for their answers, by number.
type Pending = HashMap<u64, Waiting>;

/// Who waits for an answer.
#[derive(Debug)]
struct Waiting {
    answer: oneshot::Sender<Result<Box<RawValue>, RequestError>>,
    /// For the data that comes before it.
    data: Option<Sink>,
}

#[derive(Debug)]
struct Outgoing {
    frames: mpsc::Receiver<Frame>,
    acknowledged: watch::Receiver<Sequence>,
}

/// What a connection hands to its owner, in order.
#[derive(Debug)]
pub(crate) enum Incoming {
    /// Entries of the log.
    Entries(Vec<Entry>),
    /// Everything from before the connection has been sent.
    Synced,
    /// Not part of the log.
    Status(Status),
    /// Frames that were no entries came, with so many bytes in all: reading them costs too.
    Beside { frames: usize, bytes: usize },
}

/// What bounds the reading of a connection beside its own rate.
pub(crate) struct Reading<'a> {
    /// The memory of all sessions.
    pub(crate) budget: &'a Arc<Budget>,
    /// Bytes of the session that are not committed.
    pub(crate) uncommitted_bytes: &'a (dyn Fn() -> usize + Send + Sync),
}

/// A line that is longer than one read, while it comes.
struct LongLine {
    bytes: usize,
    until: Instant,
    _share: Share,
}

/// Counts the beginning of a time in which a bridge is not read, and its end.
struct Held<'a>(&'a AtomicU64);

impl<'a> Held<'a> {
    fn new(holds: &'a AtomicU64) -> Self {
        holds.fetch_add(1, Ordering::Relaxed);
        Self(holds)
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

/// A greeted connection.
pub(crate) struct Greeted {
    read: ReadHalf,
    write: WriteHalf,
    buffer: BytesMut,
    /// What the bridge said of itself.
    pub(crate) hello: Hello,
    /// The gateway's listener in the sandbox's network.
    pub(crate) listener: Option<TcpListener>,
}

impl Bridge {
    pub(crate) fn new(metrics: Arc<Metrics>) -> Self {
        let (out, frames) = mpsc::channel(BRIDGE_QUEUE);
        let (acknowledged, acknowledged_receiver) = watch::channel(Sequence::START);
        Self {
            out,
            source: tokio::sync::Mutex::new(Outgoing { frames, acknowledged: acknowledged_receiver }),
            acknowledged,
            pending: Mutex::new(HashMap::new()),
            next: AtomicU64::new(1),
            holds: AtomicU64::new(0),
            lates: AtomicU64::new(0),
            metrics,
        }
    }

    /// Tells the bridge that everything up to here is committed.
    pub(crate) fn acknowledge(&self, sequence: Sequence) {
        self.acknowledged.send_if_modified(|current| {
            let newer = sequence > *current;
            *current = sequence.max(*current);
            newer
        });
    }

    /// Sends a request and gives the future of its answer. Requests arrive in the order in which they were sent.
    pub(crate) async fn send(&self, request: &Request) -> Answer {
        self.send_with_data(request, None).await
    }

    /// Sends a request with the data that belongs to it.
    pub(crate) async fn send_with_data(&self, request: &Request, data: Option<Bytes>) -> Answer {
        let (id, answer) = self.ask(request, None).await;
        if let Some(mut data) = data {
            let mut sent = true;
            while sent {
                let piece = data.split_to(data.len().min(MAX_DATA_BYTES));
                let flags = if data.is_empty() { DATA_END } else { 0 };
                sent = self.queue(Frame::data(id, flags, piece)).await;
                if flags == DATA_END {
                    break;
                }
            }
            if !sent {
                self.lock_pending().remove(&id);
            }
        }
        answer
    }

    fn next_number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Sends a request: its number, and the future of its answer.
    async fn ask(&self, request: &Request, data: Option<Sink>) -> (u64, Answer) {
        let id = self.next_number();
        let (sender, receiver) = oneshot::channel();
        self.lock_pending().insert(id, Waiting { answer: sender, data });
        if !self.queue(Frame::json(FrameKind::Request, id, request)).await {
            self.lock_pending().remove(&id);
        }
        (id, Answer(receiver))
    }

    /// Queues a frame, waiting for room where there is none. False where nobody takes it.
    async fn queue(&self, frame: Frame) -> bool {
        match self.out.try_send(frame) {
            Ok(()) => true,
            Err(TrySendError::Closed(_)) => false,
            Err(TrySendError::Full(frame)) => {
                self.metrics.requests_waited.inc();
                self.out.send(frame).await.is_ok()
            }
        }
    }

    /// Sends a request as [`send`](Self::send) does. A bridge that does not take it within the bound has not answered it.
    pub(crate) async fn send_within(&self, request: &Request, within: Duration) -> Answer {
        timeout(within, self.send(request)).await.unwrap_or_else(|_| Answer::known(RequestError::Silent(within)))
    }

    /// Sends a request and waits for its answer, for so long at the most each.
    pub(crate) async fn call_within<T: DeserializeOwned>(
        &self,
        request: &Request,
        within: Duration,
    ) -> Result<T, RequestError> {
        self.send_within(request, within).await.read_within(within).await
    }

    /// Sends a request and waits for its answer, however long that takes.
    pub(crate) async fn call<T: DeserializeOwned>(&self, request: &Request) -> Result<T, RequestError> {
        self.send(request).await.read().await
    }

    /// Fails every request that waits for an answer: the connection that it was sent on is gone.
    pub(crate) fn fail_pending(&self) {
        for (_, waiting) in self.lock_pending().drain() {
            let _ = waiting.answer.send(Err(RequestError::Gone));
        }
    }

    fn answer(&self, id: u64, body: &[u8]) {
        let Some(waiting) = self.lock_pending().remove(&id) else { return };
        let answer = match serde_json::from_slice(body) {
            Ok(Reply::Ok(value)) => Ok(value),
            Ok(Reply::Error(refusal)) => {
                self.metrics.request_refused(refusal.category);
                Err(refusal.into())
            }
            Err(error) => Err(error.into()),
        };
        let _ = waiting.answer.send(answer);
    }

    /// Hands data to whoever asked for it; false where nobody did.
    fn take_data(&self, frame: &Frame) -> Result<bool, ConnectionError> {
        match self.lock_pending().get_mut(&frame.number).and_then(|waiting| waiting.data.as_mut()) {
            Some(sink) => sink.take(frame).map(|()| true),
            None => Ok(false),
        }
    }

    fn lock_pending(&self) -> MutexGuard<'_, Pending> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Serves a greeted connection until it breaks. `incoming` is called in order and must not block; it gives how long the
    /// connection is not read from after that. It ends with `newer` too, and at once where the bridge is `overtaken`.
    pub(crate) async fn serve(
        &self,
        greeted: Greeted,
        acknowledged: Sequence,
        overtaken: bool,
        newer: impl Future<Output = ()>,
        bounds: Reading<'_>,
        mut incoming: impl FnMut(Incoming) -> Result<Duration, ConnectionError>,
    ) -> ConnectionError {
        let Greeted { mut read, mut write, mut buffer, hello, .. } = greeted;
        let mut source = self.source.lock().await;
        let welcome = Welcome { protocol: hello.protocol, acknowledged, overtaken };
        let mut first = BytesMut::new();
        Frame::json(FrameKind::Welcome, 0, &welcome).encode(&mut first);
        if let Err(error) = write.write_all(&first).await {
            return error.into();
        }
        if overtaken {
            return ConnectionError::Overtaken;
        }
        let reading = async {
            let mut long: Option<LongLine> = None;
            loop {
                let whole = long.as_ref().is_some_and(|line| buffer.len() >= line.bytes);
                let pause = match self.deliver(&mut buffer, &mut incoming) {
                    Ok(pause) => pause,
                    Err(error) => return error,
                };
                if whole {
                    // Its session holds it now.
                    long = None;
                }
                if !pause.is_zero() {
                    sleep(pause).await;
                }
                if long.is_none() {
                    long = self.make_room(&buffer, &bounds).await;
                }
                let filled = fill(&mut read, &mut buffer);
                let filled = match &long {
                    None => Ok(filled.await),
                    Some(line) => timeout_at(line.until, filled).await.map_err(|_| line.bytes),
                };
                match filled {
                    Ok(Ok(())) => {}
                    Ok(Err(error)) => return error.into(),
                    Err(bytes) => {
                        self.metrics.lines_late.inc();
                        let lates = self.lates.fetch_add(1, Ordering::Relaxed) + 1;
                        return if lates < LATE_LINES {
                            ConnectionError::Late(bytes)
                        } else {
                            ConnectionError::LateAgain(lates)
                        };
                    }
                }
            }
        };
        let error = tokio::select! {
            error = reading => error,
            error = write_out(&mut write, &mut source) => error.into(),
            () = newer => ConnectionError::Superseded,
        };
        // Requests that were queued for this connection belong to callers that are told below.
        while source.frames.try_recv().is_ok() {}
        self.fail_pending();
        error
    }

    /// Waits until there is room for what is read next, which a buffer begins. Most of the time there is, and nothing is counted.
    async fn make_room(&self, buffer: &[u8], bounds: &Reading<'_>) -> Option<LongLine> {
        let Reading { budget, uncommitted_bytes } = bounds;
        let Some(bytes) = Frame::announced(buffer).filter(|bytes| *bytes > BRIDGE_READ_BYTES) else {
            if !budget.is_tight() || budget.may_read(uncommitted_bytes()) {
                return None;
            }
            self.hold_back(budget.wait_read(uncommitted_bytes)).await;
            return None;
        };
        let share = match budget.draw(bytes) {
            Some(share) => share,
            None => self.hold_back(budget.wait_draw(bytes)).await,
        };
        Some(LongLine { bytes, until: Instant::now() + LONG_LINE, _share: share })
    }

    async fn hold_back<T>(&self, waiting: impl Future<Output = T>) -> T {
        self.metrics.bridges_held_back.inc();
        let _held = Held::new(&self.holds);
        waiting.await
    }

    /// How often the host, for want of memory, began and ended not to read it: odd while it does not.
    pub(crate) fn holds(&self) -> u64 {
        self.holds.load(Ordering::Relaxed)
    }

    /// Hands over every whole frame of the buffer; entries that follow each other go together.
    fn deliver(
        &self,
        buffer: &mut BytesMut,
        incoming: &mut impl FnMut(Incoming) -> Result<Duration, ConnectionError>,
    ) -> Result<Duration, ConnectionError> {
        let mut entries = Vec::new();
        // What pauses for later entries covers the earlier ones.
        let mut pause = Duration::ZERO;
        let (mut frames, mut bytes) = (0, 0);
        while let Some(frame) = Frame::decode(buffer)? {
            if frame.kind == FrameKind::Event {
                let mut entry = frame.into_entry()?;
                // An entry would keep the buffer alive that it was read into, and what else came in it: copying 300 bytes costs
                // less than a bridge could cost that sends much and little of it entries.
                if entry.body.len() < COPIED_BYTES {
                    entry.body = Bytes::copy_from_slice(&entry.body);
                }
                entries.push(entry);
                continue;
            }
            if !entries.is_empty() {
                pause = pause.max(incoming(Incoming::Entries(std::mem::take(&mut entries)))?);
            }
            // What was asked for has its own measure.
            if frame.kind == FrameKind::Data && self.take_data(&frame)? {
                continue;
            }
            (frames, bytes) = (frames + 1, bytes + frame.body.len());
            match frame.kind {
                FrameKind::Reply => self.answer(frame.number, &frame.body),
                FrameKind::Synced => pause = pause.max(incoming(Incoming::Synced)?),
                FrameKind::Status => {
                    if let Ok(status) = serde_json::from_slice(&frame.body) {
                        pause = pause.max(incoming(Incoming::Status(status))?);
                    }
                }
                // Data that nobody asked for, and what only a host sends.
                _ => {}
            }
        }
        if !entries.is_empty() {
            pause = pause.max(incoming(Incoming::Entries(entries))?);
        }
        if frames > 0 {
            pause = pause.max(incoming(Incoming::Beside { frames, bytes })?);
        }
        Ok(pause)
    }
}

/// The answer to come.
pub(crate) struct Answer(oneshot::Receiver<Result<Box<RawValue>, RequestError>>);

impl Answer {
    /// An answer that was read before.
    pub(crate) fn known(error: RequestError) -> Self {
        let (sender, receiver) = oneshot::channel();
        let _ = sender.send(Err(error));
        Self(receiver)
    }

    /// Reads the answer, as [`read`](Self::read) does, for so long at the most.
    pub(crate) async fn read_within<T: DeserializeOwned>(self, within: Duration) -> Result<T, RequestError> {
        timeout(within, self.read()).await.unwrap_or(Err(RequestError::Silent(within)))
    }

    pub(crate) async fn read<T: DeserializeOwned>(self) -> Result<T, RequestError> {
        let raw = self.0.await.unwrap_or(Err(RequestError::Gone))?;
        Ok(serde_json::from_str(raw.get())?)
    }
}

/// Reads more. An idle connection holds no buffer: there are thousands of them.
async fn fill(read: &mut ReadHalf, buffer: &mut BytesMut) -> io::Result<()> {
    if buffer.is_empty() {
        *buffer = BytesMut::new();
        read.readable().await?;
    }
    let wanted = if buffer.capacity() == 0 { FIRST_READ_BYTES } else { buffer.len().max(FIRST_READ_BYTES) };
    buffer.reserve(wanted.min(BRIDGE_READ_BYTES));
    if read.read_buf(buffer).await? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    // A read that filled the buffer has more behind it: it is taken in the same delivery, up to the bound.
    while buffer.len() == buffer.capacity() && buffer.len() < BRIDGE_READ_BYTES {
        buffer.reserve(buffer.len());
        match read.try_read_buf(buffer) {
            Ok(0) => break,
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

async fn write_out(write: &mut WriteHalf, source: &mut Outgoing) -> io::Error {
    let mut buffer = BytesMut::new();
    loop {
        tokio::select! {
            biased;
            frame = source.frames.recv() => {
                let Some(frame) = frame else { return io::ErrorKind::BrokenPipe.into() };
                frame.encode(&mut buffer);
                while buffer.len() < BRIDGE_READ_BYTES && let Ok(frame) = source.frames.try_recv() {
                    frame.encode(&mut buffer);
                }
            }
            changed = source.acknowledged.changed() => {
                if changed.is_err() {
                    return io::ErrorKind::BrokenPipe.into();
                }
                let sequence = *source.acknowledged.borrow_and_update();
                Frame::new(FrameKind::Acknowledge, sequence.0, Bytes::new()).encode(&mut buffer);
            }
        }
        if let Err(error) = write.write_all(&buffer).await {
            return error;
        }
        if buffer.capacity() > FIRST_READ_BYTES { buffer = BytesMut::new() } else { buffer.clear() }
    }
}

#[cfg(test)]
mod tests;
