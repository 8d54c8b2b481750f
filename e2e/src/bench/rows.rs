//! The groups of measurements. Each starts what it needs and leaves nothing behind.

mod asleep;
mod crowd;
mod first_turn;
mod gateway;
mod idle;
mod later_turn;
mod own_share;
mod relay;

use std::{thread, time::Duration};

pub(super) use asleep::mebibytes;

use crate::{
    bench::{
        cluster::OnCluster,
        fleet::{creations, hop},
        report::Row,
        streams::{failover, many, readers, replay},
    },
    harness::{TestApp, TestAppBuilder, program},
    model::Script,
};

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub struct Scale {
    /// Turns of a conversation, of each side.
    pub turns: usize,
    /// First turns of new sessions, of each side: each needs a warmed process of its own.
    pub sessions: usize,
    /// Sessions that are created one after the other.
    pub creations: usize,
    /// Large bursts, of each side.
    pub bursts: usize,
    /// Idle sessions and idle bridges.
    pub idle: usize,
    /// How long idle bridges are watched.
    pub watch: Duration,
    /// Sessions that are created or applied on the cluster, one after the other.
    pub on_cluster: usize,
    /// Times that many sessions begin at once on the cluster.
    pub crowds: usize,
    /// How many they are.
    pub at_once: usize,
    /// Cold starts on the cluster.
    pub cold: usize,
    /// Turns, or sessions, whose writes are counted.
    pub counted: usize,
    /// Sessions that are created as fast as they can be.
    pub fleet_creations: usize,
    /// Sessions that the operator looks after.
    pub many: usize,
    /// Events that are replayed.
    pub replayed: usize,
    /// Readers of one session.
    pub readers: usize,
    /// Events that each of them gets.
    pub reader_events: usize,
    /// Open streams on one coordinator.
    pub streams: usize,
    /// Coordinators that are killed, one after the other.
    pub kills: usize,
}

impl Scale {
    /// What the goals ask for.
    pub const FULL: Self = Self {
        turns: 250,
        sessions: 200,
        creations: 200,
        bursts: 30,
        idle: 1000,
        watch: Duration::from_secs(40),
        on_cluster: 30,
        crowds: 5,
        at_once: 20,
        cold: 15,
        counted: 10,
        fleet_creations: 4000,
        many: 10_000,
        replayed: 100_000,
        readers: 1000,
        reader_events: 1000,
        streams: 10_000,
        kills: 5,
    };
    /// To see where one stands.
    pub const QUICK: Self = Self {
        turns: 40,
        sessions: 5,
        creations: 20,
        bursts: 5,
        idle: 50,
        watch: Duration::from_secs(5),
        on_cluster: 2,
        crowds: 1,
        at_once: 4,
        cold: 2,
        counted: 2,
        fleet_creations: 320,
        many: 300,
        replayed: 10_000,
        readers: 50,
        reader_events: 100,
        streams: 300,
        kills: 1,
    };
}

/// A group of rows that are measured together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Group {
    /// A later turn of the real Claude Code: time and processor time
    LaterTurn,
    /// The first turn of a new session, and the session's creation
    FirstTurn,
    /// Ash's own share of a turn, with a stand-in for Claude Code
    OwnShare,
    /// Many sessions created at once
    Crowd,
    /// The server's memory for sessions that sleep
    Asleep,
    /// Idle bridges: memory and processor time
    Idle,
    /// Bursts of partial messages
    Relay,
    /// What the gateway adds to a model's answer
    Gateway,
    /// A long log, read from its beginning
    Replay,
    /// A coordinator and a runner beside a standalone server
    Hop,
    /// Sessions created on three runners with stand-in bridges
    FleetCreations,
    /// Many readers of one live session
    Readers,
    /// Very many open streams on one coordinator
    ManyStreams,
    /// A coordinator behind the load balancer is killed
    CoordinatorKilled,
    /// On the cluster: sessions that REST creates from a warm pool
    ClusterCreate,
    /// On the cluster: twenty sessions at once, each with its first message
    ClusterCrowd,
    /// On the cluster: sessions that are applied, until they are Ready
    ClusterApply,
    /// On the cluster: sessions without a pool
    ClusterCold,
    /// On the cluster: later turns
    ClusterTurn,
    /// On the cluster: rows that a turn writes into Postgres
    ClusterDatabase,
    /// On the cluster: writes to the API server per session
    ClusterResources,
    /// On the cluster, and the last thing there: the operator with ten thousand sessions
    ClusterOperator,
}

