//! The connection to the host: dials, greets, sends what is to be sent, takes requests in, and dials again.

use std::{
    io::{self, IoSlice},
    mem::MaybeUninit,
    net::TcpListener,
    os::fd::AsFd,
    rc::Rc,
    time::Duration,
};

use ash_protocol::{
    Sequence,
    bound::BridgeBound,
    frame::{DATA_END, Frame, FrameKind, MAX_DATA_BYTES},
    message::{Hello, RefusalCategory, Request, Welcome},
    version,
};
use bytes::{Bytes, BytesMut};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, Interest},
    net::UnixStream,
    sync::mpsc,
    time::{Instant, sleep, timeout},
};

use crate::{
    args::Host,
    dial::{DialError, Dialled, Ticket, dial},
    freezer,
    report::report,
    shared::{Caller, Input, MAX_WAITING_DATA, Shared},
    work,
};

/// The first pause before dialling again; doubled up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(20);

/// So long after the host was last there the pause is not doubled where nothing takes connections. Observed on the test cluster: the
/// first connection of a pod's bridge that reaches its host comes 145 ms after its container has begun, and a session waits for it.
const BRISK: Duration = Duration::from_secs(1);

/// The longest pause before dialling again.
const LONGEST_PAUSE: Duration = Duration::from_secs(1);

/// A bridge without a host for so long ends itself.
pub(crate) const HOST_GONE: Duration = Duration::from_mins(10);

/// The longest deadline of a shutdown: a day.
const MAX_DEADLINE_MS: u64 = 86_400_000;

/// How long a host may take to answer the greeting.
const WELCOME: Duration = Duration::from_secs(30);

/// Bytes that are sent with one write, about.
const BATCH_BYTES: usize = 256 << 10;

/// Bodies from this size on are written from where they are instead of being copied into the batch.
const LARGE_BODY_BYTES: usize = 32 << 10;

/// Frames that are no entries in one batch, so that entries never wait behind many of them.
const MAX_BATCHED_ANSWERS: usize = 32;

/// Bytes of room for reading from the host.
const READ_BYTES: usize = 16 << 10;

/// Buffers over this size are given back when they are empty.
const KEPT_BYTES: usize = 64 << 10;

/// A request for the session, with the way back.
pub(crate) struct Command {
    pub(crate) request: Request,
    pub(crate) caller: Caller,
}

/// Why the link has ended for good.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LinkEnd {
    /// The session went on without this bridge.
    Overtaken,
    /// No host for [`HOST_GONE`].
    HostGone,
    /// The host knows the pod, and has nothing for it.
    Unwanted,
}

