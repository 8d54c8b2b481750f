//! Very many open streams on one coordinator, from this process.

use std::time::Duration;

use ash_test_postgres::Postgres;

use super::{
    STREAM_BYTES, coordinator, each, kibibytes,
    wire::{Plan, Streams},
};
use crate::bench::{processes::resident_bytes, report::Row, rows::Scale, statistics::Times};

/// Sessions that are read.
const SESSIONS: usize = 20;
/// Streams that are opened at the same time.
const AT_ONCE: usize = 16;
/// The goal.
const FIRST: Duration = Duration::from_millis(50);

pub(crate) async fn measure(scale: Scale) -> anyhow::Result<Vec<Row>> {
    // This process has one end of each; the coordinator raises its own bound.
    let open_files = rustix::process::getrlimit(rustix::process::Resource::Nofile).maximum;
    let raised = rustix::process::Rlimit { current: open_files, maximum: open_files };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised)?;
    let postgres = Postgres::start();
    let fleet = coordinator(postgres.url("postgres"), SESSIONS, true).await;
    fleet.deploy("simple").await;
    let mut paths = Vec::new();
    for _ in 0..SESSIONS {
        let session = fleet.session_of("simple").await;
        fleet.say(&session, "hello").await;
        paths.push(format!("/api/sessions/{}/stream?follow=true&after=0", session.id));
    }
    let pid = fleet.coordinators[0].pid();
    let before = resident_bytes(pid)?;
    let plan = Plan { address: fleet.address(), key: fleet.api_key(), opened_at_once: AT_ONCE, to_first_entry: true };
    let paths = paths.iter().cycle().take(scale.streams).cloned().collect();
    let streams = Streams::start(plan, paths)?;
    streams.wait_open(scale.streams).await?;
    let after = resident_bytes(pid)?;
    let mut first = Times::default();
    streams.close()?.iter().for_each(|seen| first.push(seen.opened));
    let each = each(before, after, scale.streams);
    Ok(vec![Row {
        what: "10,000 open streams on one coordinator, from a second process on loopback: connect to first event",
        measured: format!("{} of {}; {} each", first.summary(), scale.streams, kibibytes(each)),
        beside: format!("{AT_ONCE} at a time, of {SESSIONS} sessions, from the beginning of the log"),
        ratio: None,
        reach: "p99 50 ms; 20 KiB each",
        reached: first.percentile(99) <= FIRST && each <= STREAM_BYTES,
    }])
}
