//! The groups about streams: long logs, many readers of one session, many open streams, and a coordinator that is killed.

pub(crate) mod failover;
mod ids;
pub(crate) mod many;
pub(crate) mod readers;
pub(crate) mod replay;
mod wire;

use crate::harness::{FleetOptions, TestFleet, program};

/// What is logged while it is measured.
const LOG: &str = "warn";
/// Bytes that an open stream may take: 20 KiB.
const STREAM_BYTES: u64 = 20 << 10;

/// A coordinator and a runner on Postgres, with the stand-in for Claude Code where that is asked for.
async fn coordinator(database: String, sandboxes: usize, stand_in: bool) -> TestFleet {
    let options = FleetOptions {
        database: Some(database),
        coordinator_arguments: vec!["--max-connections=20000".to_owned(), "--compact-after=1h".to_owned()],
        claude: stand_in.then(|| program("stand-in-claude")),
        log: Some(LOG),
        ..FleetOptions::default()
    };
    let sandboxes = format!("--max-sandboxes={sandboxes}");
    TestFleet::start_with(1, &[&sandboxes, "--warm=0", "--idle-timeout=1h"], options).await
}

/// What each of many takes, in bytes.
fn each(before: u64, after: u64, count: usize) -> u64 {
    after.saturating_sub(before) / u64::try_from(count.max(1)).unwrap_or(u64::MAX)
}

/// For a table.
#[allow(clippy::cast_precision_loss, reason = "kibibytes")]
fn kibibytes(bytes: u64) -> String {
    format!("{:.1} KiB", bytes as f64 / 1024.0)
}
