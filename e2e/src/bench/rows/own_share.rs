//! Ash's own share: everything between the client and a stand-in for Claude Code that answers at once.

use std::{
    fs::File,
    io::Write,
    path::Path,
    time::{Duration, Instant},
};

use anyhow::{Context, ensure};

use super::{Scale, WARM_UP, message, messages_path, pause, ratio, server_with_stand_in};
use crate::{
    bench::{alone::Alone, connection::Connection, report::Row, statistics::Times},
    harness::program,
};

/// The goals: the first event at the median and at the 99th percentile, `session_start`, a new session.
const FIRST_EVENT: (Duration, Duration) = (Duration::from_micros(500), Duration::from_millis(2));
const SESSION_START: Duration = Duration::from_micros(300);
const CREATION: Duration = Duration::from_millis(5);

const FRAMES: [&[u8]; 2] = [b"event: session_start", b"event: message"];

/// What a small transaction writes: a few pages.
const WRITTEN: [u8; 16 << 10] = [0; 16 << 10];

pub(super) async fn measure(scale: Scale) -> anyhow::Result<Vec<Row>> {
    let app = server_with_stand_in().start().await;
    let session = app.session().await;
    app.wait_warm(1).await;
    let mut alone = Alone::start(&program("stand-in-claude"), "http://127.0.0.1:9")?;
    let mut connection = Connection::open(app.address(), app.api_key())?;
    let (path, message) = (messages_path(&session.id), message("hello"));
    let mut start = Times::default();
    let (mut first, mut health, mut stand_in) = (Times::default(), Times::default(), Times::default());
    for turn in 0..WARM_UP + scale.turns * 2 {
        let line = alone.say("hello", b"\"type\":\"system\"")?.seen.context("no line of the stand-in")?;
        let answer = connection.send("GET", "/health", "", &[])?.whole;
        let turned = connection.send("POST", &path, &message, &FRAMES)?;
        if turn >= WARM_UP {
            stand_in.push(line);
            health.push(answer);
            start.push(turned.at(0)?);
            first.push(turned.at(1)?);
        }
        pause();
    }
    let (mut creation, mut write) = (Times::default(), Times::default());
    for _ in 0..scale.creations {
        app.wait_warm(1).await;
        pause();
        write.push(durable_write(&app.data())?);
        let created = connection.send("POST", "/api/sessions", r#"{"agent":"simple"}"#, &[])?;
        ensure!(created.status == 201, "{}", created.json()?);
        creation.push(created.whole);
        let id = created.json()?["session"]["id"].as_str().context("a session's id")?.to_owned();
        connection.send("DELETE", &format!("/api/sessions/{id}"), "", &[])?;
    }
    Ok(vec![
        Row {
            what: "Ash's own share: POST to first event, Claude Code answers at once",
            measured: first.summary(),
            beside: format!("the stand-in over pipes {}", stand_in.summary()),
            ratio: ratio(first.median(), stand_in.median()),
            reach: "p50 0.5 ms, p99 2 ms",
            reached: first.median() <= FIRST_EVENT.0 && first.percentile(99) <= FIRST_EVENT.1,
        },
        Row {
            what: "POST to `session_start`",
            measured: start.summary(),
            beside: format!("GET /health {}", health.summary()),
            ratio: ratio(start.median(), health.median()),
            reach: "0.3 ms",
            reached: start.median() <= SESSION_START,
        },
        Row {
            what: "create a session, warm sandbox there",
            measured: creation.summary(),
            beside: format!("one durable write of 16 KiB {}", write.summary()),
            ratio: ratio(creation.median(), write.median()),
            reach: "p50 5 ms",
            reached: creation.median() <= CREATION,
        },
    ])
}

/// How long the disk takes for what a commit cannot do without.
fn durable_write(folder: &Path) -> anyhow::Result<Duration> {
    let path = folder.join("durable-write");
    let mut file = File::create(&path)?;
    let start = Instant::now();
    file.write_all(&WRITTEN)?;
    file.sync_data()?;
    let time = start.elapsed();
    std::fs::remove_file(path)?;
    Ok(time)
}