/// Every group, in the order of the tables.
pub const GROUPS: [Group; 22] = [
    Group::LaterTurn,
    Group::FirstTurn,
    Group::OwnShare,
    Group::Crowd,
    Group::Asleep,
    Group::Idle,
    Group::Relay,
    Group::Gateway,
    Group::Replay,
    Group::Hop,
    Group::FleetCreations,
    Group::Readers,
    Group::ManyStreams,
    Group::CoordinatorKilled,
    Group::ClusterCreate,
    Group::ClusterCrowd,
    Group::ClusterApply,
    Group::ClusterCold,
    Group::ClusterTurn,
    Group::ClusterDatabase,
    Group::ClusterResources,
    Group::ClusterOperator,
];

impl Group {
    /// Measures it.
    pub async fn measure(self, scale: Scale) -> anyhow::Result<Vec<Row>> {
        match self {
            Self::LaterTurn => later_turn::measure(scale).await,
            Self::FirstTurn => first_turn::measure(scale).await,
            Self::OwnShare => own_share::measure(scale).await,
            Self::Crowd => crowd::measure().await,
            Self::Asleep => asleep::measure(scale).await,
            Self::Idle => idle::measure(scale).await,
            Self::Relay => relay::measure(scale).await,
            Self::Gateway => gateway::measure(),
            Self::Replay => replay::measure(scale).await,
            Self::Hop => hop::measure(scale).await,
            Self::FleetCreations => creations::measure(scale).await,
            Self::Readers => readers::measure(scale).await,
            Self::ManyStreams => many::measure(scale).await,
            Self::CoordinatorKilled => failover::measure(scale).await,
            Self::ClusterCreate => OnCluster::Create.measure(scale),
            Self::ClusterCrowd => OnCluster::Crowd.measure(scale),
            Self::ClusterApply => OnCluster::Apply.measure(scale),
            Self::ClusterCold => OnCluster::Cold.measure(scale),
            Self::ClusterTurn => OnCluster::LaterTurn.measure(scale),
            Self::ClusterDatabase => OnCluster::DatabaseWrites.measure(scale),
            Self::ClusterResources => OnCluster::ResourceWrites.measure(scale),
            Self::ClusterOperator => OnCluster::Operator.measure(scale),
        }
    }

    /// The table that its rows are in.
    pub fn table(self) -> Table {
        match self {
            Self::LaterTurn
            | Self::FirstTurn
            | Self::OwnShare
            | Self::Crowd
            | Self::Asleep
            | Self::Idle
            | Self::Relay
            | Self::Gateway
            | Self::Replay => Table::Standalone,
            _ => Table::Cluster,
        }
    }
}

/// A table of the page.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Table {
    /// One server on one machine
    Standalone,
    /// Coordinators, runners and the operator, most of it on a Kubernetes cluster
    Cluster,
}

/// Every table, in the order of the page.
pub const TABLES: [Table; 2] = [Table::Standalone, Table::Cluster];

impl Table {
    /// The lines of the page between which it is written.
    pub const fn marks(self) -> [&'static str; 2] {
        match self {
            Self::Standalone => ["<!-- measured: begin -->", "<!-- measured: end -->"],
            Self::Cluster => ["<!-- measured on the cluster: begin -->", "<!-- measured on the cluster: end -->"],
        }
    }
}

/// Turns before the first that counts: caches fill, code is compiled.
pub(super) const WARM_UP: usize = 10;

/// The bridge's process, which is named after the place where it is bound in the sandbox, and Claude Code's.
const BRIDGE: &str = "bridge";
const CLAUDE: &str = "claude";

/// What a partial message has and nothing else.
pub(super) const PARTIAL: &[u8] = b"\"type\":\"stream_event\"";

/// The pause after a turn: what follows one (its commit, its transcript) is over before the next is measured.
const PAUSE: Duration = Duration::from_millis(20);

pub(super) fn pause() {
    thread::sleep(PAUSE);
}

/// A server as it is by default, before an instant model.
fn server() -> TestAppBuilder {
    TestApp::builder().log("info").model(Script::directives().keep(16))
}

/// The same with a stand-in for Claude Code that answers at once.
fn server_with_stand_in() -> TestAppBuilder {
    server().claude(program("stand-in-claude"))
}

/// A message with its partials.
pub(super) fn message(text: &str) -> String {
    serde_json::json!({ "content": text, "includePartialMessages": true }).to_string()
}

pub(super) fn messages_path(session: &str) -> String {
    format!("/api/sessions/{session}/messages")
}

/// One divided by the other.
pub(super) fn ratio(one: Duration, other: Duration) -> Option<f64> {
    (!other.is_zero()).then(|| one.as_secs_f64() / other.as_secs_f64())
}
