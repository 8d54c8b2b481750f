//! The one that writes: takes what is queued and carries out many writes in one transaction, each behind a savepoint.
//!
//! One disk flush serves everything that came while the previous one ran. Callers hear of their write after the commit.

use std::sync::{
    Arc,
    atomic::{AtomicU32, AtomicU64, Ordering},
};

use ash_core::ports::StoreError;
use async_trait::async_trait;
use sqlx::{AssertSqlSafe, ConnectOptions, Executor, SqliteConnection, sqlite::SqliteConnectOptions};
use tokio::{
    sync::{Mutex, Notify, mpsc, oneshot},
    task::JoinHandle,
};

use super::open;
use crate::{
    cache::Caches,
    directory::DirectoryLock,
    fault::{Fault, is_refusal},
    limits::{MAX_BYTES_PER_TRANSACTION, MAX_QUEUED_WRITES, MAX_WRITES_PER_TRANSACTION},
    store::{self, Statistics},
};

/// Something to be written.
pub(super) trait Write: Send + Sync + 'static {
    /// What the caller gets.
    type Output: Send + Sync + 'static;

    /// Bytes that it writes, about.
    fn bytes(&self) -> usize {
        0
    }

    /// Writes, within a transaction. May be called again where the transaction failed.
    fn run(&self, connection: &mut SqliteConnection) -> impl Future<Output = Result<Self::Output, Fault>> + Send;

    /// Writes, alone in a transaction that this begins and commits. What fails is rolled back by the caller.
    fn run_alone(&self, connection: &mut SqliteConnection) -> impl Future<Output = Result<Self::Output, Aborted>> + Send
    where
        Self: Sized,
    {
        async move {
            connection.execute("BEGIN IMMEDIATE").await.map_err(|error| Aborted::before_commit(error.into()))?;
            let output = self.run(connection).await.map_err(Aborted::before_commit)?;
            commit(connection).await?;
            Ok(output)
        }
    }

    /// What else follows from it once it is committed: the caches.
    fn committed(&self, _output: &Self::Output, _caches: &Caches) {}
}

/// What every database writes alike.
pub(super) struct Alike<W>(pub(super) W);

impl<W: store::Write> Write for Alike<W> {
    type Output = W::Output;

    fn bytes(&self) -> usize {
        self.0.bytes()
    }

    async fn run(&self, connection: &mut SqliteConnection) -> Result<W::Output, Fault> {
        self.0.run(connection).await
    }

    fn committed(&self, output: &W::Output, caches: &Caches) {
        self.0.committed(output, caches);
    }
}

/// Where writes are queued.
pub(super) struct Writer {
    queue: mpsc::Sender<Box<dyn Job>>,
    counters: Arc<Counters>,
    max_pages: Arc<AtomicU32>,
    closing: Arc<Notify>,
    task: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct Counters {
    writes: AtomicU64,
    transactions: AtomicU64,
    failed: AtomicU64,
    at_bound: AtomicU64,
}

impl Writer {
    /// Starts the task. It holds the lock until it ends: when it is told to, or when nobody can queue anything any more.
    pub(super) fn start(
        connection: SqliteConnection,
        options: SqliteConnectOptions,
        max_pages: u32,
        lock: DirectoryLock,
        caches: Arc<Caches>,
    ) -> Self {
        let (queue, jobs) = mpsc::channel(MAX_QUEUED_WRITES);
        let counters = Arc::new(Counters::default());
        let closing = Arc::new(Notify::new());
        let max_pages = Arc::new(AtomicU32::new(max_pages));
        let worker = Worker {
            connection: Some(connection),
            options,
            max_pages: Arc::clone(&max_pages),
            _lock: lock,
            caches,
            counters: Arc::clone(&counters),
        };
        let task = tokio::spawn(worker.run(jobs, Arc::clone(&closing)));
        Self { queue, counters, max_pages, closing, task: Mutex::new(Some(task)) }
    }

    /// Carries a write out; durable when this returns.
    pub(super) async fn write<W: Write>(&self, write: W) -> Result<W::Output, StoreError> {
        let stopped = || StoreError::Unavailable("the store is closed".to_owned());
        let (reply, answer) = oneshot::channel();
        let job = Queued { write, output: None, reply };
        self.queue.send(Box::new(job)).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }

    /// Bounds the file.
    pub(super) async fn set_max_pages(&self, pages: u32) -> Result<(), StoreError> {
        self.max_pages.store(pages, Ordering::Relaxed);
        self.write(SetMaxPages(pages)).await
    }

    /// Lets the task end and waits for it.
    pub(super) async fn close(&self) {
        self.closing.notify_one();
        if let Some(task) = self.task.lock().await.take()
            && let Err(error) = task.await
        {
            tracing::error!(%error, "the writer of the database failed");
        }
    }

