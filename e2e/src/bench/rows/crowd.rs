//! Many sessions created at once, far more than there are places.

use std::time::{Duration, Instant};

use anyhow::ensure;
use tokio::task::JoinSet;

use super::server_with_stand_in;
use crate::{
    bench::{
        report::Row,
        statistics::{Times, milliseconds},
    },
    http,
};

/// Sessions that are created.
const SESSIONS: usize = 200;
/// When the last of them has to be there.
const WITHIN: Duration = Duration::from_secs(2);

pub(super) async fn measure() -> anyhow::Result<Vec<Row>> {
    let app = server_with_stand_in().argument("--max-sandboxes=4").argument("--warm=4").start().await;
    app.deploy("simple", &[("CLAUDE.md", "You are a simple agent.\n")]).await;
    // Half of the places are kept warm at the most.
    app.wait_warm(2).await;
    let (address, key) = (app.address(), app.api_key());
    let start = Instant::now();
    let mut creations = JoinSet::new();
    for _ in 0..SESSIONS {
        creations.spawn(async move {
            let body = serde_json::json!({ "agent": "simple" });
            let answer = http::json(address, "POST", "/api/sessions", Some(key), Some(body)).await;
            (answer, start.elapsed())
        });
    }
    let (mut times, mut failed) = (Times::default(), 0_usize);
    while let Some(created) = creations.join_next().await {
        let (answer, time) = created?;
        times.push(time);
        failed += usize::from(!answer.is_ok_and(|(status, _)| status == 201));
    }
    ensure!(times.len() == SESSIONS, "a creation was lost");
    let last = times.percentile(100);
    Ok(vec![Row {
        what: "200 sessions created at once on a pool of 4",
        measured: format!("last after {}, {failed} failed", milliseconds(last)),
        beside: format!("half of them after {}", milliseconds(times.median())),
        ratio: None,
        reach: "none fails; all answered within 2 s",
        reached: failed == 0 && last <= WITHIN,
    }])
}
