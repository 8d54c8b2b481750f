//! What many coordinators share through the store: the runners, the coordinators themselves, and which runner has which session.
//!
//! Times are the database's own: coordinators' clocks may differ.

use std::time::Duration;

use async_trait::async_trait;

use super::{Load, StoreError};
use crate::{
    fleet::{RunnerId, RunnerName},
    id::SessionId,
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
    /// Sessions that have a place there, or are to get one.
    pub used: u32,
    /// What it said that it does.
    pub load: Load,
    /// No new sessions go there.
    pub cordoned: bool,
    /// How long ago a coordinator wrote that it lives.
    pub silent: Duration,
    /// Until when it may be silent because it announced a restart, counted from now.
    pub restarting: Option<Duration>,
    /// Grows with every change of what decides about places: what a reservation compares.
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

/// A reservation came too late: somebody else changed the runner, or took the session. Look again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reserved {
    /// The place is the session's.
    Taken,
    /// Decide again.
    Stale,
}

/// The fleet's rows.
#[async_trait]
pub trait MembershipStore: Send + Sync {
    /// Adds a runner, or a new life of one: the incarnation before it is refused from now on.
    async fn register_runner(&self, runner: NewRunner) -> Result<RunnerRow, StoreError>;

    /// Notes that a runner lives: false where another incarnation, or none, is registered.
    async fn runner_lives(&self, runner: &RunnerId, load: Load) -> Result<bool, StoreError>;

    /// Notes that a runner announced a restart and is not lost for `within`.
    async fn runner_restarts(&self, runner: &RunnerId, within: Duration) -> Result<bool, StoreError>;

    /// Takes a runner out by compare-and-set on its incarnation, and on its silence where that is given: a runner that was heard
    /// meanwhile stays. Gives whether it was taken out.
    async fn remove_runner(&self, runner: &RunnerId, silent: Option<Duration>) -> Result<bool, StoreError>;

    /// Lets no new session go to a runner, or again.
    async fn cordon_runner(&self, name: &RunnerName, cordoned: bool) -> Result<bool, StoreError>;

    /// Every runner, by name. At most 1,024.
    async fn runners(&self) -> Result<Vec<RunnerRow>, StoreError>;

    /// Reserves a session a place on a runner, by compare-and-set on the runner's version and on the session having none.
    /// The reservation ends by itself after [`crate::placement::RESERVED_FOR`] where no sandbox took the session until then.
    async fn reserve(&self, session: SessionId, runner: &RunnerId, version: u64) -> Result<Reserved, StoreError>;

    /// Gives back a place that came to nothing.
    async fn release(&self, session: SessionId) -> Result<(), StoreError>;

    /// The runner that has a session, or its reservation.
    async fn route(&self, session: SessionId) -> Result<Option<RunnerName>, StoreError>;

    /// Sessions that a runner has (not those that are only reserved).
    async fn sessions_on(&self, runner: &RunnerName) -> Result<Vec<crate::session::Session>, StoreError>;

    /// Writes this coordinator's own row, and gives all of them.
    async fn coordinator_lives(&self, id: uuid::Uuid) -> Result<Vec<CoordinatorRow>, StoreError>;

    /// Takes this coordinator's row away.
    async fn remove_coordinator(&self, id: uuid::Uuid) -> Result<(), StoreError>;
}
