//! Connections to Postgres: a bounded number of them, and each call takes one for itself.
//!
//! Unlike sqlx's pool it asks the server nothing when a connection is taken or given back: a call is one round trip. A connection
//! that is not given back, because something about it was unclear, is closed, and what was begun on it is rolled back by the
//! server.

use std::{
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Duration,
};

use sqlx::{
    AssertSqlSafe, ConnectOptions, Connection, Executor, PgConnection,
    postgres::{PgConnectOptions, PgRow},
};
use tokio::{
    sync::{Notify, Semaphore, SemaphorePermit},
    time::{Instant, sleep, timeout, timeout_at},
};

use crate::{
    fault::Fault,
    limits::{
        CONNECT_PATIENCE, CONNECTION_WAIT, IDLE_TRANSACTION_TIMEOUT, MAX_CONNECTING, MAX_CONNECTION_AGE,
        MAX_CONNECTIONS, MAX_RECONNECT_PAUSE, RECONNECT_PAUSE, STATEMENT_TIMEOUT,
    },
    sql::{Sql, Statement},
};

/// The connections of a store.
pub(super) struct Pool {
    options: PgConnectOptions,
    /// Those that nobody uses, the last used last.
    idle: Mutex<Vec<Open>>,
    /// Tells one that waits that a connection was given back.
    given_back: Notify,
    places: Semaphore,
    connecting: Semaphore,
    waiting: AtomicUsize,
    pub(super) round_trips: AtomicU64,
}

struct Open {
    connection: PgConnection,
    since: Instant,
}

/// A connection that one call has.
pub(super) struct Lease<'p> {
    pool: &'p Pool,
    open: Open,
    state: State,
    _place: SemaphorePermit<'p>,
}

/// Where a connection is with its transactions, as far as this side knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Outside,
    Inside,
    Committing,
}

impl Pool {
    pub(super) fn new(options: PgConnectOptions) -> Self {
        Self {
            options,
            idle: Mutex::default(),
            given_back: Notify::new(),
            places: Semaphore::new(MAX_CONNECTIONS),
            connecting: Semaphore::new(MAX_CONNECTING),
            waiting: AtomicUsize::new(0),
            round_trips: AtomicU64::new(0),
        }
    }

    /// A connection, within [`CONNECTION_WAIT`].
    pub(super) async fn lease(&self) -> Result<Lease<'_>, Fault> {
        let deadline = Instant::now() + CONNECTION_WAIT;
        let place = self.place(deadline).await?;
        let open = match self.take_idle() {
            Some(open) => open,
            None => self.given_back_or_new(deadline).await?,
        };
        Ok(Lease { pool: self, open, state: State::Outside, _place: place })
    }

    async fn place(&self, deadline: Instant) -> Result<SemaphorePermit<'_>, Fault> {
        if let Ok(place) = self.places.try_acquire() {
            return Ok(place);
        }
        let _waits = Waits::begin(&self.waiting);
        match timeout_at(deadline, self.places.acquire()).await {
            Ok(Ok(place)) => Ok(place),
            Ok(Err(_)) => Err(closed()),
            Err(_) => Err(unavailable("too many calls wait for a connection")),
        }
    }

    fn take_idle(&self) -> Option<Open> {
        self.idle().pop().filter(|open| open.since.elapsed() < MAX_CONNECTION_AGE)
    }

    /// A connection that another call gives back, or a new one. Many calls that come at once do not all connect at once, which
    /// could take each of them longer than it may: the first connections serve the others meanwhile.
    async fn given_back_or_new(&self, deadline: Instant) -> Result<Open, Fault> {
        let _waits = Waits::begin(&self.waiting);
        match self.given_back_before(timeout_at(deadline, self.connecting.acquire())).await {
            Ok(open) => Ok(open),
            Err(turn) => {
                let _turn = turn.map_err(|_| unavailable("it does not answer"))?.map_err(|_| closed())?;
                self.new_or_given_back(deadline).await
            }
        }
    }

    /// A new connection; where it takes long, one that another call gives back serves as well.
    async fn new_or_given_back(&self, deadline: Instant) -> Result<Open, Fault> {
        let connecting = self.connect(deadline);
        tokio::pin!(connecting);
        // Short of that it is finished: what was begun costs the server as much when it is dropped.
        if let Ok(connected) = timeout(CONNECT_PATIENCE, &mut connecting).await {
            return connected;
        }
        self.given_back_before(connecting).await.or_else(|connected| connected)
    }

    /// A connection that another call gives back, unless something else comes before: then that.
    async fn given_back_before<T>(&self, other: impl Future<Output = T>) -> Result<Open, T> {
        tokio::pin!(other);
        loop {
            let given_back = self.given_back.notified();
            tokio::pin!(given_back);
            given_back.as_mut().enable();
            if let Some(open) = self.take_idle() {
                return Ok(open);
            }
            tokio::select! {
                () = given_back => {}
                other = &mut other => return Err(other),
            }
        }
    }

    /// Connects, again and again until it works or the time is over.
    async fn connect(&self, deadline: Instant) -> Result<Open, Fault> {
        let (mut pause, mut why) = (RECONNECT_PAUSE, unavailable("it does not answer"));
        loop {
            match timeout_at(deadline, connect(&self.options, STATEMENT_TIMEOUT)).await {
                Ok(Ok(connection)) => return Ok(Open { connection, since: Instant::now() }),
                Ok(Err(error)) => why = error.into(),
                // What an earlier try was told says more.
                Err(_) => return Err(why),
            }
            if self.places.is_closed() {
                return Err(closed());
            }
            if Instant::now() + pause >= deadline {
                return Err(why);
            }
            sleep(pause).await;
            pause = (pause * 2).min(MAX_RECONNECT_PAUSE);
        }
    }

    /// Closes what nobody uses: a connection was lost, and the others with it, as far as anybody knows.
    pub(super) fn forget_idle(&self) {
        let forgotten = std::mem::take(&mut *self.idle());
        drop(forgotten);
    }

    /// Closes all connections, those in use when they are given back. There are no more.
    pub(super) async fn close(&self) {
        self.places.close();
        self.connecting.close();
        let idle = std::mem::take(&mut *self.idle());
        for open in idle {
            // The server notices also where this fails.
            let _ = open.connection.close().await;
        }
    }

    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    pub(super) fn connections(&self) -> usize {
        self.idle().len() + MAX_CONNECTIONS - self.places.available_permits()
    }

    fn idle(&self) -> MutexGuard<'_, Vec<Open>> {
        self.idle.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Connects, with the bounds that the server keeps. A migration's statements may take longer than others.
