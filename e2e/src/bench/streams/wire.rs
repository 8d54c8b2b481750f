//! Many open streams, read by one thread of this process: plain sockets, so that nothing of a client is measured.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread::JoinHandle,
    time::{Duration, Instant},
};

use anyhow::{Context, bail, ensure};
use memchr::memmem;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
    sync::{Semaphore, watch},
    time::timeout,
};

use super::ids::Ids;

/// How long a stream may be silent; it has a comment every 10 s.
const SILENCE: Duration = Duration::from_mins(1);
/// Bytes of one read.
const READ_BYTES: usize = 16 << 10;
/// What has to have come of a stream that counts as open, where no entry is waited for.
const BEGUN: &[u8] = b"event: session_start";

/// What is asked of all streams.
#[derive(Debug, Clone, Copy)]
pub(super) struct Plan {
    pub(super) address: SocketAddr,
    pub(super) key: &'static str,
    /// Streams that are opened at the same time.
    pub(super) opened_at_once: usize,
    /// Whether a stream counts as open with its first entry, and not with its beginning alone.
    pub(super) to_first_entry: bool,
}

/// What one stream saw.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// From the request to when it counted as open, the connection included.
    pub(super) opened: Duration,
    /// When the first frame of each entry came.
    pub(super) entries: Vec<(u64, Instant)>,
}

/// Streams that are open until they are closed.
#[derive(Debug)]
pub(super) struct Streams {
    open: Arc<AtomicUsize>,
    done: Arc<AtomicUsize>,
    close: watch::Sender<bool>,
    thread: JoinHandle<anyhow::Result<Vec<Seen>>>,
}

impl Streams {
    /// Begins to open one for each path.
    pub(super) fn start(plan: Plan, paths: Vec<String>) -> anyhow::Result<Self> {
        let (open, done) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (close, closed) = watch::channel(false);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let counts = (Arc::clone(&open), Arc::clone(&done));
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                let places = Arc::new(Semaphore::new(plan.opened_at_once));
                let mut tasks = Vec::new();
                for path in paths {
                    let (places, counts, closed) = (Arc::clone(&places), counts.clone(), closed.clone());
                    tasks.push(tokio::spawn(async move { follow(plan, &path, &places, counts, closed).await }));
                }
                let mut all = Vec::new();
                for task in tasks {
                    all.push(task.await??);
                }
                Ok(all)
            })
        });
        Ok(Self { open, done, close, thread })
    }

    /// Waits until so many are open.
    pub(super) async fn wait_open(&self, count: usize) -> anyhow::Result<()> {
        self.wait(&self.open, count).await
    }

    /// Waits until so many turns' ends were seen.
    pub(super) async fn wait_done(&self, count: usize) -> anyhow::Result<()> {
        self.wait(&self.done, count).await
    }

    async fn wait(&self, counted: &AtomicUsize, count: usize) -> anyhow::Result<()> {
        while counted.load(Ordering::SeqCst) < count {
            ensure!(!self.thread.is_finished(), "a stream ended early");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// Closes all, and gives what each saw.
    pub(super) fn close(self) -> anyhow::Result<Vec<Seen>> {
        self.close.send_replace(true);
        match self.thread.join() {
            Ok(seen) => seen,
            Err(_) => bail!("the thread of the streams panicked"),
        }
    }
}

async fn follow(
    plan: Plan,
    path: &str,
    places: &Semaphore,
    (open, done): (Arc<AtomicUsize>, Arc<AtomicUsize>),
    mut closed: watch::Receiver<bool>,
) -> anyhow::Result<Seen> {
    let mut place = Some(places.acquire().await?);
    let begun = Instant::now();
    let mut stream = TcpStream::connect(plan.address).await.context("cannot connect")?;
    stream.set_nodelay(true)?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer {}\r\naccept: text/event-stream\r\n\r\n",
        plan.address, plan.key
    );
    stream.write_all(request.as_bytes()).await?;
    let mut seen = Seen::default();
    let mut ids = Ids::default();
    let mut piece = vec![0; READ_BYTES];
    loop {
        let read = tokio::select! {
            read = timeout(SILENCE, stream.read(&mut piece)) => read.context("a stream is silent")??,
            () = is_closed(&mut closed) => return Ok(seen),
        };
        let now = Instant::now();
        let piece = &piece[..read];
        ensure!(read > 0, "the server ended a stream");
        let before = seen.entries.len();
        ids.feed(piece, |entry, frame| {
            if frame == 0 {
                seen.entries.push((entry, now));
            }
        });
        if memmem::find(piece, b"event: done").is_some() {
            done.fetch_add(1, Ordering::SeqCst);
        }
        let is_open =
            if plan.to_first_entry { seen.entries.len() > before } else { memmem::find(piece, BEGUN).is_some() };
        if is_open && place.take().is_some() {
            seen.opened = now - begun;
            open.fetch_add(1, Ordering::SeqCst);
        }
    }
}

/// Completes when all are to be closed, or nobody is there to say so.
async fn is_closed(closed: &mut watch::Receiver<bool>) {
    let _ = closed.wait_for(|closed| *closed).await;
}