/// Why a connection has ended.
#[derive(Debug, thiserror::Error)]
enum LinkError {
    #[error("the host closed the connection")]
    Closed,
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Frame(#[from] ash_protocol::frame::FrameError),
    #[error("the host sent {0}; it is of another version")]
    Protocol(&'static str),
}

/// The link's side that does not change.
pub(crate) struct Link {
    pub(crate) shared: Rc<Shared>,
    pub(crate) host: Host,
    /// For the next connection over the network.
    pub(crate) ticket: Ticket,
    pub(crate) sandbox: String,
    pub(crate) workspace: Rc<work::Workspace>,
    /// Handed to every host; kept open for ever, so that connections wait in it while there is no host.
    pub(crate) gateway: Option<TcpListener>,
    pub(crate) commands: mpsc::Sender<Command>,
}

impl Link {
    /// Dials and serves until there is no reason to go on.
    pub(crate) async fn run(&self) -> LinkEnd {
        let mut pause = FIRST_PAUSE;
        let mut gone_since = Instant::now();
        loop {
            match dial(&self.host, &self.ticket).await {
                Ok(dialled) => {
                    let mut welcomed = false;
                    let served = self.serve(dialled, &mut welcomed).await;
                    self.shared.disconnected();
                    match served {
                        Ok(end) => return end,
                        Err(error) => report("host_lost", &error.to_string()),
                    }
                    if welcomed {
                        (pause, gone_since) = (FIRST_PAUSE, Instant::now());
                    }
                }
                Err(error @ DialError::Unwanted(_)) => {
                    report("unwanted", &error.to_string());
                    return LinkEnd::Unwanted;
                }
                Err(DialError::NotThere(..)) if gone_since.elapsed() < BRISK => {
                    sleep(FIRST_PAUSE).await;
                    continue;
                }
                Err(error) if pause == LONGEST_PAUSE / 2 => report("host_unreachable", &error.to_string()),
                Err(_) => {}
            }
            if gone_since.elapsed() >= HOST_GONE {
                return LinkEnd::HostGone;
            }
            sleep(pause).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
    }

    async fn serve(&self, dialled: Dialled, welcomed: &mut bool) -> Result<LinkEnd, LinkError> {
        match dialled {
            Dialled::Unix(stream) => {
                self.greet(&stream).await?;
                let (reader, writer) = stream.into_split();
                self.serve_greeted(reader, writer, BytesMut::new(), welcomed).await
            }
            Dialled::Tcp(mut stream, received) => {
                stream.write_all(&self.hello()).await?;
                let (reader, writer) = stream.into_split();
                self.serve_greeted(reader, writer, received, welcomed).await
            }
        }
    }

    async fn serve_greeted(
        &self,
        mut reader: impl AsyncRead + Unpin,
        mut writer: impl AsyncWrite + Unpin,
        mut buffer: BytesMut,
        welcomed: &mut bool,
    ) -> Result<LinkEnd, LinkError> {
        let frame = timeout(WELCOME, next_frame(&mut reader, &mut buffer))
            .await
            .map_err(|_| LinkError::Protocol("no answer to the greeting"))??;
        if frame.kind != FrameKind::Welcome {
            return Err(LinkError::Protocol("something else than a welcome"));
        }
        let welcome: Welcome =
            serde_json::from_slice(&frame.body).map_err(|_| LinkError::Protocol("a welcome that is none"))?;
        if welcome.overtaken {
            return Ok(LinkEnd::Overtaken);
        }
        if welcome.protocol != version::CURRENT {
            return Err(LinkError::Protocol("a version that this bridge does not speak"));
        }
        *welcomed = true;
        // What the host before had stopped it cannot continue any more; this one says so if it is to stay.
        freezer::thaw();
        self.shared.connected();
        self.shared.acknowledge(welcome.acknowledged);
        let resend_to = match &mut *self.shared.log.borrow_mut() {
            Some(log) => {
                log.rewind();
                log.last()
            }
            None => Sequence::START,
        };
        self.shared.send_status();
        tokio::select! {
            result = self.read(&mut reader, buffer) => result.map(|()| LinkEnd::HostGone),
            result = self.write(&mut writer, resend_to) => result.map(|()| LinkEnd::HostGone),
        }
    }

    /// The greeting.
    fn hello(&self) -> BytesMut {
        let port = self.gateway.as_ref().and_then(|listener| listener.local_addr().ok()).map(|address| address.port());
        let hello = Hello {
            protocol: version::CURRENT,
            bridge: env!("CARGO_PKG_VERSION").to_owned(),
            sandbox: self.sandbox.clone(),
            progress: self.shared.progress(),
            gateway_port: port,
        };
        let mut bytes = BytesMut::new();
        Frame::json(FrameKind::Hello, 0, &hello).encode(&mut bytes);
        bytes
    }

    /// Sends the greeting, with the gateway's listener.
    async fn greet(&self, stream: &UnixStream) -> Result<(), LinkError> {
        let bytes = self.hello();
        let mut sent = 0;
        while sent < bytes.len() {
            sent += stream
                .async_io(Interest::WRITABLE, || {
                    let descriptors: Vec<_> = self.gateway.iter().map(AsFd::as_fd).collect();
                    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
                    let mut ancillary = SendAncillaryBuffer::new(&mut space);
                    if sent == 0 && !descriptors.is_empty() {
                        ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
                    }
                    Ok(sendmsg(stream, &[IoSlice::new(&bytes[sent..])], &mut ancillary, SendFlags::NOSIGNAL)?)
                })
                .await?;
        }
        Ok(())
    }

    async fn read(&self, reader: &mut (impl AsyncRead + Unpin), mut buffer: BytesMut) -> Result<(), LinkError> {
        loop {
            let frame = next_frame(reader, &mut buffer).await?;
            self.take_in(frame).await?;
            if buffer.is_empty() && buffer.capacity() > KEPT_BYTES {
                buffer = BytesMut::new();
            }
        }
    }

    async fn take_in(&self, frame: Frame) -> Result<(), LinkError> {
        let number = frame.number;
        match frame.kind {
            FrameKind::Acknowledge => self.shared.acknowledge(Sequence(number)),
            FrameKind::Credit => {
                let bytes = frame.body.first_chunk().ok_or(LinkError::Protocol("a credit without a number"))?;
                self.shared.grant(number, u32::from_le_bytes(*bytes));
            }
            FrameKind::Data if frame.body.len() > MAX_DATA_BYTES => {
                return Err(LinkError::Protocol("more data than a frame may carry"));
            }
            FrameKind::Data => {
                if let Some(input) = self.shared.input_of(number) {
                    let last = frame.flags & DATA_END != 0;
                    if input.capacity() == 0 {
                        self.shared.met(BridgeBound::WaitingData);
                    }
                    // Whoever was to take it has given up: its reply says why.
                    let _ = input.send(Input { bytes: frame.body, last }).await;
                }
            }
            FrameKind::Request => self.request(number, &frame.body),
            _ => return Err(LinkError::Protocol("a frame that only a bridge sends")),
        }
        Ok(())
    }

    fn request(&self, number: u64, body: &[u8]) {
        let request: Request = match serde_json::from_slice(body) {
            Ok(request) => request,
            Err(error) => {
                if let Some(caller) = self.shared.accept(number, None) {
                    let message = format!("the request cannot be read: {error}");
                    caller.refuse(RefusalCategory::Invalid, message);
                }
                return;
            }
        };
        let (input, received) = mpsc::channel(MAX_WAITING_DATA);
        let Some(caller) = self.shared.accept(number, work::takes_data(&request).then_some(input)) else { return };
        if let Request::Shutdown { deadline_ms } = request {
            if deadline_ms > MAX_DEADLINE_MS {
                self.shared.met(BridgeBound::Deadline);
            }
            self.shared.stop_by(Instant::now() + Duration::from_millis(deadline_ms.min(MAX_DEADLINE_MS)));
            return caller.done(&());
        }
        if let Request::Ticket { ticket } = request {
            self.ticket.keep(ticket);
            return caller.done(&());
        }
        match request {
            Request::Cancel { request } => {
                self.shared.cancel(request);
                return caller.done(&());
            }
            Request::Freeze {} => {
                freezer::freeze();
                return caller.done(&());
            }
            Request::Thaw {} => {
                freezer::thaw();
                return caller.done(&());
            }
            _ => {}
        }
        match work::Work::from_request(request) {
            Ok(job) => {
                let configuration = self.shared.configuration.borrow().clone();
                let work = work::carry_out(job, self.workspace.clone(), configuration, caller, received);
                self.shared.set_task(number, tokio::task::spawn_local(work).abort_handle());
            }
            Err(request) => {
                if let Err(error) = self.commands.try_send(Command { request: *request, caller }) {
                    let caller = error.into_inner().caller;
                    self.shared.met(BridgeBound::Requests);
                    caller.refuse(RefusalCategory::NotReady, "the session has too much to do or is ending; try again");
                }
            }
        }
    }

    async fn write(&self, writer: &mut (impl AsyncWrite + Unpin), resend_to: Sequence) -> Result<(), LinkError> {
        let mut batch = BytesMut::new();
        let mut synced = false;
        loop {
            let large = self.fill(&mut batch, resend_to, &mut synced);
            if batch.is_empty() {
                if batch.capacity() > KEPT_BYTES {
                    batch = BytesMut::new();
                }
                self.shared.writable.notified().await;
                continue;
            }
            writer.write_all(&batch).await?;
            batch.clear();
            if let Some(body) = large {
                writer.write_all(&body).await?;
            }
        }
    }

    /// Puts frames into a batch. A large body ends the batch and is returned, to be written behind it.
    fn fill(&self, batch: &mut BytesMut, resend_to: Sequence, synced: &mut bool) -> Option<Bytes> {
        let mut put = |frame: Frame| -> Option<Bytes> {
            if frame.body.len() >= LARGE_BODY_BYTES {
                batch.extend_from_slice(&frame.header());
                return Some(frame.body);
            }
            frame.encode(batch);
            (batch.len() >= BATCH_BYTES).then(Bytes::new)
        };
        for _ in 0..MAX_BATCHED_ANSWERS {
            let Some(frame) = self.shared.next_outgoing() else { break };
            if let Some(large) = put(frame) {
                return Some(large);
            }
        }
        let mut log = self.shared.log.borrow_mut();
        loop {
            let entry = log.as_mut().and_then(|log| log.next_unsent());
            if !*synced && entry.is_none_or(|entry| entry.sequence > resend_to) {
                *synced = true;
                put(Frame::new(FrameKind::Synced, 0, Bytes::new()));
            }
            let Some(entry) = entry else { break };
            if let Some(large) = put(Frame::event(entry)) {
                return Some(large);
            }
        }
        // One frame, so that what comes next waits for no more than that.
        self.shared.next_behind().and_then(put)
    }
}

async fn next_frame(reader: &mut (impl AsyncRead + Unpin), buffer: &mut BytesMut) -> Result<Frame, LinkError> {
    loop {
        if let Some(frame) = Frame::decode(buffer)? {
            return Ok(frame);
        }
        buffer.reserve(READ_BYTES);
        if reader.read_buf(buffer).await? == 0 {
            return Err(LinkError::Closed);
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use ash_protocol::{EntryFlags, EntryKind, Epoch};

    use super::*;
    use crate::log::Log;

    #[tokio::test]
    async fn what_is_read_for_a_snapshot_waits_for_everything_else() {
        let folder = tempfile::tempdir().unwrap();
        let shared = Rc::new(Shared::new(folder.path().to_owned()));
        *shared.log.borrow_mut() = Some(Log::new(Epoch(1)));
        let link = Link {
            shared: shared.clone(),
            host: Host::Unix(folder.path().join("socket")),
            ticket: Ticket::default(),
            sandbox: "test".to_owned(),
            workspace: Rc::new(work::Workspace::open(folder.path()).unwrap()),
            gateway: None,
            commands: mpsc::channel(1).0,
        };
        let caller = shared.accept(1, None).unwrap().behind();
        let piece = || Bytes::from(vec![0; work::SLICE_BYTES]);
        caller.data(0, piece()).await;
        caller.data(0, piece()).await;
        caller.done(&());
        let other = shared.accept(2, None).unwrap();
        let mut synced = true;
        let mut kinds = Vec::new();
        for round in 0..4 {
            // What comes later overtakes what waits.
            shared.append(EntryKind::Partial, EntryFlags::default(), Bytes::from_static(b"{}"));
            if round == 1 {
                shared.send_status();
            }
            let mut batch = BytesMut::new();
            if let Some(body) = link.fill(&mut batch, Sequence::START, &mut synced) {
                batch.extend_from_slice(&body);
            }
            while let Some(frame) = Frame::decode(&mut batch).unwrap() {
                kinds.push(frame.kind);
            }
        }
        other.done(&());
        let (event, data) = (FrameKind::Event, FrameKind::Data);
        let expected = [event, data, FrameKind::Status, event, data, event, FrameKind::Reply, event];
        assert_eq!(kinds, expected);
    }
}