pub(super) async fn connect(options: &PgConnectOptions, statements: Duration) -> Result<PgConnection, sqlx::Error> {
    let mut connection = options.connect().await?;
    // Not as parameters of the connection, which poolers between refuse. The numbers are ours.
    let settings = format!(
        "SET statement_timeout = {}; SET lock_timeout = {}; SET idle_in_transaction_session_timeout = {}",
        statements.as_millis(),
        statements.as_millis(),
        IDLE_TRANSACTION_TIMEOUT.as_millis()
    );
    connection.execute(AssertSqlSafe(settings)).await?;
    Ok(connection)
}

fn unavailable(why: &str) -> Fault {
    ash_core::ports::StoreError::Unavailable(why.to_owned()).into()
}

fn closed() -> Fault {
    unavailable("the store is closed")
}

/// Counts a call while it waits, also one that gives up.
struct Waits<'c>(&'c AtomicUsize);

impl<'c> Waits<'c> {
    fn begin(count: &'c AtomicUsize) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(count)
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Lease<'_> {
    /// Gives the connection back, which is known to answer. One in a transaction is closed.
    pub(super) fn give_back(self) {
        if self.state == State::Outside && !self.pool.places.is_closed() {
            self.pool.idle().push(self.open);
            self.pool.given_back.notify_one();
        }
    }

    /// The connection, for one round trip.
    pub(super) fn round_trip(&mut self) -> &mut PgConnection {
        self.pool.round_trips.fetch_add(1, Ordering::Relaxed);
        &mut self.open.connection
    }

    /// Begins a transaction, as isolated as CockroachDB's always are.
    pub(super) async fn begin(&mut self) -> Result<(), Fault> {
        self.state = State::Inside;
        self.round_trip().execute("BEGIN ISOLATION LEVEL SERIALIZABLE").await?;
        Ok(())
    }

    /// Commits the transaction.
    pub(super) async fn commit(&mut self) -> Result<(), Fault> {
        self.state = State::Committing;
        self.round_trip().execute("COMMIT").await?;
        self.state = State::Outside;
        Ok(())
    }

    /// Rolls the transaction back.
    pub(super) async fn roll_back(&mut self) -> Result<(), Fault> {
        self.round_trip().execute("ROLLBACK").await?;
        self.state = State::Outside;
        Ok(())
    }

    /// Whether a transaction was begun that nobody told to commit: it is not carried out.
    pub(super) fn is_before_commit(&self) -> bool {
        self.state == State::Inside
    }
}

impl Sql for Lease<'_> {
    type Row = PgRow;

    async fn execute(&mut self, statement: Statement) -> Result<u64, Fault> {
        Ok(statement.query()?.execute(self.round_trip()).await?.rows_affected())
    }

    async fn rows(&mut self, statement: Statement) -> Result<Vec<PgRow>, Fault> {
        Ok(statement.query()?.fetch_all(self.round_trip()).await?)
    }
}
