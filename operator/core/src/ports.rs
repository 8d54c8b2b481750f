//! The ports: what the parts of Ash ask of each other, as traits. Adapters implement them; nobody names an adapter but the
//! function that wires the process.

mod access;
mod changes;
mod compaction;
mod credentials;
mod lifecycle;
mod membership;
mod pods;
mod resources;
mod runner;
mod runner_pods;
mod runner_store;
mod snapshots;
mod store;

pub use access::{ACCESS_AUDIENCE, ACCESS_GROUP, AccessError, AccessResource, AccessReviews, Verb, Who};
pub use changes::{ChangeStore, ChangedSession};
pub use compaction::{CompactableTurn, CompactionStore};
pub use credentials::{Clear, Credential, CredentialKind, CredentialStore};
pub use lifecycle::{
    ConfigureSession, ConfigureStore, Enqueued, EntryChange, NewEntry, QueueHead, QueueStore, SessionListener,
};
pub use membership::{
    AgentsStamp, CoordinatorRow, MembershipStore, NewRunner, Reserved, RouteRow, RunnerRow, StoreTime,
};
pub use pods::{PodIdentity, PodSandbox, PodState, PodStore};
pub use resources::{AgentRequest, ResourceError, Resources, SessionRequest};
pub use runner::{Batch, EntryReader, Load, LoggedEntry, NewMessage, ReadError, Runner, RunnerError, Sent};
pub use runner_pods::{ReviewError, RunnerPods, TokenReviews};
pub use runner_store::{RunnerStore, WholeStore};
pub use snapshots::{KEPT_DAMAGED_SNAPSHOTS, KEPT_SNAPSHOTS, SnapshotRow, SnapshotStore};
pub use store::{
    AgentStore, Append, DeployAgent, EventLog, FleetStore, Key, KeyStore, NewKey, NewSession, OpenEpoch, Page,
    SessionFilter, SessionPage, SessionStore, Store, StoreError, TurnRecord,
};
