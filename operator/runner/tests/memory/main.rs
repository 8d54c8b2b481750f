//! How much memory a runner takes while its sessions write more than the store takes. A process of its own: it is measured as a
//! whole.
#![allow(clippy::unwrap_used, clippy::missing_panics_doc)]

#[allow(dead_code, reason = "shared with the tests of pods, which need more of it")]
#[path = "../pods/stand_in.rs"]
mod stand_in;
#[path = "../pods/stoppable.rs"]
mod stoppable;
#[allow(dead_code, reason = "shared with the tests of pods, which need more of it")]
#[path = "../pods/world.rs"]
mod world;

use ash_core::{Entry, Sequence, ports::Runner as _, session::Session, sse::Position};
use ash_protocol::frame::Frame;
use ash_runner::MIN_LOG_MEMORY_BYTES;
use bytes::Bytes;
use futures::future::join_all;
use stand_in::{StandIn, said};
use tokio::time::timeout;
use world::{DEADLINE, World, eventually};

/// Sessions that write as much as they can.
const WRITERS: usize = 10;
/// The length of their lines: two fit the budget.
const LINE_BYTES: usize = 24 << 20;
/// Lines of each.
const LINES: u32 = 2;

/// Bytes of this process's memory that are resident.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().strip_suffix("kB").unwrap().trim().parse::<u64>().unwrap() * 1024
}

/// A line, of which all share the bytes.
fn line(session: &Session, n: u32, body: &Bytes) -> Entry {
    said(session.epoch.sequence(n), body.clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn sessions_together_take_no_more_than_their_share_while_the_store_takes_nothing() {
    let mut world = World::with_stand_in().await;
    world.max_sandboxes = WRITERS + 1;
    let life = world.start().await;
    let mut writers = Vec::new();
    for _ in 0..WRITERS {
        writers.push(StandIn::claimed(&world, &life).await);
    }
    let (quiet, mut quiet_bridge, _) = StandIn::claimed(&world, &life).await;
    let body = Bytes::from(format!("{{\"x\":\"{}\"}}", "a".repeat(LINE_BYTES)));

    world.appends.send_replace(false);
    let before = resident_bytes();
    let all = |n: u32| n + 2;
    let writing = writers.iter_mut().map(async |(session, bridge, _)| {
        for n in 0..LINES {
            bridge.send(&Frame::event(&line(session, all(n), &body))).await;
        }
        bridge.acknowledged(session.epoch.sequence(all(LINES - 1))).await;
    });
    let look = async {
        eventually("all wait but those whose lines fit", async || {
            (life.metric("ash_runner_bridges_held_back_total") >= WRITERS as u64).then_some(())
        })
        .await;
        let held = life.metric("ash_runner_unwritten_bytes");
        assert!(held <= MIN_LOG_MEMORY_BYTES, "{held} bytes");
        let grown = resident_bytes().saturating_sub(before);
        // Without a bound it would be what all have written: 480 MiB.
        assert!(grown < 2 * MIN_LOG_MEMORY_BYTES, "{} MiB", grown >> 20);
        // Who has little to say is read all the same.
        let mut reader = life.runner.read(&quiet, Position::after(Sequence::START)).await.unwrap();
        let last = quiet.epoch.sequence(2);
        quiet_bridge.send(&Frame::event(&said(last, Bytes::from_static(b"{}")))).await;
        while reader.position() < last {
            timeout(DEADLINE, reader.next()).await.unwrap().unwrap().unwrap();
        }
        world.appends.send_replace(true);
    };
    timeout(DEADLINE, async { tokio::join!(join_all(writing), look) }).await.unwrap();
    for (session, ..) in &writers {
        assert_eq!(world.row_of(session).await.last, session.epoch.sequence(all(LINES - 1)));
    }
    eventually("all is given back", async || (life.metric("ash_runner_unwritten_bytes") == 0).then_some(())).await;
}
