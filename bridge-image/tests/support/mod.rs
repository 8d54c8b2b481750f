//! A host for tests: starts the real bridge, speaks the protocol, and keeps what it was sent as a store would.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "each test file uses a part"
)]

use std::{
    collections::BTreeMap,
    io::IoSliceMut,
    mem::MaybeUninit,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::OnceLock,
    time::Duration,
};

use ash_protocol::{
    Entry, EntryKind, Epoch, Sequence,
    bound::BridgeBound,
    claude::Line,
    frame::{DATA_END, DATA_HOLE, DATA_STANDARD_ERROR, Frame, FrameKind},
    message::{
        Admit, Bind, BridgeEvent, Hello, RefusalCategory, Reply, Request, Status, TranscriptPart, Warm, Warmed, Welcome,
    },
    options::{SessionOptions, TurnOptions},
    version,
};
use bytes::{Bytes, BytesMut};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use serde_json::{Value, value::RawValue};
use tempfile::TempDir;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, Interest},
    net::{UnixListener, UnixStream},
    process::{Child, Command},
    time::timeout,
};
use uuid::Uuid;

/// Within this everything that a test waits for has to happen.
pub const DEADLINE: Duration = Duration::from_mins(1);

pub const EPOCH: Epoch = Epoch(3);

/// A folder with a home and a workspace, and a bridge in it.
pub struct Sandbox {
    pub folder: TempDir,
    listener: UnixListener,
    pub bridge: Child,
    /// What was received, by sequence: the store.
    pub journal: Vec<Entry>,
    /// The session's epoch.
    pub epoch: Epoch,
    pub program: PathBuf,
    pub environment: BTreeMap<String, String>,
}

/// The stand-in for Claude Code. Cargo builds examples with all tests, but not with a single one: so it is asked for.
pub fn stand_in() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    let build = || {
        let folder = Path::new(env!("CARGO_BIN_EXE_ash-bridge")).parent().unwrap();
        let mut cargo = std::process::Command::new(env!("CARGO"));
        cargo.args(["build", "--quiet", "--package=ash-bridge", "--example=stand-in-claude"]);
        cargo.arg("--target-dir").arg(folder.parent().unwrap()).current_dir(env!("CARGO_MANIFEST_DIR"));
        if folder.ends_with("release") {
            cargo.arg("--release");
        }
        assert!(cargo.status().unwrap().success(), "the stand-in for Claude Code does not build");
        folder.join("examples/stand-in-claude")
    };
    BUILT.get_or_init(build).clone()
}

/// The real program.
pub fn real_claude() -> PathBuf {
    match std::env::var_os("ASH_CLAUDE") {
        Some(path) => path.into(),
        None => Path::new(&std::env::var_os("HOME").unwrap()).join(".cache/ash/claude-code-2.1.330/package/claude"),
    }
}

