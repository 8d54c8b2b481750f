//! The server's memory for sessions that sleep.

use futures::{StreamExt, stream};

use super::{Scale, server_with_stand_in};
use crate::{
    bench::{processes::resident_bytes, report::Row},
    harness::eventually,
};

/// Sessions that get their turn at the same time.
const AT_ONCE: usize = 4;
/// The goal, in bytes.
const GOAL: u64 = 40 << 20;

pub(super) async fn measure(scale: Scale) -> anyhow::Result<Vec<Row>> {
    let app = server_with_stand_in().argument("--max-sandboxes=16").argument("--idle-timeout=1s").start().await;
    app.deploy("simple", &[("CLAUDE.md", "You are a simple agent.\n")]).await;
    app.wait_warm(1).await;
    let empty = resident_bytes(app.server_pid())?;
    stream::iter(0..scale.idle)
        .for_each_concurrent(AT_ONCE, |_| async {
            let session = app.session_of("simple").await;
            app.say(&session, "hello").await;
        })
        .await;
    eventually("all sessions asleep", async || {
        let health = app.client.health().await.ok()?;
        (health.pool.waiting + health.pool.running == 0).then_some(())
    })
    .await;
    let bytes = resident_bytes(app.server_pid())?;
    Ok(vec![Row {
        what: "server RSS with 1,000 idle sessions (asleep), each after a turn",
        measured: format!("{:.1} MiB with {}", mebibytes(bytes), scale.idle),
        beside: format!("with none {:.1} MiB", mebibytes(empty)),
        #[allow(clippy::cast_precision_loss, reason = "a ratio of a few MiB")]
        ratio: Some(bytes as f64 / empty as f64),
        reach: "40 MiB",
        reached: bytes <= GOAL,
    }])
}

#[allow(clippy::cast_precision_loss, reason = "far fewer than 2^53 bytes")]
pub(in crate::bench) fn mebibytes(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
