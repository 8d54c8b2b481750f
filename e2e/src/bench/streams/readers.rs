//! Many readers of one live session: from the first of them that has an event to each of the others.

use std::{
    collections::HashMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyhow::{Context as _, ensure};
use ash_client::{Client, Message, Session};
use ash_test_postgres::Postgres;

use super::{
    STREAM_BYTES, coordinator, each, kibibytes,
    wire::{Plan, Seen, Streams},
};
use crate::{
    bench::{processes::resident_bytes, report::Row, rows::Scale, statistics::Times},
    harness::{TestApp, Turn},
    model::Script,
};

/// The pause before each text delta: 50 events a second.
const PACE: Duration = Duration::from_millis(20);
/// Readers that are opened at the same time.
const AT_ONCE: usize = 32;
/// The goal.
const DELAY: Duration = Duration::from_millis(20);

/// The server that is read from.
struct Site<'a> {
    address: SocketAddr,
    key: &'static str,
    pid: u32,
    client: &'a Client,
    session: &'a Session,
}

/// What came of it.
struct Crowd {
    delays: Times,
    each: u64,
}

pub(crate) async fn measure(scale: Scale) -> anyhow::Result<Vec<Row>> {
    let app = TestApp::builder().log(super::LOG).model(Script::directives().keep(16)).start().await;
    let session = app.session().await;
    let near = Site {
        address: app.address(),
        key: app.api_key(),
        pid: app.server_pid(),
        client: &app.client,
        session: &session,
    };
    let near = crowd(&near, scale).await?;
    drop(app);
    let postgres = Postgres::start();
    let fleet = coordinator(postgres.url("postgres"), 2, false).await;
    fleet.deploy("simple").await;
    let session = fleet.session_of("simple").await;
    let far = Site {
        address: fleet.address(),
        key: fleet.api_key(),
        pid: fleet.coordinators[0].pid(),
        client: &fleet.client,
        session: &session,
    };
    let far = crowd(&far, scale).await?;
    Ok(vec![Row {
        what: "1,000 readers on one live session at 50 events/s: from the first reader that has an event to each",
        measured: format!("{} with {}; {} each", far.delays.summary(), scale.readers, kibibytes(far.each)),
        beside: format!("standalone {}; {} each", near.delays.summary(), kibibytes(near.each)),
        ratio: None,
        reach: "p99 20 ms; 20 KiB each",
        reached: far.delays.percentile(99) <= DELAY && far.each <= STREAM_BYTES,
    }])
}

async fn crowd(site: &Site<'_>, scale: Scale) -> anyhow::Result<Crowd> {
    let warm_up = site.client.send_message(&site.session.id, &Message::text("[[text: begin]]")).await?;
    let begun = Turn::read(warm_up).await;
    ensure!(begun.error().is_none(), "the session does not answer");
    // Behind the end of that turn, which may not be in the log yet.
    let after = begun.frames.last().and_then(|frame| frame.id.clone()).context("a turn without an end")?;
    let before = resident_bytes(site.pid)?;
    let path =
        format!("/api/sessions/{}/stream?follow=true&includePartialMessages=true&after={after}", site.session.id);
    let plan = Plan { address: site.address, key: site.key, opened_at_once: AT_ONCE, to_first_entry: false };
    let streams = Streams::start(plan, vec![path; scale.readers])?;
    streams.wait_open(scale.readers).await?;
    let text = format!("[[pace: {}ms]] [[burst: {}]]", PACE.as_millis(), scale.reader_events);
    let sent = site.client.send_message(&site.session.id, &Message::text(text)).await?;
    let turn = Turn::read(sent).await;
    ensure!(turn.error().is_none(), "the turn failed: {:?}", turn.error());
    streams.wait_done(scale.readers).await?;
    let after = resident_bytes(site.pid)?;
    let seen = streams.close()?;
    Ok(Crowd { delays: delays(&seen, scale.reader_events)?, each: each(before, after, scale.readers) })
}

/// How long after the first reader that had it each reader had each entry. All have the same ones.
fn delays(seen: &[Seen], at_least: usize) -> anyhow::Result<Times> {
    let mut first: HashMap<u64, Instant> = HashMap::new();
    for (entry, at) in seen.iter().flat_map(|seen| &seen.entries) {
        first.entry(*entry).and_modify(|first| *first = (*first).min(*at)).or_insert(*at);
    }
    ensure!(first.len() >= at_least, "{} entries came, of {at_least}", first.len());
    let mut delays = Times::default();
    for seen in seen {
        ensure!(seen.entries.len() == first.len(), "a reader has {} of {} entries", seen.entries.len(), first.len());
        for (entry, at) in &seen.entries {
            delays.push(*at - *first.get(entry).context("an entry that nobody had")?);
        }
    }
    Ok(delays)
}