    pub(super) fn statistics(&self) -> Statistics {
        Statistics {
            waiting: self.queue.max_capacity() - self.queue.capacity(),
            writes: self.counters.writes.load(Ordering::Relaxed),
            transactions: self.counters.transactions.load(Ordering::Relaxed),
            failed_transactions: self.counters.failed.load(Ordering::Relaxed),
            transactions_at_bound: self.counters.at_bound.load(Ordering::Relaxed),
            ..Statistics::default()
        }
    }
}

struct SetMaxPages(u32);

impl Write for SetMaxPages {
    type Output = ();

    async fn run(&self, connection: &mut SqliteConnection) -> Result<(), Fault> {
        Ok(set_max_pages(connection, self.0).await?)
    }
}

async fn set_max_pages(connection: &mut SqliteConnection, pages: u32) -> Result<(), sqlx::Error> {
    // A PRAGMA takes no parameters; the text is a number of ours.
    connection.execute(AssertSqlSafe(format!("PRAGMA max_page_count = {pages}"))).await?;
    Ok(())
}

/// A write of any type, with its caller.
#[async_trait]
trait Job: Send {
    fn bytes(&self) -> usize;
    /// Writes; a refusal is kept for the caller and does not fail the transaction.
    async fn run(&mut self, connection: &mut SqliteConnection) -> Result<Ran, Fault>;
    /// As `run`, in a transaction of its own.
    async fn run_alone(&mut self, connection: &mut SqliteConnection) -> Result<(), Aborted>;
    fn committed(self: Box<Self>, caches: &Caches);
    fn failed(self: Box<Self>, error: StoreError);
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Ran {
    Done,
    Refused,
}

struct Queued<W: Write> {
    write: W,
    output: Option<Result<W::Output, StoreError>>,
    reply: oneshot::Sender<Result<W::Output, StoreError>>,
}

#[async_trait]
impl<W: Write> Job for Queued<W> {
    fn bytes(&self) -> usize {
        self.write.bytes()
    }

    async fn run(&mut self, connection: &mut SqliteConnection) -> Result<Ran, Fault> {
        match self.write.run(connection).await {
            Ok(output) => {
                self.output = Some(Ok(output));
                Ok(Ran::Done)
            }
            Err(fault) if is_refusal(&fault.error) => {
                self.output = Some(Err(fault.error));
                Ok(Ran::Refused)
            }
            Err(fault) => Err(fault),
        }
    }

    async fn run_alone(&mut self, connection: &mut SqliteConnection) -> Result<(), Aborted> {
        self.output = Some(match self.write.run_alone(connection).await {
            Ok(output) => Ok(output),
            Err(aborted) if !aborted.in_doubt && is_refusal(&aborted.error) => {
                connection.execute("ROLLBACK").await.map_err(|error| Aborted::before_commit(error.into()))?;
                Err(aborted.error)
            }
            Err(aborted) => return Err(aborted),
        });
        Ok(())
    }

    fn committed(self: Box<Self>, caches: &Caches) {
        let Self { write, output, reply } = *self;
        let output = output.unwrap_or_else(|| Err(StoreError::Unavailable("it was not carried out".to_owned())));
        if let Ok(output) = &output {
            write.committed(output, caches);
        }
        // A caller that went away does not take its write back.
        let _ = reply.send(output);
    }

    fn failed(self: Box<Self>, error: StoreError) {
        let _ = self.reply.send(Err(error));
    }
}

/// Why a transaction is not there.
pub(super) struct Aborted {
    error: StoreError,
    /// The commit itself failed: it may be there nevertheless.
    in_doubt: bool,
}

impl Aborted {
    pub(super) fn before_commit(fault: Fault) -> Self {
        Self { error: fault.error, in_doubt: false }
    }

