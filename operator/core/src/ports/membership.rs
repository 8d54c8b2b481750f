//! What many coordinators share through the store: the runners, the coordinators themselves, and which runner has which session.
//!
//! Times are the database's own: coordinators' clocks may differ.

use std::time::Duration;

use ash_protocol::{Epoch, Sequence};
use async_trait::async_trait;

use super::{Load, OpenEpoch, StoreError};
use crate::{
    agent::AgentVersion,
    fleet::{RunnerId, RunnerName},
    id::{SandboxId, SessionId},
    placement::Stage,
    session::Session,
};

/// A runner as the store has it.
#[derive(Debug, Clone, PartialEq)]
pub struct RunnerRow {
    /// Who it is.
    pub id: RunnerId,
    /// Where coordinators reach it: a URL.
    pub address: String,
    /// The node pool that it serves; empty outside Kubernetes.
    pub pool: String,
    /// The node that it is on; its name outside Kubernetes.
    pub node: String,
    /// The release that it runs.
    pub release: String,
    /// Sandboxes at the most.
    pub capacity: u32,
    /// Sessions that have a place there, or are to get one, and pods that wait for one.
    pub used: u32,
    /// What it said that it does.
    pub load: Load,
    /// No new sessions go there.
    pub cordoned: bool,
    /// It said that it lives since it registered: new sessions may go there.
    pub ready: bool,
    /// How long ago a coordinator wrote that it lives.
    pub silent: Duration,
    /// Until when it may be silent because it announced a restart, counted from now.
    pub restarting: Option<Duration>,
    /// Grows with every change that takes places away: what a reservation compares.
    pub version: u64,
}

/// A coordinator as the store has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CoordinatorRow {
    /// Made anew whenever its process starts.
    pub id: uuid::Uuid,
    /// How long ago it wrote its row.
    pub silent: Duration,
}

/// A moment of the database's own clock: milliseconds since 1970.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct StoreTime(pub u64);

/// What a runner says of itself when it registers.
#[derive(Debug, Clone, PartialEq)]
pub struct NewRunner {
    /// Who it is.
    pub id: RunnerId,
    /// Where coordinators reach it: a URL.
    pub address: String,
    /// The node pool that it serves; empty outside Kubernetes.
    pub pool: String,
    /// The node that it is on.
    pub node: String,
    /// The release that it runs.
    pub release: String,
    /// Sandboxes at the most.
    pub capacity: u32,
}

/// What became of a reservation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reserved {
    /// These sessions have their place there. The others have one already, or have ended: look where.
    Taken(Vec<SessionId>),
    /// Somebody else changed the runner, and no place was taken: decide again.
    Stale,
}

/// Where a session is, as the store has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RouteRow {
    /// The session.
    pub session: SessionId,
    /// The epoch of its log: a session gets and leaves sandboxes only by the next one.
    pub epoch: Epoch,
    /// The last committed entry of its log.
    pub last: Sequence,
    /// The sandbox that serves it.
    pub sandbox: Option<SandboxId>,
    /// The runner, and what it has of the session.
    pub at: Option<(RunnerName, Stage)>,
}

/// What shows that agents have changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AgentsStamp {
    /// How many there are, of all tenants.
    pub count: u64,
    /// When one was last deployed or changed: milliseconds since 1970.
    pub updated_ms: u64,
}

/// The fleet's rows.
#[async_trait]
pub trait MembershipStore: Send + Sync {
    /// Adds a runner, or a new life of one: the incarnation before it is refused from now on, here too
    /// ([`StoreError::Conflict`]).
    async fn register_runner(&self, runner: NewRunner) -> Result<(), StoreError>;

    /// Notes that a runner lives: false where another incarnation, or none, is registered. A restart that it announced stays
    /// announced: what was said before may come after it.
    async fn runner_lives(&self, runner: &RunnerId, load: Load) -> Result<bool, StoreError>;

    /// Notes that a runner announced a restart and is not lost for `within`.
    async fn runner_restarts(&self, runner: &RunnerId, within: Duration) -> Result<bool, StoreError>;

    /// Takes a runner out by compare-and-set on its incarnation. With a silence, it is called lost: only where it was not heard
    /// for so long and may not be silent, and while no coordinator is that may have heard it (see [`crate::loss`]). Gives
    /// whether it was taken out; its sessions are then among [`MembershipStore::abandoned_sessions`].
    async fn remove_runner(&self, runner: &RunnerId, silent: Option<Duration>) -> Result<bool, StoreError>;

    /// Lets no new session go to a runner, or again. False where there is none of that name.
    async fn cordon_runner(&self, name: &RunnerName, cordoned: bool) -> Result<bool, StoreError>;

    /// Every runner, by name. At most 1,024.
    async fn runners(&self) -> Result<Vec<RunnerRow>, StoreError>;

    /// Reserves sessions a place each on a runner, by compare-and-set on the runner's version and on each session having no
    /// place. A reservation ends by itself after [`crate::placement::RESERVED_FOR`] where no sandbox took the session until then.
    async fn reserve(&self, sessions: &[SessionId], runner: &RunnerId, version: u64) -> Result<Reserved, StoreError>;

    /// Gives back a place that came to nothing.
    async fn release(&self, session: SessionId) -> Result<(), StoreError>;

    /// Where these sessions are. Those that do not exist are left out.
    async fn routes(&self, sessions: &[SessionId]) -> Result<Vec<RouteRow>, StoreError>;

    /// Gives a runner the sessions on these sandboxes that are its own already, or nobody's. Gives those that it has then.
    async fn adopt(&self, runner: &RunnerName, sandboxes: &[SandboxId]) -> Result<Vec<Session>, StoreError>;

    /// Sessions on a runner's sandboxes (not those that are only reserved).
    async fn sessions_on(&self, runner: &RunnerName) -> Result<Vec<Session>, StoreError>;

    /// Sessions on sandboxes whose runner is not registered any more. At most 1,000.
    async fn abandoned_sessions(&self) -> Result<Vec<Session>, StoreError>;

    /// As [`super::EventLog::open_epoch`], for a runner: [`StoreError::Overtaken`] also where another runner has the session, or
    /// a place for it. With a sandbox the session is the runner's from now on.
    async fn open_epoch_on(&self, open: OpenEpoch, runner: &RunnerName) -> Result<Session, StoreError>;

    /// What shows that the answer of [`MembershipStore::current_versions`] has changed.
    async fn agents_stamp(&self) -> Result<AgentsStamp, StoreError>;

    /// The version that new sessions get, of every agent of every tenant, in the order of the agents' ids. At most 10,000.
    async fn current_versions(&self) -> Result<Vec<AgentVersion>, StoreError>;

    /// What time it is.
    async fn store_time(&self) -> Result<StoreTime, StoreError>;

    /// Writes this coordinator's own row, and gives all of them. The row says when its writing was begun, and not when it came: by
    /// then the coordinator may have heard somebody whom it could not write, and what comes late must not hide that. An older
    /// time than the row has changes nothing.
    async fn coordinator_lived(&self, id: uuid::Uuid, begun: StoreTime) -> Result<Vec<CoordinatorRow>, StoreError>;

    /// Writes this coordinator's own row, where it has heard nobody yet, and gives all of them.
    async fn coordinator_lives(&self, id: uuid::Uuid) -> Result<Vec<CoordinatorRow>, StoreError> {
        let begun = self.store_time().await?;
        self.coordinator_lived(id, begun).await
    }

    /// Takes this coordinator's row away.
    async fn remove_coordinator(&self, id: uuid::Uuid) -> Result<(), StoreError>;
}
