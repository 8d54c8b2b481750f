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

use crate::{
    bench::report::Row,
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
}

impl Scale {
    /// What the goals ask for.
    pub const FULL: Self =
        Self { turns: 250, sessions: 200, creations: 200, bursts: 30, idle: 1000, watch: Duration::from_secs(40) };
    /// To see where one stands.
    pub const QUICK: Self =
        Self { turns: 40, sessions: 5, creations: 20, bursts: 5, idle: 50, watch: Duration::from_secs(5) };
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
}

/// Every group, in the order of the table.
pub const GROUPS: [Group; 8] = [
    Group::LaterTurn,
    Group::FirstTurn,
    Group::OwnShare,
    Group::Crowd,
    Group::Asleep,
    Group::Idle,
    Group::Relay,
    Group::Gateway,
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
        }
    }
}

/// Turns before the first that counts: caches fill, code is compiled.
const WARM_UP: usize = 10;

/// The bridge's process, which is named after the place where it is bound in the sandbox, and Claude Code's.
const BRIDGE: &str = "bridge";
const CLAUDE: &str = "claude";

/// What a partial message has and nothing else.
const PARTIAL: &[u8] = b"\"type\":\"stream_event\"";

/// The pause after a turn: what follows one (its commit, its transcript) is over before the next is measured.
const PAUSE: Duration = Duration::from_millis(20);

fn pause() {
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
fn message(text: &str) -> String {
    serde_json::json!({ "content": text, "includePartialMessages": true }).to_string()
}

fn messages_path(session: &str) -> String {
    format!("/api/sessions/{session}/messages")
}

/// One divided by the other.
fn ratio(one: Duration, other: Duration) -> Option<f64> {
    (!other.is_zero()).then(|| one.as_secs_f64() / other.as_secs_f64())
}