impl Sandbox {
    pub fn start(program: PathBuf, extra: &[(&str, &str)]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let (home, workspace) = (folder.path().join("home"), folder.path().join("workspace"));
        std::fs::create_dir_all(&home).unwrap();
        std::fs::create_dir_all(&workspace).unwrap();
        let socket = folder.path().join("bridge.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let mut environment: BTreeMap<String, String> = [
            ("HOME", home.to_str().unwrap()),
            ("PATH", "/usr/local/bin:/usr/bin:/bin"),
            ("IS_SANDBOX", "1"),
            ("CLAUDE_CODE_DISABLE_NONESSENTIAL_TRAFFIC", "1"),
            ("ANTHROPIC_API_KEY", "none"),
        ]
        .into_iter()
        .map(|(name, value)| (name.to_owned(), value.to_owned()))
        .collect();
        let bridge = Command::new(env!("CARGO_BIN_EXE_ash-bridge"))
            .args(["--sandbox=test", "--gateway-port-listen=127.0.0.1:0"])
            .arg("--socket")
            .arg(&socket)
            .arg("--workspace")
            .arg(&workspace)
            .env_clear()
            .envs(&environment)
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        environment.extend(extra.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        Self { folder, listener, bridge, journal: Vec::new(), epoch: EPOCH, program, environment }
    }

    pub fn workspace(&self) -> PathBuf {
        self.folder.path().join("workspace")
    }

    pub fn home(&self) -> PathBuf {
        self.folder.path().join("home")
    }

    pub async fn connect(&mut self) -> Connection {
        self.connect_as(|welcome| welcome).await
    }

    pub async fn connect_as(&mut self, change: impl FnOnce(Welcome) -> Welcome) -> Connection {
        let (stream, _) = timeout(DEADLINE, self.listener.accept()).await.unwrap().unwrap();
        let mut buffer = BytesMut::new();
        let mut gateway = None;
        let hello = loop {
            if let Some(frame) = Frame::decode(&mut buffer).unwrap() {
                break frame;
            }
            let (bytes, descriptor) = receive(&stream).await;
            buffer.extend_from_slice(&bytes);
            gateway = gateway.or(descriptor);
        };
        assert_eq!(hello.kind, FrameKind::Hello);
        let hello: Hello = serde_json::from_slice(&hello.body).unwrap();
        let acknowledged = self.journal.last().map_or(Sequence::START, |entry| entry.sequence);
        let welcome = change(Welcome { protocol: version::CURRENT, acknowledged, overtaken: false });
        let mut connection = Connection {
            stream,
            buffer,
            hello,
            gateway,
            last_request: 0,
            replies: BTreeMap::new(),
            data: BTreeMap::new(),
            errors: BTreeMap::new(),
            data_ended: BTreeMap::new(),
            holes: None,
            status: None,
            bounds: BTreeMap::new(),
            synced: false,
            acknowledges: true,
        };
        connection.send(&Frame::json(FrameKind::Welcome, 0, &welcome)).await;
        connection
    }

    pub fn warm(&self) -> Warm {
        Warm {
            program: self.program.to_str().unwrap().to_owned(),
            environment: self.environment.clone(),
            options: SessionOptions::default(),
            rehearse: false,
            memory_bound_bytes: 1 << 40,
            resume: None,
        }
    }

    /// A session on a sandbox that was warmed without anything special.
    pub async fn session(&mut self, options: SessionOptions) -> Connection {
        let mut connection = self.connect().await;
        let warmed: Warmed = connection.ask(self, Request::Warm(Box::new(self.warm()))).await.unwrap();
        assert_eq!(warmed.version, "2.1.330 (Claude Code)");
        connection.bind(self, options).await.unwrap();
        connection
    }

    /// The texts of all complete lines of Claude Code, parsed.
    pub fn claude_lines(&self) -> Vec<Value> {
        let lines = self.journal.iter().filter(|entry| entry.kind == EntryKind::Claude);
        lines.map(|entry| serde_json::from_slice(&entry.body).unwrap()).collect()
    }

    pub fn results(&self) -> Vec<Value> {
        self.claude_lines().into_iter().filter(|line| line["type"] == "result").collect()
    }

    pub fn events(&self) -> Vec<BridgeEvent> {
        let entries = self.journal.iter().filter(|entry| entry.kind == EntryKind::Bridge);
        entries.map(|entry| serde_json::from_slice(&entry.body).unwrap()).collect()
    }

    pub fn turns_ended(&self) -> usize {
        self.journal.iter().filter(|entry| entry.ends_turn()).count()
    }

    pub fn partials(&self) -> usize {
        self.journal.iter().filter(|entry| entry.kind == EntryKind::Partial).count()
    }

    /// The transcript as the log has it: the conversation and its bytes.
    pub fn transcript(&self) -> Option<(Uuid, Vec<u8>)> {
        let mut transcript: Option<(Uuid, Vec<u8>)> = None;
        for entry in self.journal.iter().filter(|entry| entry.kind == EntryKind::Transcript) {
            let (head, bytes) = TranscriptPart::split(&entry.body).unwrap();
            match &mut transcript {
                Some((conversation, all)) if *conversation == head.conversation => {
                    assert_eq!(head.offset, all.len() as u64, "transcript parts follow each other");
                    all.extend_from_slice(bytes);
                }
                _ => {
                    assert_eq!(head.offset, 0);
                    transcript = Some((head.conversation, bytes.to_vec()));
                }
            }
        }
        transcript
    }

    fn keep(&mut self, entry: Entry) {
        if let Some(known) = self.journal.iter().find(|known| known.sequence == entry.sequence) {
            assert_eq!(*known, entry, "what comes again is the same");
            return;
        }
        let before = self.journal.last().filter(|last| last.sequence.epoch() == self.epoch);
        let expected = before.map_or(self.epoch.sequence(2), |last| last.sequence.next().unwrap());
        assert_eq!(entry.sequence, expected, "no entry is left out");
        if entry.kind == EntryKind::Partial {
            assert_eq!(Line::parse(&entry.body).unwrap(), Line::Partial);
        }
        self.journal.push(entry);
    }

    /// The process of Claude Code.
    pub fn claude_pid(&self) -> Option<u32> {
        let bridge = self.bridge.id()?;
        ash_bridge::descendants::descendants(bridge).into_iter().find(|id| {
            std::fs::read_link(format!("/proc/{id}/exe")).is_ok_and(|exe| exe == self.program.canonicalize().unwrap())
        })
    }

    pub async fn exited(&mut self) -> std::process::ExitStatus {
        timeout(DEADLINE, self.bridge.wait()).await.unwrap().unwrap()
    }
}

async fn receive(stream: &UnixStream) -> (Vec<u8>, Option<OwnedFd>) {
    stream
        .async_io(Interest::READABLE, || {
            let mut bytes = vec![0; 4096];
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
            let mut ancillary = RecvAncillaryBuffer::new(&mut space);
            let slices = &mut [IoSliceMut::new(&mut bytes)];
            let message = recvmsg(stream, slices, &mut ancillary, RecvFlags::CMSG_CLOEXEC)?;
            let descriptor = ancillary.drain().find_map(|message| match message {
                RecvAncillaryMessage::ScmRights(mut descriptors) => descriptors.next(),
                _ => None,
            });
            bytes.truncate(message.bytes);
            Ok((bytes, descriptor))
        })
        .await
        .unwrap()
}

/// One connection of a bridge.
pub struct Connection {
    stream: UnixStream,
    buffer: BytesMut,
    pub hello: Hello,
    pub gateway: Option<OwnedFd>,
    last_request: u64,
    replies: BTreeMap<u64, Reply>,
    pub data: BTreeMap<u64, Vec<u8>>,
    pub errors: BTreeMap<u64, Vec<u8>>,
    pub data_ended: BTreeMap<u64, bool>,
    /// Holes that were sent, where they are wanted instead of their zeros.
    pub holes: Option<Vec<u64>>,
    pub status: Option<Status>,
    /// How often the bridge said that it met its bounds.
    pub bounds: BTreeMap<BridgeBound, u32>,
    pub synced: bool,
    /// Whether entries are acknowledged as they come.
    pub acknowledges: bool,
}

impl Connection {
    async fn send(&mut self, frame: &Frame) {
        let mut bytes = BytesMut::new();
        frame.encode(&mut bytes);
        // A bridge that has ended reads nothing more; what it said last is read all the same.
        let _ = self.stream.write_all(&bytes).await;
    }