    pub(super) fn at_commit(Fault { error, .. }: Fault) -> Self {
        // SQLite reports a full disk before it writes the commit's mark.
        Self { in_doubt: error != StoreError::Full, error }
    }
}

struct Worker {
    /// None after a failure that left the connection in doubt.
    connection: Option<SqliteConnection>,
    options: SqliteConnectOptions,
    /// Set on every new connection: it is not kept in the file.
    max_pages: Arc<AtomicU32>,
    /// Of the data directory: held until nothing is written any more.
    _lock: DirectoryLock,
    caches: Arc<Caches>,
    counters: Arc<Counters>,
}

impl Worker {
    async fn run(mut self, mut jobs: mpsc::Receiver<Box<dyn Job>>, closing: Arc<Notify>) {
        let mut waiting = Vec::new();
        let mut open = true;
        loop {
            tokio::select! {
                biased;
                () = closing.notified(), if open => {
                    open = false;
                    jobs.close();
                }
                taken = jobs.recv_many(&mut waiting, MAX_WRITES_PER_TRANSACTION) => {
                    if taken == 0 {
                        break;
                    }
                    if taken == MAX_WRITES_PER_TRANSACTION {
                        self.counters.at_bound.fetch_add(1, Ordering::Relaxed);
                    }
                    let mut rest = std::mem::take(&mut waiting);
                    while !rest.is_empty() {
                        let later = rest.split_off(fitting(&rest));
                        if !later.is_empty() {
                            self.counters.at_bound.fetch_add(1, Ordering::Relaxed);
                        }
                        self.carry_out(std::mem::replace(&mut rest, later)).await;
                    }
                }
            }
        }
        if let Some(connection) = self.connection.take() {
            open::close(connection).await;
        }
    }

    /// Carries out a batch. Where it fails, each write is tried by itself: one that is too large for what is left of the disk
    /// does not fail those beside it.
    async fn carry_out(&mut self, mut batch: Vec<Box<dyn Job>>) {
        match self.transact(&mut batch).await {
            Ok(()) => self.answer(batch),
            Err(aborted) if batch.len() == 1 || aborted.in_doubt => self.fail(batch, &aborted),
            Err(_) => {
                for job in batch {
                    let mut alone = vec![job];
                    match self.transact(&mut alone).await {
                        Ok(()) => self.answer(alone),
                        Err(aborted) => self.fail(alone, &aborted),
                    }
                }
            }
        }
    }

    fn answer(&self, batch: Vec<Box<dyn Job>>) {
        self.counters.transactions.fetch_add(1, Ordering::Relaxed);
        self.counters.writes.fetch_add(batch.len() as u64, Ordering::Relaxed);
        for job in batch {
            job.committed(&self.caches);
        }
    }

    fn fail(&self, batch: Vec<Box<dyn Job>>, aborted: &Aborted) {
        self.counters.failed.fetch_add(1, Ordering::Relaxed);
        tracing::error!(error = %aborted.error, writes = batch.len(), in_doubt = aborted.in_doubt, "a transaction failed");
        for job in batch {
            job.failed(aborted.error.clone());
        }
    }

    async fn transact(&mut self, batch: &mut [Box<dyn Job>]) -> Result<(), Aborted> {
        let connection = match &mut self.connection {
            Some(connection) => connection,
            none => {
                let opened = connect(&self.options, self.max_pages.load(Ordering::Relaxed)).await;
                none.insert(opened.map_err(|error| Aborted::before_commit(error.into()))?)
            }
        };
        let outcome = run_batch(connection, batch).await;
        if let Err(failed) = &outcome {
            // SQLite has rolled back by itself after some errors; then this says that there is nothing to roll back.
            let _ = connection.execute("ROLLBACK").await;
            if failed.in_doubt || matches!(failed.error, StoreError::Unavailable(_)) {
                self.connection = None;
            }
            if failed.in_doubt {
                self.caches.clear();
            }
        }
        outcome
    }
}

/// Opens the writer's connection.
pub(super) async fn connect(options: &SqliteConnectOptions, max_pages: u32) -> Result<SqliteConnection, sqlx::Error> {
    let mut connection = options.connect().await?;
    set_max_pages(&mut connection, max_pages).await?;
    Ok(connection)
}

async fn run_batch(connection: &mut SqliteConnection, batch: &mut [Box<dyn Job>]) -> Result<(), Aborted> {
    if let [job] = batch {
        return job.run_alone(connection).await;
    }
    let plain = |error: sqlx::Error| Aborted::before_commit(error.into());
    connection.execute("BEGIN IMMEDIATE").await.map_err(plain)?;
    for job in batch {
        connection.execute("SAVEPOINT one").await.map_err(plain)?;
        if job.run(connection).await.map_err(Aborted::before_commit)? == Ran::Refused {
            connection.execute("ROLLBACK TO one").await.map_err(plain)?;
        }
        connection.execute("RELEASE one").await.map_err(plain)?;
    }
    commit(connection).await
}

async fn commit(connection: &mut SqliteConnection) -> Result<(), Aborted> {
    connection.execute("COMMIT").await.map_err(|error| Aborted::at_commit(error.into()))?;
    Ok(())
}

/// How many of the writes share one transaction: at least one.
fn fitting(batch: &[Box<dyn Job>]) -> usize {
    let mut bytes = 0;
    let count = batch
        .iter()
        .take_while(|job| {
            bytes += job.bytes();
            bytes <= MAX_BYTES_PER_TRANSACTION
        })
        .count();
    count.max(1)
}
