//! Idle bridges: the memory of one, the processor time of many and of their server.

use std::{thread, time::Duration};

use anyhow::{Context, ensure};
use futures::{StreamExt, stream};

use super::{BRIDGE, CLAUDE, Scale, asleep::mebibytes, server, server_with_stand_in};
use crate::{
    bench::{
        processes::{cpu, in_sandboxes, proportional_bytes, thread_cpu},
        report::Row,
        statistics::milliseconds,
    },
    harness::{TestApp, eventually, pid_of},
};

/// Sessions that are created at the same time.
const AT_ONCE: usize = 8;
/// How long everything rests before it is watched.
const REST: Duration = Duration::from_secs(15);
/// The goals: bytes of a bridge, processor time of all.
const BRIDGE_BYTES: u64 = 2 << 20;
const BUSY: Duration = Duration::from_millis(100);

pub(super) async fn measure(scale: Scale) -> anyhow::Result<Vec<Row>> {
    Ok(vec![memory().await?, processor_time(scale).await?])
}

/// One bridge alone, after a turn of the real Claude Code: it shares pages with no other.
async fn memory() -> anyhow::Result<Row> {
    let app = server().argument("--max-sandboxes=1").start().await;
    let session = app.session().await;
    app.say(&session, "hello").await;
    let sandbox = app.session_folder(&session.id);
    thread::sleep(Duration::from_secs(2));
    let bytes = |name: &str| proportional_bytes(pid_of(&sandbox, name).with_context(|| format!("no {name} runs"))?);
    let (bridge, claude) = (bytes(BRIDGE)?, bytes(CLAUDE)?);
    Ok(Row {
        what: "bridge, idle (PSS)",
        measured: format!("{:.2} MiB", mebibytes(bridge)),
        beside: format!("its Claude Code {:.0} MiB", mebibytes(claude)),
        ratio: None,
        reach: "2 MiB",
        reached: bridge <= BRIDGE_BYTES,
    })
}

async fn processor_time(scale: Scale) -> anyhow::Result<Row> {
    let app = server_with_stand_in()
        .argument(format!("--max-sandboxes={}", scale.idle))
        .argument("--warm=0")
        .argument("--idle-timeout=1h")
        .start()
        .await;
    app.deploy("simple", &[("CLAUDE.md", "You are a simple agent.\n")]).await;
    stream::iter(0..scale.idle)
        .for_each_concurrent(AT_ONCE, |_| async {
            let session = app.session_of("simple").await;
            app.say(&session, "hello").await;
        })
        .await;
    eventually("all bridges idle", async || {
        let health = app.client.health().await.ok()?;
        (health.pool.waiting >= scale.idle as u64).then_some(())
    })
    .await;
    let bridges = in_sandboxes(&app.data().join("sandboxes"), BRIDGE);
    ensure!(bridges.len() == scale.idle, "{} bridges run", bridges.len());
    thread::sleep(REST);
    let before = used(&app, &bridges)?;
    thread::sleep(scale.watch);
    let after = used(&app, &bridges)?;
    let (server, bridges) = (after.0.saturating_sub(before.0), after.1.saturating_sub(before.1));
    Ok(Row {
        what: "1,000 idle bridges, CPU of Ash over 40 s",
        measured: format!(
            "{} (server {}, bridges {}; {} over {} s)",
            milliseconds(server + bridges),
            milliseconds(server),
            milliseconds(bridges),
            scale.idle,
            scale.watch.as_secs()
        ),
        beside: "–".to_owned(),
        ratio: None,
        reach: "0.1 s",
        reached: server + bridges <= BUSY,
    })
}

/// Processor time of the server and of the bridges.
fn used(app: &TestApp, bridges: &[u32]) -> anyhow::Result<(Duration, Duration)> {
    let bridges = bridges.iter().map(|pid| thread_cpu(*pid)).sum::<anyhow::Result<Duration>>()?;
    Ok((cpu(app.server_pid())?, bridges))
}
