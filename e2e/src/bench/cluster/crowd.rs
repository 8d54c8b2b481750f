//! Twenty sessions at once on a pool of thirty, each with its first message.

use std::{
    sync::Barrier,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};

use super::{create::end, site::Site};
use crate::bench::{
    connection::Connection,
    report::Row,
    rows::{PARTIAL, Scale, message, messages_path},
    statistics::Times,
};

const AGENT: &str = "crowded";
/// The goal for nearly all of them.
const WITHIN: Duration = Duration::from_millis(400);
/// What says that a message was taken.
const TAKEN: &[u8] = b"event: session_start";

/// A session of the crowd, with what was seen of it since all began.
struct Seen {
    id: String,
    created: Duration,
    taken: Duration,
    partial: Duration,
}

pub(super) fn measure(site: &Site<'_>, scale: Scale) -> anyhow::Result<Vec<Row>> {
    let at_once = scale.at_once;
    // Thirty for twenty.
    let warm = u32::try_from(at_once * 3 / 2)?;
    site.agent(AGENT, warm)?;
    let (mut created, mut taken, mut partial) = (Times::default(), Times::default(), Times::default());
    for _ in 0..scale.crowds {
        site.settled(AGENT, warm)?;
        let start = Barrier::new(at_once);
        let seen: Vec<Seen> = thread::scope(|scope| {
            let started: Vec<_> = (0..at_once).map(|_| scope.spawn(|| one(site.connection()?, &start))).collect();
            started
                .into_iter()
                .map(|one| one.join().map_err(|_| anyhow::anyhow!("a client ended"))?)
                .collect::<anyhow::Result<_>>()
        })?;
        let mut connection = site.connection()?;
        for seen in seen {
            created.push(seen.created);
            taken.push(seen.taken);
            partial.push(seen.partial);
            end(&mut connection, &seen.id)?;
        }
    }
    site.forget(AGENT)?;
    Ok(vec![Row {
        what: "20 sessions at once, pool of 30: POST of the session until its first message is taken",
        measured: format!("{}, {} sessions {at_once} at a time", taken.summary(), taken.len()),
        beside: format!(
            "until 201 {}; until the first partial {}; agent-sandbox, same kind of cluster, claim to Ready: p50 942 ms, max \
             2008 ms",
            created.summary(),
            partial.summary()
        ),
        ratio: None,
        reach: "p99 400 ms",
        reached: taken.percentile(99) <= WITHIN && at_once >= 20,
    }])
}

fn one(mut connection: Connection, all: &Barrier) -> anyhow::Result<Seen> {
    let message = message("hello");
    all.wait();
    let start = Instant::now();
    let answer = connection.send("POST", "/api/sessions", &format!(r#"{{"agent":"{AGENT}"}}"#), &[])?;
    let created = start.elapsed();
    ensure!(answer.status == 201, "{}", answer.json()?);
    let id = answer.json()?["session"]["id"].as_str().context("a session's id")?.to_owned();
    let before = start.elapsed();
    let turn = connection.send("POST", &messages_path(&id), &message, &[TAKEN, PARTIAL])?;
    Ok(Seen { id, created, taken: before + turn.at(0)?, partial: before + turn.at(1)? })
}
