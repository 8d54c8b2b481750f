//! What a session has beside its log: messages that wait for their turn, and options that change.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use ash_protocol::options::SessionOptions;
use async_trait::async_trait;

use super::StoreError;
use crate::{
    Epoch, Sequence,
    id::{SessionId, TenantId, TurnId},
    queue::{EntryEvent, QueueEntry, QueuedMessage},
    session::{Session, SessionState},
};

/// Is told of every session whose turn has ended, or whose state may have changed, by a write of this process's store. Called
/// behind the commit, on the task that wrote: it must not wait.
pub type SessionListener = Arc<dyn Fn(SessionId) + Send + Sync>;

/// The queues of sessions ([`crate::queue`]).
#[async_trait]
pub trait QueueStore: Send + Sync {
    /// Adds an entry behind the others, durable when this returns. One of the same id is not added again, whatever has become of
    /// it. Holds the bounds of [`crate::queue`] however many processes add at once.
    async fn enqueue(&self, entry: NewEntry) -> Result<Enqueued, StoreError>;

    /// The entries of a session in their order: those that are open, and the last ones that are over.
    async fn queue(&self, session: SessionId) -> Result<Vec<QueueEntry>, StoreError>;

    /// One entry.
    async fn queue_entry(&self, session: SessionId, id: TurnId) -> Result<Option<QueueEntry>, StoreError>;

    /// What an open entry says; `None` where it is over.
    async fn queued_message(&self, session: SessionId, id: TurnId) -> Result<Option<QueuedMessage>, StoreError>;

    /// The first open entry of a session, with what decides about it.
    async fn queue_head(&self, session: SessionId) -> Result<Option<QueueHead>, StoreError>;

    /// Sessions with an open entry, at most `limit`.
    async fn queued_sessions(&self, limit: u32) -> Result<Vec<SessionId>, StoreError>;

    /// Sessions whose first open entry may be more than waiting, at most `limit`: the longest overdue first.
    async fn due_sessions(&self, limit: u32) -> Result<Vec<SessionId>, StoreError>;

    /// Changes an entry by compare-and-set on its version. Gives it as it is then, or `None` where it was changed before. An event
    /// that its state does not allow is a [`StoreError::Conflict`].
    async fn change_entry(&self, seen: &QueueEntry, change: EntryChange) -> Result<Option<QueueEntry>, StoreError>;

    /// Leaves a claimed entry to its owner for so long from now; false where it was changed before.
    async fn renew_entry(&self, seen: &QueueEntry, lease: Duration) -> Result<bool, StoreError>;

    /// Takes a claimed entry whose owner is gone, for so long from now. `None` where somebody else did.
    async fn take_over_entry(&self, seen: &QueueEntry, lease: Duration) -> Result<Option<QueueEntry>, StoreError>;

    /// Has this told of sessions that changed. One listener is enough: a further one is not taken.
    fn listen(&self, listener: SessionListener);
}

/// An entry to be added.
#[derive(Debug, Clone)]
pub struct NewEntry {
    /// Its name, and the turn of its first attempt.
    pub id: TurnId,
    /// The session.
    pub session: SessionId,
    /// Whose it is.
    pub tenant: TenantId,
    /// Further attempts after one that was cut off.
    pub retries: u32,
    /// What it says.
    pub message: QueuedMessage,
}

/// What became of an entry that was to be added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Enqueued {
    /// It is there now.
    Added(QueueEntry),
    /// It was there before.
    Known(QueueEntry),
    /// The queue is full.
    Full,
}

/// A change of an entry.
#[derive(Debug, Clone)]
pub struct EntryChange {
    /// What happened.
    pub event: EntryEvent,
    /// The last epoch whose bridge can be given the attempt: of a claim.
    pub fence: Option<Epoch>,
    /// What is to be said of it.
    pub error: Option<String>,
    /// How long it is left alone from now: a claim's lease, or a pause.
    pub pause: Duration,
}

/// The first open entry of a session, and what the store knows beside it, read at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct QueueHead {
    /// The entry.
    pub entry: QueueEntry,
    /// The session's state.
    pub state: SessionState,
    /// Its epoch.
    pub epoch: Epoch,
    /// Whether it has a sandbox.
    pub has_sandbox: bool,
    /// Whether a turn has begun and not ended.
    pub turn_runs: bool,
    /// The first entry of the attempt's turn, where the log has it.
    pub begun: Option<Sequence>,
    /// The entry that ended it, where it has.
    pub ended: Option<Sequence>,
    /// The pause before it is tried, or its claim, is over.
    pub is_due: bool,
}

/// Options of sessions.
#[async_trait]
pub trait ConfigureStore: Send + Sync {
    /// Changes a session's options and what is kept with it, by compare-and-set on when it was last active; that moves on, so that
    /// every cache of the session is seen to be old. `None` where it has changed since it was read.
    async fn configure_session(&self, change: ConfigureSession) -> Result<Option<Session>, StoreError>;
}

/// A change of a session's options.
#[derive(Debug, Clone)]
pub struct ConfigureSession {
    /// The session as it was read.
    pub seen: Session,
    /// Its options from now on, complete.
    pub options: SessionOptions,
    /// What is kept with it from now on.
    pub metadata: BTreeMap<String, String>,
}