    pub async fn request(&mut self, request: Request) -> u64 {
        self.last_request += 1;
        self.send(&Frame::json(FrameKind::Request, self.last_request, &request)).await;
        self.last_request
    }

    pub async fn send_some(&mut self, request: u64, bytes: &[u8]) {
        for piece in bytes.chunks(100_000) {
            self.send(&Frame::data(request, 0, Bytes::copy_from_slice(piece))).await;
        }
    }

    pub async fn send_data(&mut self, request: u64, bytes: &[u8]) {
        self.send_some(request, bytes).await;
        self.send(&Frame::data(request, DATA_END, Bytes::new())).await;
    }

    pub async fn grant(&mut self, request: u64, bytes: u32) {
        self.send(&Frame::new(FrameKind::Credit, request, bytes.to_le_bytes().to_vec())).await;
    }

    pub async fn acknowledge(&mut self, up_to: Sequence) {
        self.send(&Frame::new(FrameKind::Acknowledge, up_to.0, Bytes::new())).await;
    }

    /// Takes one frame in; `false` at the end of the connection.
    pub async fn step(&mut self, sandbox: &mut Sandbox) -> bool {
        let frame = loop {
            if let Some(frame) = Frame::decode(&mut self.buffer).unwrap() {
                break frame;
            }
            let read = timeout(DEADLINE, self.stream.read_buf(&mut self.buffer)).await;
            let read = read.unwrap_or_else(|_| panic!("the bridge says nothing; so far: {}", summary(sandbox)));
            if !matches!(read, Ok(1..)) {
                return false;
            }
        };
        let number = frame.number;
        match frame.kind {
            FrameKind::Event => {
                let entry = frame.into_entry().unwrap();
                let sequence = entry.sequence;
                sandbox.keep(entry);
                if self.acknowledges {
                    self.acknowledge(sequence).await;
                }
            }
            FrameKind::Reply => {
                self.replies.insert(number, serde_json::from_slice(&frame.body).unwrap());
            }
            FrameKind::Data => {
                let is_error = frame.flags & DATA_STANDARD_ERROR != 0;
                let into = if is_error { &mut self.errors } else { &mut self.data };
                let into = into.entry(number).or_default();
                let hole = frame.body.first_chunk().filter(|_| frame.flags & DATA_HOLE != 0);
                match (hole.map(|hole| u64::from_le_bytes(*hole)), &mut self.holes) {
                    (None, _) => into.extend_from_slice(&frame.body),
                    (Some(hole), Some(holes)) => holes.push(hole),
                    (Some(hole), None) => into.resize(into.len() + usize::try_from(hole).unwrap(), 0),
                }
                self.data_ended.insert(number, frame.flags & DATA_END != 0);
            }
            FrameKind::Status => {
                let status: Status = serde_json::from_slice(&frame.body).unwrap();
                for (bound, times) in &status.bounds {
                    *self.bounds.entry(*bound).or_default() += times;
                }
                self.status = Some(status);
            }
            FrameKind::Synced => self.synced = true,
            other => panic!("a bridge sends no {other:?}"),
        }
        true
    }

    /// Reads until something is true.
    pub async fn until(&mut self, sandbox: &mut Sandbox, done: impl Fn(&Sandbox, &Self) -> bool) {
        while !done(sandbox, self) {
            assert!(self.step(sandbox).await, "the bridge closed the connection; so far: {}", summary(sandbox));
        }
    }

    pub async fn reply(&mut self, sandbox: &mut Sandbox, request: u64) -> Reply {
        self.until(sandbox, |_, connection| connection.replies.contains_key(&request)).await;
        self.replies.remove(&request).unwrap()
    }

    pub async fn ask<T: serde::de::DeserializeOwned>(
        &mut self,
        sandbox: &mut Sandbox,
        request: Request,
    ) -> Result<T, (RefusalCategory, String)> {
        let request = self.request(request).await;
        self.answer(sandbox, request).await
    }

    pub async fn answer<T: serde::de::DeserializeOwned>(
        &mut self,
        sandbox: &mut Sandbox,
        request: u64,
    ) -> Result<T, (RefusalCategory, String)> {
        match self.reply(sandbox, request).await {
            Reply::Ok(value) => Ok(serde_json::from_str(value.get()).unwrap()),
            Reply::Error(refusal) => Err((refusal.category, refusal.message)),
        }
    }

    pub async fn bind(
        &mut self,
        sandbox: &mut Sandbox,
        options: SessionOptions,
    ) -> Result<ash_protocol::message::Bound, (RefusalCategory, String)> {
        let bind = Bind {
            tenant: "default".to_owned(),
            session: Uuid::from_u128(1),
            epoch: sandbox.epoch,
            options,
            resume: None,
            transcript_offset: 0,
        };
        self.ask(sandbox, Request::Bind(Box::new(bind))).await
    }

    pub async fn admit(
        &mut self,
        sandbox: &mut Sandbox,
        turn: u128,
        text: &str,
        options: TurnOptions,
    ) -> Result<(), (RefusalCategory, String)> {
        self.ask(sandbox, admit(turn, text, options)).await
    }

    /// A whole turn; the last line of it.
    pub async fn turn(&mut self, sandbox: &mut Sandbox, turn: u128, text: &str) -> Value {
        self.turn_with(sandbox, turn, text, TurnOptions::default()).await
    }

    pub async fn turn_with(&mut self, sandbox: &mut Sandbox, turn: u128, text: &str, options: TurnOptions) -> Value {
        let before = sandbox.turns_ended();
        self.admit(sandbox, turn, text, options).await.unwrap();
        self.until(sandbox, |sandbox, _| sandbox.turns_ended() > before).await;
        let last = sandbox.journal.iter().rev().find(|entry| entry.ends_turn()).unwrap();
        serde_json::from_slice(&last.body).unwrap()
    }
}

pub fn admit(turn: u128, text: &str, options: TurnOptions) -> Request {
    Request::Admit(Box::new(Admit {
        turn: Uuid::from_u128(turn),
        content: RawValue::from_string(serde_json::to_string(text).unwrap()).unwrap(),
        options,
        permission_timeout_ms: 600_000,
    }))
}

/// What a failing test shows.
fn summary(sandbox: &Sandbox) -> String {
    let lines = sandbox.journal.iter().rev().take(12).rev().map(|entry| {
        let body = String::from_utf8_lossy(&entry.body[..entry.body.len().min(150)]).into_owned();
        format!("{} {:?} {body}", entry.sequence.n(), entry.kind)
    });
    lines.collect::<Vec<_>>().join("\n")
}
